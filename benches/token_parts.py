#!/usr/bin/env python3
"""What tokens make of wl, from a folder of `tanglescope tokens`: mean cosines, and parts of wl, of the same token of both responses, of two other
shared tokens, of contrast tokens, and of one of each kind (the table of docs/training.md).

    token_parts.py FOLDER

Shared tokens are those of one longest common subsequence, so the n-th shared one of each response is the same token. Needs polars."""
import sys

import polars as pl

folder = sys.argv[1]
entries = pl.read_parquet(f"{folder}/tokens.parquet/*.parquet").with_columns(pl.col("pair", "row", "column").cast(pl.Int64))
places = pl.read_parquet(f"{folder}/positions.parquet/*.parquet").with_columns(pl.col("pair", "position").cast(pl.Int64))
places = places.sort("pair", "branch", "position").with_columns(
    nth=pl.when("shared").then(pl.col("shared").cast(pl.Int64).cum_sum().over("pair", "branch")))


def side(branch, key):
    """What is known of one response's tokens: whether shared, which shared one, and the square of its gradient."""
    block = {"w": "ww", "l": "ll"}[branch]
    squares = entries.filter((pl.col("block") == block) & (pl.col("row") == pl.col("column"))).select("pair", "row", pl.col("inner").alias(f"square_{branch}"))
    of = places.filter(pl.col("branch") == branch).join(squares, left_on=["pair", "position"], right_on=["pair", "row"])
    return of.select("pair", pl.col("position").alias(key), pl.col("shared").alias(f"shared_{branch}"), pl.col("nth").alias(f"nth_{branch}"), f"square_{branch}")


wl = entries.filter(pl.col("block") == "wl").join(side("w", "row"), on=["pair", "row"]).join(side("l", "column"), on=["pair", "column"])
size = (pl.col("square_w") * pl.col("square_l")).sqrt()
both, neither = pl.col("shared_w") & pl.col("shared_l"), ~pl.col("shared_w") & ~pl.col("shared_l")
kind = pl.when(both & (pl.col("nth_w") == pl.col("nth_l"))).then(pl.lit("same")).when(both).then(pl.lit("other shared")).when(neither).then(
    pl.lit("contrast")).otherwise(pl.lit("mixed"))
parts = wl.with_columns(kind=kind, cosine=pl.when(size > 0).then(pl.col("inner") / size)).group_by("kind").agg(
    pl.col("cosine").mean(), pl.col("inner").sum(), pl.len().alias("entries")).with_columns(part=pl.col("inner") / pl.col("inner").sum())
for name in ("same", "other shared", "contrast", "mixed"):
    row = parts.filter(pl.col("kind") == name).to_dicts()
    print(f"{name:>13}: " + ("none" if not row else f"mean cosine {row[0]['cosine']:.2f}, part of wl {row[0]['part']:.2f} ({row[0]['entries']} entries)"))
