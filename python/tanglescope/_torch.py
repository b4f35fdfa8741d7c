"""A live model of PyTorch as tensors by the names of its checkpoint."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from typing import Any

from ._errors import InputError, Unsupported

#: Parts of the names of tensors that are an adapter's, and not the base's.
_ADAPTERS = (
    ".lora_A.",
    ".lora_B.",
    ".lora_embedding_A.",
    ".lora_embedding_B.",
    ".lora_magnitude_vector.",
    ".modules_to_save.",
    ".token_adapter.trainable_tokens_delta.",
    ".token_adapter.trainable_tokens_original.",
)
#: Parts of names that wrappers put around the base's modules.
_WRAPPERS = (".base_layer", ".original_module", ".token_adapter")


@dataclass
class Taken:
    """A live model, taken apart.

    Attributes:
        called: What it is called.
        folder: Config and tokenizer.
        tensors: Names and tensors of the base.
        adapter: Folder of its adapter, where it has one.
    """

    called: str
    folder: tempfile.TemporaryDirectory[str]
    tensors: list[tuple[str, Any]]
    adapter: str | None


def _refuse(key: str, problem: str) -> Unsupported:
    return Unsupported(f"from_torch: {problem}", key=key)


def is_peft(module: Any) -> bool:
    """Whether a module is PEFT's, with an adapter."""
    return hasattr(module, "peft_config") and hasattr(module, "get_base_model")


def base_of(module: Any) -> Any:
    """The module of `transformers` under wrappers of accelerate, torch.compile, data parallelism and PEFT."""
    module = unwrapped(module)
    return module.get_base_model() if is_peft(module) else module


def unwrapped(module: Any) -> Any:
    """The module without wrappers that change no parameter."""
    while True:
        kind = type(module).__name__
        if kind in ("DistributedDataParallel", "DataParallel"):
            module = module.module
        elif kind == "OptimizedModule":
            module = module._orig_mod
        elif kind == "FullyShardedDataParallel":
            raise _refuse("FSDP", "this process holds a shard of it (FSDP); save the checkpoint, and measure its folder with sweep")
        elif kind == "DeepSpeedEngine":
            module = module.module
        else:
            return module


def check(name: str, tensor: Any) -> None:
    """Refuses a tensor that is not all there."""
    import torch

    if hasattr(tensor, "ds_id") or (tensor.numel() == 0 and hasattr(tensor, "ds_tensor")):
        raise _refuse("DeepSpeed", f"tensor `{name}` is sharded (DeepSpeed ZeRO-3); convert the saved checkpoint with zero_to_fp32.py")
    if type(tensor).__name__ == "DTensor":
        raise _refuse("DTensor", f"tensor `{name}` is sharded (FSDP2 or tensor parallelism); save the checkpoint, and measure its folder")
    if tensor.is_meta:
        raise _refuse("meta", f"tensor `{name}` is not in memory (offloaded, or never loaded); load the model without device_map")
    if tensor.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise Unsupported(
            f"from_torch: tensor `{name}` has numbers of type {tensor.dtype}: a quantised model; measure its folder with tanglescope.Model, "
            "which reads bitsandbytes, FP8, MXFP4 and GGUF",
            key="dtype",
        )


