"""The calls: what the commands do, on models and rows."""

from __future__ import annotations

import json
import operator
import os
import queue
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from . import _native
from ._data import DataLike
from ._errors import InputError, TanglescopeError
from ._model import Derivative, Dtype, Model, PathLike, device_words
from ._objective import Objective
from ._progress import Listener, ProgressLike
from ._records import Analysis, Interference, SweepRecords, Tokens, Training
from ._rows import Rows
from ._rows import rows as read_rows
from ._words import words

ObjectiveLike = str | Objective
Metric = Literal["gradient", "adam"]
#: A reference model: `base` (without the adapter), `self`, the folder or hub name of a model or of an adapter, or a `Model`.
ReferenceLike = str | os.PathLike[str] | Model | None


def _model(model: Any) -> Model:
    if not isinstance(model, Model):
        raise TypeError(f"model: expected a tanglescope.Model, found {type(model).__name__}; tanglescope.Model(folder) loads one")
    return model


def _rows(data: Any, model: Model) -> Rows:
    return data if isinstance(data, Rows) else read_rows(data, model)


def _names(objectives: Any) -> list[str]:
    if objectives is None:
        return []
    if isinstance(objectives, (str, Objective)):
        objectives = [objectives]
    return [of.given if isinstance(of, Objective) else str(of) for of in objectives]


def _fresh(scope: str, lora_r: int, lora_alpha: float | None, lora_targets: Sequence[str] | None, seed: int) -> list[str]:
    targets = None if lora_targets is None else list(lora_targets)
    return words(scope=scope, lora_r=lora_r, lora_alpha=lora_alpha, lora_targets=targets, seed=seed)


def _place(out: PathLike | None) -> tuple[str, tempfile.TemporaryDirectory[str] | None]:
    """Where results go: a folder of the user's, or one in passing."""
    if out is not None:
        return os.fspath(out), None
    temporary = tempfile.TemporaryDirectory(prefix="tanglescope-")
    return os.path.join(temporary.name, "records"), temporary


def _fresh_folder(model: Model, folder: str) -> None:
    """Refuses to go on in a folder with a model whose weights may be others than when it was begun."""
    if model._shares and os.path.exists(os.path.join(folder, "manifest.json")):
        raise InputError(
            f"{folder}: holds records already, and the weights of a live model may have changed since; name a new folder, or take the model with "
            "copy=True",
            option="out",
            file=folder,
        )


