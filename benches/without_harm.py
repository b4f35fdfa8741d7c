"""Two data sets without a tenth of their rows: those that lower the others' chosen responses most, and as many drawn at random.

    python benches/without_harm.py PAIRS.jsonl INTERFERENCE-FOLDER OUT      (writes OUT-harmless.jsonl and OUT-random.jsonl)
"""

import random
import sys

import polars as pl

pairs, folder, out = sys.argv[1:]
rows = open(pairs).readlines()
effects = pl.read_parquet(f"{folder}/effects.parquet/*.parquet").sort("harm")
few = len(rows) // 10
dropped = {"harmless": set(effects["pair"].head(few)), "random": set(random.Random(0).sample(range(len(rows)), few))}
for kind, without in dropped.items():
    with open(f"{out}-{kind}.jsonl", "w") as file:
        file.writelines(row for at, row in enumerate(rows) if at not in without)
harm = effects["harm"]
print(f"{pairs}: harm of the rows left out {harm.head(few).mean():.4g} on average, of all {harm.mean():.4g}; {(harm < 0).mean():.0%} of all lower the others' chosen")
