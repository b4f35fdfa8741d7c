"""Makes tests/golden/official: a small model, a run of adapters, rows of token ids, and what the published repository's way of
measuring them gives: one forward and backward pass a response at batch size one, all gradients flattened, inner product and norms, means
over the pairs (analysis/grad_plot.py of github.com/HumainLab/Understand_MarginPO, whose `Grad_Condition` takes the norm of w twice). Its
gradients are summed in float64. Needs torch, transformers and peft."""

import csv
import json
import pathlib
import shutil

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

OUT = pathlib.Path(__file__).parent / "golden/official"
shutil.rmtree(OUT, ignore_errors=True)
torch.manual_seed(5)
config = LlamaConfig(vocab_size=60, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                     max_position_embeddings=64, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2)
LlamaForCausalLM(config).save_pretrained(OUT / "model")
random = np.random.default_rng(5)
ids = lambda: random.integers(3, 60, random.integers(2, 12)).tolist()
rows = [dict(prompt_ids=ids(), chosen_ids=ids(), rejected_ids=ids()) for _ in range(24)]
(OUT / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
for step in (0, 10, 100):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(OUT / "model"), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.1 + step / 1000)
    model.save_pretrained(OUT / f"run/checkpoint-{step}")
    at = OUT / f"run/checkpoint-{step}"
    (at / "README.md").unlink(missing_ok=True)
    # not where it was made
    saved = json.loads((at / "adapter_config.json").read_text())
    (at / "adapter_config.json").write_text(json.dumps(saved | dict(base_model_name_or_path=None), indent=1) + "\n")


def gradient(model, prompt, response):
    whole = torch.tensor([prompt + response])
    logps = torch.log_softmax(model(whole).logits, dim=-1)[:, :-1].gather(2, whole[:, 1:, None])[..., 0]
    model.zero_grad()
    logps[0, len(prompt) - 1 :].sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()


with open(OUT / "values.csv", "w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["Step", "InnerProduct", "Correlation", "Grad_W_Norm", "Grad_L_Norm", "Grad_Condition"])
    for step in (0, 10, 100):
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(OUT / "model"), OUT / f"run/checkpoint-{step}", is_trainable=True).eval()
        values = []
        for row in rows:
            w, l = (gradient(model, row["prompt_ids"], row[f"{name}_ids"]) for name in ("chosen", "rejected"))
            inner, a, b = float(w @ l), float(w.norm()), float(l.norm())
            values.append((inner, inner / (a * b), a, b, inner / min(a**2, a**2)))
        table.writerow([step, *np.mean(values, axis=0)])