def analyze(
    model: Model,
    data: Rows | DataLike,
    *,
    scope: str = "lora",
    objectives: ObjectiveLike | Sequence[ObjectiveLike] | None = None,
    reference: ReferenceLike = None,
    out: PathLike | None = None,
    shard: str | None = None,
    progress: ProgressLike = None,
    lora_r: int = 16,
    lora_alpha: float | None = None,
    lora_targets: Sequence[str] | None = None,
    seed: int = 0,
    mean_gradients: bool = False,
    metric: Metric = "gradient",
    optimizer: PathLike | None = None,
    all_pairs: bool = False,
    group_objectives: str | Sequence[str] | None = None,
    probe: PathLike | None = None,
) -> Analysis:
    """Measures every pair: log-probabilities, inner products of their gradients, and what losses make of them.

    Args:
        model: The model.
        data: Rows, or anything that `rows` takes.
        scope: Parameters: `lora` (A and B of the adapter, or of a fresh one), `trainable` (with `modules_to_save`), `full` (all of the base), `head`
            (the logits part of the output matrix), or a regular expression over names.
        objectives: Losses whose step is predicted, such as `dpo:beta=0.1` or `tanglescope.objective(...)`, or `all`.
        reference: Reference of losses that use one; the base under a saved adapter, the policy under a fresh one, where not given.
        out: Folder for the records; an unfinished call in it goes on. In passing where not given: `Analysis.save` keeps them.
        shard: `i/n`: only the i-th of n parts of the work; the parts may run at once, anywhere, and come to the bytes of one call.
        progress: None, True for a bar, or a function that is called with a `Progress`.
        lora_r, lora_alpha, lora_targets, seed: The fresh adapter of scope `lora` where the model has none.
        mean_gradients: Also the Gram of the mean gradients over all pairs.
        metric: `adam`: also in the metric of Adam's step, by the state of the optimizer; its columns begin with `adam_`.
        optimizer: optimizer.safetensors or optimizer.pt, or the folder of a checkpoint that has one; the adapter's or the model's where not given.
        all_pairs: Of rows with more than two responses, every pair of a better and a worse one.
        group_objectives: Losses over groups, such as `grpo`.
        probe: File of texts whose predicted change under every pair's step is wanted.

    Raises:
        InputError: Where something given cannot be used; all that can be refused is refused before the first pass.
        KeyboardInterrupt: On Ctrl-C, within a second; what is written into `out` stays valid, and the same call goes on.
    """
    model, rows = _model(model), _rows(data, model)
    group = [group_objectives] if isinstance(group_objectives, str) else group_objectives
    said = _fresh(scope, lora_r, lora_alpha, lora_targets, seed) + words(
        objective=_names(objectives),
        reference=None if isinstance(reference, Model) else reference,
        mean_gradients=mean_gradients,
        metric=metric,
        optimizer=optimizer,
        all_pairs=all_pairs,
        group_objective=group,
        probe=probe,
    )
    folder, temporary = _place(out)
    _fresh_folder(model, folder)
    listener = Listener(progress)
    try:
        live = reference._engine if isinstance(reference, Model) else None
        model._engine.analyze(rows._native, said, live, folder, shard, listener)
    finally:
        listener.close()
    return Analysis(folder, temporary)


def interference(
    model: Model,
    data: Rows | DataLike,
    *,
    scope: str = "lora",
    objectives: ObjectiveLike | Sequence[ObjectiveLike] | None = None,
    reference: ReferenceLike = None,
    metric: Metric = "gradient",
    optimizer: PathLike | None = None,
    pairs: Sequence[int] | None = None,
    against: PathLike | None = None,
    by_layer: bool = False,
    batch_size: int | None = None,
    batches: PathLike | Sequence[Sequence[int]] | None = None,
    keep: Literal["f32", "f64", "bf16", "f16"] | None = None,
    out: PathLike | None = None,
    shard: str | None = None,
    progress: ProgressLike = None,
    lora_r: int = 16,
    lora_alpha: float | None = None,
    lora_targets: Sequence[str] | None = None,
    seed: int = 0,
) -> Interference:
    """Measures the inner products between the gradients of all pairs: what a step on one does to another.

    `interference(model, rows).matrix` is the Gram of all responses.

    Args:
        pairs: Only these rows, by number.
        against: A second data set: how its pairs and those of the first meet.
        by_layer: Also by transformer block.
        batch_size: Predict steps on batches of so many pairs, drawn as a first epoch of `train` draws them.
        batches: Predict steps on these: lists of rows, a file with a list a line, or the folder of a run of `train`.
        keep: Number type that gradients are kept in until they meet.

    The other arguments are those of `analyze`.
    """
    model, rows = _model(model), _rows(data, model)
    folder, temporary = _place(out)
    _fresh_folder(model, folder)
    listener = Listener(progress)
    with tempfile.TemporaryDirectory(prefix="tanglescope-") as passing:
        given = batches if batches is None or isinstance(batches, (str, os.PathLike)) else _lines(batches, passing)
        said = _fresh(scope, lora_r, lora_alpha, lora_targets, seed) + words(
            objective=_names(objectives),
            reference=None if isinstance(reference, Model) else reference,
            metric=metric,
            optimizer=optimizer,
            pairs=None if pairs is None else [int(of) for of in pairs],
            against=against,
            by_layer=by_layer,
            batch_size=batch_size,
            batches=given,
            keep=keep,
        )
        try:
            live = reference._engine if isinstance(reference, Model) else None
            model._engine.interference(rows._native, said, live, folder, shard, listener)
        finally:
            listener.close()
    return Interference(folder, temporary)


