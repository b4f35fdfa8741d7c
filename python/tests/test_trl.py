"""The callback in TRL's trainers: its numbers against the trainer's, its checkpoints', and those of a call."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tanglescope as ts

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

EVALUATION, TRAINING = 6, 10


@pytest.fixture(scope="module")
def data(demo: Path) -> tuple[Any, Any]:
    from datasets import Dataset

    with open(demo / "long.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][: EVALUATION + TRAINING]
    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    return Dataset.from_list(rows[EVALUATION:]), Dataset.from_list(rows[:EVALUATION])


def lora() -> Any:
    return peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def trainer_of(kind: str, demo: Path, data: tuple[Any, Any], out: Path, **more: Any) -> Any:
    """A trainer with dropout off, on the CPU in f32."""
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    module = more.pop("model", None)
    if module is None:
        module = transformers.AutoModelForCausalLM.from_pretrained(demo, dtype=torch.float32)
    shared: dict[str, Any] = {
        "output_dir": str(out),
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 4,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": 512,
        "disable_tqdm": True,
    }
    adapter = more.pop("adapter", kind.endswith("lora"))
    shared.update(more)
    if kind.startswith("dpo"):
        config, of = trl.DPOConfig, trl.DPOTrainer
    elif kind.startswith("kto"):
        from trl import KTOConfig, KTOTrainer

        config, of = KTOConfig, KTOTrainer
    else:
        from trl.experimental import cpo, orpo

        config, of = (cpo.CPOConfig, cpo.CPOTrainer) if kind.startswith("cpo") else (orpo.ORPOConfig, orpo.ORPOTrainer)
    return of(
        model=module,
        args=config(**shared),
        train_dataset=data[0],
        eval_dataset=data[1],
        processing_class=tokenizer,
        peft_config=lora() if adapter else None,
    )


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "tanglescope" and record.levelno >= logging.WARNING]


@pytest.mark.parametrize("kind", ["dpo-lora", "dpo-full"])
@pytest.mark.parametrize("background", [False, True])
def test_the_numbers_are_the_trainers_and_the_checkpoints(
    demo: Path, data: tuple[Any, Any], tmp_path: Path, kind: str, background: bool, caplog: pytest.LogCaptureFixture
) -> None:
    from tanglescope.trl import EntanglementCallback

    trainer = trainer_of(kind, demo, data, tmp_path / "run")
    callback = EntanglementCallback(trainer, every=1, pairs=EVALUATION, background=background)
    trainer.add_callback(callback)
    with caplog.at_level("INFO", logger="tanglescope"):
        trainer.train()
        evaluated = trainer.evaluate()
    assert not warnings_of(caplog)
    assert [logs["step"] for logs in callback.history] == [0, 1, 2, 3, 4]
    logged = {entry["step"]: entry for entry in trainer.state.log_history if "entanglement/cosine" in entry}
    assert sorted(logged) == [0, 1, 2, 3, 4]
    # the trainer's own averages are where they would have been
    assert [entry["step"] for entry in trainer.state.log_history if "rewards/margins" in entry] == [2, 4]
    evaluations = {entry["step"]: entry for entry in trainer.state.log_history if "eval_logps/chosen" in entry}
    for step in (2, 4):
        for branch in ("chosen", "rejected"):
            ours, theirs = logged[step][f"entanglement/logps_{branch}"], evaluations[step][f"eval_logps/{branch}"]
            # f32, sums of some hundred tokens
            assert ours == pytest.approx(theirs, rel=1e-4), (step, branch)
    assert logged[4]["entanglement/logps_chosen"] == pytest.approx(evaluated["eval_logps/chosen"], rel=1e-4)
    shares = [value for key, value in logged[4].items() if key.startswith("regime/")]
    assert sum(shares) == pytest.approx(1.0)
    assert {f"entanglement/layer_{layer}/cosine" for layer in range(5)} <= set(logged[4])
    # the live model's results are those of its checkpoint
    checkpoint = tmp_path / "run" / "checkpoint-4"
    rows = callback._rows
    assert rows is not None
    if kind == "dpo-lora":
        found = ts.analyze(ts.Model(demo, adapter=checkpoint, device="cpu"), rows, objectives="dpo:beta=0.1", reference="base")
    else:
        found = ts.analyze(ts.Model(checkpoint, device="cpu"), rows, scope="full", objectives="dpo:beta=0.1", reference=demo)
    [last] = [leaf for _, step, _, leaf in callback.records.leaves() if step == 4]
    for name in ("logp_chosen", "logp_rejected", "ref_logp_chosen", "ref_logp_rejected", "ww", "wl", "ll"):
        got, want = last.pairs[name].to_numpy(), found.pairs[name].to_numpy()
        assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max(), name
    for name in ("loss", "delta_w", "delta_l"):
        got, want = last.objectives[name].to_numpy(), found.objectives[name].to_numpy()
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max(), name
    page = ts.report(callback.records, tmp_path / "report.html")
    assert Path(page.path).stat().st_size > 10_000


@pytest.mark.parametrize("kind", ["cpo-lora", "orpo-lora"])
def test_trainers_without_a_reference(demo: Path, data: tuple[Any, Any], tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    from tanglescope.trl import EntanglementCallback

    trainer = trainer_of(kind, demo, data, tmp_path / "run", eval_strategy="no")
    callback = EntanglementCallback(trainer, every=2, pairs=4)
    trainer.add_callback(callback)
    with caplog.at_level("WARNING", logger="tanglescope"):
        trainer.train()
    assert not warnings_of(caplog)
    assert [logs["step"] for logs in callback.history] == [0, 2, 4]
    given = ts.objective.from_trl(trainer.args).given
    [last] = [leaf for _, step, _, leaf in callback.records.leaves() if step == 4]
    assert set(last.objectives["objective"]) == {given}


def test_desirable_and_undesirable_rows_of_a_prompt_are_pairs(demo: Path, data: tuple[Any, Any], tmp_path: Path) -> None:
    from datasets import Dataset
    from tanglescope.trl import EntanglementCallback

    rows = [{"prompt": row["prompt"], "completion": row[branch], "label": branch == "chosen"} for row in data[0] for branch in ("chosen", "rejected")]
    trainer = trainer_of("kto-lora", demo, (Dataset.from_list(rows), None), tmp_path / "run", eval_strategy="no")
    callback = EntanglementCallback(trainer, every=2, pairs=4, objective="dpo")
    trainer.add_callback(callback)
    trainer.train()
    assert [logs["step"] for logs in callback.history] == [0, 2, 4]
    assert all("regime/ideal" in logs or sum(value for key, value in logs.items() if key.startswith("regime/")) for logs in callback.history)


def test_training_ends_when_a_condition_holds(demo: Path, data: tuple[Any, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from tanglescope.trl import EntanglementCallback

    trainer = trainer_of("dpo-lora", demo, data, tmp_path / "run", eval_strategy="no")
    callback = EntanglementCallback(trainer, every=1, pairs=4, stop_if="cosine > -2", warn_if=lambda logs: logs["norm/chosen"] > 0, out=False)
    trainer.add_callback(callback)
    with caplog.at_level("WARNING", logger="tanglescope"):
        trainer.train()
    assert trainer.state.global_step == 1
    assert any("training ends" in message for message in warnings_of(caplog))
    with pytest.raises(ts.InputError, match="out"):
        _ = callback.records
    with pytest.raises(ts.InputError, match="both-dwon"):
        misspelt = trainer_of("dpo-lora", demo, data, tmp_path / "other", eval_strategy="no")
        misspelt.add_callback(EntanglementCallback(misspelt, every=1, pairs=4, stop_if="both-dwon > 0"))
        misspelt.train()
    for condition in ("both-down", "both-down > much", "> 3"):
        with pytest.raises(ts.InputError, match="NAME > NUMBER"):
            EntanglementCallback(trainer, stop_if=condition)


def test_other_log_probabilities_than_the_trainers_are_said(
    demo: Path, data: tuple[Any, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tanglescope.trl import EntanglementCallback

    trainer = trainer_of("dpo-lora", demo, data, tmp_path / "run", max_steps=2)
    callback = EntanglementCallback(trainer, every=0, pairs=EVALUATION)
    trainer.add_callback(callback)
    compute = trainer.compute_loss

    def other(model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
        # what the trainer sees of every response loses a token
        inputs["completion_mask"] = inputs["completion_mask"].roll(1, 1) & inputs["completion_mask"]
        return compute(model, inputs, *args, **more)

    trainer.compute_loss = other
    with caplog.at_level("WARNING", logger="tanglescope"):
        trainer.train()
    assert any("more than the rounding" in message for message in warnings_of(caplog))


def test_the_tokens_are_those_that_the_trainer_cuts(demo: Path, data: tuple[Any, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from tanglescope.trl import EntanglementCallback

    trainer = trainer_of("dpo-lora", demo, data, tmp_path / "run", max_length=60, max_steps=2)
    callback = EntanglementCallback(trainer, every=0, pairs=EVALUATION)
    trainer.add_callback(callback)
    with caplog.at_level("WARNING", logger="tanglescope"):
        trainer.train()
    assert not warnings_of(caplog), "log-probabilities are those of cut rows"
    rows = callback._rows
    assert rows is not None
    lengths = [len(ids.prompt) + max(map(len, ids.responses)) for ids in map(rows.ids, range(len(rows)))]
    assert max(lengths) == 60


@pytest.mark.parametrize(
    ("config", "given"),
    [
        ({"loss_type": "sigmoid", "beta": 0.2}, "dpo:beta=0.2"),
        ({"loss_type": "ipo", "beta": 0.3}, "ipo_avg:tau=0.3"),
        ({"loss_type": "robust", "label_smoothing": 0.1}, "robust_dpo:beta=0.1,eps=0.1"),
        ({"loss_type": "hinge"}, "hinge:beta=0.1"),
        ({"loss_type": "sppo_hard"}, "sppo_hard_trl:beta=0.1"),
        ({"loss_type": "sigmoid_norm"}, "dpo_norm:beta=0.1"),
        ({"loss_type": "apo_zero"}, "apo_zero:beta=0.1"),
        ({"loss_type": "discopop"}, "discopop:beta=0.1,tau=0.05"),
        ({"loss_type": "aot"}, "aot:beta=0.1,eps=0.0"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [0.8, 0.2]}, "dpo:beta=0.1,weight=0.8+sft_batch:weight=0.2"),
        ({"loss_type": "sigmoid", "ld_alpha": 0.5}, "ld_dpo:beta=0.1,alpha=0.5"),
        ({"loss_type": "sigmoid", "use_weighting": True}, "wpo:beta=0.1"),
        ({"loss_type": "sigmoid", "f_divergence_type": "js_divergence"}, "dpo_js:beta=0.1"),
    ],
)
def test_losses_of_trl_are_those_of_the_catalogue(config: dict[str, Any], given: str, tmp_path: Path) -> None:
    args = trl.DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **config)
    assert ts.objective.from_trl(args).given == given


def test_losses_that_are_not_in_the_catalogue_are_refused(tmp_path: Path) -> None:
    args = trl.DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, loss_type="hinge", f_divergence_type="forward_kl")
    with pytest.raises(ts.Unsupported) as raised:
        ts.objective.from_trl(args)
    assert raised.value.key == "f_divergence_type"
    with pytest.raises(ts.InputError, match="TrainingArguments"):
        ts.objective.from_trl(transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True))


def test_the_loss_is_the_trainers(demo: Path, data: tuple[Any, Any], tmp_path: Path) -> None:
    """Of every loss of pairs, on the trainer's own evaluation: f32, relative 1e-4."""
    from tanglescope.trl import EntanglementCallback

    for loss in ("sigmoid", "ipo", "hinge", "exo_pair", "nca_pair", "apo_down", "sppo_hard", "sigmoid_norm", "discopop"):
        smoothing = 1e-3 if loss == "exo_pair" else 0.0
        more = {"beta": 0.3, "label_smoothing": smoothing, "per_device_eval_batch_size": EVALUATION}
        trainer = trainer_of("dpo-lora", demo, data, tmp_path / loss, loss_type=loss, **more)
        for name, parameter in trainer.model.named_parameters():
            if "lora_B" in name:
                torch.manual_seed(1)
                parameter.data.normal_(0, 0.02)
        callback = EntanglementCallback(trainer, pairs=EVALUATION, out=False)
        _, found = callback.measure(0)
        theirs = trainer.evaluate()["eval_loss"]
        assert found.objectives["loss"].mean() == pytest.approx(theirs, rel=1e-4), loss


