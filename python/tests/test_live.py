"""Live models of transformers and PEFT: what they measure is what their saved checkpoints do."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tanglescope as ts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

#: f32, products summed in another order than the checkpoint's: relative to the largest number of a column.
SAME = 1e-6


def live(demo: Path, dtype: Any = None) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_pretrained(demo, dtype=dtype or torch.float32)


def untied(demo: Path, to: Path) -> Path:
    """The demo's model with an output matrix of its own."""
    module = live(demo)
    module.config.tie_word_embeddings = False
    module.lm_head.weight = torch.nn.Parameter(module.lm_head.weight.detach() * 1.1)
    module.save_pretrained(to)
    return to


def adapted(module: Any, seed: int = 0, **more: Any) -> Any:
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM", **more)
    found = peft.get_peft_model(module, config)
    torch.manual_seed(seed)
    for name, parameter in found.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            parameter.data.normal_(0, 0.05)
    return found


def columns(found: ts.Analysis) -> dict[str, np.ndarray[Any, Any]]:
    return {name: found.pairs[name].to_numpy() for name in ("logp_chosen", "logp_rejected", "ww", "wl", "ll")}


def close(got: ts.Analysis, want: ts.Analysis, most: float = SAME) -> None:
    a, b = columns(got), columns(want)
    for name in a:
        assert np.abs(a[name] - b[name]).max() <= most * np.abs(b[name]).max(), name
    names = set(want.params["param"])
    assert set(got.params["param"]) == names


@pytest.mark.parametrize("scope", ["lora", "full", "head"])
def test_a_live_model_is_its_checkpoint(demo: Path, pairs: list[dict[str, Any]], scope: str) -> None:
    module = live(demo)
    model = ts.Model.from_torch(module, tokenizer=transformers.AutoTokenizer.from_pretrained(demo))
    rows = ts.rows(pairs, model)
    want = ts.analyze(ts.Model(demo, device="cpu"), ts.rows(pairs, demo), scope=scope)
    close(ts.analyze(model, rows, scope=scope), want)
    assert ts.analyze(model, rows).manifest["model"] == "in memory: LlamaForCausalLM"


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"trainable_token_indices": [5, 7]},
    ],
)
def test_a_live_adapter_is_its_saved_one(demo: Path, pairs: list[dict[str, Any]], tmp_path: Path, more: dict[str, Any]) -> None:
    base = demo
    if "modules_to_save" in more:
        base = untied(demo, tmp_path / "untied")
    module = adapted(live(base), **more)
    module.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    model = ts.Model.from_torch(module)
    rows = ts.rows(pairs, demo)
    want = ts.Model(base, adapter=tmp_path / "adapter", device="cpu")
    for scope in ("lora", "trainable"):
        close(ts.analyze(model, rows, scope=scope), ts.analyze(want, rows, scope=scope))


def test_log_probabilities_and_gradients_are_those_of_autograd(demo: Path) -> None:
    """Of the live model itself, by two backward passes in torch: f32, relative 1e-4 of some hundred operations."""
    module = adapted(live(demo))
    model = ts.Model.from_torch(module)
    ids = ts.Ids([5, 6, 7, 8], [[9, 10, 11], [12, 13]])
    gram = ts.gram(model, ids.prompt, ids.responses)
    gradients = []
    for response in ids.responses:
        module.zero_grad()
        tokens = torch.tensor([ids.prompt + response])
        logits = module(tokens).logits.float().log_softmax(-1)[0, len(ids.prompt) - 1 : -1]
        logits.gather(1, torch.tensor(response)[:, None]).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for n, p in module.named_parameters() if "lora_" in n]).double())
    want = [[float(a @ b) for b in gradients] for a in gradients]
    assert np.allclose(gram, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def tiny(kind: str) -> Any:
    """A random model of an architecture whose modules transformers has in another form, or by other names, than checkpoints."""
    shared = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 64,
        "max_position_embeddings": 64,
        "intermediate_size": 48,
    }
    experts = {"num_key_value_heads": 2, "head_dim": 8, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
    configs = {
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**shared, tie_word_embeddings=False),
        "gpt2": lambda: transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=64),
        "mixtral": lambda: transformers.MixtralConfig(**shared, num_key_value_heads=2, num_local_experts=4),
        "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**shared, **experts, decoder_sparse_step=1, norm_topk_prob=True),
        "olmoe": lambda: transformers.OlmoeConfig(**shared, num_key_value_heads=4, num_experts=4, num_experts_per_tok=2),
        "gemma3": lambda: transformers.Gemma3TextConfig(**shared, num_key_value_heads=2, head_dim=8, layer_types=["full_attention"] * 2),
    }
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(configs[kind]()).float()


