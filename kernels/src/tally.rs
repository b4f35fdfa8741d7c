//! What the products of this thread have cost, stage by stage: what a count made beforehand is held against.
//!
//! The CPU's kernels add to it as they are called, a few additions a kernel.
use crate::cost::Cost;
use std::cell::Cell;

/// Costs of products that ran.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// With weights, forward and backward.
    pub products: Cost,
    /// Of attention, forward and backward.
    pub attention: Cost,
    /// Of the head.
    pub head: Cost,
    /// Of the Gram reductions of linear maps.
    pub reductions: Cost,
}

thread_local! {
    static TALLY: Cell<Tally> = const { Cell::new(Tally {
        products: Cost::NOTHING,
        attention: Cost::NOTHING,
        head: Cost::NOTHING,
        reductions: Cost::NOTHING,
    }) };
}

/// What this thread's kernels have cost since it was last asked.
#[must_use]
pub fn take() -> Tally {
    TALLY.take()
}

fn add(to: impl FnOnce(&mut Tally) -> &mut Cost, cost: Cost) {
    let mut tally = TALLY.get();
    *to(&mut tally) += cost;
    TALLY.set(tally);
}

pub(crate) fn products(cost: Cost) {
    add(|tally| &mut tally.products, cost);
}

pub(crate) fn attention(cost: Cost) {
    add(|tally| &mut tally.attention, cost);
}

pub(crate) fn head(cost: Cost) {
    add(|tally| &mut tally.head, cost);
}

pub(crate) fn reductions(cost: Cost) {
    add(|tally| &mut tally.reductions, cost);
}