def test_an_adapter_that_training_goes_on_from_is_the_reference(
    demo: Path, data: tuple[Any, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The trainer keeps a copy of it, under the name `ref`."""
    from tanglescope.trl import EntanglementCallback

    module = transformers.AutoModelForCausalLM.from_pretrained(demo, dtype=torch.float32)
    module = peft.get_peft_model(module, lora())
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            torch.manual_seed(2)
            parameter.data.normal_(0, 0.02)
    module.save_pretrained(tmp_path / "start")
    trainer = trainer_of("dpo", demo, data, tmp_path / "run", model=module, max_steps=2, per_device_eval_batch_size=EVALUATION)
    callback = EntanglementCallback(trainer, every=0, pairs=EVALUATION)
    trainer.add_callback(callback)
    with caplog.at_level("WARNING", logger="tanglescope"):
        trainer.train()
    assert not warnings_of(caplog)
    [(_, _, _, last)] = callback.records.leaves()
    rows = callback._rows
    assert rows is not None
    start = ts.analyze(ts.Model(demo, adapter=tmp_path / "start", device="cpu"), rows)
    assert np.allclose(last.pairs["ref_logp_chosen"], start.pairs["logp_chosen"], rtol=1e-6)
    assert last.objectives["loss"].mean() == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-4)


def test_a_second_run_into_a_folder_replaces_records_and_a_failure_is_no_end(
    demo: Path, data: tuple[Any, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tanglescope.trl import EntanglementCallback

    for seed in (1, 2):
        trainer = trainer_of("dpo-lora", demo, data, tmp_path / "run", eval_strategy="no", data_seed=seed, max_steps=2)
        callback = EntanglementCallback(trainer, every=1, pairs=4)
        if seed == 2:
            measured = callback._measured

            def fails(policy: ts.Model, step: int, measured: Any = measured) -> Any:
                if step == 1:
                    raise ts.TanglescopeError("the disk is full")
                return measured(policy, step)

            callback._measured = fails  # type: ignore[method-assign]
        trainer.add_callback(callback)
        with caplog.at_level("ERROR", logger="tanglescope"):
            trainer.train()
        assert trainer.state.global_step == 2
    assert [logs["step"] for logs in callback.history] == [0, 2]
    assert any("step 1 could not be measured: the disk is full" in message for message in warnings_of(caplog))


def test_what_is_no_trainer_is_refused(demo: Path) -> None:
    from tanglescope.trl import EntanglementCallback

    with pytest.raises(TypeError, match="expected a trainer"):
        EntanglementCallback(demo)
