//! The layers that act on each row by itself: a new one is a file beside this one, and a variant here.
use super::one_of::one_of;
use super::{Experts, ExpertsTrace, Mlp, MlpAndExperts, MlpAndExpertsTrace, MlpTrace};
use tanglescope_kernels::Kernels;

one_of!(
    /// A layer that acts on each row by itself.
    FeedForward, FeedForwardTrace, false,
    {
        /// One for all rows.
        Mlp(Mlp, MlpTrace),
        /// Those that a router chooses for each row.
        Experts(Experts, ExpertsTrace),
        /// Both side by side.
        MlpAndExperts(MlpAndExperts, MlpAndExpertsTrace),
    }
);

impl<B: Kernels> FeedForward<B> {
    /// Its experts, where it has some.
    pub(crate) fn experts(&self) -> Option<&Experts<B>> {
        match self {
            Self::Mlp(_) => None,
            Self::Experts(experts) => Some(experts),
            Self::MlpAndExperts(both) => Some(&both.experts.layer),
        }
    }
}
