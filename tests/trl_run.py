#!/usr/bin/env python3
"""A short DPO run of TRL on a real model, and what `sweep` says of the folder that it leaves: the same log-probabilities, rewards and loss?

    python3 trl_run.py TANGLESCOPE MODEL TRAIN.jsonl EVAL.jsonl lora|continue|full [FOLDER]

with requirements-trl.txt installed. Everything on our side is at its defaults but --dtype f32, --scope and --objective dpo. `continue` trains an
adapter for two steps and goes on from it, so that the reference is that adapter. Exit code 1 where a number differs by more than 1e-4."""
import glob
import json
import os
import subprocess
import sys
import tempfile

import polars as pl
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

binary, model, train, evaluation, kind = sys.argv[1:6]
folder = sys.argv[6] if len(sys.argv) > 6 else tempfile.mkdtemp()
rows = lambda path: Dataset.from_list([json.loads(line) for line in open(path)])
torch.manual_seed(0)


def run(of, steps, out, **more):
    # the tokenizer saves itself into every checkpoint
    config = DPOConfig(
        output_dir=out, max_steps=steps, save_steps=5, eval_steps=5, eval_strategy="steps", per_device_train_batch_size=2,
        per_device_eval_batch_size=4, learning_rate=1e-3, use_cpu=True, bf16=False, report_to=[], logging_steps=1, gradient_checkpointing=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    trainer = DPOTrainer(model=of, args=config, train_dataset=rows(train), eval_dataset=rows(evaluation), processing_class=tokenizer, **more)
    trainer.train()
    return trainer


base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
out = f"{folder}/{kind}"
if kind == "full":
    trainer = run(base, 10, out)
elif kind == "lora":
    trainer = run(base, 10, out, peft_config=lora)
else:
    first = run(base, 2, f"{folder}/first", peft_config=lora)
    first.save_model(f"{folder}/start")
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    trainer = run(PeftModel.from_pretrained(base, f"{folder}/start", is_trainable=True), 10, out)
logged = {entry["step"]: entry for entry in trainer.state.log_history if "eval_loss" in entry}

swept = f"{folder}/swept-{kind}"
words = [binary, "sweep", out, "--data", f"eval={evaluation}", "--out", swept, "--dtype", "f32", "--device", "cpu", "--objective", "dpo"]
words += ["--model", model]
subprocess.run(words, check=True)
worst = 0.0
for step, log in sorted(logged.items()):
    [leaf] = glob.glob(f"{swept}/run=*/step={step}/dataset=eval")
    pairs = pl.read_parquet(f"{leaf}/pairs.parquet/*.parquet")
    loss = pl.read_parquet(f"{leaf}/objectives.parquet/*.parquet")["loss"].mean()
    reward = lambda side: 0.1 * (pairs[f"logp_{side}"] - pairs[f"ref_logp_{side}"]).mean()
    ours = {
        "eval_loss": loss, "eval_logps/chosen": pairs["logp_chosen"].mean(), "eval_logps/rejected": pairs["logp_rejected"].mean(),
        "eval_rewards/chosen": reward("chosen"), "eval_rewards/rejected": reward("rejected"),
        "eval_rewards/margins": reward("chosen") - reward("rejected"),
    }
    for name, value in ours.items():
        # rewards are small differences of large log-probabilities, and begin at zero
        error = abs(value - log[name]) / max(abs(log[name]), 1e-2 if "reward" in name else 0.0)
        worst = max(worst, error)
        print(f"step {step:3d}  {name:22s} TRL {log[name]: .7f}  here {value: .7f}  relative {error:.1e}")
print(f"{kind}: {len(pairs)} pairs, worst {worst:.1e}")
sys.exit(worst > 1e-4)
