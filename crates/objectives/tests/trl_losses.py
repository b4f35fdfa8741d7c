#!/usr/bin/env python3
"""Losses as TRL 1.16.0 writes them (trl/trainer/{dpo,kto}_trainer.py, trl/experimental/{cpo,orpo,tpo}), their values and slopes by float64
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
RENYI = [(0.5, 0.75), (1.25, 0.5), (2.0, 1.5), (0.25, 0.125)]  # means over tokens of -log sum p^2
MISMATCHED = [(1.5, -0.5), (2.0, 0.25), (-1.0, 0.75), (0.5, 1.0)]  # log-ratios of rotated completions
TEXT = (-50.0, 40.0)  # prompt and chosen: log-probability and tokens
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


def wpo(pw, pl, rw, rl, nw, nl, renyi):
    weights = torch.exp((torch.stack([pw / nw, pl / nl]) + torch.tensor(renyi)).detach())
    return -F.logsigmoid(0.1 * (pw - rw - pl + rl)) * weights[0] * weights[1]


def kto(pw, pl, rw, rl):
    kl = torch.tensor(MISMATCHED).mean().clamp(min=0)
    return (1 - F.sigmoid(0.1 * (pw - rw - kl))) + (1 - F.sigmoid(0.1 * (kl - pl + rl)))


def orpo(pw, pl, nw, nl, text):
    aw, al = pw / nw, pl / nl
    log_odds = (aw - al) - (torch.log1p(-torch.exp(aw)) - torch.log1p(-torch.exp(al)))
    return -text / TEXT[1] - 0.1 * F.logsigmoid(log_odds)


def tpo(gold, w, l, lengths, name):
    nll = -gold / lengths[0]
    if name == "tpo":  # beta 0.01, tpo_alpha 1
        return -F.logsigmoid(0.01 * (w - l)) + nll
    return -F.logsigmoid(0.01 * (w / lengths[1] - l / lengths[2] - 0.5 / 0.01)) + nll  # tpo_l_gamma 0.5


out = {"cases": CASES, "renyi": RENYI, "mismatched": MISMATCHED, "text": TEXT, "losses": {}}
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
for name in ["wpo", "kto", "dpo:weight=0.8+sft:weight=0.2"]:
    rows = []
    for at, (pw, pl, rw, rl, nw, nl) in enumerate(CASES):
        w, l = torch.tensor(pw, requires_grad=True), torch.tensor(pl, requires_grad=True)
        if name == "wpo":
            value = wpo(w, l, rw, rl, nw, nl, RENYI[at])
        elif name == "kto":
            value = kto(w, l, rw, rl)
        else:  # a list of loss types with loss_weights
            value = 0.8 * -F.logsigmoid(0.1 * (w - rw - l + rl)) + 0.2 * (-w / nw)
        d_w, d_l = torch.autograd.grad(value, (w, l))
        rows.append([value.item(), -d_w.item(), d_l.item()])
    out["losses"][name] = rows
out["orpo_trl"] = []
for pw, pl, rw, rl, nw, nl in CASES:
    w, l, text = (torch.tensor(x, requires_grad=True) for x in (pw, pl, TEXT[0]))
    value = orpo(w, l, nw, nl, text)
    d_w, d_l, d_text = torch.autograd.grad(value, (w, l, text))
    out["orpo_trl"].append([value.item(), -d_w.item(), d_l.item(), -d_text.item()])
out["triples"] = {}
for name in ["tpo", "tpo_l"]:
    logps = [torch.tensor(CASES[at][0], requires_grad=True) for at in (1, 2, 0)]
    slopes = torch.autograd.grad(tpo(*logps, [CASES[at][4] for at in (1, 2, 0)], name), logps)
    out["triples"][name] = [-slope.item() for slope in slopes]
print(json.dumps(out, indent=1))
