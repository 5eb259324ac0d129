//! The order of the layers of a stack.
//!
//! A stack is a chain of slots, outermost first; each holds a layer and the slots inside of it. A setter replaces the layer
//! of one slot, which changes the type of the chain at one position. Rust has no struct update across types, and naming all
//! other slots in each setter would be quadratic.

use std::marker::PhantomData;

use tower_layer::{Identity, Layer};
#[cfg(feature = "cache")]
use tower_llm_core::Cached;
use tower_llm_core::{DescribeLayer, HttpBody, RefusalLayer};

use crate::optional::Optional;

/// A layer, and the slots inside of it.
#[derive(Clone, Copy, Debug)]
pub struct Slot<L, I> {
    pub(crate) layer: L,
    pub(crate) inside: I,
}

/// A chain with a slot at `P`.
pub trait Replace<P, L> {
    /// The chain with `L` in that slot.
    type Replaced;

    /// Puts `layer` into the slot and drops the layer that it held.
    fn replace(self, layer: L) -> Self::Replaced;
}

/// What the slot at `P` can be set to.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a layer for this position of the stack",
    note = "each setter takes its layer, or an `Option` of it"
)]
pub trait Fill<P> {
    /// The layer that the slot holds then.
    type Layer;

    /// Returns the layer for the slot.
    fn into_layer(self) -> Self::Layer;
}

/// The layers of a chain, which may have to agree.
pub trait Chain {
    /// Makes the layers agree before the stack is built; returns whether one of them acts on the provider's 429.
    fn agree(&mut self) -> bool;
}

/// A layer of a chain.
pub trait Member {
    /// Makes this layer agree with the ones inside of it; returns whether it acts on the provider's 429.
    ///
    /// `throttle_is_handled` says whether a layer inside does so.
    fn agree(&mut self, throttle_is_handled: bool) -> bool {
        let _ = throttle_is_handled;
        false
    }
}

/// A layer of the user's own.
#[derive(Clone, Copy, Debug)]
pub struct Own<M>(pub(crate) M);

/// The position of a chain's first slot.
#[derive(Debug)]
pub enum First {}

/// The position just inside of `P`.
#[derive(Debug)]
pub struct Inside<P>(PhantomData<P>);

/// The order of the stack. A new layer is added here and in [`Slots`].
pub(crate) mod at {
    #![allow(
        dead_code,
        reason = "a position exists without its layer's feature too"
    )]

    use super::{First, Inside};

    pub(crate) type Refusal = First;
    pub(crate) type Describe = Inside<Refusal>;
    pub(crate) type Monitor = Inside<Describe>;
    pub(crate) type Own = Inside<Monitor>;
    pub(crate) type CallerRateLimit = Inside<Own>;
    pub(crate) type Cache = Inside<CallerRateLimit>;
    pub(crate) type Batch = Inside<Cache>;
    pub(crate) type Fanout = Inside<Batch>;
    pub(crate) type Attempts = Inside<Fanout>;
    pub(crate) type Breaker = Inside<Attempts>;
    pub(crate) type ProviderRateLimit = Inside<Breaker>;
    pub(crate) type Bulkhead = Inside<ProviderRateLimit>;
    pub(crate) type Timeout = Inside<Bulkhead>;
}

/// A chain with a layer for refusals, one that describes requests and one around the client, and no others.
pub(crate) type Slots<R, D, C> = Slot<
    R,
    Slot<
        D,
        Empty<
            Empty<Empty<Empty<Empty<Empty<Empty<Empty<Empty<Empty<Empty<Slot<C, Identity>>>>>>>>>>>,
        >,
    >,
>;

/// A chain that only describes requests.
pub(crate) type Unset = Slots<Identity, DescribeLayer, Identity>;

/// What a preset sets: from the cache inwards, around a client.
#[cfg(feature = "preset")]
type FromCache<C> = Slot<
    tower_llm_cache::CacheLayer,
    Empty<Slot<tower_llm_fanout::FanoutLayer, Empty<FromBreaker<C>>>>,
