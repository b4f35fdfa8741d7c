#!/usr/bin/env python3
"""DPO training by Tanglescope and by PyTorch as TRL does it, in turn, on the same pairs, batches and threads, in f32.

    train_side_by_side.py BINARY MODEL PAIRS.jsonl {lora|full} [--steps 8] [--batch 4] [--rounds 2] [--threads 2]

PyTorch's side is the step of TRL's DPOTrainer: chosen and rejected sequences padded into one batch, one forward pass of the
reference (the adapter switched off, or a frozen copy) and of the policy, one backward pass, clipping, AdamW. Its seconds are those
of the steps alone. Tanglescope's are what twice as many steps take longer, reference pass included, loading and checkpoints not; it
runs as it does by default, with every pair's Gram at every step, and once more without (--gram-every 0).
Needs torch, transformers, peft.
"""
import argparse
import json
import subprocess
import tempfile
import time

import torch
from torch.nn.functional import logsigmoid
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForCausalLM, AutoTokenizer


def pairs(path, folder, count):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    rows = [json.loads(line) for line in open(path, encoding="utf-8")][:count]
    return [(ids(row["prompt"]), ids(row["chosen"]), ids(row["rejected"])) for row in rows]


def concatenated(batch):
    sequences = [p + c for p, c, _ in batch] + [p + r for p, _, r in batch]
    starts = [len(p) for p, _, _ in batch] * 2
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    attention, loss = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, (sequence, start) in enumerate(zip(sequences, starts)):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        attention[row, : len(sequence)] = 1
        loss[row, start : len(sequence)] = 1
    return ids, attention, loss


def logps(model, batch):
    ids, attention, loss = batch
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1]
    # TRL's selective_log_softmax: the target's logit less the log-sum-exp, row by row
    target = logits.gather(-1, ids[:, 1:, None])[..., 0]
    normaliser = torch.stack([row.logsumexp(-1) for row in logits])
    return ((target - normaliser) * loss[:, 1:]).sum(-1).chunk(2)


class PyTorch:
    def __init__(self, args):
        self.policy = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
        self.reference = None
        if args.scope == "lora":
            from peft import LoraConfig, get_peft_model

            targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
            config = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=targets)
            self.policy = get_peft_model(self.policy, config)
        else:
            self.reference = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).requires_grad_(False)
        self.parameters = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-5, weight_decay=0.0)
        data = pairs(args.data, args.model, args.steps * args.batch)
        self.batches = [data[at : at + args.batch] for at in range(0, len(data), args.batch)]

    def run(self):
        start = time.perf_counter()
        for batch in map(concatenated, self.batches):
            with torch.no_grad():
                if self.reference is None:
                    with self.policy.disable_adapter():
                        old = logps(self.policy, batch)
                else:
                    old = logps(self.reference, batch)
            new = logps(self.policy, batch)
            margin = (new[0] - old[0]) - (new[1] - old[1])
            (-logsigmoid(0.1 * margin).mean()).backward()
            clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return time.perf_counter() - start


def tanglescope(args, *more):
    return process(args, 2 * args.steps, *more) - process(args, args.steps, *more)


def process(args, steps, *more):
    with tempfile.TemporaryDirectory() as out:
        command = [args.binary, "train", "--device", "cpu", "--model", args.model, "--data", args.data, "--out", out]
        command += ["--objective", "dpo", "--scope", args.scope, "--batch-size", str(args.batch)]
        command += ["--max-steps", str(steps), "--limit", str(steps * args.batch), "--save-every", "1000", *more]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - start


parser = argparse.ArgumentParser()
parser.add_argument("binary")
parser.add_argument("model")
parser.add_argument("data")
parser.add_argument("scope", choices=["lora", "full"])
parser.add_argument("--steps", type=int, default=8)
parser.add_argument("--batch", type=int, default=4)
parser.add_argument("--rounds", type=int, default=2)
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()
torch.set_num_threads(args.threads)
pytorch = PyTorch(args)
best = {}
for number in range(args.rounds):
    for name, run in [
        ("PyTorch", pytorch.run),
        ("Tanglescope", lambda: tanglescope(args)),
        ("Tanglescope without Grams", lambda: tanglescope(args, "--gram-every", "0")),
    ]:
        seconds = run()
        best[name] = min(best.get(name, seconds), seconds)
        print(f"round {number + 1}  {name:<26} {args.steps / seconds:.3f} steps/s", flush=True)
for name, seconds in best.items():
    print(f"best     {name:<26} {args.steps / seconds:.3f} steps/s, {best['PyTorch'] / seconds:.2f} times PyTorch's")
