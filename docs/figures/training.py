#!/usr/bin/env python3
"""Draws figures/training.png and prints the table of docs/training.md from the folder that benches/training.sh filled.

    training.py OUT      needs polars and matplotlib
"""
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import polars as pl

out = Path(sys.argv[1])
runs = [("dpo-single", "single"), ("dpo-short", "short"), ("dpo-long", "long"), ("dpo-hh", "hh-rlhf")]
runs = [(run, name) for run, name in runs if (out / run / "log.jsonl").exists()]
figure, axes = plt.subplots(2, len(runs), figsize=(3.2 * len(runs), 5), sharex="col", layout="constrained")
print("| data | median cosine, first and last tenth of the steps | held-out log π(chosen) | held-out log π(rejected) | reward accuracy | steps' pairs ideal / both down |")
print("| --- | --- | --- | --- | --- | --- |")
for (run, name), (above, below) in zip(runs, axes.T):
    log = pl.read_ndjson(out / run / "log.jsonl", infer_schema_length=None)
    steps = pl.read_parquet(out / run / "steps.parquet" / "*.parquet")
    held = log.filter(pl.col("eval_loss").is_not_null())
    for key, label, colour in [("chosen", "chosen", "#0072b2"), ("rejected", "rejected", "#d55e00")]:
        above.plot(held["step"], held[f"eval_logps/{key}"], label=label, color=colour, marker="o", markersize=3)
    medians = steps.group_by("step").agg(pl.col("cosine").median()).sort("step")
    below.plot(medians["step"], medians["cosine"], color="#009e73", linewidth=1)
    below.axhline(0, color="gray", linewidth=0.5)
    above.set_title(name)
    below.set_xlabel("step")
    tenth = max(medians.height // 10, 1)
    first, last = (steps.filter(keep)["cosine"].median() for keep in (pl.col("step") <= tenth, pl.col("step") > medians.height - tenth))
    ends = lambda key: f"{held[key][0]:.2f} → {held[key][-1]:.2f}"
    share = lambda regime: 100 * (steps["regime"] == regime).mean()
    print(
        f"| {name} | {first:.3f} → {last:.3f} | {ends('eval_logps/chosen')} | {ends('eval_logps/rejected')} "
        f"| {held['eval_rewards/accuracies'][-1]:.2f} | {share('ideal'):.0f} % / {share('both-down'):.0f} % |"
    )
axes[0][0].set_ylabel("held-out log π")
axes[1][0].set_ylabel("median cosine of the step's pairs")
axes[0][0].legend(frameon=False)
figure.savefig(Path(__file__).with_name("training.png"), dpi=110)
print()
print("| data | split | response | correlation of predicted and measured change | median |predicted − measured| over median |measured| |")
for run, name in runs:
    found = pl.read_parquet(out / run / "predictions.parquet" / "*.parquet").filter(pl.col("step") > 1)
    for split in ("batch", "held_out"):
        for branch in ("w", "l"):
            rows = found.filter((pl.col("split") == split) & (pl.col("branch") == branch))
            off = (rows["predicted"] - rows["measured"]).abs().median() / rows["measured"].abs().median()
            print(f"| {name} | {split} | {branch} | {pl.DataFrame(rows).select(pl.corr('predicted', 'measured')).item():.3f} | {off:.3f} |")