def _lines(batches: Sequence[Sequence[int]], folder: str) -> str:
    """Batches as a file with a list a line."""
    path = os.path.join(folder, "batches.jsonl")
    with open(path, "w") as file:
        file.writelines(json.dumps([operator.index(of) for of in batch]) + "\n" for batch in batches)
    return path


def tokens(
    model: Model,
    data: Rows | DataLike,
    *,
    scope: str = "lora",
    positions: bool = False,
    out: PathLike | None = None,
    shard: str | None = None,
    progress: ProgressLike = None,
    lora_r: int = 16,
    lora_alpha: float | None = None,
    lora_targets: Sequence[str] | None = None,
    seed: int = 0,
) -> Tokens:
    """Measures the inner products of the gradients of single response tokens: `tokens(model, rows[0]).wl`.

    Args:
        positions: Also take `wl` apart by the positions at which parameters are used.

    The other arguments are those of `analyze`.
    """
    model, rows = _model(model), _rows(data, model)
    folder, temporary = _place(out)
    _fresh_folder(model, folder)
    listener = Listener(progress)
    try:
        said = _fresh(scope, lora_r, lora_alpha, lora_targets, seed)
        model._engine.tokens(rows._native, said, positions, folder, shard, listener)
    finally:
        listener.close()
    return Tokens(folder, temporary)


def gram(
    model: Model,
    prompt: Sequence[int],
    responses: Sequence[Sequence[int]],
    *,
    scope: str = "lora",
    lora_r: int = 16,
    lora_alpha: float | None = None,
    lora_targets: Sequence[str] | None = None,
    seed: int = 0,
) -> Any:
    """Inner products of the gradients of log π of some responses to a prompt, as a NumPy array `[K, K]` of f64.

    Args:
        prompt: Its token ids.
        responses: Token ids of each of K responses.

    The other arguments are those of `analyze`.
    """
    import numpy as np

    said = _fresh(scope, lora_r, lora_alpha, lora_targets, seed)
    values, _ = _model(model)._engine.gram(_ids("prompt", prompt), [_ids("responses", of) for of in responses], said, Listener())
    number = len(responses)
    return np.frombuffer(values, dtype=np.float64).reshape(number, number).copy()


def _ids(name: str, ids: Any) -> list[int]:
    try:
        found = [operator.index(of) for of in (ids.tolist() if hasattr(ids, "tolist") else ids)]
    except TypeError:
        found = [-1]
    if not all(0 <= of < 2**32 for of in found):
        raise InputError(f"{name}: expected token ids, numbers from 0", option=name)
    return found


class Sweep:
    """A sweep: a loop over it measures checkpoint by checkpoint, and gives each step with its `Analysis`. What is there already is given
    without being measured again. Made by `sweep`.

    Attributes:
        out: Folder of all records.
        left_out: Checkpoints that could not be measured, once the loop is over; why is in the log.
    """

    def __init__(self, said: list[str], out: str, progress: ProgressLike, folders: list[Any]) -> None:
        self.out = out
        self.left_out: list[str] = []
        self._said = said
        self._progress = progress
        self._folders = folders

    def run(self) -> SweepRecords:
        """Measures all there is to measure, and returns the records."""
        listener = Listener(self._progress)
        try:
            self.left_out = _native.sweep(self._said, None, None, listener)
        finally:
            listener.close()
        return SweepRecords(self.out)

    def __iter__(self) -> Iterator[tuple[int, Analysis]]:
        done: queue.Queue[str | BaseException | None] = queue.Queue()
        abandoned = threading.Event()

        def completed(folder: str) -> None:
            done.put(folder)
            if abandoned.is_set():
                raise TanglescopeError("the loop over the sweep was left")

        def work() -> None:
            listener = Listener(self._progress, completed)
            try:
                self.left_out = _native.sweep(self._said, None, None, _Leaving(listener, abandoned))
                done.put(None)
            except BaseException as error:
                done.put(error)
            finally:
                listener.close()

        worker = threading.Thread(target=work, name="tanglescope-sweep", daemon=True)
        worker.start()
        try:
            while True:
                found = done.get()
                if found is None:
                    return
                if isinstance(found, BaseException):
                    raise found
                yield _step(found), Analysis(found)
        finally:
            abandoned.set()
            worker.join()

    def __repr__(self) -> str:
        return f"<tanglescope.Sweep into {self.out}>"