def take(module: Any, tokenizer: Any, *, copy: bool) -> Taken:
    """Takes a live model apart.

    Raises:
        InputError: Where it is no model of `transformers`.
        Unsupported: Where it is quantised, sharded or offloaded.
    """
    module = unwrapped(module)
    base = base_of(module)
    config = getattr(base, "config", None)
    if config is None or not hasattr(base, "state_dict") or not hasattr(config, "to_json_string"):
        raise InputError(f"from_torch: found {type(module).__name__}; expected a model of transformers, or of peft around one")
    if getattr(base, "is_quantized", False) or getattr(base, "quantization_method", None) is not None:
        raise _refuse(
            "quantization_config",
            "it is quantised; measure its folder with tanglescope.Model, which reads bitsandbytes, FP8, MXFP4 and GGUF",
        )
    folder = tempfile.TemporaryDirectory(prefix="tanglescope-")
    described = json.loads(config.to_json_string(use_diff=False))
    described["architectures"] = [type(base).__name__]
    with open(os.path.join(folder.name, "config.json"), "w", encoding="utf-8") as file:
        json.dump(described, file)
    if tokenizer is not None:
        from ._rows import tokenizer_folders

        tokenizer_folders(tokenizer, folder.name)
    if not is_peft(module) and any(part in f".{name}." for name in base.state_dict() for part in _ADAPTERS):
        raise _refuse("adapter", "it has adapter layers without PEFT's wrapper around it; give the PeftModel")
    tensors = base_tensors(base, tied=bool(described.get("tie_word_embeddings", True)), copy=copy)
    adapter = save_adapter(module, folder.name) if is_peft(module) and not is_disabled(module) else None
    return Taken(f"in memory: {type(base).__name__}", folder, tensors, adapter)


def base_tensors(base: Any, *, tied: bool, copy: bool) -> list[tuple[str, Any]]:
    """The base's tensors under the names of its checkpoint, on the host and one number behind the other."""
    found: dict[str, Any] = {}
    for name, tensor in base.state_dict(keep_vars=True).items():
        dotted = f".{name}."
        if any(part in dotted for part in _ADAPTERS):
            continue
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        if not tensor.dtype.is_floating_point and "weight" not in name:
            continue  # counters and masks
        check(name, tensor)
        tensor = tensor.detach()
        found[name] = tensor
    found = {name: _on_host(tensor, copy) for name, tensor in _as_saved(base, found).items()}
    embedding = [name for name in found if name.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight"))]
    for head in ("lm_head.weight", "embed_out.weight"):
        # a checkpoint has a tied matrix once
        if tied and head in found and any(_same(found[head], found[of]) for of in embedding):
            del found[head]
    return list(found.items())


def _as_saved(base: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """Tensors under the names of the checkpoint: transformers from 5 on has some modules in another form in memory, such as all experts in one
    tensor. What it splits stays where it lies where it can."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return tensors
    return dict(revert_weight_conversion(base, tensors))


def _on_host(tensor: Any, copy: bool) -> Any:
    """A tensor on the host, one number behind the other, and its own where that is asked for."""
    moved = tensor.detach().cpu().contiguous()
    return moved.clone() if copy and moved.data_ptr() == tensor.data_ptr() else moved


def _same(a: Any, b: Any) -> bool:
    return bool(a.shape == b.shape and a.data_ptr() == b.data_ptr())


def is_disabled(module: Any) -> bool:
    """Whether the adapter of a PEFT model is switched off; one that is merged into the weights is refused.

    Raises:
        Unsupported: Where it is merged.
    """
    layers = [of for of in module.modules() if hasattr(of, "merged_adapters")]
    if any(of.merged_adapters for of in layers):
        raise _refuse("merged_adapters", "the adapter is merged into the weights; call unmerge_adapter first")
    return bool(layers) and all(getattr(of, "disable_adapters", False) for of in layers)


def save_adapter(module: Any, folder: str) -> str:
    """Saves the active adapter of a PEFT model into a folder inside another; returns it."""
    module = unwrapped(module)
    names = list(module.active_adapters) if hasattr(module, "active_adapters") else [module.active_adapter]
    if len(names) != 1:
        raise _refuse("active_adapters", f"{len(names)} adapters are active; set one with set_adapter")
    # the former one may still be read
    inside = tempfile.mkdtemp(prefix="adapter-", dir=folder)
    module.save_pretrained(inside, selected_adapters=names, save_embedding_layers=False)
    own = os.path.join(inside, names[0])
    return own if os.path.isdir(own) else inside
