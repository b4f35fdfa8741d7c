#!/usr/bin/env python3
"""Draws docs/figures/sentiment.png: python3 sentiment.py SINGLE SHORT LONG, three result folders of `analyze`.

Needs polars and matplotlib.
"""
import sys
from pathlib import Path

import matplotlib
import polars as pl

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LABELS = ["nothing else", "a short common end", "a long common end"]
COLOURS = ["#0072b2", "#e69f00", "#d55e00"]  # told apart by colour-blind readers too

figure, axes = plt.subplots(figsize=(8, 3.2), dpi=150)
for folder, label, colour in zip(sys.argv[1:4], LABELS, COLOURS, strict=True):
    cosine = pl.read_parquet(f"{folder}/pairs.parquet/*.parquet")["cosine"].drop_nulls()
    axes.hist(cosine, bins=60, range=(-0.2, 1), histtype="stepfilled", alpha=0.35, color=colour)
    axes.hist(cosine, bins=60, range=(-0.2, 1), histtype="step", color=colour, label=f"{label}: median {cosine.median():.3f}")
    axes.axvline(cosine.median(), color=colour, linestyle=":")
axes.set_xlabel("cosine of the gradients of log π(chosen) and log π(rejected)")
axes.set_ylabel("pairs")
axes.set_xlim(-0.2, 1)
axes.legend(title="one token that differs, then", frameon=False, loc="upper left", alignment="left")
axes.spines[["top", "right"]].set_visible(False)
figure.tight_layout()
figure.savefig(Path(__file__).with_name("sentiment.png"))
