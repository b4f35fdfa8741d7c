"""GGUF files of the goldens of some architectures, as llama.cpp's converter writes them: names by `gguf`'s own table, experts of a layer in one
tensor, rows of queries and keys in pairs where it rotates neighbours, and what a header says of a config. In float32.

    pip install gguf safetensors torch
    python tests/gguf_models.py GOLDENS
"""
import json
import re
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.torch import load_file

GOLDENS, OUT = Path(sys.argv[1]), Path(__file__).parent / "golden" / "gguf_models"
shutil.rmtree(OUT, ignore_errors=True)
OUT.mkdir(parents=True)
# those whose rows of queries and keys are in another order (`LlamaModel` and what inherits it in convert_hf_to_gguf.py)
NEIGHBOURS = ("mixtral", "granite", "smollm3")
ARCH = gguf.MODEL_ARCH
NAMES = dict(mixtral=ARCH.LLAMA, olmoe=ARCH.OLMOE, qwen2_moe=ARCH.QWEN2MOE, qwen3_moe=ARCH.QWEN3MOE, phi3=ARCH.PHI3, olmo2=ARCH.OLMO2,
             granite=ARCH.GRANITE, smollm3=ARCH.SMOLLM3)
SIZES = dict(embedding_length="hidden_size", block_count="num_hidden_layers", feed_forward_length="intermediate_size",
             context_length="max_position_embeddings", expert_used_count="num_experts_per_tok",
             expert_feed_forward_length="moe_intermediate_size",
             expert_shared_feed_forward_length="shared_expert_intermediate_size")
REALS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps", "embedding_scale": "embedding_multiplier",
         "residual_scale": "residual_multiplier", "attention.scale": "attention_multiplier", "logit_scale": "logits_scaling"}

for model, arch in NAMES.items():
    config = json.load(open(GOLDENS / model / "config.json"))
    own = gguf.MODEL_ARCH_NAMES[arch]
    writer = gguf.GGUFWriter(str(OUT / f"{model}.gguf"), own)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_uint32(f"{own}.attention.head_count", heads)
    writer.add_uint32(f"{own}.attention.head_count_kv", kv_heads)
    if config.get("head_dim"):
        writer.add_uint32(f"{own}.attention.key_length", config["head_dim"])
    for key, of in SIZES.items():
        if config.get(of):
            writer.add_uint32(f"{own}.{key}", config[of])
    experts = config.get("num_experts") or config.get("num_local_experts")
    if experts:
        writer.add_uint32(f"{own}.expert_count", experts)
    for key, of in REALS.items():
        if config.get(of):
            writer.add_float32(f"{own}.{key}", config[of])
    writer.add_float32(f"{own}.rope.freq_base", config["rope_parameters"]["rope_theta"])
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    stacks = {}
    # llama.cpp has no dense layers beside those with experts here
    dense = tuple(f"model.layers.{layer}." for layer in config.get("mlp_only_layers", []))
    for name, weight in load_file(GOLDENS / model / "model.safetensors").items():
        if name.startswith(dense):
            continue
        x = weight.float().numpy()
        for map_, of in (("q_proj", heads), ("k_proj", kv_heads)):
            if model in NEIGHBOURS and map_ in name:
                x = x.reshape(of, 2, x.shape[0] // of // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        expert = re.fullmatch(r"(.*\.experts)\.(\d+)(\..*)", name)
        if expert:
            stacks.setdefault(expert[1] + expert[3], {})[int(expert[2])] = x
        else:
            # the converter leaves out dimensions of one
            writer.add_tensor(names.get_name(name, (".weight", ".bias")), np.ascontiguousarray(x.squeeze()))
    for name, of in stacks.items():
        writer.add_tensor(names.get_name(name, (".weight",)), np.stack([of[i] for i in range(len(of))]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(model, (OUT / f"{model}.gguf").stat().st_size)