@pytest.mark.parametrize("kind", ["gpt_neox", "gpt2", "mixtral", "qwen3_moe", "olmoe", "gemma3"])
def test_names_and_forms_are_those_of_checkpoints(kind: str, tmp_path: Path) -> None:
    module = tiny(kind)
    module.save_pretrained(tmp_path)
    live, saved = ts.Model.from_torch(module), ts.Model(tmp_path, device="cpu")
    for scope in ("full", "lora"):
        got, want = (ts.gram(model, [1, 2, 3], [[4, 5], [6]], scope=scope) for model in (live, saved))
        # f32, products in another order: the tiny model's sums are of some hundred terms
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max(), scope


def test_what_is_not_copied_follows_training(demo: Path, pairs: list[dict[str, Any]], tmp_path: Path) -> None:
    module = live(demo)
    model, frozen = ts.Model.from_torch(module), ts.Model.from_torch(module, copy=True)
    rows = ts.rows(pairs, demo)
    before = ts.analyze(model, rows, scope="full")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.01)
    close(ts.analyze(frozen, rows, scope="full"), before)
    module.save_pretrained(tmp_path)
    close(ts.analyze(model, rows, scope="full"), ts.analyze(ts.Model(tmp_path, device="cpu"), rows, scope="full"))


def test_an_adapter_is_taken_again_without_the_base(demo: Path, pairs: list[dict[str, Any]], tmp_path: Path) -> None:
    module = adapted(live(demo))
    model = ts.Model.from_torch(module)
    rows = ts.rows(pairs, demo)
    for step in range(2):
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if "lora_" in name:
                    parameter.mul_(1.3)
        model.refresh_adapter()
        module.save_pretrained(tmp_path / str(step), save_embedding_layers=False)
        close(ts.analyze(model, rows), ts.analyze(ts.Model(demo, adapter=tmp_path / str(step), device="cpu"), rows))
    assert model._folder is not None
    assert len(list(Path(model._folder.name).glob("adapter-*"))) == 1, "what it was before is gone"
    model.load_adapter(tmp_path / "0")
    close(ts.analyze(model, rows), ts.analyze(ts.Model(demo, adapter=tmp_path / "0", device="cpu"), rows))
    model.load_adapter(None)
    close(ts.analyze(model, rows, scope="full"), ts.analyze(ts.Model(demo, device="cpu"), rows, scope="full"))


def test_16_bits_stay_16_bits(demo: Path, pairs: list[dict[str, Any]], tmp_path: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        module = live(demo, dtype)
        path = tmp_path / str(dtype)
        module.save_pretrained(path)
        rows = ts.rows(pairs, demo)
        want = ts.analyze(ts.Model(path, device="cpu"), rows, scope="full")
        close(ts.analyze(ts.Model.from_torch(module), rows, scope="full"), want)


def test_a_live_reference(demo: Path, pairs: list[dict[str, Any]], tmp_path: Path) -> None:
    policy, reference = live(demo), live(demo)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.01)
    model, against = ts.Model.from_torch(policy), ts.Model.from_torch(reference)
    rows = ts.rows(pairs, demo)
    got = ts.analyze(model, rows, objectives="dpo", reference=against)
    want = ts.analyze(model, rows, objectives="dpo", reference=demo)
    for name in ("ref_logp_chosen", "ref_logp_rejected"):
        assert np.allclose(got.pairs[name], want.pairs[name], rtol=1e-6)
    itself = ts.analyze(model, rows, objectives="dpo", reference=model)
    assert itself.pairs["ref_logp_chosen"].to_list() == itself.pairs["logp_chosen"].to_list()


