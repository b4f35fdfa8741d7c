//! Multimodal models: only the text part is loaded, and it must be a supported decoder.
use super::{Description, Names, describe, describe_as};
use crate::config::Config;
use crate::error::{Error, Result};
use std::borrow::Cow;
use std::path::Path;

/// Prefixes of the tensors that only images go through.
const OF_IMAGES: &[&str] = &[
    "vision_tower.",
    "multi_modal_projector.",
    "image_newline",
    "visual.",
    "model.visual.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
    "model.image_newline",
    "model.embed_vision.",
    "model.audio_tower.",
    "model.embed_audio.",
];

/// Where checkpoints have the text part: the prefix of its `model.`, and of its `lm_head`.
const LAYOUTS: [[&str; 2]; 3] =
    [["language_model.model.", "language_model."], ["model.language_model.", ""], ["model.", ""]];

/// A multimodal model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrapper {
    /// `model_type` of its config.
    pub model_type: &'static str,
    /// `model_type` of its text part, where configs leave it out.
    text: Option<&'static str>,
    /// Whether older configs have the text part's keys beside their own.
    flat: bool,
}

const fn of(model_type: &'static str, text: Option<&'static str>, flat: bool) -> Wrapper {
    Wrapper { model_type, text, flat }
}

const TABLE: &[Wrapper] = &[
    of("gemma3", None, false),
    of("gemma4", Some("gemma4_text"), false),
    of("llava", None, false),
    of("mistral3", None, false),
    of("qwen2_5_vl", Some("qwen2_5_vl_text"), true),
    of("qwen2_vl", Some("qwen2_vl_text"), true),
    of("qwen3_5", Some("qwen3_5_text"), false),
    of("qwen3_5_moe", Some("qwen3_5_moe_text"), false),
    of("qwen3_vl", Some("qwen3_vl_text"), false),
];

/// Keys of older configs that only images go by.
const KEYS_OF_IMAGES: &[&str] = &["vision_config"];

impl Wrapper {
    pub(super) fn named(model_type: &str) -> Option<Self> {
        TABLE.iter().find(|wrapper| wrapper.model_type == model_type).copied()
    }

    pub(super) fn types() -> impl Iterator<Item = &'static str> {
        TABLE.iter().map(|wrapper| wrapper.model_type)
    }

    /// The text part, under the names that checkpoints on the hub have.
    pub(super) fn describe(self, config: &Config) -> Result<Description> {
        let text = match config.object("text_config")? {
            Some(text) => text,
            None if self.flat => config.clone(),
            None => {
                let problem = "missing; the text part of a multimodal model is described there";
                return Err(config.refuse("text_config", problem));
            }
        };
        let tied: Option<bool> = config.get("tie_word_embeddings")?;
        let of_text = text.has("tie_word_embeddings");
        let its_own: Option<String> = text.get("model_type")?;
        let model_type = its_own.filter(|_| text.is_part()).or(self.text.map(str::to_owned));
        let images = if text.is_part() { &[][..] } else { KEYS_OF_IMAGES };
        let mut of = match model_type {
            Some(model_type) => describe_as(&model_type, &text, images)?,
            None => describe(&text)?,
        };
        if of.names.prefix != "model." || of.names.positions.is_some() {
            return Err(text.refuse("model_type", "is not supported as the text part of a multimodal model"));
        }
        if let Some(tied) = tied.filter(|_| !of_text) {
            of.tied = tied;
        }
        Ok(Description { names: renamed(of.names, LAYOUTS[0]), wrapper: Some(self), ..of })
    }

    /// Whether a tensor is one that only images go through.
    pub(crate) fn is_of_images(name: &str) -> bool {
        OF_IMAGES.iter().any(|prefix| name.starts_with(prefix))
    }

    /// The same module of the text part as checkpoints of either layout, or of the text part alone, spell it.
    pub(crate) fn spellings(module: &str) -> Vec<String> {
        let inside = LAYOUTS.iter().find_map(|[model, _]| module.strip_prefix(model));
        let Some(inside) = inside else { return vec![module.to_owned()] };
        let prefixes = LAYOUTS.iter().map(|[model, _]| *model).chain(["model."]);
        std::iter::once(module.to_owned()).chain(prefixes.map(|prefix| format!("{prefix}{inside}"))).collect()
    }
}

/// The names of a text part, inside its wrapper.
fn renamed(names: Names, [model, head]: [&str; 2]) -> Names {
    let inside = |name: &Cow<'static, str>| -> Cow<'static, str> {
        let inner = LAYOUTS.iter().find_map(|[model, _]| name.strip_prefix(model)).or(name.strip_prefix("model."));
        format!("{model}{}", inner.unwrap_or(name)).into()
    };
    let (embedding, blocks, final_norm) = (inside(&names.embedding), inside(&names.blocks), inside(&names.final_norm));
    let head = format!("{head}lm_head").into();
    Names { prefix: Cow::Owned(model.to_owned()), embedding, blocks, final_norm, head, ..names }
}

impl Description {
    /// The same description under the names that a checkpoint has: `has` says whether it has a tensor.
    ///
    /// # Errors
    /// Where the names of a multimodal checkpoint's text part are none that are known.
    pub fn located(self, folder: &Path, has: impl Fn(&str) -> bool) -> Result<Self> {
        let Some(wrapper) = self.wrapper else { return Ok(self) };
        for layout in LAYOUTS {
            let names = renamed(self.names.clone(), layout);
            if has(&format!("{}.weight", names.embedding)) {
                return Ok(Self { names, ..self });
            }
        }
        let problem = format!(
            "`{}` holds a text part, but no tensor of this name or of `model.language_model.embed_tokens.weight` is \
             there; save the text model by itself with transformers first",
            wrapper.model_type
        );
        Err(Error::tensor(folder, "language_model.model.embed_tokens.weight", problem))
    }
}
