#!/usr/bin/env python3
"""Tanglescope and two PyTorch programs on the same pairs, in turns: seconds a pair and peak memory as ratios.

    python3 side_by_side.py MODEL PAIRS.jsonl [--scopes lora,full] [--rivals official,hooks] [--pairs 4] [--rounds 2]
                            [--binary target/release/tanglescope]

Needs torch, transformers, peft and polars. *official* does what the published analysis scripts do: for each response a
forward and backward pass over prompt and response with logits at every position, gradients in one flat vector, then
inner products. *hooks* is the best that we know how to do in PyTorch: one forward and one backward pass over both
responses, logits at response rows only, hooks at every linear map and the cheaper of two exact reductions there; llama-like
models only. Rows have `prompt`, `chosen` and `rejected` as text, or `prompt_ids` and so on as token ids. Seconds a pair of
Tanglescope are the difference between four times the rows and the rows once, so that loading does not count. This process
imports no torch: what it starts would inherit its peak memory.
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


def official(net, parameters, prompt, responses):
    """Two forward and backward passes; gradients in one flat vector each."""
    import torch
    flat, logps = [], []
    for response in responses:
        ids = torch.tensor([prompt + response])
        logp = torch.log_softmax(net(ids).logits, -1)[0, :-1].gather(1, ids[0, 1:, None])[len(prompt) - 1:].sum()
        flat.append(torch.cat([g.flatten() for g in torch.autograd.grad(logp, parameters)]))
        logps.append(logp.item())
    w, l = flat
    return [*logps, *(torch.dot(a, b).item() for a, b in ((w, w), (w, l), (l, l)))]


def hooks(net, parameters, prompt, responses):
    """One forward and backward pass over both; products from the inputs and output gradients of each module."""
    import torch
    wanted, lengths, start = {id(p) for p in parameters}, [len(prompt) + len(r) for r in responses], len(prompt) - 1
    head, table, sums, handles = net.get_output_embeddings(), net.get_input_embeddings(), [], []
    order = ((0, 0), (0, 1), (1, 1))
    own = lambda y: [y[i, :lengths[i]] for i in (0, 1)]

    def matrices(x, delta):
        a, b = own(x), own(delta)
        rows, area = sum(lengths), a[0].shape[1] * b[0].shape[1]
        if rows * area < 0.5 * rows * rows * (a[0].shape[1] + b[0].shape[1]):
            g = [b[i].T @ a[i] for i in (0, 1)]
            sums.append([(g[i] * g[j]).sum().item() for i, j in order])
        else:
            sums.append([((a[i] @ a[j].T) * (b[i] @ b[j].T)).sum().item() for i, j in order])

    def forward(module, inputs, output):
        x = inputs[0].detach()
        if isinstance(module, torch.nn.Linear):
            output.register_hook(lambda delta: matrices(x, delta))
            return
        normal = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)

        def back(delta):
            g = [(d * n).sum(0) for d, n in zip(own(delta), own(normal))]
            sums.append([(g[i] @ g[j]).item() for i, j in order])
        output.register_hook(back)

    for module in net.modules():
        weight = getattr(module, "weight", None)
        if module is not head and module is not table and weight is not None and id(weight) in wanted:
            handles.append(module.register_forward_hook(forward))
    full = id(head.weight) in wanted
    for p in net.parameters():
        p.requires_grad_(False)
    try:
        ids = torch.zeros(2, max(lengths), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, response in enumerate(responses):
            ids[i, :lengths[i]], mask[i, :lengths[i]] = torch.tensor(prompt + response), 1
        embedded = table(ids).detach().requires_grad_(True)
        base = net.get_base_model() if hasattr(net, "get_base_model") else net
        hidden = base.model(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
        back, logps, of_head = torch.zeros_like(hidden), [], []
        with torch.no_grad():
            for i, response in enumerate(responses):
                y, targets = hidden[i, start:lengths[i] - 1], torch.tensor(response)[:, None]
                logp = torch.log_softmax(y @ head.weight.T, -1)
                logps.append(logp.gather(1, targets).sum().item())
                e = logp.exp_().neg_()
                e.scatter_add_(1, targets, torch.ones(len(response), 1))
                back[i, start:lengths[i] - 1] = e @ head.weight
                of_head.append((y.detach(), e))
        hidden.backward(back)
        if full:
            d, tokens = own(embedded.grad), [ids[i, :lengths[i]] for i in (0, 1)]
            tied = head.weight is table.weight
            cross = lambda i, j: ((of_head[i][0] @ d[j].T) * of_head[i][1][:, tokens[j]]).sum().item() if tied else 0.0
            for i, j in order:
                same = tokens[i][:, None] == tokens[j][None]
                products = (of_head[i][0] @ of_head[j][0].T) * (of_head[i][1] @ of_head[j][1].T)
                value = products.sum().item() + ((d[i] @ d[j].T) * same).sum().item() + cross(i, j) + cross(j, i)
                sums.append([value if (i, j) == at else 0.0 for at in order])
    finally:
        for handle in handles:
            handle.remove()
        for p in parameters:
            p.requires_grad_(True)
    return [*logps, *(sum(column) for column in zip(*sums))]


def rival(name, model, data, scope, pairs, adapter):
    """Seconds a pair after one to warm up, peak memory and results of a PyTorch program."""
    import resource, torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    torch.set_num_threads(os.cpu_count())
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    if scope == "lora":
        from peft import PeftModel
        net = PeftModel.from_pretrained(net, adapter, is_trainable=True).eval()
    parameters = [p for p in net.parameters() if p.requires_grad]
    rows = [json.loads(line) for line in open(data)][:pairs]
    if "prompt_ids" in rows[0]:
        tokens = lambda row, key: row[f"{key}_ids"]
    else:
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokens = lambda row, key: tokenizer(row[key], add_special_tokens=key == "prompt").input_ids
    work = [(tokens(row, "prompt"), [tokens(row, "chosen"), tokens(row, "rejected")]) for row in rows]
    method = {"official": official, "hooks": hooks}[name]
    method(net, parameters, *work[0])
    start = time.perf_counter()
    results = [method(net, parameters, *pair) for pair in work]
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


def compare(args, name, scope, rows, copies, adapter, folder):
    """One line of the table."""
    import polars as pl
    again = [sys.executable, __file__, args.model, args.data, "--only", name, "--scopes", scope, "--pairs", str(args.pairs)]
    again += ["--adapter", adapter] if adapter else []
    ours, speeds, memories = [], [], []
    for _ in range(args.rounds):
        theirs = json.loads(subprocess.run(again, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        once, _, out = analyze(args.binary, args.model, rows, scope, adapter, folder)
        four, peak, _ = analyze(args.binary, args.model, copies, scope, adapter, folder)
        ours.append((four - once) / (3 * len(rows)))
        speeds.append(theirs["seconds"] / ours[-1])
        memories.append(theirs["peak_kib"] / peak)
    pairs = pl.read_parquet(f"{out}/pairs.parquet/*.parquet").sort("pair")
    columns = ["logp_chosen", "logp_rejected", "ww", "wl", "ll"]
    off = max(abs(got - want) / (abs(want) if i < 2 else (result[2] * result[4]) ** 0.5)
              for row, result in zip(pairs.select(columns).iter_rows(), theirs["results"]) for i, (got, want) in enumerate(zip(row, result)))
    median = statistics.median
    print(f"| {os.path.basename(args.data)} | {scope} | {name} | {median(ours):.2f} | {median(speeds):.2f} | {peak / 1024:.0f} | {median(memories):.2f} | {off:.1e} |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--scopes", default="lora,full")
    parser.add_argument("--rivals", default="official,hooks")
    parser.add_argument("--binary", default="target/release/tanglescope")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=["adapter", "official", "hooks"], help=argparse.SUPPRESS)
    parser.add_argument("--adapter", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only == "adapter":
        return make_adapter(args.model, args.adapter)
    if args.only:
        return rival(args.only, args.model, args.data, args.scopes, args.pairs, args.adapter)

    rows = [json.loads(line) for line in open(args.data)][:args.pairs]
    # no two rows are the same work: each copy loses some of the prompt's first characters or tokens
    prompt = "prompt_ids" if "prompt_ids" in rows[0] else "prompt"
    copies = [{**row, prompt: row[prompt][k:] or row[prompt]} for k in range(4) for row in rows]
    print("| data | scope | rival | our s a pair | times its speed | our peak MiB | its peak over ours | results differ by |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for scope in args.scopes.split(","):
            adapter = f"{folder}/adapter" if scope == "lora" else None
            if adapter:
                command = [sys.executable, __file__, args.model, args.data, "--only", "adapter", "--adapter", adapter]
                subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            for name in args.rivals.split(","):
                compare(args, name, scope, rows, copies, adapter, folder)


main()
