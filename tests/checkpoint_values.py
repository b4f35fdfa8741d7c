"""Makes tests/golden/checkpoints: tensors as torch and as quantising libraries store them, each beside the values that those libraries read or
dequantise them to.

    python tests/checkpoint_values.py       (torch 2.15.0, bitsandbytes 0.50.2, gguf 0.19.0, safetensors)
"""
import json, pathlib, shutil
import gguf
import numpy as np
import torch
import bitsandbytes.functional as bnb
from safetensors.torch import load_file, save_file

OUT = pathlib.Path(__file__).parent / "golden" / "checkpoints"
shutil.rmtree(OUT, ignore_errors=True)
random = torch.Generator().manual_seed(3)
draw = lambda *shape: torch.randn(*shape, generator=random)


def folder(name, values):
    (OUT / name).mkdir(parents=True)
    save_file({k: v.float().contiguous().clone() for k, v in values.items()}, OUT / name / "values.safetensors")
    return OUT / name


# torch.save: views of one storage, transposed, with an offset, of no dimension, of every type; a parameter; a dict inside another
base = draw(6, 10)
tensors = {
    "plain": base[:4], "transposed": base.T, "columns": base[:, 2:9:3], "shared": base, "number": torch.tensor(1.5),
    "half": draw(3, 4).half(), "bfloat16": draw(3, 4).bfloat16(), "double": draw(2, 3).double(), "cube": draw(2, 3, 4).permute(2, 0, 1),
    "parameter": torch.nn.Parameter(draw(5)),
}
values = {k: v.detach() for k, v in tensors.items()}
torch.save(tensors, folder("zip", values) / "pytorch_model.bin")
torch.save(tensors, folder("legacy", values) / "pytorch_model.bin", _use_new_zipfile_serialization=False)
torch.save({"epoch": 3, "args": {"lr": 0.1, "betas": (0.9, 0.95)}, "state_dict": tensors}, folder("nested", values) / "model.pt")



def four_bits(codes, state):
    """table[code]·factor in float32, rounded. bitsandbytes 0.50.2 says the same on a CPU where rows are whole blocks, and reads other blocks'
    factors where they are not; there its own numbers are further from what was quantised than a step of the table."""
    factors = state.absmax
    if state.nested:
        factors = state.state2.code[factors.long()] * state.state2.absmax.repeat_interleave(state.state2.blocksize)[: len(factors)] + state.offset
    bytes_ = codes.contiguous().view(torch.uint8).flatten()
    places = torch.stack([bytes_ >> 4, bytes_ & 15], 1).flatten()[: state.shape.numel()].long()
    of = (state.code[places] * factors.repeat_interleave(state.blocksize)[: len(places)]).to(state.dtype).view(state.shape)
    if state.shape[1] % state.blocksize == 0:
        assert torch.equal(of, bnb.dequantize_4bit(codes, state))
    return of


# bitsandbytes, four bits: both tables, factors quantised or not, blocks of several sizes, from every type, codes stored as another type
kept, values = {}, {}
for name, kind, nested, block, dtype, storage in [
    ("nf4", "nf4", False, 64, torch.float32, torch.uint8), ("nf4_nested", "nf4", True, 64, torch.bfloat16, torch.uint8),
    ("fp4", "fp4", False, 128, torch.float16, torch.uint8), ("fp4_nested", "fp4", True, 64, torch.float32, torch.uint8),
    ("nf4_stored_as_bf16", "nf4", True, 64, torch.bfloat16, torch.bfloat16), ("nf4_ragged", "nf4", True, 256, torch.float16, torch.uint8),
]:
    shape = (37, 42) if name == "nf4_ragged" else (68, 256)
    codes, state = bnb.quantize_4bit(draw(*shape).to(dtype) * 0.05, blocksize=block, compress_statistics=nested, quant_type=kind,
                                     quant_storage=storage)
    kept[f"{name}.weight"] = codes
    kept |= {f"{name}.weight.{k}": v for k, v in state.as_dict(packed=True).items()}
    values[f"{name}.weight"] = four_bits(codes, state)
save_file(kept, folder("four_bits", values) / "model.safetensors")

# bitsandbytes, eight bits
rows, factors, _ = bnb.int8_vectorwise_quant((draw(24, 40) * 0.05).half())
kept = {"a.weight": rows, "a.SCB": factors, "a.weight_format": torch.tensor(0, dtype=torch.uint8)}
save_file(kept, folder("eight_bits", {"a.weight": bnb.int8_vectorwise_dequant(rows, factors)}) / "model.safetensors")

# eight bits of floating point, with factors of ragged blocks, of rows, of all
kept, values = {}, {}
for name, shape, blocks in [("blocks", (200, 150), (128, 128)), ("all", (24, 40), None)]:
    weight = (draw(*shape) * 3).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-shape[0] // 128), -(-shape[1] // 128), generator=random) + 0.5 if blocks else torch.tensor(0.37)
    kept |= {f"{name}.weight": weight, f"{name}.weight_scale_inv": scale}
    spread = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[: shape[0], : shape[1]] if blocks else scale
    values[f"{name}.weight"] = weight.float() * spread
save_file(kept, folder("fp8", values) / "model.safetensors")
# GGUF: blocks of every kind that are bytes at random, with factors that are small numbers; rows of Llama's queries and keys in llama.cpp's order
numbers = np.random.default_rng(4)
KINDS = {of.name: of for of in gguf.GGMLQuantizationType}


