//! Where the layers of a stack stand.
//!
//! A stack is a chain of slots, outermost first, each holding a layer and the slots inside of it. A setter replaces what one
//! slot holds, which changes the chain's type at one place: rust has no struct update across types, and to name all other
//! slots in each setter would grow with their square.

use std::marker::PhantomData;

use tower_layer::{Identity, Layer};
use tower_llm_core::DescribeLayer;

/// A layer, and the slots inside of it.
#[derive(Clone, Copy, Debug)]
pub struct Slot<L, I> {
    layer: L,
    inside: I,
}

/// Chains with a slot at `P`.
pub trait Replace<P, L> {
    /// The chain with `L` in that slot.
    type Replaced;

    /// Puts `layer` into it, in place of what it holds.
    fn replace(self, layer: L) -> Self::Replaced;
}

/// The place of a chain's first slot.
#[derive(Debug)]
pub enum First {}

/// The place just inside of `P`.
#[derive(Debug)]
pub struct Inside<P>(PhantomData<P>);

/// The order of the stack: a layer that is added takes its place here, and in [`Unset`].
pub(crate) mod at {
    #![allow(dead_code, reason = "a place stands without its layer's feature too")]

    use super::{First, Inside};

    pub(crate) type Refusal = First;
    pub(crate) type Describe = Inside<Refusal>;
    pub(crate) type Own = Inside<Describe>;
    pub(crate) type CallerRateLimit = Inside<Own>;
    pub(crate) type Breaker = Inside<CallerRateLimit>;
    pub(crate) type ProviderRateLimit = Inside<Breaker>;
    pub(crate) type Bulkhead = Inside<ProviderRateLimit>;
    pub(crate) type Timeout = Inside<Bulkhead>;
}

/// A chain in which nothing was chosen: requests are described, and no more.
pub(crate) type Unset =
    Slot<Identity, Slot<DescribeLayer, Empty<Empty<Empty<Empty<Empty<Empty<Identity>>>>>>>>;

type Empty<I> = Slot<Identity, I>;

pub(crate) fn unset() -> Unset {
    let client = Identity::new();
    let inner = empty(empty(empty(empty(empty(empty(client))))));
    empty(Slot::new(DescribeLayer::new(), inner))
}

fn empty<I>(inside: I) -> Empty<I> {
    Slot::new(Identity::new(), inside)
}

impl<L, I> Slot<L, I> {
    fn new(layer: L, inside: I) -> Self {
        Self { layer, inside }
    }
}

impl<L, I, N> Replace<First, N> for Slot<L, I> {
    type Replaced = Slot<N, I>;

    fn replace(self, layer: N) -> Slot<N, I> {
        Slot::new(layer, self.inside)
    }
}

impl<L, I, P, N> Replace<Inside<P>, N> for Slot<L, I>
where
    I: Replace<P, N>,
{
    type Replaced = Slot<L, I::Replaced>;

    fn replace(self, layer: N) -> Slot<L, I::Replaced> {
        Slot::new(self.layer, self.inside.replace(layer))
    }
}

impl<S, L, I> Layer<S> for Slot<L, I>
where
    I: Layer<S>,
    L: Layer<I::Service>,
{
    type Service = L::Service;

    fn layer(&self, client: S) -> L::Service {
        self.layer.layer(self.inside.layer(client))
    }
}
