//! `Olmo3ForCausalLM`: OLMo 2 with a window on three of four blocks, whose rotary embedding is not scaled.
use super::{Description, olmo2, window_or, windowed};
use crate::config::Config;
use crate::error::Result;
use crate::rope::RopeDefaults;

pub(super) fn describe(config: &Config) -> Result<Description> {
    let of = olmo2::body(config)?;
    let window = window_or(config, 4096)?;
    let windowed = windowed(config, of.layers(), |layer| !(layer + 1).is_multiple_of(4))?;
    let plain = RopeDefaults { theta: ("rope_theta", 10_000.0), ..RopeDefaults::default() };
    super::with_ropes_by_type(of, config, window, &windowed, [plain, plain])
}
