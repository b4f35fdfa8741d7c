//! What is asked of the engine: a group, and the cotangents whose gradients are wanted of it.
use crate::batch::{Cotangent, Group};
use crate::schedule::Schedule;

/// A group and its cotangents.
#[derive(Clone, Debug, PartialEq)]
pub struct Request<'a> {
    /// One prompt and its responses.
    pub group: &'a Group,
    /// Weighted sums of its branches' token log-probabilities; their gradients share a Gram.
    pub cotangents: Vec<Cotangent>,
}

impl<'a> Request<'a> {
    /// The gradient of log π(y|x) of every branch.
    #[must_use]
    pub fn log_probabilities(group: &'a Group) -> Self {
        Self { group, cotangents: Cotangent::log_probabilities(group) }
    }

    /// Log-probabilities alone, without a gradient.
    pub(crate) fn forward(group: &'a Group) -> Self {
        Self { group, cotangents: Vec::new() }
    }

    /// The gradient of each branch's log π(y|x) for every group.
    pub fn all(groups: impl IntoIterator<Item = &'a Group>) -> Vec<Self> {
        groups.into_iter().map(Self::log_probabilities).collect()
    }
}

/// Groups in batches of at most `rows` forward rows each, those of like length together, `at_once` of them side by side.
#[must_use]
pub fn batches_of<'a>(groups: impl IntoIterator<Item = &'a Group>, rows: usize, at_once: usize) -> Schedule {
    let lengths: Vec<usize> = groups.into_iter().map(Group::forward_rows).collect();
    Schedule::by_length(&lengths, rows, at_once)
}
