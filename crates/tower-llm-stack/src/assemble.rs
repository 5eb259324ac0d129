//! Puts the layers of a chain around a client, innermost first.
//!
//! Gates that stand next to each other become one: one service, one future, and one watch of the response for all of them. A
//! layer that is no gate ends the run of gates inside of it.

use tower_layer::{Identity, Layer};
#[cfg(feature = "cache")]
use tower_llm_core::Cached;
use tower_llm_core::{DescribeLayer, GateLayer, Gated, HttpBody, RefusalLayer};

use crate::{
    optional::{Optional, OptionalService},
    slot::{Own, Slot},
};

/// A part of a chain that can be put around `A`.
#[diagnostic::on_unimplemented(
    message = "the layers of this stack do not fit together",
    note = "breaker, rate limits and bulkhead that stand next to each other must have the same `Watch`"
)]
pub trait Assemble<A> {
    /// What both are together.
    type Out;

    /// Puts this part around `inner`.
    fn assemble(&self, inner: A) -> Self::Out;
}

/// What is assembled so far.
pub trait Assembled {
    /// The service of all of it.
    type Service;

    /// Returns that service.
    fn into_service(self) -> Self::Service;
}

/// A layer of a chain that is a gate. Not [`GateLayer`] itself: only for a trait of this crate is it known which layers do not
/// implement it.
pub trait IsGate: GateLayer {}

#[cfg(feature = "breaker")]
impl<W: Clone> IsGate for tower_llm_breaker::BreakerLayer<W> {}

#[cfg(feature = "bulkhead")]
impl<W: Clone> IsGate for tower_llm_bulkhead::BulkheadLayer<W> {}

#[cfg(feature = "monitor")]
impl<W: Clone> IsGate for tower_llm_monitor::MonitorLayer<W> {}

#[cfg(feature = "monitor")]
impl<W: Clone> IsGate for tower_llm_monitor::AttemptLayer<W> {}

#[cfg(feature = "ratelimit")]
impl<W: Clone> IsGate for tower_llm_ratelimit::RateLimitLayer<W> {}

/// A service, with no gate around it yet.
#[derive(Debug)]
pub struct Plain<S>(pub(crate) S);

/// A service, and the gates that are to stand before it.
#[derive(Debug)]
pub struct Before<S, G, W> {
    service: S,
    gates: G,
    watch: W,
}

/// A service, and gates that are all left out if there is no `watch`.
#[derive(Debug)]
pub struct Perhaps<S, G, W> {
    service: S,
    gates: G,
    watch: Option<W>,
}

// === impl Assembled ===

impl<S> Assembled for Plain<S> {
    type Service = S;

    fn into_service(self) -> S {
        self.0
    }
}

impl<S, G, W> Assembled for Before<S, G, W> {
    type Service = Gated<S, G, W>;

    fn into_service(self) -> Self::Service {
        Gated::new(self.service, self.gates, self.watch)
    }
}

impl<S, G, W> Assembled for Perhaps<S, G, W> {
    type Service = OptionalService<Gated<S, G, W>, S, W>;

    fn into_service(self) -> Self::Service {
        match self.watch {
            Some(watch) => OptionalService::on(Gated::new(self.service, self.gates, watch)),
            None => OptionalService::off(self.service),
        }
    }
}

// === impl Assemble ===

impl<A, L, I> Assemble<A> for Slot<L, I>
where
    I: Assemble<A>,
    L: Assemble<I::Out>,
{
    type Out = L::Out;

    fn assemble(&self, inner: A) -> L::Out {
        self.layer.assemble(self.inside.assemble(inner))
    }
}

/// A slot without a layer, and the end of a chain.
impl<A> Assemble<A> for Identity {
    type Out = A;

    fn assemble(&self, inner: A) -> A {
        inner
    }
}

impl<S, L: IsGate> Assemble<Plain<S>> for L {
    type Out = Before<S, L::Gate, L::Watch>;

    fn assemble(&self, Plain(service): Plain<S>) -> Self::Out {
        Before {
            service,
            gates: self.gate(),
            watch: self.watch(),
        }
    }
}

impl<S, G, W, L: IsGate<Watch = W>> Assemble<Before<S, G, W>> for L {
    type Out = Before<S, (L::Gate, G), W>;

