"""Makes tests/golden/architectures: small models of the architectures that have no goldens elsewhere, with exact float64
log-probabilities and gradients of every parameter.

    python tests/architecture_values.py [NAME …]       (torch 2.15.0, transformers 5.24.0, peft 0.21.2, safetensors)

transformers computes rotary tables, norms and softmax in float32 whatever the model's type; here its own code runs with
float64 in their place, so that what is stored is exact.
"""
import copy, importlib, json, pathlib, sys, types
import peft, torch, transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, modeling_rope_utils

OUT = pathlib.Path(__file__).parent / "golden" / "architectures"


class Double(types.ModuleType):
    """torch, where float32 is float64."""
    float = float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


SIZES = dict(vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=64, pad_token_id=0)
ROPE = dict(rope_parameters=dict(rope_type="default", rope_theta=5000.0))
# model_type, and what else is told apart: what is not as above
MODELS = {
    "arcee": dict(head_dim=12, tie_word_embeddings=True, mlp_bias=True, attention_bias=True, **ROPE),
    "cohere": dict(logit_scale=0.3, attention_bias=True, **ROPE),
    "exaone4": dict(head_dim=12, sliding_window=5, sliding_window_pattern=2, **ROPE),
    "olmo": dict(clip_qkv=1.5, **ROPE),
    "seed_oss": dict(head_dim=12, attention_bias=True, attention_out_bias=True, mlp_bias=True, **ROPE),
    "stablelm": dict(use_qkv_bias=True, rope_parameters=dict(rope_type="default", rope_theta=5000.0, partial_rotary_factor=0.5)),
    "stablelm-parallel": dict(use_parallel_residual=True,
                              rope_parameters=dict(rope_type="default", rope_theta=5000.0, partial_rotary_factor=0.25)),
    "starcoder2": dict(sliding_window=6, use_bias=True, **ROPE),
    "qwen3_5_moe_text": dict(head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=6,
                             linear_conv_kernel_dim=3, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=10,
                             shared_expert_intermediate_size=14, full_attention_interval=3,
                             rope_parameters=dict(rope_type="default", rope_theta=5000.0, partial_rotary_factor=0.5)),
    "phi": dict(rope_parameters=dict(rope_type="default", rope_theta=5000.0, partial_rotary_factor=0.5)),
    "opt": dict(ffn_dim=40, num_key_value_heads=4, word_embed_proj_dim=32, dropout=0.0),
    "falcon": dict(bias=True, alibi=False, ffn_hidden_size=40, **ROPE),
    "falcon-newer": dict(new_decoder_architecture=True, num_kv_heads=2, alibi=False, ffn_hidden_size=40, **ROPE),
    "falcon-sequential": dict(parallel_attn=False, multi_query=False, alibi=False, bias=True, **ROPE),
    "gemma4_text": dict(head_dim=8, global_head_dim=16, num_global_key_value_heads=1, attention_k_eq_v=True, sliding_window=5,
                        layer_types=["sliding_attention", "full_attention", "full_attention"], hidden_size_per_layer_input=0,
                        vocab_size_per_layer_input=61, final_logit_softcapping=6.0),
    "gemma4_text-experts": dict(head_dim=8, global_head_dim=12, sliding_window=5, enable_moe_block=True, num_experts=5, top_k_experts=2,
                                moe_intermediate_size=10, hidden_size_per_layer_input=0, vocab_size_per_layer_input=61,
                                layer_types=["sliding_attention", "full_attention", "full_attention"]),
    "gemma4_text-small": dict(head_dim=8, global_head_dim=16, num_key_value_heads=1, attention_bias=True, sliding_window=4,
                              num_hidden_layers=6, num_kv_shared_layers=3, hidden_size_per_layer_input=5, vocab_size_per_layer_input=70,
                              layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention",
                                           "sliding_attention", "full_attention"]),
}
# adapters on some of them, by PEFT: what is trained beside A and B of some projections, or otherwise
ADAPTERS = {
    "starcoder2": {"all_biases": dict(bias="all"), "lora_biases": dict(bias="lora_only")},
    "arcee": {
        "dora": dict(use_dora=True, target_modules=["q_proj", "o_proj", "up_proj", "down_proj"]),
        "embedding": dict(target_modules=["k_proj", "embed_tokens"]),
        "head": dict(target_modules=["k_proj", "lm_head"]),
        "tokens": dict(trainable_token_indices=[40, 3, 27, 55, 8, 12]),
        "tokens_apart": dict(trainable_token_indices={"embed_tokens": [40, 3, 27, 8], "lm_head": [55, 12]}),
        "modules": dict(modules_to_save=["mlp", "norm"]),
        "pissa": dict(init_lora_weights="pissa"),
        "olora": dict(init_lora_weights="olora"),
    },
    "phi": {"head": dict(target_modules=["q_proj", "lm_head"]), "dora": dict(use_dora=True, target_modules="all-linear", use_rslora=True)},
    "stablelm": {"tokens": dict(trainable_token_indices={"embed_tokens": [40, 3, 27, 8], "lm_head": [55, 12, 3]}),
                 "both": dict(target_modules=["v_proj", "embed_tokens", "lm_head"], rank_pattern={"lm_head": 2},
                              alpha_pattern={"lm_head": 9, "embed_tokens": 4})},
    "gemma4_text": {"embedding": dict(target_modules=["q_proj", "embed_tokens"]), "head": dict(target_modules=["q_proj", "lm_head"]),
                    "tokens": dict(trainable_token_indices=[40, 3, 27, 55, 8, 12])},
}
PAIRS = [(5, 4, 7), (1, 1, 3), (9, 12, 12)]



