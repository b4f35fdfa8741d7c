"""Makes tests/golden/interference: checkpoints with optimizer.pt as the Trainer of transformers leaves them, and the Gram of pairs by torch in float64, plain and
in the metric of those optimizers.

    python tests/interference_values.py        (torch 2.15.0, transformers 5.24.0, peft 0.21.2)

The carried llama golden is trained for three steps, as a whole and through its adapter. `gram` and `adam` are [2N, 2N] of chosen and rejected in turn.
"""
import json, pathlib, shutil, tempfile, types
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, modeling_rope_utils
from transformers.models.llama import modeling_llama

root = pathlib.Path(__file__).parent / "golden"
base, out = root / "llama3_tied", root / "interference"
PAIRS = json.load(open(base / "golden.json"))["pairs"][:4]
shutil.rmtree(out, ignore_errors=True)


class Double(types.ModuleType):
    """torch, where float32 is float64."""
    float = float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def load(adapter):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    return model if adapter is None else PeftModel.from_pretrained(model, adapter, is_trainable=True)


def train(model, name):
    """Leaves the checkpoint after three steps, without what is not needed of it."""
    rows = [dict(input_ids=(row := p["prompt_ids"] + p["chosen_ids"])[:16] + [1] * (16 - len(row[:16])), labels=row[:16] + [-100] * (16 - len(row[:16]))) for p in PAIRS]
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(folder, max_steps=3, per_device_train_batch_size=2, learning_rate=1e-3, weight_decay=0.01, save_steps=3, report_to=[], use_cpu=True, seed=1)
        Trainer(model=model, args=args, train_dataset=rows).train()
        saved, to = pathlib.Path(folder) / "checkpoint-3", out / name
        to.mkdir(parents=True)
        for file in ("optimizer.pt", "trainer_state.json", "config.json", "model.safetensors", "adapter_config.json", "adapter_model.safetensors"):
            if (saved / file).exists():
                shutil.copy(saved / file, to / file)
    return to


def grams(model, folder):
    """Products of all gradients, plain and in the metric of the optimizer's state."""
    for module in (modeling_rope_utils, modeling_llama):
        module.torch = Double("torch")
    model = model.double()
    rotary = (model.base_model.model if hasattr(model, "peft_config") else model).model.rotary_emb
    rotary.inv_freq, _ = modeling_rope_utils.ROPE_INIT_FUNCTIONS[rotary.rope_type](rotary.config)
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decays = lambda name: not ("bias" in name or "norm" in name)
    order = [p for name, p in named if decays(name)] + [p for name, p in named if not decays(name)]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    assert len(order) == len(numbers)
    metric = []
    for p, number in zip(order, numbers):
        of = state["state"][number]
        assert of["exp_avg_sq"].shape == p.shape
        group = next(group for group in state["param_groups"] if number in group["params"])
        v = of["exp_avg_sq"].double() / (1 - group["betas"][1] ** float(of["step"]))
        metric.append((1 / (v.sqrt() + group["eps"])).flatten())
    rows = []
    for pair in PAIRS:
        for response in (pair["chosen_ids"], pair["rejected_ids"]):
            prompt = pair["prompt_ids"]
            logits = model(torch.tensor([prompt + response[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :]
            logp = logits.log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)].sum()
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(logp, order)]))
    rows = torch.stack(rows)
    for module in (modeling_rope_utils, modeling_llama):
        module.torch = torch
    return dict(gram=(rows @ rows.T).flatten().tolist(), adam=((rows * torch.cat(metric)) @ rows.T).flatten().tolist())


for name, adapter in (("full", None), ("lora", base / "adapter")):
    model = load(adapter)
    model.train(False)
    folder = train(model, name)
    json.dump(grams(model, folder), open(folder / "grams.json", "w"))
with open(out / "pairs.jsonl", "w") as file:
    for pair in PAIRS:
        file.write(json.dumps({key: pair[key] for key in ("prompt_ids", "chosen_ids", "rejected_ids")}) + "\n")
