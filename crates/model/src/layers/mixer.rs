//! The layers that let rows see each other: a new one is a file beside this one, and a variant here.
use super::one_of::one_of;
use super::{Attention, AttentionTrace, DeltaNet, DeltaNetTrace};

one_of!(
    /// A layer that lets rows see each other.
    Mixer, MixerTrace, true,
    {
        /// Softmax attention.
        Attention(Attention, AttentionTrace),
        /// The gated delta rule.
        DeltaNet(DeltaNet, DeltaNetTrace),
    }
);
