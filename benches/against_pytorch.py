#!/usr/bin/env python3
"""Tanglescope and two PyTorch passes a pair, in turns: seconds a pair and peak memory as ratios.

    python3 against_pytorch.py MODEL PAIRS.jsonl lora|full [--binary target/release/tanglescope] [--pairs 4] [--rounds 2]

Needs torch, transformers, peft and polars. The PyTorch side does what the published analysis scripts do: for each response
a forward and backward pass over prompt and response, then inner products of the gradients. Rows have `prompt`, `chosen`
and `rejected` as text, or `prompt_ids` and so on as token ids. Seconds a pair of Tanglescope are the difference between four times the rows and the rows once, so
that loading does not count. This process imports no torch: what it starts would inherit its peak memory.
"""
import argparse, json, os, statistics, subprocess, sys, tempfile, time

RANK, ALPHA, TARGETS = 16, 32, ["q_proj", "k_proj", "v_proj", "o_proj"]


def make_adapter(model, folder):
    """A saved LoRA adapter whose B is not zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, lora_dropout=0.0))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder)


def two_passes(model, data, scope, pairs, adapter):
    """Seconds a pair, peak memory and inner products of two passes a pair."""
    import resource, torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    torch.set_num_threads(os.cpu_count())
    tokenizer = AutoTokenizer.from_pretrained(model)
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    if scope == "lora":
        from peft import PeftModel
        net = PeftModel.from_pretrained(net, adapter, is_trainable=True).eval()
    parameters = [p for p in net.parameters() if p.requires_grad]

    def gradients(prompt, response):
        ids = torch.tensor([prompt + response])
        logits = net(ids).logits[0, len(prompt) - 1:-1]
        logp = logits.log_softmax(-1).gather(1, ids[0, len(prompt):, None]).sum()
        return logp.item(), torch.cat([g.flatten() for g in torch.autograd.grad(logp, parameters)])

    def tokens(row, key):
        return row.get(f"{key}_ids") or tokenizer(row[key], add_special_tokens=key == "prompt").input_ids

    rows = [json.loads(line) for line in open(data)][:pairs]
    results, start = [], time.perf_counter()
    for row in rows:
        prompt = tokens(row, "prompt")
        (logp_w, w), (logp_l, l) = (gradients(prompt, tokens(row, key)) for key in ("chosen", "rejected"))
        results.append([logp_w, logp_l, *(torch.dot(a, b).item() for a, b in ((w, w), (w, l), (l, l)))])
    seconds = (time.perf_counter() - start) / len(rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak_kib": peak, "results": results}))


def analyze(binary, model, rows, scope, adapter, folder):
    """Seconds, peak memory and pairs of one run."""
    folder = tempfile.mkdtemp(dir=folder)
    with open(f"{folder}/pairs.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    command = [binary, "analyze", "--device", "cpu", "--dtype", "f32", "--model", model, "--scope", scope,
               "--data", f"{folder}/pairs.jsonl", "--out", f"{folder}/out"]
    start = time.perf_counter()
    process = subprocess.Popen(command + (["--adapter", adapter] if adapter else []), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    return time.perf_counter() - start, usage.ru_maxrss, f"{folder}/out"


def main():
    parser = argparse.ArgumentParser()
    for name in ("model", "data", "scope"):
        parser.add_argument(name)
    parser.add_argument("--binary", default="target/release/tanglescope")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=["adapter", "pytorch"], help=argparse.SUPPRESS)
    parser.add_argument("--adapter", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only == "adapter":
        return make_adapter(args.model, args.adapter)
    if args.only == "pytorch":
        return two_passes(args.model, args.data, args.scope, args.pairs, args.adapter)

    rows = [json.loads(line) for line in open(args.data)][:args.pairs]
    # no two rows are the same work: each copy loses some of the prompt's first characters or tokens
    prompt = "prompt_ids" if "prompt_ids" in rows[0] else "prompt"
    copies = [{**row, prompt: row[prompt][k:] or row[prompt]} for k in range(4) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        adapter = f"{folder}/adapter" if args.scope == "lora" else None
        again = [sys.executable, __file__, args.model, args.data, args.scope, "--pairs", str(args.pairs), *(["--adapter", adapter] if adapter else [])]
        if adapter:
            subprocess.run([*again, "--only", "adapter"], check=True, stderr=subprocess.DEVNULL)
        speeds, memories = [], []
        for _ in range(args.rounds):
            theirs = json.loads(subprocess.run([*again, "--only", "pytorch"], check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            once, _, out = analyze(args.binary, args.model, rows, args.scope, adapter, folder)
            four, peak, _ = analyze(args.binary, args.model, copies, args.scope, adapter, folder)
            ours = (four - once) / (3 * len(rows))
            speeds.append(theirs["seconds"] / ours)
            memories.append(theirs["peak_kib"] / peak)
            print(f"{ours:.2f} and {theirs['seconds']:.2f} s a pair, {peak / 1024:.0f} and {theirs['peak_kib'] / 1024:.0f} MiB", flush=True)
        import polars as pl
        pairs = pl.read_parquet(f"{out}/pairs.parquet/*.parquet").sort("pair")
        columns = ["logp_chosen", "logp_rejected", "ww", "wl", "ll"]
        off = max(abs(got - want) / (abs(want) if i < 2 else (result[2] * result[4]) ** 0.5)
                  for row, result in zip(pairs.select(columns).iter_rows(), theirs["results"]) for i, (got, want) in enumerate(zip(row, result)))
    print(f"{args.scope}: {statistics.median(speeds):.2f} times the speed, {statistics.median(memories):.2f} times less memory; results differ by {off:.1e}")


main()
