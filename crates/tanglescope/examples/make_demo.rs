//! Makes what `tanglescope demo` runs on, from demo/text.txt: a tokenizer trained on it, a small model with random
//! weights, and preference pairs in the two forms that the paper studies. Writes into demo/.
//!
//!     cargo run --release --example make_demo
use half::bf16;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::byte_level::ByteLevel as ByteLevelProcessor;
use tokenizers::{AddedToken, TokenizerBuilder};

const VOCABULARY: usize = 512;
const HIDDEN: usize = 64;
const LAYERS: usize = 4;
const KEYS: usize = 32;
const MLP: usize = 160;

/// What follows the differing token: nothing, a few words, many (Yuan et al., section 4).
const SUFFIXES: [&str; 3] = [
    "",
    " sentiment.",
    " sentiment, because the words, the way the text is phrased, and the feeling it leaves point the same way.",
];

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    let text = std::fs::read_to_string(folder.join("text.txt"))?;
    let lines: Vec<&str> = text.lines().collect();
    tokenizer(&lines, &folder)?;
    model(&folder)?;
    pairs(&lines, &folder)
}

fn tokenizer(lines: &[&str], folder: &Path) -> Result<(), Box<dyn Error>> {
    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(|token| AddedToken::from(token, true));
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(VOCABULARY)
        .min_frequency(1)
        .special_tokens(special.to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer = TokenizerBuilder::default()
        .with_model(BPE::default())
        .with_normalizer(Some(NFC))
        .with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)))
        .with_post_processor(Some(ByteLevelProcessor::default()))
        .with_decoder(Some(ByteLevelDecoder::default()))
        .build()
        .map_err(|e| e.to_string())?;
    tokenizer
        .train(&mut trainer, lines.iter().map(|line| format!("{line}\n")))
        .and_then(|tokenizer| tokenizer.save(folder.join("tokenizer.json"), true))
        .map_err(|e| e.to_string())?;
    let template = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + \
                    '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "chat_template": template,
    });
    Ok(std::fs::write(folder.join("tokenizer_config.json"), serde_json::to_string_pretty(&config)? + "\n")?)
}

fn model(folder: &Path) -> Result<(), Box<dyn Error>> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": MLP,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "hidden_act": "silu",
        "tie_word_embeddings": true,
    });
    std::fs::write(folder.join("config.json"), serde_json::to_string_pretty(&config)? + "\n")?;
    let mut shapes = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ]);
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![KEYS, HIDDEN]),
            ("self_attn.v_proj", vec![KEYS, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![MLP, HIDDEN]),
            ("mlp.up_proj", vec![MLP, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, MLP]),
        ] {
            shapes.insert(format!("model.layers.{layer}.{name}.weight"), shape);
        }
    }
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let normal = Normal::new(0.0, 0.08)?;
    let mut value = |norm: bool| bf16::from_f64(if norm { 1.0 } else { normal.sample(&mut random) });
    let bytes: Vec<Vec<u8>> = shapes
        .values()
        .map(|shape| (0..shape.iter().product()).flat_map(|_| value(shape.len() == 1).to_le_bytes()).collect())
        .collect();
    let views = shapes
        .into_iter()
        .zip(&bytes)
        .map(|((name, shape), bytes)| Ok((name, TensorView::new(Dtype::BF16, shape, bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    Ok(safetensors::serialize_to_file(views, metadata, &folder.join("model.safetensors"))?)
}

fn pairs(lines: &[&str], folder: &Path) -> Result<(), Box<dyn Error>> {
    let mut rows = Vec::new();
    for (suffix, name) in SUFFIXES.iter().zip(["single", "short", "long"]) {
        for (i, text) in lines[..12].iter().enumerate() {
            // the carried text alternates between bad and good news
            let (chosen, rejected) = if i % 2 == 0 { ("negative", "positive") } else { ("positive", "negative") };
            rows.push(json!({
                "id": format!("sentiment-{name}-{i}"),
                "prompt": format!("Classify the sentiment of this text: {text}\nSentiment:"),
                "chosen": format!(" {chosen}{suffix}"),
                "rejected": format!(" {rejected}{suffix}"),
            }));
        }
    }
    for (i, question) in lines[16..22].iter().enumerate() {
        rows.push(json!({
            "id": format!("answer-{i}"),
            "prompt": [{"role": "user", "content": question}],
            "chosen": [{"role": "assistant", "content": lines[22 + i]}],
            "rejected": [{"role": "assistant", "content": lines[28 + i % 4]}],
        }));
    }
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    Ok(std::fs::write(folder.join("pairs.jsonl"), text)?)
}
