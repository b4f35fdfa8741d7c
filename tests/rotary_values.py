"""Makes tests/golden/rotary: small models under every scaled rotary embedding, with exact float64 log-probabilities and gradients.

    python tests/rotary_values.py        (torch 2.15.0, transformers 5.24.0, safetensors)

transformers computes rotary tables, norms and softmax in float32 whatever the model's type; here its own code runs with
float64 in their place, so that what is stored is exact.
"""
import json, pathlib, types
import torch, transformers
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM
from transformers import modeling_rope_utils
from transformers.models.llama import modeling_llama
from transformers.models.phi3 import modeling_phi3

OUT = pathlib.Path(__file__).parent / "golden" / "rotary"


class Double(types.ModuleType):
    """torch, where float32 is float64."""
    float = float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


torch.Tensor.float = torch.Tensor.double
for module in (modeling_rope_utils, modeling_llama, modeling_phi3):
    module.torch = Double("torch")

LLAMA = dict(vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=12, max_position_embeddings=32, tie_word_embeddings=False)
PHI3 = dict(vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, original_max_position_embeddings=24,
            pad_token_id=0, tie_word_embeddings=False)
THETA = dict(rope_theta=5000.0)
# name: base, rotary parameters, other keys
MODELS = {
    "linear": ("llama", dict(rope_type="linear", factor=2.5, **THETA), {}),
    "dynamic": ("llama", dict(rope_type="dynamic", factor=3.0, **THETA), {}),
    "yarn": ("llama", dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, **THETA), {}),
    "yarn_all": ("llama", dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=8.0,
                               beta_slow=2.0, mscale=0.7, mscale_all_dim=0.4, truncate=False, **THETA), {}),
    "longrope": ("phi3", dict(rope_type="longrope", short_factor=[1.0, 1.1, 1.3, 1.7],
                              long_factor=[1.2, 2.0, 3.5, 6.0], **THETA), {}),
    "longrope_part": ("phi3", dict(rope_type="longrope", short_factor=[1.0, 1.1, 1.3], partial_rotary_factor=0.75,
                                   long_factor=[1.2, 2.0, 3.5], attention_factor=1.3, **THETA),
                      dict(partial_rotary_factor=0.75)),
}
# prompt, chosen and rejected: short, across the original length, and both branches past it by different lengths
PAIRS = [(5, 4, 7), (12, 5, 30), (20, 25, 33), (30, 1, 2)]


def model_of(base, rope, extra):
    torch.manual_seed(7 if base == "llama" else 8)
    config = (LlamaConfig if base == "llama" else Phi3Config)(
        **(LLAMA if base == "llama" else PHI3), rope_parameters=rope, attn_implementation="eager", **extra)
    return (LlamaForCausalLM if base == "llama" else Phi3ForCausalLM)(config)


def gradient(model, prompt, response):
    # a new model state for each sequence: transformers keeps the frequencies of the longest one it has seen
    ids = torch.tensor([prompt + response])
    model.zero_grad()
    logits = model(ids, use_cache=False).logits[0, len(prompt) - 1:-1]
    logp = logits.log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)].sum()
    logp.backward()
    return logp.item(), torch.cat([p.grad.flatten() for p in model.parameters()])


OUT.mkdir(parents=True, exist_ok=True)
weights, values = {}, {}
random = torch.Generator().manual_seed(1)
# token 0 is Phi-3's padding here, whose gradient torch leaves out
pairs = [[torch.randint(1, 61, (n,), generator=random).tolist() for n in lengths] for lengths in PAIRS]
for name, (base, rope, extra) in MODELS.items():
    model = model_of(base, rope, extra)
    if base not in weights:
        # larger than at initialisation, so that attention is not flat
        weights[base] = {k: (v.detach() * (1.0 if "norm" in k else 8.0)).float().to(torch.float32).contiguous()
                         for k, v in model.state_dict().items()}
        save_file(weights[base], OUT / f"{base}.safetensors")
    state = {k: v.double() for k, v in weights[base].items()}
    config = model.config.to_dict()
    json.dump(config, open(OUT / f"{name}.json", "w"), indent=1, sort_keys=True)
    rows = []
    torch.set_default_dtype(torch.float64)
    for prompt, chosen, rejected in pairs:
        found = []
        for response in (chosen, rejected):
            fresh = model_of(base, rope, extra).double()
            fresh.load_state_dict(state)
            rotary = fresh.model.rotary_emb
            inverse, rotary.attention_scaling = modeling_rope_utils.ROPE_INIT_FUNCTIONS[rotary.rope_type](fresh.config)
            rotary.inv_freq = rotary.original_inv_freq = inverse
            found.append(gradient(fresh, prompt, response))
        (logp_w, gw), (logp_l, gl) = found
        rows.append(dict(prompt_ids=prompt, chosen_ids=chosen, rejected_ids=rejected, logp_w=logp_w, logp_l=logp_l,
                         ww=(gw @ gw).item(), wl=(gw @ gl).item(), ll=(gl @ gl).item()))
    torch.set_default_dtype(torch.float32)
    values[name] = dict(weights=base, pairs=rows)
    print(name, [round(r["wl"], 3) for r in rows])
json.dump(dict(torch=torch.__version__, transformers=transformers.__version__, models=values),
          open(OUT / "values.json", "w"), indent=1)