>;

#[cfg(feature = "preset")]
type FromBreaker<C> = Slot<
    tower_llm_breaker::BreakerLayer,
    Slot<
        tower_llm_ratelimit::RateLimitLayer,
        Slot<
            tower_llm_bulkhead::BulkheadLayer,
            Slot<tower_llm_timeout::TimeoutLayer, Slot<C, Identity>>,
        >,
    >,
>;

/// The chain of a preset.
#[cfg(feature = "preset")]
pub(crate) type ForPurpose = Empty<Slot<DescribeLayer, Empty<Empty<Empty<FromCache<Identity>>>>>>;

/// The chain of a preset for gRPC.
#[cfg(all(feature = "preset", feature = "tonic"))]
pub(crate) type ForGrpc = Slot<
    crate::adapters::tonic::StatusLayer<crate::adapters::tonic::Refusals>,
    Empty<
        Empty<
            Empty<
                Empty<
                    Empty<Empty<Empty<Empty<FromBreaker<crate::adapters::tonic::ChannelLayer>>>>>,
                >,
            >,
        >,
    >,
>;

/// The chain of all layers that need no second target.
#[cfg(feature = "preset")]
pub(crate) type Full = Slot<
    RefusalLayer,
    Slot<
        DescribeLayer,
        Empty<Empty<Slot<tower_llm_ratelimit::RateLimitLayer, FromCache<Identity>>>>,
    >,
>;

type Empty<I> = Slot<Identity, I>;

pub(crate) fn slots<R, D, C>(refusal: R, describe: D, client: C) -> Slots<R, D, C> {
    let client = Slot::new(client, Identity::new());
    let inner = empty(empty(empty(empty(empty(empty(empty(empty(empty(
        empty(empty(client)),
    )))))))));
    Slot::new(refusal, Slot::new(describe, inner))
}

fn empty<I>(inside: I) -> Empty<I> {
    Slot::new(Identity::new(), inside)
}

// === impl Slot ===

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

impl<L: Member, I: Chain> Chain for Slot<L, I> {
    fn agree(&mut self) -> bool {
        let is_handled = self.inside.agree();
        self.layer.agree(is_handled) || is_handled
    }
}

impl Chain for Identity {
    fn agree(&mut self) -> bool {
        false
    }
}

// === impl Own ===

impl<S, M: Layer<S>> Layer<S> for Own<M> {
    type Service = M::Service;

    fn layer(&self, inner: S) -> M::Service {
        self.0.layer(inner)
    }
}

// === impl Member ===

impl Member for Identity {}

impl<M> Member for Own<M> {}

impl Member for DescribeLayer {}

impl<E> Member for RefusalLayer<E> {}

impl<L: Member, W> Member for Optional<L, W> {
    fn agree(&mut self, throttle_is_handled: bool) -> bool {
        self.as_mut()
            .is_some_and(|layer| layer.agree(throttle_is_handled))
    }
}

#[cfg(feature = "batch")]
impl<Bt: tower_llm_batch::Batcher> Member for tower_llm_batch::BatchLayer<Bt> {}

#[cfg(feature = "breaker")]
impl<W> Member for tower_llm_breaker::BreakerLayer<W> {
    fn agree(&mut self, throttle_is_handled: bool) -> bool {
        if throttle_is_handled {
            self.ignore_throttled();
        }
        false
    }
}

#[cfg(feature = "bulkhead")]
impl<W> Member for tower_llm_bulkhead::BulkheadLayer<W> {}

#[cfg(feature = "cache")]
impl Member for tower_llm_cache::CacheLayer {}

#[cfg(feature = "cache")]
impl<Req, R> Member for tower_llm_cache::ClonedLayer<Req, R> {}

#[cfg(feature = "fanout")]
impl<W, C, M> Member for tower_llm_fanout::FanoutLayer<W, C, M> {}

