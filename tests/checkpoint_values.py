"""Makes tests/golden/checkpoints: tensors as torch and as quantising libraries store them, each beside the values that those libraries read or
dequantise them to.

    python tests/checkpoint_values.py       (torch 2.15.0, bitsandbytes 0.50.2, safetensors)
"""
import json, pathlib, shutil
import torch
import bitsandbytes.functional as bnb
from safetensors.torch import save_file

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
for path in sorted(OUT.glob("*/*")):
    print(path.relative_to(OUT), path.stat().st_size)
