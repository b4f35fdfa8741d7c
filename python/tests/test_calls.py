"""The calls against the command line and each other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tanglescope as ts

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def model(demo: Path) -> ts.Model:
    return ts.Model(demo, device="cpu")


def parts(folder: Path) -> dict[str, bytes]:
    """Every file of records by its path, but for locks and the manifest."""
    found = {}
    for path in sorted(folder.rglob("*.parquet")):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def test_the_folder_is_that_of_the_command_line_bit_for_bit(model: ts.Model, demo: Path, command: Command, tmp_path: Path) -> None:
    data = demo / "long.jsonl"
    words = ["--model", demo, "--data", data, "--limit", 5, "--device", "cpu"]
    command("analyze", *words, "--out", tmp_path / "cli", "--objective", "dpo:beta=0.2", "--objective", "simpo")
    command("tokens", *words, "--out", tmp_path / "cli-tokens")
    rows = ts.rows(data, model, limit=5)
    found = ts.analyze(model, rows, objectives=[ts.objective("dpo", beta=0.2), "simpo"], out=tmp_path / "written")
    assert parts(tmp_path / "written") == parts(tmp_path / "cli")
    passing = ts.analyze(model, rows, objectives=["dpo:beta=0.2", "simpo"])
    saved = passing.save(tmp_path / "saved")
    assert parts(tmp_path / "saved") == parts(tmp_path / "cli")
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("cli", "written", "saved")]
    for manifest in manifests:
        manifest.pop("command")
    assert manifests[0] == manifests[1] == manifests[2]
    assert ts.open(saved).table("pairs").equals(found.pairs)  # type: ignore[union-attr]
    ts.tokens(model, rows, out=tmp_path / "tokens")
    assert parts(tmp_path / "tokens") == parts(tmp_path / "cli-tokens")
    # records in passing go with their object
    folder = passing.folder
    assert os.path.isdir(folder)
    del passing
    assert not os.path.exists(folder)


def test_tables_go_to_any_reader_of_arrow(model: ts.Model, pairs: list[dict[str, Any]]) -> None:
    import pandas as pd
    import pyarrow as pa

    found = ts.analyze(model, pairs)
    assert found.pairs.height == found.responses.height == len(pairs)
    assert set(found.params["pair"]) == set(range(len(pairs)))
    table = pa.table(found.pairs)
    assert table.num_rows == len(pairs)
    frame = found.pairs.to_pandas()
    assert isinstance(frame, pd.DataFrame) and len(frame) == len(pairs)
    native = ts._native.table(found.folder, "responses.parquet")
    assert native is not None and pa.table(native).column("prompt").to_pylist() == found.responses["prompt"].to_list()
    assert found.table("groups") is None
    with pytest.raises(ts.InputError, match="objectives="):
        _ = found.objectives
    assert found.summary("layer").height == 5 and found.digest()["pairs"] == len(pairs)
    assert "DPO regimes" in str(found)


def test_grams_and_token_matrices_are_those_of_the_pairs(model: ts.Model, demo: Path) -> None:
    rows = ts.rows(demo / "long.jsonl", model, limit=3)
    found = ts.analyze(model, rows, scope="full")
    for place in range(3):
        ids = rows.ids(place)
        gram = ts.gram(model, ids.prompt, ids.responses, scope="full")
        assert gram.shape == (2, 2) and gram.dtype == np.float64
        want = found.pairs.filter(pl.col("pair") == place).select("ww", "wl", "ll").row(0)
        # f32, sums of another batch
        assert np.allclose([gram[0, 0], gram[0, 1], gram[1, 1]], want, rtol=1e-5)
        matrices = ts.tokens(model, rows[place], scope="full")
        assert matrices.wl.shape == (len(ids.chosen), len(ids.rejected))
        # a response's log-probability is the sum of its tokens'
        sums = [matrices.ww.sum(), matrices.wl.sum(), matrices.ll.sum()]
        assert np.allclose(sums, want, rtol=1e-4, atol=1e-4 * want[0])
        assert "".join(matrices[0].texts("w")) == "".join(t["text"] for t in rows.texts(place)["responses"][0])
    both = ts.tokens(model, rows[:2])
    assert len(both) == 2
    with pytest.raises(ts.InputError, match=r"t\[0\]"):
        _ = both.wl


def test_a_sweep_is_a_loop_that_resumes(demo: Path, run_of_adapters: Path, tmp_path: Path) -> None:
    rows = ts.rows(demo / "short.jsonl", demo, limit=4)
    out = tmp_path / "sweep"
    for step, _ in ts.sweep(run_of_adapters, rows, out=out, device="cpu", objectives="dpo"):
        assert step == 0
        break
    left = ts.SweepRecords(str(out)).leaves()
    assert 1 <= len(left) < 3, "the loop was left after the first"
    seen = [(step, record.pairs["cosine"].to_list()) for step, record in ts.sweep(run_of_adapters, rows, out=out, device="cpu", objectives="dpo")]
    assert [step for step, _ in seen] == [0, 2, 4]
    again = ts.sweep(run_of_adapters, rows, out=out, device="cpu", objectives="dpo").run()
    assert [(step, leaf.pairs["cosine"].to_list()) for _, step, _, leaf in again.leaves()] == seen
    opened = ts.open(out)
    assert isinstance(opened, ts.SweepRecords) and opened.summary().height == 3
    # what one model measures, by the same numbers
    model = ts.Model(demo, device="cpu")
    for step, cosines in seen:
        model.load_adapter(run_of_adapters / f"checkpoint-{step}")
        assert ts.analyze(model, rows).pairs["cosine"].to_list() == cosines
    compared = ts.compare(opened.leaves()[0][3], opened.leaves()[2][3])
    assert {"metric", "rises", "falls"} & set(compared.columns)
    page = ts.report([opened, ts.open(run_of_adapters)], tmp_path / "report.html")
    assert "<html" in Path(page.path).read_text()[:2000]


def test_a_run_is_watched_until_it_is_interrupted(run_of_adapters: Path) -> None:
    """The page is there at the address that is printed; Ctrl-C ends the call."""
    program = f"import tanglescope as ts\ntry:\n    ts.watch({str(run_of_adapters)!r}, port=0)\nexcept KeyboardInterrupt:\n    print('interrupted')\n"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split(" ")[0]
        with urllib.request.urlopen(address, timeout=60) as answer:
            page = answer.read().decode()
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert "In 4 steps of training on dpo" in page
    assert said == "interrupted\n" and process.returncode == 0


def test_rows_are_the_same_in_every_call(demo: Path, run_of_adapters: Path, tmp_path: Path) -> None:
    """Scores decide which response is the best; ids and texts come along."""
    group = {"id": "g", "prompt_ids": [5, 6, 7], "responses_ids": [[10, 11], [12, 13, 14], [15]], "scores": [0.1, 0.9, 0.5]}
    rows = ts.rows([group])
    model = ts.Model(demo, adapter=run_of_adapters / "checkpoint-4", device="cpu")
    here = ts.analyze(model, rows).pairs.select("id", "chosen_tokens", "rejected_tokens", "logp_chosen")
    [(_, _, _, swept)] = ts.sweep(run_of_adapters / "checkpoint-4", rows, out=tmp_path / "sweep", model=demo, device="cpu").run().leaves()
    assert swept.pairs.select("id", "chosen_tokens", "rejected_tokens", "logp_chosen").equals(here)
    assert here.row(0)[:3] == ("g", 3, 2)
    transformers = pytest.importorskip("transformers")
    texts = ts.rows(demo / "short.jsonl", transformers.AutoTokenizer.from_pretrained(demo), limit=2)
    assert texts[1].texts(0)["prompt"][0]["text"] == texts.texts(1)["prompt"][0]["text"] is not None


def test_training_and_verification(demo: Path, run_of_adapters: Path) -> None:
    trained = ts.open(run_of_adapters)
    assert isinstance(trained, ts.Training) and trained.steps["step"].max() == 4
    checks = ts.verify(demo, demo / "short.jsonl", pairs=1, device="cpu")
    assert checks and all(check["passed"] for check in checks)
    assert ts.inspect(demo)["model"] is not None
    assert any(device["device"] == "cpu" for device in ts.devices()["devices"])


def test_progress_is_told_to_functions_bars_and_the_log(model: ts.Model, pairs: list[dict[str, Any]], caplog: pytest.LogCaptureFixture) -> None:
    told: list[ts.Progress] = []
    with caplog.at_level("INFO", logger="tanglescope"):
        ts.analyze(model, pairs * 4, progress=told.append)
    assert told[-1].pairs == told[-1].total_pairs == 4 * len(pairs)
    assert [of.rows for of in told] == sorted(of.rows for of in told)
    assert any("recipe" in record.message for record in caplog.records)
    ts.analyze(model, pairs, progress=True)
    with pytest.raises(TypeError, match="progress"):
        ts.analyze(model, pairs, progress="yes")  # type: ignore[arg-type]

    class MyError(Exception):
        pass

    def fails(_: ts.Progress) -> None:
        raise MyError

    with pytest.raises(MyError):
        ts.analyze(model, pairs, progress=fails)
    # and the model is as good as before
    assert ts.analyze(model, pairs).pairs.height == len(pairs)


def test_ctrl_c_ends_a_call_within_a_second_and_the_same_call_goes_on(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = f"""
import os, signal, sys, threading, time
import tanglescope as ts
model = ts.Model({str(demo)!r}, device="cpu")
rows = ts.rows({str(demo / "long.jsonl")!r}, model)
state = {{}}
def tell(progress):
    if "at" not in state and progress.pairs > 0:
        state["at"] = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)
