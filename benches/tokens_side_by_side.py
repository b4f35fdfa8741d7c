#!/usr/bin/env python3
"""Token-level matrices by Tanglescope and by PyTorch with one backward pass a token over a kept graph, on the same pair, in f32.

    tokens_side_by_side.py BINARY MODEL {lora|full} [--prompt 60] [--response 60] [--rounds 3] [--threads 2]

PyTorch's side runs forward over both sequences, takes the gradient of every response token's log-probability, keeps it as a row, and
multiplies the rows. In scope full the rows of one side are kept and those of the other are multiplied with them as they come: all of them
would not fit. Tanglescope's seconds are what three pairs take longer than one, over two, so that loading does not count.
Needs torch, transformers, peft, polars.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("binary")
parser.add_argument("model")
parser.add_argument("scope", choices=["lora", "full"])
parser.add_argument("--prompt", type=int, default=60)
parser.add_argument("--response", type=int, default=60)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--most-tokens", type=int, help="PyTorch's backward passes of each response; the time is scaled up")
parser.add_argument("--rival", help=argparse.SUPPRESS)
args = parser.parse_args()

RANDOM = 7


def rows(count):
    import random

    random.seed(RANDOM)
    ids = lambda n: [random.randrange(100, 40_000) for _ in range(n)]
    return [(ids(args.prompt), ids(args.response), ids(args.response)) for _ in range(count)]


def load(folder):
    """The model with an adapter that does something, which is saved for the other side."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model.config.use_cache = False
    if args.scope == "lora":
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.02)
        model.save_pretrained(folder)
    return model.eval()


def rival(folder):
    """PyTorch's matrix chosen × rejected, and its seconds, in a process of its own."""
    import torch

    torch.set_num_threads(args.threads)
    model = load(folder)
    parameters = [p for p in model.parameters() if p.requires_grad]
    prompt, chosen, rejected = rows(1)[0]
    most = args.most_tokens or args.response

    def logps(response):
        ids = torch.tensor([prompt + response])
        logits = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return logits.gather(-1, ids[0, len(prompt) :, None])[:, 0]

    def gradients(response):
        values = logps(response)
        for at in range(most):
            yield torch.cat([g.flatten() for g in torch.autograd.grad(values[at], parameters, retain_graph=True)])

    seconds = []
    for _ in range(args.rounds):
        start = time.perf_counter()
        if args.scope == "lora":
            matrix = torch.stack([*gradients(chosen), *gradients(rejected)])
            inner = (matrix @ matrix.T)[:most, most:]
        else:
            kept = torch.stack(list(gradients(chosen)))
            inner = torch.stack([kept @ row for row in gradients(rejected)]).T
        seconds.append((time.perf_counter() - start) * args.response / most)
    print(json.dumps(dict(seconds=seconds, inner=inner.tolist())))


def measured(command):
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.stdout.read(), process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(err.decode())
    return time.perf_counter() - start, usage.ru_maxrss / 2**20, out


if args.rival:
    raise SystemExit(rival(args.rival))
with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    _, memory, out = measured([sys.executable, __file__, args.binary, args.model, args.scope, "--rival", str(folder / "adapter"), "--rounds", str(args.rounds),
                               "--threads", str(args.threads), "--prompt", str(args.prompt), "--response", str(args.response)]
                              + (["--most-tokens", str(args.most_tokens)] if args.most_tokens else []))
    theirs = json.loads(out)
    (folder / "one.jsonl").write_text("".join(json.dumps(dict(prompt_ids=p, chosen_ids=c, rejected_ids=r)) + "\n" for p, c, r in rows(1)))
    (folder / "three.jsonl").write_text((folder / "one.jsonl").read_text() * 3)
    ours = []
    for round in range(args.rounds):
        seconds, peak = {}, {}
        for data in ("one", "three"):
            command = [args.binary, "tokens", "--model", args.model, "--data", folder / f"{data}.jsonl", "--out", folder / f"out-{round}-{data}",
                       "--scope", args.scope, "--device", "cpu"]
            command += ["--adapter", folder / "adapter"] if args.scope == "lora" else []
            seconds[data], peak[data], _ = measured(command)
        ours.append((seconds["three"] - seconds["one"]) / 2)
    import polars as pl

    inner = pl.read_parquet(str(folder / "out-0-one/tokens.parquet/*.parquet")).filter(pl.col("block") == "wl")
    size = max(abs(x) for row in theirs["inner"] for x in row)
    worst = max(abs(theirs["inner"][r][c] - x) for r, c, x in inner.select("row", "column", "inner").iter_rows()
                if r < len(theirs["inner"]) and c < len(theirs["inner"][0])) / size
best, rival_best = min(ours), min(theirs["seconds"])
print(f"{args.scope}, 2 x {args.response} tokens: PyTorch {rival_best:.1f} s, {memory:.1f} GiB; Tanglescope {best:.2f} s, {peak['one']:.1f} GiB for one pair; "
      f"{rival_best / best:.1f} times faster; matrices differ by {worst:.1e} of the largest entry")
