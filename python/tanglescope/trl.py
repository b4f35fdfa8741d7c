"""A callback for TRL's trainers of preferences: entanglement on the live policy, in the trainer's own tokens, beside its own metrics.

from tanglescope.trl import EntanglementCallback

trainer = DPOTrainer(model, args=args, train_dataset=train, eval_dataset=evaluation, processing_class=tokenizer)
trainer.add_callback(EntanglementCallback(trainer, every=50))
trainer.train()
"""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

from transformers import Trainer, TrainerCallback

from ._calls import analyze
from ._errors import InputError, TanglescopeError, Unsupported
from ._model import Dtype, Model
from ._objective import Objective
from ._records import Analysis, SweepRecords
from ._rows import Rows
from ._rows import rows as read_rows
from ._torch import base_of, is_peft, unwrapped
from ._trl_loss import trl_objective

logger = logging.getLogger("tanglescope")

Condition = str | Callable[[Mapping[str, float]], bool]

#: Relative difference of mean log-probabilities that roundings of a number type explain, of sums over some hundred tokens.
_ROUNDING = {"torch.float32": 1e-4, "torch.float64": 1e-4, "torch.bfloat16": 3e-2, "torch.float16": 1e-2}


#: What a step does to both log-probabilities.
_REGIMES = ("ideal", "both-up", "both-down", "inverted", "none")


