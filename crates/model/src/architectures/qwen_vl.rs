//! The text parts of `Qwen2VLForConditionalGeneration`, `Qwen2_5_VLForConditionalGeneration` and
//! `Qwen3VLForConditionalGeneration`: Qwen 2 and Qwen 3, whose rotary angles have sections for time, height and width. A text's
//! positions are the same in all three, so the sections change nothing.
use super::{Description, QueryKeyNorm, qwen2, qwen3};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;

fn rope(theta: f64) -> RopeDefaults {
    RopeDefaults { theta: ("rope_theta", theta), sections: true, ..RopeDefaults::default() }
}

pub(super) fn qwen2(config: &Config) -> Result<Description> {
    qwen2_5(config)
}

pub(super) fn qwen2_5(config: &Config) -> Result<Description> {
    let sizes = [152_064, 8192, 80, 64, 29_568];
    let of = qwen2::body(config, qwen2::defaults(sizes, Some(8), None), rope(1e6))?;
    Ok(Description { qkv_bias: true, ..of })
}

pub(super) fn qwen3(config: &Config) -> Result<Description> {
    let sizes = [151_936, 4096, 32, 32, 22_016];
    let of = qwen2::body(config, qwen2::defaults(sizes, Some(32), Some(128)), rope(5e6))?;
    let bias = config.get("attention_bias")?.unwrap_or(false);
    let query_key_norm = Some(QueryKeyNorm::Heads);
    Ok(Description { qkv_bias: bias, o_bias: bias, query_key_norm, names: qwen3::names(), ..of })
}
