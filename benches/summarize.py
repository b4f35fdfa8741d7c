"""Time and peak memory of `summarize` and `report` on many records, beside DuckDB on the same files. Needs numpy, polars and duckdb.

    python benches/summarize.py BINARY FOLDER [PAIRS]

makes PAIRS (20,000,000) pairs with ten parameter tensors each in FOLDER, where it does not hold them yet (about 9 GB)."""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

binary, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
pairs = int(sys.argv[3]) if len(sys.argv) > 3 else 20_000_000
PART = 1_000_000
leaf = folder / "run=made-up" / "step=0" / "dataset=large"


def make():
    import numpy as np
    import polars as pl

    random = np.random.default_rng(0)
    for table in ("pairs", "params"):
        (leaf / f"{table}.parquet").mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, pairs, PART)):
        n = min(PART, pairs - first)
        path = leaf / f"pairs.parquet/{number:05}.parquet"
        if path.exists():
            continue
        pair = np.arange(first, first + n, dtype=np.uint64)
        # Grams of ten tensors a pair, five layers with two modules
        a, b = random.lognormal(0, 1, (2, n, 10))
        rho = np.clip(random.normal(0.3, 0.4, (n, 10)), -0.99, 0.99)
        ww, ll, wl = a * a, b * b, rho * a * b
        tensors = [(layer, module) for layer in range(5) for module in ("self_attn.q_proj", "mlp.up_proj")]
        pl.DataFrame({
            "pair": np.repeat(pair, 10),
            "param": pl.Series([f"model.layers.{layer}.{module}.weight" for layer, module in tensors] * n, dtype=pl.String),
            "layer": np.tile(np.array([layer for layer, _ in tensors], dtype=np.uint32), n),
            "module": pl.Series([module for _, module in tensors] * n, dtype=pl.String),
            "ww": ww.ravel(), "wl": wl.ravel(), "ll": ll.ravel(),
        }).write_parquet(leaf / f"params.parquet/{number:05}.parquet")
        ww, wl, ll = ww.sum(1), wl.sum(1), ll.sum(1)
        cosine, ratio = wl / np.sqrt(ww * ll), np.sqrt(ll / ww)
        up, down = ww >= wl, wl <= ll
        regime = np.where(up & down, "ideal", np.where(up, "both-up", np.where(down, "both-down", "inverted")))
        count = lambda: random.integers(5, 200, n).astype(np.uint32)
        prompt = count()
        pl.DataFrame({
            "pair": pair, "id": pl.Series([None] * n, dtype=pl.String), "prompt_tokens": prompt, "chosen_tokens": count(),
            "rejected_tokens": count(), "trunk_tokens": prompt, "truncated_tokens": np.zeros(n, dtype=np.uint32), "edit_distance": count(),
            "logp_chosen": -random.gamma(2, 30, n), "logp_rejected": -random.gamma(2, 30, n), "ww": ww, "wl": wl, "ll": ll,
            "cosine": cosine, "norm_ratio": ratio, "band_low": np.where(cosine > 0, cosine * ratio, 0.0),
            "band_high": np.where(cosine > 0, ratio / cosine, np.inf), "regime_dpo": regime,
        }).write_parquet(path)


def run(name, command):
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    print(f"{name:<28} {seconds:8.1f} s   {usage.ru_maxrss / 2**20:6.2f} GiB{'' if status == 0 else '   FAILED'}", flush=True)


DUCK = """
import duckdb, sys
con = duckdb.connect(config={"memory_limit": "2GB", "threads": 2, "preserve_insertion_order": "false"})
con.execute(f"SET temp_directory = '{sys.argv[1]}/.duckdb'")
spread = lambda x: f"count({x}), avg({x}), quantile_cont({x}, [0.25, 0.5, 0.75])"
pairs, params = (f"read_parquet('{sys.argv[1]}/run=*/step=*/dataset=*/{t}.parquet/*.parquet')" for t in ("pairs", "params"))
if sys.argv[2] == "metric":
    for x in ("cosine", "wl / least(ww, ll)", "sqrt(ww)", "sqrt(ll)", "norm_ratio", "wl", "band_low", "band_high", "logp_chosen", "logp_rejected",
              "logp_chosen - logp_rejected", "edit_distance"):
        con.execute(f"SELECT {spread(x)} FROM {pairs}").fetchall()
elif sys.argv[2] == "regime":
    con.execute(f"SELECT regime_dpo, count(*) FROM {pairs} GROUP BY 1").fetchall()
else:
    keys = "layer" if sys.argv[2] == "layer" else "layer, module"
    con.execute(f"SELECT {keys}, {spread('wl / sqrt(ww * ll)')} FROM (SELECT pair, {keys}, sum(ww) ww, sum(wl) wl, sum(ll) ll FROM {params} GROUP BY ALL) GROUP BY ALL").fetchall()
"""

if sys.argv[-1] == "make":
    sys.exit(make())
# a process of its own: what it took would count as its parent's children's
subprocess.run([sys.executable, __file__, binary, folder, str(pairs), "make"], check=True)
print(f"{pairs} pairs, {10 * pairs} parameter rows, {sum(f.stat().st_size for f in folder.rglob('*.parquet') if f.is_file()) / 2**30:.1f} GiB of parquet")
for by in ("run", "metric", "regime", "layer", "module", "relation", "bin", "outlier"):
    run(f"summarize --by {by}", [binary, "summarize", folder, "--by", by])
with tempfile.TemporaryDirectory() as page:
    run("report", [binary, "report", folder, "--out", f"{page}/report.html"])
for by in ("metric", "regime", "layer", "module"):
    run(f"DuckDB, the same by {by}", [sys.executable, "-c", DUCK, folder, by])
