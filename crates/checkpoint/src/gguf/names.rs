//! Architectures of GGUF files, and the names that transformers has for llama.cpp's.
use super::header::Header;

/// An architecture whose tensors are given transformers' names.
pub(super) struct Architecture {
    /// llama.cpp's name.
    pub name: &'static str,
    /// `model_type`.
    pub model_type: &'static str,
    /// Whether rows of queries and keys are in the order of rotating neighbours, as llama.cpp does.
    pub neighbours: bool,
    /// Whether norms before and after both layers are Gemma's.
    four_norms: bool,
    /// Router, and gate, up and down of an expert, by module.
    experts: Option<[&'static str; 4]>,
}

/// One without experts whose rows are in the order of transformers.
const fn plain(name: &'static str, model_type: &'static str) -> Architecture {
    Architecture { name, model_type, neighbours: false, four_norms: false, experts: None }
}

/// Names of experts in most architectures.
const EXPERTS: Option<[&str; 4]> = Some(["mlp.gate", "gate_proj", "up_proj", "down_proj"]);

pub(super) const ARCHITECTURES: [Architecture; 14] = [
    Architecture { neighbours: true, ..plain("llama", "llama") },
    // known from the first by its experts
    Architecture {
        neighbours: true,
        experts: Some(["block_sparse_moe.gate", "w1", "w3", "w2"]),
        ..plain("llama", "mixtral")
    },
    plain("qwen2", "qwen2"),
    plain("qwen3", "qwen3"),
    Architecture { experts: EXPERTS, ..plain("qwen2moe", "qwen2_moe") },
    Architecture { experts: EXPERTS, ..plain("qwen3moe", "qwen3_moe") },
    Architecture { experts: EXPERTS, ..plain("olmoe", "olmoe") },
    plain("olmo2", "olmo2"),
    plain("phi3", "phi3"),
    Architecture { neighbours: true, ..plain("granite", "granite") },
    Architecture { neighbours: true, ..plain("smollm3", "smollm3") },
    plain("gemma", "gemma"),
    Architecture { four_norms: true, ..plain("gemma2", "gemma2") },
    Architecture { four_norms: true, ..plain("gemma3", "gemma3_text") },
];

/// Names inside a block.
const IN_BLOCK: [(&str, &str); 18] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
    (SHARED_GATE, "mlp.shared_expert_gate"),
];

/// What opens the shared expert, a matrix of one row that is stored as a vector.
pub(super) const SHARED_GATE: &str = "ffn_gate_inp_shexp";

/// Experts of a block in one tensor.
const OF_EXPERTS: [&str; 3] = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"];

impl Architecture {
    /// The one of a header.
    pub fn of(header: &Header<'_>) -> Result<Option<&'static Self>, String> {
        let name = header.architecture()?;
        let routed = header.size("expert_count").is_some_and(|number| number > 0);
        let mut named = ARCHITECTURES.iter().filter(|of| of.name == name);
        let first = named.next();
        Ok(named.find(|of| routed && of.experts.is_some()).or(first))
    }

    /// The name that transformers has for a tensor; of the experts of a block, that of the first, with what stands for its number.
    pub fn name_of(&self, name: &str) -> Option<String> {
        let (module, tensor) = name.rsplit_once('.')?;
        let outside = [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];
        if let Some((_, of)) = outside.iter().find(|(of, _)| *of == module) {
            return Some(format!("{of}.{tensor}"));
        }
        let (layer, inside) = module.strip_prefix("blk.")?.split_once('.')?;
        if let Some([router, maps @ ..]) = self.experts {
            let layers = router.rsplit_once('.')?.0;
            if inside == "ffn_gate_inp" {
                return Some(format!("model.layers.{layer}.{router}.{tensor}"));
            }
            if let Some(at) = OF_EXPERTS.iter().position(|of| *of == inside) {
                return Some(format!("model.layers.{layer}.{layers}.experts.{EXPERT}.{}.{tensor}", maps[at]));
            }
        }
        let (_, of) = IN_BLOCK.iter().find(|(of, _)| *of == inside)?;
        let of = match inside {
            "ffn_norm" if self.four_norms => "pre_feedforward_layernorm",
            // gate and up in one
            "ffn_up" if self.model_type == "phi3" => "mlp.gate_up_proj",
            _ => of,
        };
        Some(format!("model.layers.{layer}.{of}.{tensor}"))
    }
}

/// What stands for the number of an expert in a name.
pub(super) const EXPERT: &str = "#";
