//! Makes what `tanglescope demo` runs on, from demo/text.txt: a tokenizer trained on it, sentences of good and bad news,
//! and preference pairs over them in the three forms that the paper studies. Writes into demo/; and into a folder of its own
//! the start of the demo's model, with random weights, and the text that it is trained on:
//!
//!     cargo run --release --example make_demo -- START
//!     tanglescope train --model START/model --data START/text.jsonl --objective sft --scope full --device cpu --epochs 12
//!         --batch-size 16 --learning-rate 2e-3 --schedule cosine --save-every 100000 --out START/run
//!     cp START/run/checkpoint-*[1-9]*/model.safetensors crates/tanglescope/demo/
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::Path;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::byte_level::ByteLevel as ByteLevelProcessor;
use tokenizers::{AddedToken, TokenizerBuilder};

const VOCABULARY: usize = 512;
const HIDDEN: usize = 128;
const LAYERS: usize = 5;
const KEYS: usize = 64;
const MLP: usize = 352;

/// What follows the differing token: nothing, a few words, many (Yuan et al., section 4).
const SUFFIXES: [(&str, &str); 3] = [
    ("single", ""),
    ("short", " in tone."),
    ("long", " in tone, because of the words that were chosen and how they are put together."),
];

/// Sentences that the text is filled up with, and pairs of the demo.
const SENTENCES: usize = 1500;
const PAIRS: usize = 160;

const NOUNS: [&str; 24] = [
    "soup", "train", "hotel", "garden", "concert", "phone", "teacher", "match", "bread", "library", "film", "doctor",
    "tent", "party", "lesson", "view", "coffee", "letter", "museum", "weather", "waiter", "bicycle", "kitchen",
    "holiday",
];
const GOOD: [&str; 12] = [
    "lovely",
    "kind",
    "perfect",
    "bright",
    "charming",
    "warm",
    "excellent",
    "delightful",
    "fresh",
    "generous",
    "calm",
    "superb",
];
const BAD: [&str; 12] = [
    "awful", "rude", "broken", "dull", "dirty", "cold", "terrible", "noisy", "stale", "careless", "bitter", "dreadful",
];
const GLAD: [&str; 8] = [
    "we laughed all the way home",
    "I would go again tomorrow",
    "everyone smiled",
    "my sister loved every minute",
    "we stayed until the end",
    "I thanked them twice",
    "the children cheered",
    "it made my week",
];
const SAD: [&str; 8] = [
    "we left before the end",
    "I want my money back",
    "everyone complained",
    "my sister cried on the way home",
    "nobody said sorry",
    "I will never go again",
    "the children were upset",
    "it ruined my week",
];

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    let start = std::env::args().nth(1).ok_or("give a folder for the start of the model")?;
    let start = Path::new(&start);
    std::fs::create_dir_all(start.join("model"))?;
    let written = std::fs::read_to_string(folder.join("text.txt"))?;
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let mut known = BTreeSet::new();
    let sentences: Vec<(String, bool)> = std::iter::repeat_with(|| sentence(&mut random))
        .filter(|(text, _)| known.insert(text.clone()))
        .take(SENTENCES + PAIRS)
        .collect();
    let (of_text, of_pairs) = sentences.split_at(SENTENCES);
    let lines: Vec<&str> = written.lines().chain(of_text.iter().map(|(text, _)| text.as_str())).collect();
    tokenizer(&lines, &folder)?;
    model(&folder, &start.join("model"))?;
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(folder.join(name), start.join("model").join(name))?;
    }
    text(&lines, &start.join("text.jsonl"))?;
    pairs(&written.lines().collect::<Vec<_>>(), of_pairs, &folder)
}

/// A sentence, and whether it is good news. Some say something of both kinds, and the second counts.
fn sentence(random: &mut ChaCha8Rng) -> (String, bool) {
    let good = random.random_bool(0.5);
    let mut one = |of: &[&'static str]| *of.choose(random).unwrap_or(&"");
    let (noun, other, kinds) = (one(&NOUNS), one(&NOUNS), one(&["one", "two", "both", "end"]));
    let word = one(if good { &GOOD } else { &BAD });
    let second = one(if good { &GOOD } else { &BAD });
    let opposite = one(if good { &BAD } else { &GOOD });
    let end = one(if good { &GLAD } else { &SAD });
    let text = match kinds {
        "one" => format!("The {noun} was {word}, and {end}."),
        "two" => format!("What a {word} {noun}: the {other} was {second} too."),
        "both" => format!("The {noun} was {opposite}, but the {other} was {word}, so {end}."),
        _ => format!("After the {noun}, {end}."),
    };
    (text, good)
}

/// Rows to train the model on: four lines each.
fn text(lines: &[&str], path: &Path) -> Result<(), Box<dyn Error>> {
    let row = |lines: &[&str]| json!({"prompt": "<|endoftext|>", "completion": lines.join("\n") + "\n<|endoftext|>"});
    let rows: String = lines.chunks(4).map(|lines| format!("{}\n", row(lines))).collect();
    Ok(std::fs::write(path, rows)?)
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

fn model(folder: &Path, start: &Path) -> Result<(), Box<dyn Error>> {
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
    let normal = Normal::new(0.0f32, 0.05)?;
    let mut value = |norm: bool| if norm { 1.0f32 } else { normal.sample(&mut random) };
    let bytes: Vec<Vec<u8>> = shapes
        .values()
        .map(|shape| (0..shape.iter().product()).flat_map(|_| value(shape.len() == 1).to_le_bytes()).collect())
        .collect();
    let views = shapes
        .into_iter()
        .zip(&bytes)
        .map(|((name, shape), bytes)| Ok((name, TensorView::new(Dtype::F32, shape, bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    Ok(safetensors::serialize_to_file(views, metadata, &start.join("model.safetensors"))?)
}

fn pairs(lines: &[&str], sentences: &[(String, bool)], folder: &Path) -> Result<(), Box<dyn Error>> {
    let of = |name: &str, suffix: &str, i: usize, (text, good): &(String, bool)| {
        let (chosen, rejected) = if *good { ("positive", "negative") } else { ("negative", "positive") };
        json!({
            "id": format!("{name}-{i}"),
            "prompt": format!("{text}\nSentiment:"),
            "chosen": format!(" {chosen}{suffix}"),
            "rejected": format!(" {rejected}{suffix}"),
        })
    };
    let file = |rows: Vec<serde_json::Value>| rows.iter().map(|row| format!("{row}\n")).collect::<String>();
    let mut few = Vec::new();
    for (name, suffix) in SUFFIXES {
        let rows: Vec<_> = sentences.iter().enumerate().map(|(i, sentence)| of(name, suffix, i, sentence)).collect();
        few.extend_from_slice(&rows[..12]);
        std::fs::write(folder.join(format!("{name}.jsonl")), file(rows))?;
    }
    for (i, question) in lines[16..22].iter().enumerate() {
        few.push(json!({
            "id": format!("answer-{i}"),
            "prompt": [{"role": "user", "content": question}],
            "chosen": [{"role": "assistant", "content": lines[22 + i]}],
            "rejected": [{"role": "assistant", "content": lines[28 + i % 4]}],
        }));
    }
    Ok(std::fs::write(folder.join("pairs.jsonl"), file(few))?)
}