def test_what_cannot_be_taken_is_refused_by_name(demo: Path) -> None:
    module = live(demo)
    for kind, part in (("FullyShardedDataParallel", "FSDP"),):
        wrapper = type(kind, (), {})()
        with pytest.raises(ts.Unsupported, match=part):
            ts.Model.from_torch(wrapper)
    quantised = copy.copy(module)
    quantised.is_quantized = True
    with pytest.raises(ts.Unsupported, match="quantised"):
        ts.Model.from_torch(quantised)
    with pytest.raises(ts.InputError, match="expected a model of transformers"):
        ts.Model.from_torch(torch.nn.Linear(2, 2))
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(module.config)
    with pytest.raises(ts.Unsupported, match="not in memory"):
        ts.Model.from_torch(empty)
    integers = live(demo)
    integers.model.layers[0].self_attn.q_proj.weight = torch.nn.Parameter(torch.zeros(128, 128, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ts.Unsupported, match="int8"):
        ts.Model.from_torch(integers)
    sharded = live(demo)
    sharded.model.norm.weight.ds_id = 1
    with pytest.raises(ts.Unsupported, match="ZeRO-3"):
        ts.Model.from_torch(sharded)
    two = adapted(live(demo))
    two.add_adapter("other", two.peft_config["default"])
    two.base_model.set_adapter(["default", "other"])
    with pytest.raises(ts.Unsupported, match="2 adapters are active"):
        ts.Model.from_torch(two)
    strange = live(demo)
    strange.model.layers[1].extra = torch.nn.Linear(4, 4)
    with pytest.raises(ts.InputError, match="layers.1.extra"):
        ts.Model.from_torch(strange)


def test_adapters_that_are_not_as_they_look(demo: Path, pairs: list[dict[str, Any]], tmp_path: Path) -> None:
    module = adapted(live(demo))
    rows = ts.rows(pairs, demo)
    with module.disable_adapter():
        off = ts.analyze(ts.Model.from_torch(module), rows, scope="full")
    close(off, ts.analyze(ts.Model(demo, device="cpu"), rows, scope="full"))
    module.merge_adapter()
    with pytest.raises(ts.Unsupported, match="unmerge_adapter"):
        ts.Model.from_torch(module)
    module.unmerge_adapter()
    with pytest.raises(ts.Unsupported, match="give the PeftModel"):
        ts.Model.from_torch(module.base_model.model)
    shared = ts.Model.from_torch(live(demo))
    ts.analyze(shared, rows, out=tmp_path / "out")
    with pytest.raises(ts.InputError, match="may have changed"):
        ts.analyze(shared, rows, out=tmp_path / "out")


def test_handing_over_makes_no_second_copy_of_the_weights(tmp_path: Path) -> None:
    """Peak resident memory of taking and measuring a model of 400 MB, above that of the model itself."""
    script = """
import json, resource, sys, torch, transformers
import tanglescope as ts
config = transformers.LlamaConfig(hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=8,
    num_key_value_heads=8, vocab_size=1000, max_position_embeddings=128)
module = transformers.LlamaForCausalLM(config).float()
size = sum(p.numel() * 4 for p in module.parameters())
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
# what the engine itself takes
small = transformers.LlamaForCausalLM(transformers.LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2, vocab_size=1000, max_position_embeddings=128))
ts.gram(ts.Model.from_torch(small), [1, 2], [[3], [4]], scope="full")
before = peak()
model = ts.Model.from_torch(module)
ts.gram(model, [1, 2], [[3], [4]], scope="model.layers.7.self_attn.q_proj")
print(json.dumps([size, peak() - before]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    size, more = json.loads(done.stdout.splitlines()[-1])
    assert size > 400e6
    assert more < 0.15 * size, f"{more / 1e6:.0f} MB for a model of {size / 1e6:.0f} MB"


def test_ten_thousand_calls_leak_nothing(demo: Path) -> None:
    script = f"""
import os, resource, torch, transformers
import tanglescope as ts
model = ts.Model.from_torch(transformers.AutoModelForCausalLM.from_pretrained({str(demo)!r}, dtype=torch.float32))
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
def calls(number):
    for _ in range(number):
        ts.gram(model, [1, 2, 3], [[4], [5, 6]], scope="model.layers.4.self_attn.q_proj")
grown = []
for _ in range(4):
    before = resident()
    calls(2500)
    grown.append(resident() - before)
print(min(grown))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    grown = int(done.stdout.split()[-1])
    # what is kept of every call grows in each quarter; what is made once, in one
    assert grown < 2500 * 100, f"{grown / 2500:.0f} bytes a call"
