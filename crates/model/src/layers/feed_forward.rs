//! The layers that act on each row by itself: a new one is a file beside this one, and a variant here.
use super::one_of::one_of;
use super::{Experts, ExpertsTrace, Mlp, MlpTrace};

one_of!(
    /// A layer that acts on each row by itself.
    FeedForward, FeedForwardTrace, false,
    {
        /// One for all rows.
        Mlp(Mlp, MlpTrace),
        /// Those that a router chooses for each row.
        Experts(Experts, ExpertsTrace),
    }
);
