"""A sweep on a Ray cluster: checkpoints and data sets are measured wherever there is room, into one folder.

    import ray, tanglescope.ray

    ray.init(address="auto")
    records = tanglescope.ray.sweep(["runs/dpo", "runs/simpo"], {"hh": "hh.jsonl"}, out="/shared/sweep", num_gpus=1)

Each worker is an actor that keeps the base model; which of them does what, and what happens to the work of a lost node, is Ray Data's
business. Results go into the same folder as those of `tanglescope.sweep`, to the same bytes; what is there already is not done again, so that a
driver that was killed is started again.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from . import _native
from ._calls import Metric, ObjectiveLike, _fresh, _names, data_path, run_words
from ._errors import InputError, TanglescopeError
from ._model import Derivative, Dtype, PathLike, _absolute, device_words
from ._progress import Listener
from ._records import SweepRecords
from ._rows import Rows
from ._words import words

logger = logging.getLogger("tanglescope")


class _Worker:
    """An actor: measures checkpoints, and keeps the base from one to the next."""

    def __init__(self, settings: list[str], device: str | None) -> None:
        self._settings = settings
        self._device = device
        self._kept = _native.Kept()

    def __call__(self, jobs: dict[str, Any]) -> dict[str, list[Any]]:
        done: dict[str, list[Any]] = {"run": [], "step": [], "dataset": [], "left_out": [], "node": []}
        import ray

        node = ray.get_runtime_context().get_node_id()
        for run, step, folder, dataset, path, number, of, out in zip(
            jobs["run"], jobs["step"], jobs["folder"], jobs["dataset"], jobs["path"], jobs["number"], jobs["of"], jobs["out"], strict=True
        ):
            where = [] if self._device is None else [f"--device={self._device}"]
            said = ["sweep", folder, f"--data={dataset}={path}", *self._settings, *where]
            one = (int(number) + 1, int(of), str(run), int(step), str(folder))
            if "://" in out:
                left_out = self._elsewhere(said, one, str(dataset), str(out))
            else:
                left_out = _native.sweep([*said, f"--out={out}"], one, self._kept, Listener())
            for name, value in (("run", run), ("step", step), ("dataset", dataset), ("left_out", "; ".join(left_out)), ("node", node)):
                done[name].append(value)
        return done

    def _elsewhere(self, said: list[str], one: tuple[int, int, str, int, str], dataset: str, out: str) -> list[str]:
        """Measures into a folder in passing, and copies the records to where they go, the manifest last; what is there already is left alone."""
        from pyarrow import fs

        there, at = fs.FileSystem.from_uri(out)
        leaf = f"{at}/run={one[2]}/step={one[3]}/dataset={dataset}"
        if there.get_file_info(f"{leaf}/manifest.json").type == fs.FileType.File:
            return []
        with tempfile.TemporaryDirectory(prefix="tanglescope-") as passing:
            left_out = _native.sweep([*said, f"--out={passing}"], one, self._kept, Listener())
            here = os.path.join(passing, f"run={one[2]}", f"step={one[3]}", f"dataset={dataset}")
            if left_out or not os.path.isdir(here):
                return left_out
            local = fs.LocalFileSystem()
            names = sorted(os.listdir(here), key=lambda name: name == "manifest.json")
            for name in (name for name in names if not name.startswith(".")):
                from_, to = os.path.join(here, name), f"{leaf}/{name}"
                if os.path.isdir(from_):
                    there.create_dir(to, recursive=True)
                fs.copy_files(from_, to, source_filesystem=local, destination_filesystem=there)
        return left_out


def fetch(out: str, folder: PathLike) -> SweepRecords:
    """Copies records from where `sweep` put them, such as `s3://bucket/sweep`, into a folder, and opens it."""
    from pyarrow import fs

    there, at = fs.FileSystem.from_uri(out)
    os.makedirs(folder, exist_ok=True)
    fs.copy_files(at, os.fspath(folder), source_filesystem=there, destination_filesystem=fs.LocalFileSystem())
    return SweepRecords(os.fspath(folder))


def sweep(
    runs: PathLike | Sequence[PathLike] | Mapping[str, PathLike],
    data: Rows | PathLike | Mapping[str, Rows | PathLike],
    *,
    out: PathLike,
    model: PathLike | None = None,
    scope: str = "lora",
    objectives: ObjectiveLike | Sequence[ObjectiveLike] | None = None,
    reference: PathLike | None = None,
    pairs: int | None = None,
    mean_gradients: bool = False,
    metric: Metric = "gradient",
    dtype: Dtype = "f32",
    device: str | None = "auto",
    memory: float | str | None = None,
    lora_r: int = 16,
    lora_alpha: float | None = None,
    lora_targets: Sequence[str] | None = None,
    seed: int = 0,
    padding_row: Derivative = "trainer",
    dora_norm: Derivative = "trainer",
    num_cpus: float = 1,
    num_gpus: float = 0,
    workers: int | None = None,
    progress: Any = None,
) -> SweepRecords | None:
    """Every checkpoint of runs on data sets, on the nodes of a Ray cluster.

    Args:
        runs, data: As of `tanglescope.sweep`. The paths are the same on every node (a shared file system), or of object storage that is mounted.
        out: Folder for the records, on the same file system; or a place that pyarrow knows (`s3://…`, `gs://…`, `hdfs://…`), to which each
            job's records are copied once they are whole.
        num_cpus, num_gpus: Ray's resources of a worker; one works on one checkpoint and data set at a time.
        workers: Most workers; as many as the cluster has room for where not given.
        progress: None, or a function that is called with (done, all, job) after each job.

    The other arguments are those of `tanglescope.sweep`.

    Returns:
        The records; None where they are elsewhere, from where `fetch` brings them. What could not be measured is in the log, and measured by nobody.

    Raises:
        TanglescopeError: Where jobs failed for another reason than their checkpoint's.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(f"ray: is not installed with its data library ({error}); pip install 'ray[data]'") from None
    if not ray.is_initialized():
        ray.init(address="auto")
    out = os.fspath(out)
    elsewhere = "://" in out
    if not elsewhere:
        out = os.path.abspath(out)
        os.makedirs(out, exist_ok=True)
    # rows that live in the driver go where the workers find them
    passing = tempfile.TemporaryDirectory(prefix=".rows-", dir=None if elsewhere else out)
    named = _shared_data(data, passing.name)
    settings = [
        *_fresh(scope, lora_r, lora_alpha, lora_targets, seed),
        *words(
            model=None if model is None else _absolute(model),
            objective=_names(objectives),
            reference=None if reference is None else _absolute(reference),
            pairs=pairs,
            mean_gradients=mean_gradients,
            metric=metric,
            dtype=dtype,
            padding_row=padding_row,
            dora_norm=dora_norm,
            **device_words(None, memory),
        ),
    ]
    checkpoints = _native.checkpoints(run_words(runs))
    found = [(run, step, os.path.abspath(folder), name, path) for run, step, folder in checkpoints for name, path in named.items()]
    jobs = [
        {"run": run, "step": step, "folder": folder, "dataset": name, "path": path, "number": at, "of": len(found), "out": out}
        for at, (run, step, folder, name, path) in enumerate(found)
    ]
    most = workers or max(1, _room(ray, num_cpus, num_gpus))
    context = ray.data.DataContext.get_current()
    # a lost node's work is done again as often as it takes; what fails for its own reasons is not
    context.actor_task_retry_on_errors = False
    work = ray.data.from_items(jobs, override_num_blocks=len(jobs)).map_batches(
        _Worker,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, len(jobs))),
        num_cpus=num_cpus,
        num_gpus=num_gpus or None,
        fn_constructor_kwargs={"settings": settings, "device": None if device in (None, "auto") else device},
    )
    left_out = []
    with passing:
        for done, job in enumerate(work.iter_rows(), 1):
            if job["left_out"]:
                left_out.append(job["left_out"])
                logger.warning("left out: %s", job["left_out"])
            else:
                logger.info("%d of %d: run %s, step %s, %s", done, len(jobs), job["run"], job["step"], job["dataset"])
            if progress is not None:
                progress(done, len(jobs), job)
    if elsewhere:
        return None
    records = SweepRecords(out)
    missing = len(jobs) - len(left_out) - len(records.leaves())
    if missing > 0:
        raise TanglescopeError(f"{missing} of {len(jobs)} jobs left no records in {out}")
    return records


def _room(ray: Any, num_cpus: float, num_gpus: float) -> int:
    resources = ray.cluster_resources()
    rooms = [resources.get("CPU", 1) / num_cpus] if num_cpus else []
    if num_gpus:
        rooms.append(resources.get("GPU", 0) / num_gpus)
        if resources.get("GPU", 0) < num_gpus:
            raise InputError(f"num_gpus: a worker asks for {num_gpus}, and the cluster has {resources.get('GPU', 0):g}", option="num_gpus")
    return int(min(rooms)) if rooms else 1


def _shared_data(data: Any, folder: str) -> dict[str, str]:
    """Data sets by name, as files that every node finds: rows are written into a folder."""
    if not isinstance(data, Mapping):
        name = "rows" if isinstance(data, Rows) else os.path.basename(data_path(data, [])).split(".")[0] or "data"
        data = {name: data}
    named = {}
    for name, of in data.items():
        if isinstance(of, Rows):
            named[str(name)] = os.path.join(folder, f"{name}.jsonl")
            of.save_ids(named[str(name)])
        else:
            named[str(name)] = _absolute(data_path(of, []))
    return named


__all__ = ["fetch", "sweep"]
