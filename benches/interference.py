"""The Gram of all responses of a data set beside PyTorch, which keeps every gradient and multiplies them: the same adapter and pairs, in turns.

    python benches/interference.py TANGLESCOPE MODEL DATA [--limit N] [--rank R] [--turns T]     (torch, transformers, peft, polars)

Says seconds of both, their ratio, the peak memory of ours, how far the numbers are apart, and how far a random projection of the gradients into 4,096 entries is off.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import tempfile
import time

import polars as pl
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

PROJECTED = 4096


def adapter(model, rank, folder):
    """A fresh adapter whose B is not zero, so that all gradients are there."""
    torch.manual_seed(0)
    peft = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    peft.save_pretrained(folder)
    return peft


def ids(tanglescope, model, data, limit, folder):
    """Token ids of the pairs, as ours measures them."""
    path = folder / "ids.jsonl"
    subprocess.run([tanglescope, "rows", "--model", model, "--data", data, "--limit", str(limit), "--out", path], check=True, capture_output=True)
    return path, [json.loads(line) for line in open(path)]


def by_torch(model, pairs):
    """One backward pass a response, every gradient kept, and one product of matrices."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows = torch.empty(2 * len(pairs), sum(parameter.numel() for parameter in parameters))
    for at, pair in enumerate(pairs):
        prompt = pair["prompt_ids"]
        for k, response in enumerate((pair["chosen_ids"], pair["rejected_ids"])):
            logits = model(torch.tensor([prompt + response[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :]
            logp = logits.log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)].sum()
            torch.cat([g.flatten() for g in torch.autograd.grad(logp, parameters)], out=rows[2 * at + k])
    return rows, rows @ rows.T


def ours(tanglescope, model, adapter, data, limit, out):
    words = [tanglescope, "interference", "--model", model, "--adapter", adapter, "--data", data, "--limit", str(limit), "--out", out, "--device", "cpu"]
    subprocess.run(words, check=True, capture_output=True)
    couples = pl.read_parquet(f"{out}/interference.parquet/*.parquet")
    numbers = {pair: at for at, pair in enumerate(sorted(couples["a"].unique().to_list()))}
    found = torch.zeros(2 * len(numbers), 2 * len(numbers), dtype=torch.float64)
    for a, b, *inner in couples.iter_rows():
        for k, value in enumerate(inner):
            i, j = 2 * numbers[a] + k // 2, 2 * numbers[b] + k % 2
            found[i, j] = found[j, i] = value
    return found


def off(found, exact):
    """Largest and root mean square distance, of the lengths of both gradients."""
    lengths = exact.diagonal().sqrt()
    error = (found.double() - exact).abs() / lengths.outer(lengths)
    error.fill_diagonal_(0)
    return error.max().item(), error.square().mean().sqrt().item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tanglescope")
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--limit", type=int, default=32)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    seconds = {"tanglescope": [], "torch": []}
    with tempfile.TemporaryDirectory() as passing:
        folder = pathlib.Path(passing)
        model = adapter(AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32), args.rank, folder / "adapter")
        data, pairs = ids(args.tanglescope, args.model, args.data, args.limit, folder)
        for turn in range(args.turns):
            start = time.time()
            found = ours(args.tanglescope, args.model, folder / "adapter", data, args.limit, folder / f"out{turn}")
            seconds["tanglescope"].append(time.time() - start)
            start = time.time()
            rows, gram = by_torch(model, pairs)
            seconds["torch"].append(time.time() - start)
    torch.manual_seed(1)
    projected = torch.cat([part @ (torch.randint(0, 2, (part.shape[1], PROJECTED)).float() * 2 - 1) for part in rows.split(65536, 1)[:1]])
    for part in rows.split(65536, 1)[1:]:
        projected += part @ (torch.randint(0, 2, (part.shape[1], PROJECTED)).float() * 2 - 1)
    exact = rows.double() @ rows.double().T
    best = {name: min(of) for name, of in seconds.items()}
    print(json.dumps({
        "pairs": len(pairs),
        "rank": args.rank,
        "entries": rows.shape[1],
        "seconds": seconds,
        "ratio": best["torch"] / best["tanglescope"],
        "peak_gib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20,
        "tanglescope_off": off(found, exact),
        "torch_f32_off": off(gram, exact),
        f"projection_{PROJECTED}_off": off(projected.double() @ projected.double().T / PROJECTED, exact),
    }, indent=1))


if __name__ == "__main__":
    main()
