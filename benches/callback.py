#!/usr/bin/env python3
"""What tanglescope.trl.EntanglementCallback costs a DPO run, beside two backward passes a pair in torch.

    python3 callback.py MODEL PAIRS.jsonl [lora|full] [PAIRS_OF_THE_SAMPLE] [STEPS]

in an environment of python/requirements-test.txt with the wheel. Prints one line of JSON: seconds of a training step, of a measurement of the sample (the first one takes the model over), of
what training waited in the background, and of the same inner products by torch's autograd, two passes a pair."""

import json
import statistics
import sys
import tempfile
import time

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

from tanglescope.trl import EntanglementCallback

model, data = sys.argv[1:3]
kind = sys.argv[3] if len(sys.argv) > 3 else "lora"
sample = int(sys.argv[4]) if len(sys.argv) > 4 else 16
steps = int(sys.argv[5]) if len(sys.argv) > 5 else 8
rows = [json.loads(line) for line in open(data)]
rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
BATCH = 4


class Clock(TrainerCallback):
    """Seconds of every training step by itself."""

    def __init__(self):
        self.steps = []

    def on_step_begin(self, *of, **more):
        self.start = time.monotonic()

    def on_pre_optimizer_step(self, *of, **more):
        self.half = time.monotonic()

    def on_optimizer_step(self, *of, **more):
        self.steps.append(time.monotonic() - self.start)


def run(background):
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=DPOConfig(
            output_dir=tempfile.mkdtemp(), max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=1e-5, report_to=[], use_cpu=True, bf16=False,
            save_strategy="no", gradient_checkpointing=False, disable_tqdm=True, logging_steps=1000,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM") if kind == "lora" else None,
    )
    clock = Clock()
    callback = EntanglementCallback(trainer, every=2, pairs=sample, background=background, by_layer=False)
    trainer.add_callback(clock)
    trainer.add_callback(callback)
    start = time.monotonic()
    trainer.train()
    return trainer, callback, clock, time.monotonic() - start


def autograd_twice(trainer, pairs):
    """Seconds that torch takes for the same inner products, pair by pair."""
    module = trainer.model
    module.eval()
    parameters = [p for n, p in module.named_parameters() if p.requires_grad]
    start = time.monotonic()
    for row in pairs:
        gradients = []
        for response in (row["chosen_ids"], row["rejected_ids"]):
            ids = torch.tensor([row["prompt_ids"] + response])
            logits = module(ids).logits[0, len(row["prompt_ids"]) - 1 : -1].log_softmax(-1)
            logp = logits.gather(1, torch.tensor(response)[:, None]).sum()
            gradients.append(torch.autograd.grad(logp, parameters))
        [w, l] = gradients
        [sum(float((a * b).sum()) for a, b in zip(x, y)) for x, y in ((w, w), (w, l), (l, l))]
    return time.monotonic() - start


trainer, callback, clock, _ = run(False)
seconds = [logs["entanglement/seconds"] for logs in callback.history]
found = {
    "kind": kind,
    "pairs": sample,
    "batch": BATCH,
    "step_s": statistics.median(clock.steps[1:]),
    "measurement_s": statistics.median(seconds[1:]),
    "first_measurement_s": seconds[0],
    "autograd_s": autograd_twice(trainer, callback._sample),
    "threads": torch.get_num_threads(),
}
_, behind, behind_clock, _ = run(True)
found["background_waited_s"] = behind.waited / len(behind.history)
found["background_step_s"] = statistics.median(behind_clock.steps[1:])
print(json.dumps(found))