    fn assemble(&self, inner: Before<S, G, W>) -> Self::Out {
        Before {
            service: inner.service,
            gates: (self.gate(), inner.gates),
            watch: inner.watch,
        }
    }
}

impl<S, G, W, L: IsGate<Watch = W>> Assemble<Perhaps<S, G, W>> for L {
    type Out = Before<S, (L::Gate, G), W>;

    fn assemble(&self, inner: Perhaps<S, G, W>) -> Self::Out {
        Before {
            service: inner.service,
            gates: (self.gate(), inner.gates),
            watch: inner.watch.unwrap_or_else(|| self.watch()),
        }
    }
}

impl<S, W, L: IsGate<Watch = W>> Assemble<Plain<S>> for Optional<L, W> {
    type Out = Perhaps<S, Option<L::Gate>, W>;

    fn assemble(&self, Plain(service): Plain<S>) -> Self::Out {
        Perhaps {
            service,
            gates: self.as_ref().map(GateLayer::gate),
            watch: self.as_ref().map(GateLayer::watch),
        }
    }
}

impl<S, G, W, L: IsGate<Watch = W>> Assemble<Before<S, G, W>> for Optional<L, W> {
    type Out = Before<S, (Option<L::Gate>, G), W>;

    fn assemble(&self, inner: Before<S, G, W>) -> Self::Out {
        Before {
            service: inner.service,
            gates: (self.as_ref().map(GateLayer::gate), inner.gates),
            watch: inner.watch,
        }
    }
}

impl<S, G, W, L: IsGate<Watch = W>> Assemble<Perhaps<S, G, W>> for Optional<L, W> {
    type Out = Perhaps<S, (Option<L::Gate>, G), W>;

    fn assemble(&self, inner: Perhaps<S, G, W>) -> Self::Out {
        let layer = self.as_ref();
        Perhaps {
            service: inner.service,
            gates: (layer.map(GateLayer::gate), inner.gates),
            watch: inner.watch.or_else(|| layer.map(GateLayer::watch)),
        }
    }
}

/// Layers that are no gates: each ends the run of gates inside of it.
macro_rules! plain {
    ($($(#[$feature:meta])? [$($param:ident $(: $bound:path)?),*] $layer:ty;)*) => {$(
        $(#[$feature])?
        impl<A: Assembled, $($param $(: $bound)?),*> Assemble<A> for $layer
        where
            Self: Layer<A::Service>,
        {
            type Out = Plain<<Self as Layer<A::Service>>::Service>;

            fn assemble(&self, inner: A) -> Self::Out {
                Plain(self.layer(inner.into_service()))
            }
        }
    )*};
}

plain! {
    [] DescribeLayer;
    [E] RefusalLayer<E>;
    [E] Optional<RefusalLayer<E>, HttpBody>;
    [M] Own<M>;
    #[cfg(feature = "batch")] [Bt: tower_llm_batch::Batcher] tower_llm_batch::BatchLayer<Bt>;
    #[cfg(feature = "cache")] [] tower_llm_cache::CacheLayer;
    #[cfg(feature = "cache")] [] Optional<tower_llm_cache::CacheLayer, HttpBody>;
    #[cfg(feature = "cache")] [Req, R] tower_llm_cache::ClonedLayer<Req, R>;
    #[cfg(feature = "cache")] [Req, R] Optional<tower_llm_cache::ClonedLayer<Req, R>, Cached>;
    #[cfg(feature = "fanout")] [W, C, M] tower_llm_fanout::FanoutLayer<W, C, M>;
    #[cfg(feature = "fanout")] [W, C, M] Optional<tower_llm_fanout::FanoutLayer<W, C, M>, W>;
    #[cfg(feature = "fanout")] [J, K, W, C] tower_llm_fanout::EnsembleLayer<J, K, W, C>;
    #[cfg(feature = "fanout")] [D, W, C] tower_llm_fanout::SplitLayer<D, W, C>;
    #[cfg(feature = "timeout")] [W] tower_llm_timeout::TimeoutLayer<W>;
    #[cfg(feature = "timeout")] [W] Optional<tower_llm_timeout::TimeoutLayer<W>, W>;
    #[cfg(feature = "tonic")] [C] crate::adapters::tonic::StatusLayer<C>;
    #[cfg(feature = "tonic")] [] crate::adapters::tonic::ChannelLayer;
}
