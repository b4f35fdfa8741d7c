"""Numbers and figure of docs/finding.md, from the folders that benches/finding.sh leaves.

    python benches/finding.py OUT [FIGURE.png]      (polars, numpy, matplotlib)
"""

import pathlib
import sys

import polars as pl

out = pathlib.Path(sys.argv[1])
sets = [name for name in ("single", "short", "long", "hh") if (out / f"analysis/run={name}/step=50").is_dir()]
with_gram = [name for name in sets if list((out / f"interference/{name}/batch_sizes.parquet").glob("*.parquet"))]
PARTS = ["own", "others", "momentum", "decay"]


def table(folder, name):
    return pl.read_parquet(f"{folder}/{name}.parquet/*.parquet")


def right(rows, *names):
    """Share of changes whose sign the sum of some columns has."""
    sign = (sum(rows[name] for name in names) > 0) == (rows["measured"] > 0)
    return f"{sign.mean():.0%}"


def changes(name, split="batch"):
    """Predicted and measured changes of log π(chosen); at a rate of zero there are none."""
    wanted = (pl.col("split") == split) & (pl.col("branch") == "w") & (pl.col("measured") != 0)
    return table(out / name, "predictions").filter(wanted)


print("sign of the measured change of log π(chosen), pairs of the step: changes, below zero, right by own Gram in plain descent, own in Adam's metric, own + others, all parts")
for name in sets:
    rows = changes(name)
    fell = rows.filter(pl.col("measured") < 0)
    said = [right(rows, "own_gram"), right(rows, "own"), right(rows, "own", "others"), right(rows, *PARTS)]
    print(name, len(rows), f"{len(fell) / len(rows):.0%}", *said)
    total = fell["predicted"].sum()
    print("   of the falls:", f"{fell['measured'].sum():.3g} measured, {total:.3g} predicted;", *(f"{part} {fell[part].sum():.3g} ({fell[part].sum() / total:.0%})" for part in PARTS))
    held = changes(name, "held_out")
    if len(held):
        print("   held out:", len(held), "changes,", f"{(held['measured'] < 0).mean():.0%} below zero; right by others {right(held, 'others')}, by all {right(held, *PARTS)}")

print("\nrandom batches by the Gram of all pairs at step 0: chosen falls, sign turned by others (1, 8, 64, all)")
for name in with_gram:
    sizes = table(out / f"interference/{name}", "batch_sizes")
    some = sizes.filter(pl.col("batch_size").is_in([1, 8, 64]) | (pl.col("batch_size") == sizes["batch_size"].max())).sort("batch_size")
    print(name, *(f"{row['batch_size']}: {row['falls_w']:.0%} {row['turned_w']:.0%}" for row in some.iter_rows(named=True)))

print("\nheld-out pairs from step 0 to 50: log π(chosen), log π(rejected): mean changes, chosen fell")
for name in sets:
    for kind in ("", "-random", "-harmless"):
        folder = out / f"analysis/run={name}{kind}"
        if not list(folder.glob("step=50/*/pairs.parquet/*.parquet")):
            continue
        before, after = (table(folder / f"step={step}/dataset=held-out", "pairs").sort("pair") for step in (0, 50))
        chosen, rejected = (after[f"logp_{of}"] - before[f"logp_{of}"] for of in ("chosen", "rejected"))
        error = chosen.std() / len(chosen) ** 0.5
        print(f"{name}{kind or ' (all)'}", f"{chosen.mean():+.2f} ± {error:.2f}", f"{rejected.mean():+.2f}", f"{(chosen < 0).mean():.0%}", f"accuracy {(chosen > rejected).mean():.0%}")

if len(sys.argv) > 2:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right_side) = plt.subplots(1, 2, figsize=(9.2, 3.4), layout="constrained")
    colours = ["#0072b2", "#e69f00", "#009e73", "#cc79a7"]
    for at, name in enumerate(sets):
        rows = changes(name).filter(pl.col("measured") < 0)
        size = -rows["predicted"].sum()
        low, high = 0.0, 0.0
        for part, colour in zip(PARTS, colours):
            share = rows[part].sum() / size
            start = high if share > 0 else low
            left.barh(at, share, left=start, color=colour, label=part if at == 0 else None)
            low, high = (low, high + share) if share > 0 else (low + share, high)
    for name in with_gram:
        sizes = table(out / f"interference/{name}", "batch_sizes").sort("batch_size")
        right_side.plot(sizes["batch_size"], sizes["falls_w"], marker="o", markersize=3, label=name)
    left.set_yticks(range(len(sets)), sets)
    left.axvline(0, color="gray", linewidth=0.5)
    left.set_xlabel("parts of the predicted falls of log π(chosen)")
    left.legend(ncol=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    left.use_sticky_edges = False
    left.margins(x=0.05)
    right_side.set_xscale("log", base=2)
    right_side.set_ylim(0, 1)
    right_side.set_xlabel("pairs of a random batch")
    right_side.set_ylabel("share whose chosen falls")
    right_side.legend(fontsize=8, loc="upper left")
    figure.savefig(sys.argv[2], dpi=150)
