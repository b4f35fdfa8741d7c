"""What cannot be used ends in an exception that says what to do; never in a crash."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tanglescope as ts


def test_the_tree_of_exceptions() -> None:
    assert issubclass(ts.InputError, (ts.TanglescopeError, ValueError)) and issubclass(ts.Unsupported, ts.InputError)
    assert issubclass(ts.DeviceError, ts.TanglescopeError) and not issubclass(ts.DeviceError, ts.InputError)


def test_options_are_named_as_keywords(demo: Path, pairs: list[dict[str, Any]]) -> None:
    model = ts.Model(demo, device="cpu")
    rows = ts.rows(pairs, model)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: ts.analyze(model, rows, scope="nothing_of_that_name"), "scope=nothing_of_that_name"),
        (lambda: ts.analyze(model, rows, scope="["), "scope"),
        (lambda: ts.analyze(model, rows, lora_r=0), "lora_r=0: a rank is at least 1"),
        (lambda: ts.analyze(model, rows, lora_targets=["no_proj"]), "no_proj"),
        (lambda: ts.analyze(model, rows, objectives=["dpoo"]), "there is no `dpoo`"),
        (lambda: ts.analyze(model, rows, objectives="dpo", reference="no/such"), "no/such"),
        (lambda: ts.analyze(model, rows, shard="3/2"), "shard=3/2"),
        (lambda: ts.Model(demo, dtype="bf16", device="cpu"), "dtype=bf16"),
        (lambda: ts.Model(demo, dtype="tf32", device="cpu"), "dtype=tf32: is of CUDA devices, and cpu"),
        (lambda: ts.Model(demo, dtype="f31"), "f31"),  # type: ignore[arg-type]
        (lambda: ts.Model(demo, device="gpu"), "expected cpu, cuda"),
        (lambda: ts.Model(demo, memory=-1), "memory"),
        (lambda: ts.rows(pairs, model, tokenize="trll"), "trll"),  # type: ignore[arg-type]
    ]
    for call, part in cases:
        with pytest.raises(ts.InputError) as raised:
            call()
        text = str(raised.value)
        assert part in text and "--" not in text, text


def test_the_device_is_named(demo: Path) -> None:
    with pytest.raises(ts.DeviceError, match="device=cuda:7|device=vulkan:77"):
        ts.Model(demo, device="vulkan:77")


def test_models_that_are_none(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(ts.InputError, match="no such folder|offline|hub"):
        ts.Model(tmp_path / "nothing")
    with pytest.raises(ts.InputError):
        ts.Model(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    config = json.loads((demo / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "hidden_act": "swoosh"}))
    (broken / "model.safetensors").write_bytes((demo / "model.safetensors").read_bytes())
    with pytest.raises(ts.Unsupported) as raised:
        ts.Model(broken)
    assert raised.value.key == "hidden_act" and str(raised.value.file).endswith("config.json")
    (broken / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 6}))
    with pytest.raises(ts.InputError) as of_tensor:
        ts.Model(broken)
    assert of_tensor.value.tensor is not None and "layers.5" in of_tensor.value.tensor
    with pytest.raises(ts.InputError, match="a file of data"):
        ts.Model(demo / "single.jsonl")


def test_a_closed_model_is_refused(demo: Path, pairs: list[dict[str, Any]]) -> None:
    with ts.Model(demo, device="cpu") as model:
        rows = ts.rows(pairs, model)
    assert model.closed and "closed" in repr(model)
    for call in (
        lambda: ts.analyze(model, rows),
        lambda: ts.tokens(model, rows),
        lambda: ts.gram(model, [1], [[2]]),
        lambda: ts.rows(pairs, model),
        lambda: model.load_adapter(None),
        lambda: model.description,
    ):
        with pytest.raises(ts.InputError, match="closed"):
            call()
    model.close()


def test_wrong_types(demo: Path, pairs: list[dict[str, Any]]) -> None:
    model = ts.Model(demo, device="cpu")
    rows = ts.rows(pairs, model)
    with pytest.raises(TypeError, match=r"tanglescope\.Model"):
        ts.analyze(str(demo), rows)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        ts.Model(3)  # type: ignore[arg-type]
    with pytest.raises(ts.InputError, match="token ids"):
        ts.gram(model, ["a"], [[1]])  # type: ignore[list-item]
    with pytest.raises(ts.InputError, match="token ids"):
        ts.gram(model, [-1], [[1]])
    with pytest.raises(ts.InputError, match="one token at least"):
        ts.gram(model, [1], [])
    with pytest.raises(ts.InputError, match="is there already"):
        ts.analyze(model, rows).save(demo)
    with pytest.raises(ts.InputError, match="no folder of records"):
        ts.open(demo)


def test_a_fork_after_work_is_an_exception_and_not_a_hang(demo: Path) -> None:
    script = f"""
import os, sys
import tanglescope as ts
model = ts.Model({str(demo)!r}, device="cpu")
pid = os.fork()
if pid == 0:
    try:
        ts.gram(model, [1, 2], [[3], [4]])
    except RuntimeError as error:
        os._exit(7 if "spawn" in str(error) else 8)
    os._exit(9)
_, status = os.waitpid(pid, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 7


def test_a_fork_before_work_works(demo: Path) -> None:
    script = f"""
import os, sys
import tanglescope as ts
pid = os.fork()
if pid == 0:
    model = ts.Model({str(demo)!r}, device="cpu")
    os._exit(0 if ts.gram(model, [1, 2], [[3], [4]]).shape == (2, 2) else 1)
_, status = os.waitpid(pid, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0


def test_the_command_has_the_same_sentences_and_exit_codes(demo: Path, command: Any) -> None:
    bad = command("analyze", "--model", demo, "--data", demo / "single.jsonl", "--out", "/tmp/x", "--lora-r", 0, check=False)
    assert bad.returncode == 2 and "--lora-r 0: a rank is at least 1" in bad.stderr
    assert command("--version").stdout.split()[-1] == ts.__version__
    assert "analyze" in command("--help").stdout
