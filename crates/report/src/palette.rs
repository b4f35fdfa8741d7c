//! The colours of all figures, on the page and in Markdown.
use serde::Serialize;

/// 0xRRGGBB.
pub type Colour = u32;

/// Okabe and Ito's colours first, told apart by people with any kind of colour blindness.
pub const SERIES: [Colour; 10] = [
    0x00_72_b2, 0xe6_9f_00, 0x00_9e_73, 0xd5_5e_00, 0xcc_79_a7, 0x56_b4_e9, 0x8c_6b_b1, 0x7f_7f_7f, 0xb2_91_2f,
    0x4d_4d_4d,
];

/// Regimes as tables name them, in the order of the digest's columns.
pub const REGIMES: [(&str, Colour); 5] = [
    ("ideal", 0x00_9e_73),
    ("both-up", 0x56_b4_e9),
    ("both-down", 0xd5_5e_00),
    ("inverted", 0xcc_79_a7),
    ("none", 0x8a_8f_96),
];

/// The palette as the page's script takes it.
#[derive(Serialize)]
pub struct Palette {
    series: Vec<String>,
    regimes: Vec<(&'static str, String)>,
}

impl Palette {
    /// Colours as CSS writes them.
    pub fn css() -> Self {
        let css = |colour: Colour| format!("#{colour:06x}");
        Self { series: SERIES.map(css).to_vec(), regimes: REGIMES.map(|(name, colour)| (name, css(colour))).to_vec() }
    }
}