class _Leaving:
    """A listener that ends the call once nobody waits for it any more."""

    def __init__(self, listener: Listener, abandoned: threading.Event) -> None:
        self._listener = listener
        self._abandoned = abandoned

    def __call__(self, event: str, *of: Any) -> None:
        if self._abandoned.is_set():
            raise TanglescopeError("the loop over the sweep was left")
        self._listener(event, *of)


def _step(folder: str) -> int:
    return int(os.path.basename(os.path.dirname(folder)).removeprefix("step="))


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
    shard: str | None = None,
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
    progress: ProgressLike = None,
) -> Sweep:
    """Every checkpoint of runs on data sets: `for step, record in sweep("run", rows, out="sweep")`. It resumes.

    Args:
        runs: Folders of checkpoints as trainers leave them, or single checkpoints; a mapping gives runs other names than their folders'.
        data: Rows, a path or a hub name; a mapping gives data sets names.
        out: Folder for the records; what is there already is not done again.
        model: Model that training started from; the one that the adapters or the run's manifest name where not given.
        pairs: Only so many rows of each data set, drawn with the seed.
        shard: `i/n`: only the i-th of n parts of the work; the parts may run at once, anywhere, and into one folder.

    The other arguments are those of `analyze` and `Model`.
    """
    folders: list[Any] = []
    said = [
        "sweep",
        *run_words(runs),
        *_data_words(data, folders),
        *_fresh(scope, lora_r, lora_alpha, lora_targets, seed),
        *words(
            out=out,
            model=model,
            objective=_names(objectives),
            reference=reference,
            pairs=pairs,
            shard=shard,
            mean_gradients=mean_gradients,
            metric=metric,
            dtype=dtype,
            padding_row=padding_row,
            dora_norm=dora_norm,
            **device_words(device, memory),
        ),
    ]
    return Sweep(said, os.fspath(out), progress, folders)


def run_words(runs: PathLike | Sequence[PathLike] | Mapping[str, PathLike]) -> list[str]:
    """The words of runs, of which one may be given by itself."""
    if isinstance(runs, Mapping):
        return [f"{name}={os.fspath(path)}" for name, path in runs.items()]
    many: Any = runs if isinstance(runs, (list, tuple)) else [runs]
    return [os.fspath(path) for path in many]


def data_path(data: Any, folders: list[Any]) -> str:
    """The file or hub name that a data set is; rows are written to one in passing, whose folder joins the others."""
    if isinstance(data, Rows):
        folder = tempfile.TemporaryDirectory(prefix="tanglescope-")
        folders.append(folder)
        path = os.path.join(folder.name, "rows.jsonl")
        data.save_ids(path)
        return path
    if isinstance(data, (str, os.PathLike)):
        return os.fspath(data)
    raise InputError(f"data: found {type(data).__name__}; expected rows, a path or a hub name", option="data")


def _data_words(data: Any, folders: list[Any]) -> list[str]:
    """The words of data sets, of which one may be given by itself."""
    if isinstance(data, Mapping):
        return [f"--data={name}={data_path(of, folders)}" for name, of in data.items()]
    return [f"--data={data_path(data, folders)}"]


