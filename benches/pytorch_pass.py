#!/usr/bin/env python3
"""The rival's pass with synthetic weights, on any device: what `tanglescope bench` measures, in PyTorch.

    python3 pytorch_pass.py --method official|hooks --scope lora|full --device cuda --dtype bf16 --layers 4 ...

Needs torch and nothing else, so that it runs where there is no network. The model is a Llama with random weights at the
shape that the options give. *official* does what the published analysis script does for a pair: for each response a
forward pass over prompt and response with logits at every position, a backward pass, all gradients in one flat vector,
then a dot product and norms. *hooks* is one forward and one backward pass over both responses as a right-padded batch of
two, logits at response rows only, hooks at every linear map, and the cheaper of two exact reductions there.
Prints one line of JSON: seconds a pair (the median of the repeats after one to warm up), peak bytes, products' rate."""
import argparse, json, resource, statistics, time
import torch
import torch.nn.functional as F

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


class Linear(torch.nn.Module):
    """y = Wx, plus s·B(Ax) where it has an adapter."""

    def __init__(self, inputs, outputs, rank, make):
        super().__init__()
        self.weight = torch.nn.Parameter(make(outputs, inputs))
        self.rank = rank
        if rank:
            self.a, self.b, self.scale = torch.nn.Parameter(make(rank, inputs)), torch.nn.Parameter(make(outputs, rank)), 2.0
        self.report = None

    def forward(self, x):
        y = x @ self.weight.T
        low = None
        if self.rank:
            low = x @ self.a.T
            y = y + self.scale * (low @ self.b.T)
        if self.report and y.requires_grad:
            self.report(self, x.detach(), low.detach() if self.rank else None, y)
        return y


class Norm(torch.nn.Module):
    def __init__(self, width, make):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones_like(make(width)))
        self.report = None

    def forward(self, x):
        wide = x.float()
        normal = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)
        y = normal * self.gain
        if self.report and y.requires_grad:
            self.report(self, normal.detach(), None, y)
        return y