def values(model, kind, pair, plain):
    """Log-probabilities of a pair and the inner products of their gradients, in all and for each parameter that is trained."""
    prompt, chosen, rejected = pair
    logps, gradients = [], []
    for response in (chosen, rejected):
        model.zero_grad()
        logits = model(torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1:-1]
        logp = logits.log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)].sum()
        logp.backward()
        logps.append(logp.item())
        gradients.append({plain(k): p.grad.detach().clone() for k, p in model.named_parameters() if p.requires_grad})
    dot = lambda i, j, k: (gradients[i][k] * gradients[j][k]).sum().item()
    per_param = {k: [dot(0, 0, k), dot(1, 1, k), dot(0, 1, k)] for k in gradients[0]}
    total = [sum(of[i] for of in per_param.values()) for i in range(3)]
    of_model = dict(prompt_ids=prompt, chosen_ids=chosen, rejected_ids=rejected) if kind == "full" else {}
    logp = "logp_base" if kind == "full" else f"logp_{kind}"
    return of_model | {logp: dict(logp_w=logps[0], logp_l=logps[1]), kind: dict(ww=total[0], ll=total[1], wl=total[2], per_param=per_param)}


OUT.mkdir(parents=True, exist_ok=True)
random = torch.Generator().manual_seed(2)
# token 0 is the padding, whose row torch leaves out
draw = lambda n: torch.randint(1, 61, (n,), generator=random).tolist()
pairs = [[draw(n) for n in lengths] for lengths in PAIRS]
for pair in pairs:
    pair[2][: min(2, len(pair[2]) - 1, len(pair[1]) - 1)] = pair[1][: min(2, len(pair[2]) - 1, len(pair[1]) - 1)]
torch.Tensor.float = torch.Tensor.double
modeling_rope_utils.torch = Double("torch")
for seed, (name, more) in enumerate(MODELS.items()):
    if sys.argv[1:] and name not in sys.argv[1:]:
        continue
    kind = name.split("-")[0].removesuffix("_text")
    module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    module.torch = Double("torch")
    config = AutoConfig.for_model(name.split("-")[0], **{**SIZES, **more}, attn_implementation="eager", experts_implementation="eager")
    torch.manual_seed(20 + seed)
    torch.set_default_dtype(torch.float32)
    model = AutoModelForCausalLM.from_config(config)
    # larger than at initialisation, so that attention is not flat, and biases and gains that are not 0 and 1
    for key, p in model.named_parameters():
        noise = torch.randn(p.shape)
        p.data = {True: 1 + 0.2 * noise, False: 0.25 * noise}[p.dim() == 1 and key.endswith(("weight", "scale"))]
    for key, b in model.named_buffers():
        if key.endswith("layer_scalar"):
            b.data = 1 + 0.2 * torch.randn(b.shape)
    folder = OUT / name
    folder.mkdir(exist_ok=True)
    tied = set(model._tied_weights_keys or []) if config.tie_word_embeddings else set()
    save_file({k: v.detach().contiguous() for k, v in model.state_dict().items() if k not in tied}, folder / "model.safetensors",
              metadata=dict(format="pt"))
    written = config.to_dict() | dict(architectures=[type(model).__name__])
    json.dump(written, open(folder / "config.json", "w"), indent=1, sort_keys=True)
    torch.set_default_dtype(torch.float64)
    model = model.double().eval()
    for scaled in [m for m in model.modules() if hasattr(m, "scalar_embed_scale")]:
        scaled.embed_scale = torch.tensor(scaled.scalar_embed_scale)
    for rotary in [m.rotary_emb for m in model.modules() if hasattr(m, "rotary_emb")]:
        if hasattr(rotary, "layer_types"):
            for kind in rotary.layer_types:
                inverse, _ = rotary.rope_init_fns[kind](config.per_layer_config[kind], None, layer_type=kind)
                setattr(rotary, f"{kind}_inv_freq", inverse)
            continue
        inverse, rotary.attention_scaling = rotary.compute_default_rope_parameters(config)
        rotary.inv_freq = rotary.original_inv_freq = inverse
    adapted = {}
    for kind, how in ADAPTERS.get(name, {}).items():
        torch.set_default_dtype(torch.float32)
        # what takes the base apart does so in float32
        base = copy.deepcopy(model).to(torch.float32) if "init_lora_weights" in how else copy.deepcopy(model)
        under = peft.get_peft_model(base, peft.LoraConfig(
            r=3, lora_alpha=6, task_type="CAUSAL_LM", **{**dict(target_modules=["q_proj", "v_proj", "c_proj"]), **how}))
        for key, p in under.named_parameters():
            if p.requires_grad:
                p.data = (p.data + 0.1 * torch.randn(p.shape)).float().double()
        under.save_pretrained(folder / f"adapter_{kind}")
        (folder / f"adapter_{kind}" / "README.md").unlink()
        torch.set_default_dtype(torch.float64)
        adapted[kind] = under.double().eval()
    plain = lambda key: (key.removeprefix("base_model.model.").replace(".base_layer", "").replace(".modules_to_save", "")
                         .replace(".default", "").replace("magnitude_vector.weight", "magnitude_vector"))
    rows = []
    for prompt, chosen, rejected in pairs:
        row = {}
        for kind, of in [("full", model), *adapted.items()]:
            row |= values(of, kind, (prompt, chosen, rejected), plain)
        rows.append(row)
    meta = dict(torch=torch.__version__, transformers=transformers.__version__, linear_params=[])
    json.dump(dict(meta=meta, pairs=rows), open(folder / "golden.json", "w"), indent=1)
    print(name, [round(row["full"]["wl"], 3) for row in rows])