try:
    ts.analyze(model, rows, scope="full", out={str(out)!r}, progress=tell)
except KeyboardInterrupt:
    print("stopped after", time.monotonic() - state["at"])
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert float(done.stdout.split()[-1]) < 1.0, done.stdout
    model = ts.Model(demo, device="cpu")
    rows = ts.rows(demo / "long.jsonl", model)
    found = ts.analyze(model, rows, scope="full", out=out)
    assert found.pairs.equals(ts.analyze(model, rows, scope="full").pairs)


def test_several_threads_take_turns_and_let_python_run(model: ts.Model, demo: Path) -> None:
    import threading
    import time

    rows = ts.rows(demo / "long.jsonl", model, limit=16)
    want = ts.analyze(model, rows).pairs
    found: list[pl.DataFrame] = []
    threads = [threading.Thread(target=lambda: found.append(ts.analyze(model, rows).pairs)) for _ in range(3)]
    ticks = 0
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.001)
        ticks += 1
    assert ticks > 10, "the interpreter's lock was held"
    assert len(found) == 3 and all(of.equals(want) for of in found)


def test_shards_join_into_the_folder_of_one_call(model: ts.Model, demo: Path, tmp_path: Path) -> None:
    rows = ts.rows(demo / "short.jsonl", model, limit=150)
    ts.analyze(model, rows, out=tmp_path / "whole", objectives="dpo")
    for shard in ("2/3", "3/3", "1/3"):
        ts.analyze(model, rows, out=tmp_path / "shards", objectives="dpo", shard=shard)
    assert parts(tmp_path / "whole") == parts(tmp_path / "shards")


