"""A sweep on three Ray nodes of this machine: a lost node, a killed driver, the tables of one process."""

from __future__ import annotations

import inspect
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tanglescope as ts

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")

STEPS = 24


@pytest.fixture(scope="module")
def many(run_of_adapters: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of many checkpoints."""
    out = tmp_path_factory.mktemp("many") / "run"
    out.mkdir()
    sources = [run_of_adapters / f"checkpoint-{step}" for step in (0, 2, 4)]
    for step in range(STEPS):
        shutil.copytree(sources[step % 3], out / f"checkpoint-{step}")
    return out


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False})
    for _ in range(2):
        found.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    ray.init(address=found.address, log_to_driver=False)
    yield found
    ray.shutdown()
    found.shutdown()


def parts(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.parquet")) if path.is_file()}


@pytest.fixture(scope="module")
def alone(many: Path, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The tables that one process writes."""
    out = tmp_path_factory.mktemp("alone") / "out"
    ts.sweep(many, {"rows": demo / "long.jsonl"}, out=out, pairs=24, model=demo, device="cpu", objectives="dpo").run()
    return parts(out)


def test_it_takes_what_a_sweep_takes() -> None:
    import tanglescope.ray

    arguments = [inspect.signature(call).parameters for call in (ts.sweep, tanglescope.ray.sweep)]
    assert set(arguments[0]) - set(arguments[1]) == {"shard"}, "Ray divides the work itself"
    assert all(arguments[1][name].default == of.default for name, of in arguments[0].items() if name != "shard")


def test_a_lost_node_loses_nothing(cluster: Any, many: Path, demo: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    import tanglescope.ray

    out = tmp_path / "out"
    seen: list[tuple[int, str]] = []
    state: dict[str, Any] = {}

    def told(done: int, number: int, job: dict[str, Any]) -> None:
        assert number == STEPS
        seen.append((job["step"], job["node"]))
        if len(seen) == 3:
            # a node that works, and is not the driver's
            state["lost"] = next(iter(cluster.worker_nodes))
            cluster.remove_node(state["lost"], allow_graceful=False)

    found = tanglescope.ray.sweep(many, {"rows": demo / "long.jsonl"}, out=out, pairs=24, model=demo, device="cpu", objectives="dpo", progress=told)
    assert sorted(step for step, _ in seen) == list(range(STEPS)), "each once"
    assert len({node for _, node in seen}) > 1
    assert parts(out) == alone
    assert found is not None and len(found.leaves()) == STEPS


def test_a_killed_driver_goes_on(cluster: Any, many: Path, demo: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = f"""
import ray, tanglescope.ray
ray.init(address={cluster.address!r}, log_to_driver=False)
told = lambda done, of, job: print("measured", job["step"], flush=True)
tanglescope.ray.sweep({str(many)!r}, {{"rows": {str(demo / "long.jsonl")!r}}}, out={str(out)!r}, pairs=24, model={str(demo)!r}, device="cpu",
    objectives="dpo", progress=told)
"""
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    # Ray says things of its own there
    measured = (line for line in driver.stdout if line.startswith("measured"))
    for _ in range(3):
        next(measured)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = parts(out)
    assert 0 < len(before) < len(alone)
    # its workers end with it
    time.sleep(5)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert parts(out) == alone


def test_rows_of_the_driver_and_what_is_left_out(cluster: Any, many: Path, demo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import tanglescope.ray

    run = tmp_path / "run"
    for step in (0, 1):
        shutil.copytree(many / f"checkpoint-{step}", run / f"checkpoint-{step}")
    (run / "checkpoint-1" / "adapter_model.safetensors").write_bytes(b"broken")
    rows = ts.rows([{"prompt": "a", "chosen": " b", "rejected": " c"}] * 3, demo)
    with caplog.at_level("WARNING", logger="tanglescope"):
        found = tanglescope.ray.sweep(run, rows, out=tmp_path / "out", model=demo, device="cpu")
    assert found is not None and [leaf[1] for leaf in found.leaves()] == [0]
    assert any("step 1" in record.message for record in caplog.records)


def test_records_go_to_object_storage(cluster: Any, many: Path, demo: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
    """As pyarrow's file systems have it; here the one of local files."""
    import tanglescope.ray

    run, out = tmp_path / "run", (tmp_path / "bucket").as_uri()
    for step in (0, 1, 2):
        shutil.copytree(many / f"checkpoint-{step}", run / f"checkpoint-{step}")
    for _ in range(2):
        started = time.monotonic()
        asked: dict[str, Any] = {"pairs": 24, "model": demo, "device": "cpu", "objectives": "dpo"}
        assert tanglescope.ray.sweep(run, {"rows": demo / "long.jsonl"}, out=out, **asked) is None
    assert time.monotonic() - started < 60
    fetched = tanglescope.ray.fetch(out, tmp_path / "here")
    assert [leaf[1] for leaf in fetched.leaves()] == [0, 1, 2]
    assert parts(tmp_path / "here") == {name: of for name, of in alone.items() if any(f"step={step}/" in name for step in (0, 1, 2))}