def train(
    model: PathLike,
    data: Rows | PathLike,
    *,
    out: PathLike,
    objective: ObjectiveLike,
    adapter: PathLike | None = None,
    scope: str = "lora",
    reference: PathLike | None = None,
    epochs: float | None = None,
    max_steps: int | None = None,
    batch_size: int | None = None,
    accumulate: int | None = None,
    learning_rate: float | None = None,
    schedule: Literal["constant", "linear", "cosine"] | None = None,
    warmup_steps: int | None = None,
    weight_decay: float | None = None,
    max_grad_norm: float | None = None,
    eval_data: PathLike | None = None,
    eval_fraction: float | None = None,
    eval_every: int | None = None,
    save_every: int | None = None,
    gram_every: int | None = None,
    predict_every: int | None = None,
    dtype: Dtype = "f32",
    device: str | None = "auto",
    memory: float | str | None = None,
    lora_r: int = 16,
    lora_alpha: float | None = None,
    lora_targets: Sequence[str] | None = None,
    seed: int = 0,
    progress: ProgressLike = None,
) -> Training:
    """Trains on any objective, with every step's entanglement recorded; an unfinished run in `out` goes on.

    Args:
        model: Folder or hub name of the model.
        objective: The loss.
        epochs, …: As `tanglescope train --help` says; its defaults where not given.
    """
    folders: list[Any] = []
    said = [
        "train",
        *_data_words(data, folders),
        *_fresh(scope, lora_r, lora_alpha, lora_targets, seed),
        *words(
            model=model,
            adapter=adapter,
            out=out,
            objective=_names(objective),
            reference=reference,
            epochs=epochs,
            max_steps=max_steps,
            batch_size=batch_size,
            accumulate=accumulate,
            learning_rate=learning_rate,
            schedule=schedule,
            warmup_steps=warmup_steps,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
            eval_data=eval_data,
            eval_fraction=eval_fraction,
            eval_every=eval_every,
            save_every=save_every,
            gram_every=gram_every,
            predict_every=predict_every,
            dtype=dtype,
            **device_words(device, memory),
        ),
    ]
    listener = Listener(progress)
    try:
        checkpoint = _native.train(said, listener)
    finally:
        listener.close()
    return Training(os.fspath(out), checkpoint)


def verify(
    model: PathLike,
    data: Rows | PathLike,
    *,
    adapter: PathLike | None = None,
    scope: str = "lora",
    pairs: int | None = None,
    objectives: ObjectiveLike | Sequence[ObjectiveLike] | None = None,
    dtype: Dtype = "f32",
    device: str | None = "auto",
    lora_r: int = 16,
    lora_alpha: float | None = None,
    lora_targets: Sequence[str] | None = None,
    seed: int = 0,
    progress: ProgressLike = None,
) -> list[dict[str, Any]]:
    """Checks a model and data before you rely on them: gradients against differences in f64, real steps against predictions.

    Returns:
        One dict a check: `what`, `got`, `expected`, `error`, `tolerance`, `passed`. A check that fails is no exception.
    """
    folders: list[Any] = []
    said = [
        "verify",
        *_data_words(data, folders),
        *_fresh(scope, lora_r, lora_alpha, lora_targets, seed),
        *words(
            model=model,
            adapter=adapter,
            pairs=pairs,
            objective=_names(objectives),
            dtype=dtype,
            **device_words(device, None),
        ),
    ]
    found: list[dict[str, Any]] = json.loads(_native.verify(said, Listener(progress)))
    return found


def inspect(path: PathLike) -> dict[str, Any]:
    """What a folder is: architecture, sizes and types, adapter, steps; what can be measured, what is refused and why."""
    found: dict[str, Any] = json.loads(_native.inspect(os.fspath(path)))
    return found


def devices() -> dict[str, Any]:
    """The devices of this machine: memory, number types, what they offer; and the one that is used where none is named."""
    found: dict[str, Any] = json.loads(_native.devices())
    return found