def test_objectives_are_functions_of_numbers_lists_and_arrays() -> None:
    dpo = ts.objective("dpo", beta=0.1)
    margin = 0.1 * ((-41.25 + 40.0) - (-63.5 + 60.0))
    one = dpo(-41.25, -63.5, ref_w=-40.0, ref_l=-60.0)
    assert one.loss == pytest.approx(np.log1p(np.exp(-margin)), rel=1e-15)
    assert one.d_w == one.d_l == pytest.approx(0.1 / (1 + np.exp(margin)), rel=1e-15)
    many = dpo(np.array([-41.25, -1.0]), np.array([-63.5, -2.0]), ref_w=[-40.0, -1.0], ref_l=[-60.0, -1.5])
    assert isinstance(many.loss, np.ndarray) and many.loss[0] == one.loss
    assert dpo([-41.25], [-63.5], [-40.0], [-60.0]).loss == [one.loss]
    assert ts.objective("dpo:beta=0.1").given == dpo.given
    assert ts.objective("simpo")(-10.0, -12.0, n_w=5, n_l=4).d_w > 0
    with pytest.raises(ts.InputError, match="ref_w"):
        dpo(-1.0, -2.0)
    with pytest.raises(ts.InputError, match="there is no `dpoo`"):
        ts.objective("dpoo")
    with pytest.raises(ts.InputError, match="its keys are"):
        ts.objective("dpo", gamma=1.0)
    with pytest.raises(ts.InputError, match="logp_l: has 1 values"):
        dpo([-1.0, -2.0], [-1.0], [-1.0, -1.0], [-1.0, -1.0])
    with pytest.raises(ts.InputError, match="ww, wl and ll"):
        ts.objective("normalised")(-1.0, -2.0, -1.0, -2.0)
    assert {"dpo", "simpo", "orpo"} <= {of["name"] for of in ts.objectives()}


