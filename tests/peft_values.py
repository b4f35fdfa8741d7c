#!/usr/bin/env python3
"""Log-probabilities of pairs of token ids under a checkpoint, by transformers (and PEFT) in float64, as JSON.

    peft_values.py PAIRS.jsonl MODEL [ADAPTER]

transformers computes norms and rotary angles in float32 whatever the model's type; both are replaced here, so that what is
left is float64 throughout. Needs torch, transformers, peft.
"""
import json
import sys

import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

pairs, folder, *adapter = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
inner, config = model.model, model.config
if adapter:
    from peft import PeftModel

    model = PeftModel.from_pretrained(model, adapter[0])
model.double().eval()


def norm(self, x):
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def angles(x, position_ids, **_):
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    turned = position_ids[0].double()[:, None] * config.rope_parameters["rope_theta"] ** -exponents
    both = torch.cat([turned, turned], -1)[None]
    return both.cos(), both.sin()


LlamaRMSNorm.forward = norm
inner.rotary_emb.forward = angles
found = []
for line in open(pairs, encoding="utf-8"):
    row = json.loads(line)
    for response in (row["chosen_ids"], row["rejected_ids"]):
        prompt = row["prompt_ids"]
        with torch.no_grad():
            logps = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        found.append(sum(logps[len(prompt) - 1 + i, token].item() for i, token in enumerate(response)))
json.dump(found, sys.stdout)