#[cfg(feature = "fanout")]
impl<J, A, W, C> Member for tower_llm_fanout::EnsembleLayer<J, A, W, C> {}

#[cfg(feature = "fanout")]
impl<D, W, C> Member for tower_llm_fanout::SplitLayer<D, W, C> {}

#[cfg(feature = "monitor")]
impl<W> Member for tower_llm_monitor::MonitorLayer<W> {}

#[cfg(feature = "monitor")]
impl<W> Member for tower_llm_monitor::AttemptLayer<W> {}

#[cfg(feature = "ratelimit")]
impl<W> Member for tower_llm_ratelimit::RateLimitLayer<W> {
    fn agree(&mut self, _: bool) -> bool {
        self.enforces_reported_limits()
    }
}

#[cfg(feature = "timeout")]
impl<W> Member for tower_llm_timeout::TimeoutLayer<W> {}

#[cfg(feature = "tonic")]
impl<C> Member for crate::adapters::tonic::StatusLayer<C> {}

#[cfg(feature = "tonic")]
impl Member for crate::adapters::tonic::ChannelLayer {}

// === impl Fill ===

/// A slot that takes a layer, or an option of it.
macro_rules! fill {
    ($($feature:literal)? $position:ident: $layer:ty $(, $param:ident)*; $watch:ty) => {
        $(#[cfg(feature = $feature)])?
        impl<$($param),*> Fill<at::$position> for $layer {
            type Layer = Self;

            fn into_layer(self) -> Self {
                self
            }
        }

        $(#[cfg(feature = $feature)])?
        impl<$($param),*> Fill<at::$position> for Option<$layer> {
            type Layer = Optional<$layer, $watch>;

            fn into_layer(self) -> Self::Layer {
                Optional::new(self)
            }
        }
    };
}

fill!(Refusal: RefusalLayer<E>, E; HttpBody);
// Not optional: it changes the type of the requests for the inner layers.
impl Fill<at::Describe> for DescribeLayer {
    type Layer = Self;

    fn into_layer(self) -> Self {
        self
    }
}

// Not optional: it may change the types of requests and responses.
#[cfg(feature = "batch")]
impl<Bt: tower_llm_batch::Batcher> Fill<at::Batch> for tower_llm_batch::BatchLayer<Bt> {
    type Layer = Self;

    fn into_layer(self) -> Self {
        self
    }
}

#[cfg(feature = "fanout")]
impl<J, A, W, C> Fill<at::Fanout> for tower_llm_fanout::EnsembleLayer<J, A, W, C> {
    type Layer = Self;

    fn into_layer(self) -> Self {
        self
    }
}

#[cfg(feature = "fanout")]
impl<D, W, C> Fill<at::Fanout> for tower_llm_fanout::SplitLayer<D, W, C> {
    type Layer = Self;

    fn into_layer(self) -> Self {
        self
    }
}

fill!("monitor" Monitor: tower_llm_monitor::MonitorLayer<W>, W; W);
fill!("monitor" Attempts: tower_llm_monitor::AttemptLayer<W>, W; W);
fill!("ratelimit" CallerRateLimit: tower_llm_ratelimit::RateLimitLayer<W>, W; W);
fill!("cache" Cache: tower_llm_cache::CacheLayer; HttpBody);
fill!("cache" Cache: tower_llm_cache::ClonedLayer<Req, R>, Req, R; Cached);
fill!("fanout" Fanout: tower_llm_fanout::FanoutLayer<W, C, M>, W, C, M; W);
fill!("breaker" Breaker: tower_llm_breaker::BreakerLayer<W>, W; W);
fill!("ratelimit" ProviderRateLimit: tower_llm_ratelimit::RateLimitLayer<W>, W; W);
fill!("bulkhead" Bulkhead: tower_llm_bulkhead::BulkheadLayer<W>, W; W);
fill!("timeout" Timeout: tower_llm_timeout::TimeoutLayer<W>, W; W);