def test_results_show_themselves(model: ts.Model, pairs: list[dict[str, Any]]) -> None:
    rows = ts.rows(pairs, model)
    found = ts.analyze(model, rows)
    page = found._repr_html_()
    assert page.count("<svg") == 2 and "<table" in page
    heat = ts.tokens(model, rows[0])._repr_html_()
    assert heat.count("<td") == len(rows.ids(0).chosen) * len(rows.ids(0).rejected)
    assert "row 0" in rows._repr_html_() and "Rows: 6 rows" in repr(rows)


def test_interference_is_the_gram_of_all_responses(model: ts.Model, demo: Path, tmp_path: Path) -> None:
    rows = ts.rows(demo / "single.jsonl", model)[:3]
    found = ts.interference(model, rows, objectives="simpo", batches=[[0, 1], [2]], by_layer=True, out=tmp_path / "out")
    matrix = found.matrix
    n = len(found.pairs)
    assert matrix.shape == (2 * n, 2 * n) and np.array_equal(matrix, matrix.T)
    assert np.array_equal(np.diag(matrix)[0::2], found.pairs["ww"].to_numpy())
    assert np.array_equal(np.diag(matrix, 1)[0::2], found.pairs["wl"].to_numpy())
    # a step on a batch, by hand: 1/|B| Σ (d_w g_w − d_l g_l)
    d = {pair: (d_w, d_l) for pair, d_w, d_l in found.objectives.select("pair", "d_w", "d_l").iter_rows()}
    numbers = found.pairs["pair"].to_list()
    weights = np.zeros(2 * n)
    for pair in (0, 1):
        at = numbers.index(pair)
        weights[2 * at], weights[2 * at + 1] = d[pair][0] / 2, -d[pair][1] / 2
    step = matrix @ weights
    of_batch = found.batches.filter(found.batches["batch"] == 0)
    moved = (of_batch["own_w"] + of_batch["others_w"]).to_numpy()
    assert np.allclose(moved, step[0::2], rtol=1e-9, atol=1e-12 * np.abs(step).max())
    assert found.spectrum["eigenvalue"].sum() == pytest.approx(np.trace(matrix))
    assert set(found.effects["pair"]) == set(numbers) and found.batch_sizes["batch_size"].max() == n
    with pytest.raises(ts.InputError, match="optimizer"):
        ts.analyze(model, rows, metric="adam")
