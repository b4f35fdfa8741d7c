#!/usr/bin/env python3
"""Losses as TRL 1.16.0 writes them (trl/trainer/dpo_trainer.py, trl/experimental/cpo/cpo_trainer.py), their values and slopes by float64
automatic differentiation: python3 trl_losses.py > trl_losses.json"""
import json
import math

import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
CASES = [  # pw, pl, rw, rl, nw, nl
    (-41.25, -30.5, -40.0, -33.25, 32, 20),
    (-8.5, -9.25, -9.0, -8.0, 10, 4),
    (-2.0, -61.0, -5.5, -44.0, 1, 25),
    (-77.5, -12.0, -71.0, -18.0, 60, 9),
]
score = {
    "dpo_forward_kl": lambda h: 1 - torch.exp(-h),
    "dpo_js": lambda h: math.log(2) + F.logsigmoid(h),
    "dpo_alpha": lambda h: (torch.exp((0.5 - 1.0) * h) - 1.0) / (0.5 - 1.0),
}


def loss(name, pw, pl, rw, rl, nw, nl):
    if name in score:
        return -F.logsigmoid(0.1 * (score[name](pw - rw) - score[name](pl - rl)))
    if name == "cpo_hinge":  # batch of one: cpo_alpha (1.0) times the token-mean NLL
        return torch.relu(1 - 0.1 * (pw - pl)) + 1.0 * (-pw / nw)
    if name == "cpo_ipo":
        return (pw / nw - pl / nl - 1 / (2 * 0.1)) ** 2 + 1.0 * (-pw / nw)
    if name == "alphapo":  # beta 2.0, simpo_gamma 0.5, alpha 0.25
        reward = lambda a: (1 - torch.exp(-0.25 * a)) / 0.25
        return -F.logsigmoid(2.0 * (reward(pw / nw) - reward(pl / nl) - 0.5 / 2.0))
    raise KeyError(name)


out = {"cases": CASES, "losses": {}}
for name in [*score, "cpo_hinge", "cpo_ipo", "alphapo"]:
    rows = []
    for pw, pl, rw, rl, nw, nl in CASES:
        w, l = torch.tensor(pw, requires_grad=True), torch.tensor(pl, requires_grad=True)
        value = loss(name, w, l, torch.tensor(rw), torch.tensor(rl), nw, nl)
        d_w, d_l = torch.autograd.grad(value, (w, l), allow_unused=True)
        rows.append([value.item(), -d_w.item(), 0.0 if d_l is None else d_l.item()])
    out["losses"][name] = rows
# sft: the mean over all chosen tokens of the batch, the same for every pair; slopes of the batch's sum
tokens = sum(case[4] for case in CASES)
out["losses"]["sft_batch"] = [[-sum(case[0] for case in CASES) / tokens, len(CASES) / tokens, 0.0]] * len(CASES)
print(json.dumps(out, indent=1))