class Block(torch.nn.Module):
    def __init__(self, o, make):
        super().__init__()
        self.o, h = o, o.head_dim
        rank = lambda name: o.lora_r if o.scope == "lora" and name in o.lora_targets.split(",") else 0
        linear = lambda name, inputs, outputs: Linear(inputs, outputs, rank(name), make)
        self.q_proj = linear("q_proj", o.hidden, o.heads * h)
        self.k_proj = linear("k_proj", o.hidden, o.kv_heads * h)
        self.v_proj = linear("v_proj", o.hidden, o.kv_heads * h)
        self.o_proj = linear("o_proj", o.heads * h, o.hidden)
        self.gate_proj, self.up_proj = linear("gate_proj", o.hidden, o.mlp), linear("up_proj", o.hidden, o.mlp)
        self.down_proj = linear("down_proj", o.mlp, o.hidden)
        self.attention_norm, self.mlp_norm = Norm(o.hidden, make), Norm(o.hidden, make)

    def forward(self, x, cos, sin):
        o, (batch, rows, _) = self.o, x.shape
        normal = self.attention_norm(x)
        heads = lambda y, n: y.view(batch, rows, n, o.head_dim).transpose(1, 2)
        q, k, v = heads(self.q_proj(normal), o.heads), heads(self.k_proj(normal), o.kv_heads), heads(self.v_proj(normal), o.kv_heads)
        turn = lambda y: y * cos + torch.cat((-y[..., o.head_dim // 2:], y[..., :o.head_dim // 2]), -1) * sin
        q, k = turn(q), turn(k)
        k, v = (y.repeat_interleave(o.heads // o.kv_heads, 1) for y in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, rows, -1)
        x = x + self.o_proj(mixed)
        normal = self.mlp_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(normal)) * self.up_proj(normal))


class Model(torch.nn.Module):
    def __init__(self, o):
        super().__init__()
        device, dtype = torch.device(o.device), DTYPES[o.dtype]
        torch.manual_seed(0)
        make = lambda *shape: torch.randn(*shape, device=device, dtype=dtype) * 0.02
        self.o, self.embedding, self.head = o, torch.nn.Parameter(make(o.vocabulary, o.hidden)), torch.nn.Parameter(make(o.vocabulary, o.hidden))
        self.blocks = torch.nn.ModuleList(Block(o, make) for _ in range(o.layers))
        self.norm = Norm(o.hidden, make)
        half = torch.arange(0, o.head_dim, 2, device=device).float() / o.head_dim
        angles = torch.arange(o.prompt + o.response, device=device).float()[:, None] * (500000.0 ** -half)[None]
        self.cos, self.sin = (torch.cat((f(angles),) * 2, -1).to(dtype) for f in (torch.cos, torch.sin))
        for name, p in self.named_parameters():
            p.requires_grad_(o.scope == "full" or name.split(".")[-1] in ("a", "b"))

    def rows(self, embedded):
        x, n = embedded, embedded.shape[1]
        for block in self.blocks:
            x = block(x, self.cos[:n], self.sin[:n])
        return self.norm(x)


def official(model, pair):
    """Two forward and backward passes, flat gradients."""
    prompt, *responses = pair
    parameters = [p for p in model.parameters() if p.requires_grad]
    flat, logps = [], []
    for response in responses:
        ids = torch.cat((prompt, response))
        logits = model.rows(model.embedding[ids][None])[0] @ model.head.T
        logp = torch.log_softmax(logits[:-1].float(), -1).gather(1, ids[1:, None])[len(prompt) - 1:].sum()
        gradients = torch.autograd.grad(logp, parameters)
        flat.append(torch.cat([g.flatten() for g in gradients]))
        logps.append(logp.item())
    w, l = flat
    return [*logps, torch.dot(w, w).item(), torch.dot(w, l).item(), torch.dot(l, l).item()]


def hooks(model, pair):
    """One pass over both responses; inner products from inputs and output gradients."""
    prompt, *responses = pair
    lengths, start = [len(prompt) + len(r) for r in responses], len(prompt) - 1
    sums = []

    def of_vectors(vectors):
        sums.append(torch.stack([vectors[i].float() @ vectors[j].float() for i, j in ((0, 0), (0, 1), (1, 1))]))

    def of_matrices(a, b, scale=1.0):
        a, b = ([y[i, :lengths[i]] for i in (0, 1)] for y in (a, b))
        rows, area = sum(lengths), a[0].shape[1] * b[0].shape[1]
        if rows * area < 0.5 * rows * rows * (a[0].shape[1] + b[0].shape[1]):
            g = [b[i].T @ a[i] for i in (0, 1)]
            products = [(g[i].float() * g[j].float()).sum() for i, j in ((0, 0), (0, 1), (1, 1))]
        else:
            products = [((a[i] @ a[j].T).float() * (b[i] @ b[j].T).float()).sum() for i, j in ((0, 0), (0, 1), (1, 1))]
        sums.append(scale * torch.stack(products))

    def report(module, x, low, y):
        def back(delta):
            if isinstance(module, Norm):
                if model.o.scope == "full":
                    of_vectors([(delta[i, :lengths[i]] * x[i, :lengths[i]]).sum(0) for i in (0, 1)])
            elif module.rank:
                of_matrices(x, delta @ module.b, module.scale**2)
                of_matrices(low, delta, module.scale**2)
            elif model.o.scope == "full":
                of_matrices(x, delta)
        y.register_hook(back)

    for p in model.parameters():
        p.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, (Linear, Norm)):
            module.report = report
    try:
        ids = torch.zeros(2, max(lengths), dtype=torch.long, device=prompt.device)
        for i, response in enumerate(responses):
            ids[i, :lengths[i]] = torch.cat((prompt, response))
        embedded = model.embedding[ids].detach().requires_grad_(True)
        hidden = model.rows(embedded)
        back, logps, of_head = torch.zeros_like(hidden), [], []
        with torch.no_grad():
            for i, response in enumerate(responses):
                y = hidden[i, start:lengths[i] - 1]
                logp = torch.log_softmax((y @ model.head.T).float(), -1)
                logps.append(logp.gather(1, response[:, None]).sum())
                e = (-logp.exp()).scatter_add_(1, response[:, None], torch.ones_like(response[:, None], dtype=logp.dtype)).to(y.dtype)
                back[i, start:lengths[i] - 1] = e @ model.head
                of_head.append((y, e))
            if model.o.scope == "full":
                sums.append(torch.stack([((of_head[i][0] @ of_head[j][0].T).float() * (of_head[i][1] @ of_head[j][1].T).float()).sum() for i, j in ((0, 0), (0, 1), (1, 1))]))
        hidden.backward(back)
        if model.o.scope == "full":
            same = lambda i, j: ids[i, :lengths[i], None] == ids[j, None, :lengths[j]]
            d = [embedded.grad[i, :lengths[i]] for i in (0, 1)]
            sums.append(torch.stack([((d[i] @ d[j].T).float() * same(i, j)).sum() for i, j in ((0, 0), (0, 1), (1, 1))]))
    finally:
        for module in model.modules():
            if isinstance(module, (Linear, Norm)):
                module.report = None
    return torch.cat((torch.stack(logps), torch.stack(sums).double().sum(0).float())).tolist()


def products_rate(device, dtype):
    """Rate of one product of 4096 × 4096 (1024 on a CPU), operations a second."""
    n = 4096 if device == "cuda" else 1024
    a, b = torch.randn(n, n, device=device).to(dtype), torch.randn(n, n, device=device).to(dtype)
    best = float("inf")
    for _ in range(20):
        wait(device)
        start = time.perf_counter()
        a @ b
        wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", choices=("official", "hooks"), required=True)
    parser.add_argument("--scope", choices=("lora", "full"), required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--lora-targets", default="q_proj,k_proj,v_proj")
    shape = {"layers": 4, "hidden": 4096, "heads": 32, "kv-heads": 8, "head-dim": 128, "mlp": 14336, "vocabulary": 128256,
             "lora-r": 64, "prompt": 256, "response": 128, "pairs": 4, "repeats": 3}
    for name, default in shape.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    o = parser.parse_args()
    rate = products_rate(o.device, DTYPES[o.dtype])
    model = Model(o)
    ids = lambda n: torch.randint(o.vocabulary, (n,), device=o.device)
    pairs = [(ids(o.prompt), ids(o.response), ids(o.response)) for _ in range(o.pairs)]
    method = {"official": official, "hooks": hooks}[o.method]
    times = []
    for _ in range(o.repeats + 1):
        wait(o.device)
        start = time.perf_counter()
        results = [method(model, pair) for pair in pairs]
        wait(o.device)
        times.append((time.perf_counter() - start) / o.pairs)
    peak = torch.cuda.max_memory_allocated() if o.device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"method": o.method, "scope": o.scope, "dtype": o.dtype, "device": torch.cuda.get_device_name() if o.device == "cuda" else "cpu",
                      "seconds_a_pair": statistics.median(times[1:]), "peak_bytes": peak, "products": rate, "results": results}))


main()
