#!/usr/bin/env python3
"""A checkpoint of Llama-3-8B's shape with random weights in bf16, and pairs of random tokens, where there is no network.

    python3 made_up_model.py FOLDER [--layers 8] [--pairs 64] [--hidden 4096 ...]

Needs torch and safetensors. A file a block, as large checkpoints have."""
import argparse
import json
import os
import random

import torch
from safetensors.torch import save_file

options = argparse.ArgumentParser()
options.add_argument("folder")
for name, value in dict(layers=8, hidden=4096, heads=32, kv_heads=8, head_dim=128, mlp=14336, vocabulary=128256, pairs=64, prompt=256, response=128).items():
    options.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
o = options.parse_args()
os.makedirs(o.folder, exist_ok=True)
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
index = {}


def write(number, tensors):
    name = f"model-{number:05}-of-{o.layers + 1:05}.safetensors"
    make = lambda shape: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, device=device) * 0.02
    save_file({key: make(shape).to("cpu", torch.bfloat16) for key, shape in tensors.items()}, f"{o.folder}/{name}", {"format": "pt"})
    index.update(dict.fromkeys(tensors, name))


table = (o.vocabulary, o.hidden)
write(1, {"model.embed_tokens.weight": table, "lm_head.weight": table, "model.norm.weight": (o.hidden,)})
queries, keys = o.heads * o.head_dim, o.kv_heads * o.head_dim
for layer in range(o.layers):
    shapes = {"self_attn.q_proj": (queries, o.hidden), "self_attn.k_proj": (keys, o.hidden), "self_attn.v_proj": (keys, o.hidden),
              "self_attn.o_proj": (o.hidden, queries), "mlp.gate_proj": (o.mlp, o.hidden), "mlp.up_proj": (o.mlp, o.hidden),
              "mlp.down_proj": (o.hidden, o.mlp), "input_layernorm": (o.hidden,), "post_attention_layernorm": (o.hidden,)}
    write(layer + 2, {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()})
config = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=o.hidden, intermediate_size=o.mlp, num_hidden_layers=o.layers,
              num_attention_heads=o.heads, num_key_value_heads=o.kv_heads, head_dim=o.head_dim, vocab_size=o.vocabulary, rms_norm_eps=1e-5,
              rope_theta=500000.0, max_position_embeddings=8192, tie_word_embeddings=False, hidden_act="silu", torch_dtype="bfloat16")
for name, value in {"config.json": config, "model.safetensors.index.json": {"metadata": {}, "weight_map": index}}.items():
    with open(f"{o.folder}/{name}", "w") as file:
        json.dump(value, file)
draw = random.Random(0)
tokens = lambda few, many: [draw.randrange(3, o.vocabulary) for _ in range(draw.randint(few, many))]
with open(f"{o.folder}/pairs.jsonl", "w") as file:
    for _ in range(o.pairs):
        around = (max(o.response // 2, 1), o.response * 3 // 2)
        pair = {"prompt_ids": tokens(o.prompt, o.prompt), "chosen_ids": tokens(*around), "rejected_ids": tokens(*around)}
        file.write(json.dumps(pair) + "\n")