class EntanglementCallback(TrainerCallback):  # type: ignore[misc]
    """Measures a fixed sample of pairs every so many steps, and at evaluation, and logs what it finds through the trainer.

    Logged, as medians over the pairs unless it says otherwise:

    | key | |
    |---|---|
    | `entanglement/cosine` | of the gradients of log π(chosen) and log π(rejected) |
    | `entanglement/chosen_falls` | share of pairs whose chosen response one step on the trainer's loss would make less likely |
    | `entanglement/layer_N/cosine` | of the part of block N |
    | `regime/…` | share of pairs in each regime under the trainer's loss: ideal, both-up, both-down, … |
    | `norm/chosen`, `norm/rejected`, `norm/ratio` | lengths of both gradients, and rejected over chosen |
    | `entanglement/logps_chosen`, `entanglement/logps_rejected` | means of the means of evaluation batches, as the trainer's `eval_logps/…` |
    | `entanglement/seconds` | what the measurement took |

    Records of every measurement stay in `out`; `tanglescope.report` makes a page of them.

    Args:
        trainer: The trainer, from which policy, tokens, loss and reference are taken.
        every: Steps between measurements; 0 for none but at evaluation.
        pairs: Pairs of the sample; all rows where there are no more.
        dataset: Which rows: `eval` or `train` of the trainer, or a data set in the trainer's prepared form; `eval` where there is one.
        at_evaluation: Measure whenever the trainer evaluates.
        by_layer: Log the cosine of each block too; the records have it in any case.
        scope: Parameters, as of `analyze`: `lora` of PEFT models and `full` of others where not given.
        objective: Loss whose step is predicted; the trainer's where not given.
        out: Folder for the records; `entanglement` in the trainer's output folder where not given, none for False.
        background: Measure in a thread while training goes on, on copies of what is trained; numbers are logged at the step that they belong to.
        stop_if: Ends training when it holds, such as `both-down > 0.5` (a regime's share or a logged key), or a function of the logged numbers.
        warn_if: Warns when it holds.
        dtype, device: Of the measurement: f32 on the CPU, or as `Model` has them.
        seed: Of the sample.

    Raises:
        Unsupported: Where the policy is quantised or sharded; before training begins.
    """

    def __init__(
        self,
        trainer: Any,
        *,
        every: int = 100,
        pairs: int = 32,
        dataset: Literal["eval", "train"] | Any = None,
        at_evaluation: bool = True,
        by_layer: bool = True,
        scope: str | None = None,
        objective: str | Objective | None = None,
        out: str | os.PathLike[str] | Literal[False] | None = None,
        background: bool = False,
        stop_if: Condition | None = None,
        warn_if: Condition | None = None,
        dtype: Dtype = "f32",
        device: str | None = "cpu",
        seed: int = 0,
    ) -> None:
        if not isinstance(trainer, Trainer):
            raise TypeError(f"trainer: expected a trainer of TRL, found {type(trainer).__name__}")
        if every < 0 or pairs < 1:
            raise InputError("every: expected a number of steps from 0, and pairs from 1", option="every" if every < 0 else "pairs")
        self._trainer = trainer
        self._every = every
        self._at_evaluation = at_evaluation
        self._by_layer = by_layer
        self._scope = scope or ("lora" if is_peft(unwrapped(trainer.model)) else "full")
        self._stop_if = _condition("stop_if", stop_if)
        self._warn_if = _condition("warn_if", warn_if)
        self._dtype: Dtype = dtype
        self._device = device
        self._objective = _objective(trainer, objective)
        self._sample, self._whole = _sample(trainer, dataset, pairs, seed)
        self._out = None if out is False else os.fspath(out or os.path.join(trainer.args.output_dir, "entanglement"))
        self._run = os.path.basename(os.path.abspath(trainer.args.output_dir)).replace("=", "-") or "run"
        self._background = background
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tanglescope") if background else None
        self._waiting: list[tuple[int, Future[tuple[dict[str, float], Analysis]]]] = []
        self._policy: Model | None = None
        self._rows: Rows | None = None
        self._reference: Any = None
        self._passing: tempfile.TemporaryDirectory[str] | None = None
        self._last: tuple[int, dict[str, float], Analysis] | None = None
        #: Seconds that training waited for measurements, and seconds that they took.
        self.waited = 0.0
        self.worked = 0.0
        #: What was logged, step by step.
        self.history: list[dict[str, float]] = []

    # what is measured

    @property
    def records(self) -> SweepRecords:
        """The records of all measurements."""
        if self._out is None:
            raise InputError("out: is False, so no records were kept", option="out")
        return SweepRecords(self._out)

    def measure(self, step: int) -> tuple[dict[str, float], Analysis]:
        """Measures the policy as it is now; returns what would be logged, and the records."""
        policy = self._taken()
        return self._measured(policy, step)

    def _taken(self) -> Model:
        """The policy as it is now: the base where it lies, and copies of what is trained."""
        trainer = self._trainer
        module = unwrapped(trainer.model)
        with_adapter = is_peft(module)
        if self._policy is not None and with_adapter:
            # the base does not move
            self._policy.refresh_adapter()
        else:
            if self._policy is not None:
                self._policy.close()
            copy = self._background and not with_adapter
            self._policy = Model.from_torch(module, tokenizer=trainer.processing_class, dtype=self._dtype, device=self._device, copy=copy)
        if self._rows is None:
            self._rows = read_rows(self._sample, self._policy)
        self._reference = self._reference_of(module)
        return self._policy

    def _reference_of(self, module: Any) -> Any:
        """The trainer's reference, where its loss uses one."""
        if self._objective is None or not self._objective.uses_reference:
            return None
        trainer = self._trainer
        live = getattr(trainer, "ref_model", None)
        if live is not None:
            moves = getattr(trainer.args, "sync_ref_model", False)
            if isinstance(self._reference, Model) and not moves:
                return self._reference
            return Model.from_torch(live, dtype=self._dtype, device=self._device, copy=moves and self._background)
        if is_peft(module):
            if "ref" not in getattr(module, "peft_config", {}):
                return "base"
            if self._reference is None:
                self._passing = tempfile.TemporaryDirectory(prefix="tanglescope-ref-")
                module.save_pretrained(self._passing.name, selected_adapters=["ref"], save_embedding_layers=False)
                self._reference = os.path.join(self._passing.name, "ref")
            return self._reference
        logger.warning(
            "the trainer keeps no reference model (precomputed log-probabilities), so that steps on `%s` are not predicted",
            self._objective.given,
        )
        self._objective = None
        return None

    def _measured(self, policy: Model, step: int) -> tuple[dict[str, float], Analysis]:
        start = time.monotonic()
        assert self._rows is not None
        out = None
        if self._out is not None:
            out = os.path.join(self._out, f"run={self._run}", f"step={step}", "dataset=sample")
            # of an earlier run into the same folder
            shutil.rmtree(out, ignore_errors=True)
        found = analyze(
            policy,
            self._rows,
            scope=self._scope,
            objectives=None if self._objective is None else [self._objective],
            reference=self._reference,
            out=out,
        )
        logs = _logs(found, None if self._objective is None else self._objective.given, self._by_layer)
        for branch in ("chosen", "rejected"):
            values = found.pairs[f"logp_{branch}"].to_list()
            logs[f"entanglement/logps_{branch}"] = _mean_of_batches(values, self._trainer.args.eval_batch_size)
        logs["entanglement/seconds"] = time.monotonic() - start
        return logs, found

    # when

    def on_train_begin(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        """Refuses what cannot be measured before training begins, and measures the start."""
        if state.is_world_process_zero and self._every:
            self._begin(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **of: Any) -> Any:
        """Measures every so many steps, and logs what a thread has found meanwhile."""
        if not state.is_world_process_zero:
            return control
        self._collect(wait=False)
        if self._every and state.global_step % self._every == 0:
            self._begin(state.global_step)
        return self._judge(control)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, float] | None = None, **of: Any) -> Any:
        """Measures at evaluation, and compares log-probabilities with the trainer's."""
        if not state.is_world_process_zero or not self._at_evaluation:
            return control
        step = state.global_step
        if self._last is None or self._last[0] != step:
            self._begin(step)
        if metrics is not None and self._whole:
            self._collect(wait=True)
            if self._last is not None and self._last[0] == step:
                self._compare(self._last[1], metrics)
        return self._judge(control)

    def on_train_end(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        """Waits for the last measurement, and says what all of them cost."""
        self._collect(wait=True)
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tanglescope")
        if self.history:
            logger.info(
                "%d measurements of %d pairs took %.1f s, of which training waited %.1f s",
                len(self.history),
                len(self._sample),
                self.worked,
                self.waited,
            )

    def _begin(self, step: int) -> None:
        start = time.monotonic()
        if any(of == step for of, _ in self._waiting):
            return
        # one at a time: the policy's copy is the measurement's until it is done
        self._collect(wait=True)
        policy = self._taken()
        if self._pool is None:
            done: Future[tuple[dict[str, float], Analysis]] = Future()
            try:
                done.set_result(self._measured(policy, step))
            except TanglescopeError as error:
                done.set_exception(error)
            self._waiting.append((step, done))
            self._collect(wait=True)
        else:
            self._waiting.append((step, self._pool.submit(self._measured, policy, step)))
        self.waited += time.monotonic() - start

    def _collect(self, wait: bool) -> None:
        """Logs measurements that are done, at the steps that they belong to."""
        while self._waiting and (wait or self._waiting[0][1].done()):
            step, done = self._waiting.pop(0)
            try:
                logs, found = done.result()
            except TanglescopeError as error:
                if self._last is None:
                    raise
                # training has gone well so far, and is worth more than a measurement
                logger.error("step %d could not be measured: %s", step, error)
                continue
            self.worked += logs["entanglement/seconds"]
            self._last = (step, logs, found)
            self.history.append({**logs, "step": step})
            self._log(logs, step)

    def _log(self, logs: dict[str, float], step: int) -> None:
        trainer = self._trainer
        now, due = trainer.state.global_step, trainer.control.should_log
        trainer.state.global_step = step
        try:
            # the trainer's own method would also log, and forget, its averages since the last log
            Trainer.log(trainer, dict(logs))
        finally:
            trainer.state.global_step = now
            # a log that is due would count as done
            trainer.control.should_log = due

    def _judge(self, control: Any) -> Any:
        if self._last is None:
            return control
        step, logs, _ = self._last
        if self._warn_if is not None and self._warn_if[1](logs) and not logs.get("_warned"):
            logger.warning("step %d: %s", step, self._warn_if[0])
            logs["_warned"] = 1.0
        if self._stop_if is not None and self._stop_if[1](logs) and not control.should_training_stop:
            logger.warning("step %d: %s: training ends", step, self._stop_if[0])
            control.should_training_stop = True
        return control

    def _compare(self, logs: Mapping[str, float], metrics: Mapping[str, float]) -> None:
        """Warns where the trainer's log-probabilities of the same pairs are others."""
        dtype = str(next(iter(base_of(self._trainer.model).parameters())).dtype)
        if getattr(self._trainer.args, "bf16", False):
            dtype = "torch.bfloat16"
        elif getattr(self._trainer.args, "fp16", False):
            dtype = "torch.float16"
        most = _ROUNDING.get(dtype, 1e-4)
        for branch in ("chosen", "rejected"):
            theirs, ours = metrics.get(f"eval_logps/{branch}"), logs[f"entanglement/logps_{branch}"]
            if theirs is None:
                continue
            if abs(ours - theirs) > most * abs(theirs):
                logger.warning(
                    "log π of %s responses is %.6g here and %.6g by the trainer (eval_logps/%s), more than the rounding of %s explains: "
                    "dropout, a loss that averages over tokens, or a policy that the engine reads in another way",
                    branch,
                    ours,
                    theirs,
                    branch,
                    dtype.removeprefix("torch."),
                )


def _mean_of_batches(values: Sequence[float], size: int) -> float:
    """The mean of the means of batches, as trainers log it."""
    batches = [values[at : at + size] for at in range(0, len(values), size)]
    means = [sum(batch) / len(batch) for batch in batches]
    return sum(means) / len(means)


def _condition(option: str, given: Condition | None) -> tuple[str, Callable[[Mapping[str, float]], bool]] | None:
    if given is None:
        return None
    if callable(given):
        return getattr(given, "__name__", option), given
    found = re.fullmatch(r"\s*([\w/.-]+)\s*(>=|<=|>|<)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*", given)
    if found is None:
        raise InputError(f"{option}: found {given!r}; expected NAME > NUMBER, such as `both-down > 0.5`", option=option)
    name, sign, number = found[1], found[2], float(found[3])
    compare: dict[str, Callable[[float], bool]] = {
        ">": lambda x: x > number,
        "<": lambda x: x < number,
        ">=": lambda x: x >= number,
        "<=": lambda x: x <= number,
    }
    keys = (name, f"regime/{name}", f"entanglement/{name}")

    def holds(logs: Mapping[str, float]) -> bool:
        known = [key for key in keys if key in logs]
        if not known:
            raise InputError(f"{option}: nothing of the name {name!r} is logged; there are {', '.join(sorted(logs))}", option=option)
        return compare[sign](logs[known[0]])

    return given, holds


def _objective(trainer: Any, given: str | Objective | None) -> Objective | None:
    if isinstance(given, Objective):
        return given
    if given is not None:
        return Objective(given)
    try:
        return Objective(trl_objective(trainer.args))
    except (Unsupported, InputError) as error:
        logger.warning("the trainer's loss is not known, and its steps are not predicted: %s", error)
        return None


def _logs(found: Analysis, objective: str | None, by_layer: bool) -> dict[str, float]:
    """What of a measurement is logged."""
    import polars as pl

    pairs = found.pairs
    logs: dict[str, float] = {}

    def put(key: str, value: Any) -> None:
        if value is not None:
            logs[key] = float(value)

    put("entanglement/cosine", pairs["cosine"].median())
    put("norm/chosen", pairs["ww"].sqrt().median())
    put("norm/rejected", pairs["ll"].sqrt().median())
    put("norm/ratio", (pairs["ll"] / pairs["ww"]).sqrt().median())
    layers = (
        found.params.filter(pl.col("layer").is_not_null())
        .group_by("pair", "layer")
        .agg(pl.col("ww", "wl", "ll").sum())
        .filter((pl.col("ww") > 0) & (pl.col("ll") > 0))
        .with_columns((pl.col("wl") / (pl.col("ww") * pl.col("ll")).sqrt()).alias("cosine"))
        .group_by("layer")
        .agg(pl.col("cosine").median())
        .sort("layer")
    )
    for layer, cosine in layers.iter_rows() if by_layer else ():
        put(f"entanglement/layer_{layer}/cosine", cosine)
    if objective is not None:
        outcomes = found.objectives.filter(pl.col("objective") == objective)
        regimes = outcomes["regime"]
        put("entanglement/chosen_falls", (outcomes["delta_w"] < 0).mean())
    else:
        regimes = pairs["regime_dpo"]
    shares = dict(regimes.value_counts(normalize=True).iter_rows())
    for regime in _REGIMES:
        put(f"regime/{regime}", shares.get(regime, 0.0))
    return logs


def _sample(trainer: Any, given: Any, pairs: int, seed: int) -> tuple[list[dict[str, Any]], bool]:
    """Rows of ids of a fixed sample, as the trainer's collator has them; and whether they are the whole of its evaluation data."""
    evaluation = trainer.eval_dataset
    if isinstance(evaluation, dict):
        evaluation = next(iter(evaluation.values()), None)
    name = given
    if given is None:
        name = "eval" if evaluation is not None else "train"
    data = {"eval": evaluation, "train": trainer.train_dataset}.get(name, given) if isinstance(name, str) else given
    if data is None:
        raise InputError(f"dataset: the trainer has no {name} data", option="dataset")
    if not hasattr(data, "__len__"):
        raise InputError("dataset: is a stream, of which no sample can be drawn; give one of known length", option="dataset")
    found = _pairs(trainer, data)
    whole = len(found) <= pairs
    if not whole:
        places = sorted(random.Random(seed).sample(range(len(found)), pairs))
        found = [found[at] for at in places]
    rows = [row for row in (of() for of in found) if row is not None]
    if not rows:
        raise InputError("dataset: no row of it is a pair of responses to one prompt", option="dataset")
    if len(rows) < len(found):
        logger.warning(
            "%d of %d rows of the sample have no common prompt as the trainer cuts them, and are left out", len(found) - len(rows), len(found)
        )
        whole = False
    return rows, whole and data is evaluation


def _pairs(trainer: Any, data: Any) -> list[Callable[[], dict[str, Any] | None]]:
    """The pairs of prepared data, each to be made when it is asked for."""
    columns = set(data.column_names)
    if {"prompt_ids", "chosen_ids", "rejected_ids"} <= columns:
        return [lambda at=at: _of_collator(trainer, data[at]) for at in range(len(data))]  # type: ignore[misc]
    if {"chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels"} <= columns:
        return [lambda at=at: _of_labels(data[at]) for at in range(len(data))]  # type: ignore[misc]
    if {"prompt_ids", "completion_ids", "label"} <= columns:
        return _of_kto(data)
    known = ", ".join(sorted(columns))
    raise Unsupported(
        f"dataset: has the columns {known}; expected those of TRL's prepared data: prompt_ids, chosen_ids and rejected_ids, or chosen_input_ids and "
        "chosen_labels, or prompt_ids, completion_ids and label",
        key="dataset",
    )


def _split(ids: Sequence[int], in_completion: Sequence[Any]) -> tuple[list[int], list[int]]:
    first = next((at for at, part in enumerate(in_completion) if part), len(ids))
    return list(ids[:first]), list(ids[first:])


def _pair(chosen: tuple[list[int], list[int]], rejected: tuple[list[int], list[int]]) -> dict[str, Any] | None:
    if chosen[0] != rejected[0] or not (chosen[0] and chosen[1] and rejected[1]):
        return None
    return {"prompt_ids": chosen[0], "chosen_ids": chosen[1], "rejected_ids": rejected[1]}


def _of_collator(trainer: Any, example: Mapping[str, Any]) -> dict[str, Any] | None:
    """A pair as the trainer's collator cuts it."""
    batch = trainer.data_collator([dict(example)])
    if not {"input_ids", "attention_mask", "completion_mask"} <= set(batch):
        return _pair((example["prompt_ids"], example["chosen_ids"]), (example["prompt_ids"], example["rejected_ids"]))
    branches = []
    for ids, seen, completion in zip(batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True):
        kept = [at for at, of in enumerate(seen.tolist()) if of]
        branches.append(_split(ids[kept].tolist(), completion[kept].tolist()))
    return _pair(branches[0], branches[1])


def _of_labels(example: Mapping[str, Any]) -> dict[str, Any] | None:
    branches = []
    for branch in ("chosen", "rejected"):
        ids, labels = example[f"{branch}_input_ids"], example[f"{branch}_labels"]
        branches.append(_split(list(ids), [label != -100 for label in labels]))
    return _pair(branches[0], branches[1])


def _of_kto(data: Any) -> list[Callable[[], dict[str, Any] | None]]:
    """Rows of one prompt of which one response is desirable and one is not."""
    by_prompt: dict[tuple[int, ...], dict[bool, list[int]]] = {}
    for at, (prompt, label) in enumerate(zip(data["prompt_ids"], data["label"], strict=True)):
        by_prompt.setdefault(tuple(prompt), {}).setdefault(bool(label), []).append(at)
    found: list[Callable[[], dict[str, Any] | None]] = []
    for prompt, of in by_prompt.items():
        for chosen, rejected in zip(of.get(True, []), of.get(False, []), strict=False):
            found.append(
                lambda prompt=prompt, chosen=chosen, rejected=rejected: _pair(  # type: ignore[misc]
                    (list(prompt), list(data[chosen]["completion_ids"])), (list(prompt), list(data[rejected]["completion_ids"]))
                )
            )
    if not found:
        raise InputError("dataset: no prompt has a desirable and an undesirable response", option="dataset")
    return found


__all__ = ["EntanglementCallback", "TanglescopeError"]