def blocks(rows, columns, kind):
    """Bytes at random, but for the 16-bit factors at their places."""
    values, size = gguf.GGML_QUANT_SIZES[KINDS[kind]]
    raw = numbers.integers(0, 256, (rows, columns // values, size), dtype=np.uint8)
    at = {"Q4_0": [0], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [size - 2]}[kind]
    for place in at:
        raw[..., place : place + 2] = numbers.uniform(0.001, 0.01, (rows, columns // values, 1)).astype(np.float16).view(np.uint8)
    return raw.reshape(rows, -1)


def order_of_transformers(weight, heads):
    return weight.reshape(heads, weight.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


for name, architecture in [("gguf", "llama"), ("gguf_gemma", "gemma2")]:
    (OUT / name).mkdir()
    writer = gguf.GGUFWriter(str(OUT / name / "model.gguf"), architecture)
    for key, value in dict(embedding_length=256, block_count=1, feed_forward_length=512, context_length=128).items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_uint32(f"{architecture}.attention.head_count", 4)
    writer.add_uint32(f"{architecture}.attention.head_count_kv", 2)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    values = {}
    for own, of, kind, shape in [
        ("token_embd", "model.embed_tokens", "Q6_K", (9, 256)), ("output_norm", "model.norm", "F32", (256,)),
        ("blk.0.attn_q", "model.layers.0.self_attn.q_proj", "Q4_K", (64, 256)),
        ("blk.0.attn_k", "model.layers.0.self_attn.k_proj", "F16", (32, 256)),
        ("blk.0.attn_q.bias", "model.layers.0.self_attn.q_proj.bias", "F32", (64,)),
        ("blk.0.attn_k.bias", "model.layers.0.self_attn.k_proj.bias", "F16", (32,)),
        ("blk.0.attn_v", "model.layers.0.self_attn.v_proj", "Q5_K", (32, 256)),
        ("blk.0.attn_output", "model.layers.0.self_attn.o_proj", "Q8_0", (256, 64)),
        ("blk.0.ffn_gate", "model.layers.0.mlp.gate_proj", "Q4_0", (64, 256)),
        ("blk.0.ffn_up", "model.layers.0.mlp.up_proj", "BF16", (64, 256)),
    ]:
        if kind in ("F32", "F16", "BF16"):
            x = numbers.standard_normal(shape).astype(np.float32)
            raw = gguf.quants.quantize(x, KINDS[kind]) if kind == "BF16" else x.astype({"F32": np.float32, "F16": np.float16}[kind])
            x = gguf.quants.dequantize(raw, KINDS[kind]) if kind == "BF16" else raw.astype(np.float32)
        else:
            raw = blocks(*shape, kind)
            x = gguf.quants.dequantize(raw, KINDS[kind])
        own, of = (name if name.endswith(".bias") else f"{name}.weight" for name in (own, of))
        writer.add_tensor(own, raw, raw_dtype=KINDS[kind])
        if architecture == "llama" and ("attn_q." in own or "attn_k." in own):
            x = order_of_transformers(x, 4 if "attn_q." in own else 2)
        if architecture == "gemma2" and own.endswith("norm.weight"):
            x = x - np.float32(1)
        values[of] = torch.from_numpy(np.ascontiguousarray(x))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(values, OUT / name / "values.safetensors")
# the carried golden of Llama as a GGUF file by itself, its matrices as they are or of eight bits
golden = load_file(OUT.parent / "llama3_tied" / "model.safetensors")
config = json.load(open(OUT.parent / "llama3_tied" / "config.json"))
heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
for folder, kind in [("gguf_model", None), ("gguf_model_q8_0", KINDS["Q8_0"])]:
    (OUT / folder).mkdir()
    writer = gguf.GGUFWriter(str(OUT / folder / "llama.gguf"), "llama")
    for key, of in dict(embedding_length="hidden_size", block_count="num_hidden_layers", feed_forward_length="intermediate_size",
                        context_length="max_position_embeddings").items():
        writer.add_uint32(f"llama.{key}", config[of])
    writer.add_uint32("llama.attention.head_count", heads)
    writer.add_uint32("llama.attention.head_count_kv", kv_heads)
    writer.add_uint32("llama.attention.key_length", config["head_dim"])
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    writer.add_float32("llama.rope.freq_base", config["rope_parameters"]["rope_theta"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, weight in golden.items():
        x = weight.float().numpy()
        for map_, of in (("q_proj", heads), ("k_proj", kv_heads)):
            if map_ in name:
                x = x.reshape(of, 2, x.shape[0] // of // 2, -1).swapaxes(1, 2).reshape(x.shape)
        x, own = np.ascontiguousarray(x), names.get_name(name, (".weight",))
        if kind is not None and x.ndim == 2:
            writer.add_tensor(own, gguf.quants.quantize(x, kind), raw_dtype=kind)
        else:
            writer.add_tensor(own, x)
    # what llama.cpp's converter makes of Llama 3's scaling
    of, pairs = config["rope_parameters"], np.arange(0, config["head_dim"], 2)
    length = 2 * np.pi * of["rope_theta"] ** (pairs / config["head_dim"])
    smooth = (of["original_max_position_embeddings"] / length - of["low_freq_factor"]) / (of["high_freq_factor"] - of["low_freq_factor"])
    divisors = 1 / ((1 - smooth.clip(0, 1)) / of["factor"] + smooth.clip(0, 1))
    writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
for path in sorted(OUT.glob("*/*")):
    print(path.relative_to(OUT), path.stat().st_size)
