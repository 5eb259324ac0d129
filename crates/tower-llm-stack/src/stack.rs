use tower_layer::{Identity, Layer};
#[cfg(feature = "breaker")]
use tower_llm_breaker::BreakerLayer;
#[cfg(feature = "bulkhead")]
use tower_llm_bulkhead::BulkheadLayer;
use tower_llm_core::{DescribeLayer, RefusalLayer};
#[cfg(feature = "ratelimit")]
use tower_llm_ratelimit::RateLimitLayer;
#[cfg(feature = "timeout")]
use tower_llm_timeout::TimeoutLayer;

use crate::slot::{self, Replace, Unset, at};

/// The chosen layers as one, in their order; made by [`Stack::builder`].
///
/// A clone, and each service it makes, shares the layers' state.
#[derive(Clone, Copy, Debug)]
pub struct Stack<L> {
    slots: L,
}

/// Chooses the layers of a [`Stack`].
///
/// Each setter takes a layer as its own crate builds it; the order in which they are called does not matter. What is set
/// twice is what was set last.
#[derive(Clone, Copy, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct StackBuilder<L = Unset> {
    slots: L,
}

/// A builder in whose slot at `P` there is `N` now.
type With<L, P, N> = StackBuilder<<L as Replace<P, N>>::Replaced>;

impl Stack<Unset> {
    /// Starts a stack that only describes requests.
    pub fn builder() -> StackBuilder {
        let slots = slot::unset();
        StackBuilder { slots }
    }
}

impl<L> StackBuilder<L> {
    /// Answers refusals and time-outs with responses, for a server. A client leaves it out and gets them as errors.
    pub fn refusal<E>(self, layer: RefusalLayer<E>) -> With<L, at::Refusal, RefusalLayer<E>>
    where
        L: Replace<at::Refusal, RefusalLayer<E>>,
    {
        self.set(layer)
    }

    /// Describes requests by `layer`, in place of one with the defaults.
    pub fn describe(self, layer: DescribeLayer) -> With<L, at::Describe, DescribeLayer>
    where
        L: Replace<at::Describe, DescribeLayer>,
    {
        self.set(layer)
    }

    /// Takes requests as they are: for gRPC, and for types that describe themselves.
    pub fn without_describe(self) -> With<L, at::Describe, Identity>
    where
        L: Replace<at::Describe, Identity>,
    {
        self.set(Identity::new())
    }

    /// Adds a layer of your own, where requests are described and refusals are still errors: to count, to log, to check.
    ///
    /// Several are one as a `tower::ServiceBuilder`.
    pub fn own<M>(self, layer: M) -> With<L, at::Own, M>
    where
        L: Replace<at::Own, M>,
    {
        self.set(layer)
    }

    /// Limits what each caller may have: [`RateLimitLayer::for_callers`].
    #[cfg(feature = "ratelimit")]
    #[cfg_attr(docsrs, doc(cfg(feature = "ratelimit")))]
    pub fn caller_rate_limit<W>(
        self,
        layer: RateLimitLayer<W>,
    ) -> With<L, at::CallerRateLimit, RateLimitLayer<W>>
    where
        L: Replace<at::CallerRateLimit, RateLimitLayer<W>>,
    {
        self.set(layer)
    }

    /// Stops calling what is failing.
    #[cfg(feature = "breaker")]
    #[cfg_attr(docsrs, doc(cfg(feature = "breaker")))]
    pub fn breaker<W>(self, layer: BreakerLayer<W>) -> With<L, at::Breaker, BreakerLayer<W>>
    where
        L: Replace<at::Breaker, BreakerLayer<W>>,
    {
        self.set(layer)
    }

    /// Keeps to what the provider allows: [`RateLimitLayer::for_providers`].
    #[cfg(feature = "ratelimit")]
    #[cfg_attr(docsrs, doc(cfg(feature = "ratelimit")))]
    pub fn provider_rate_limit<W>(
        self,
        layer: RateLimitLayer<W>,
    ) -> With<L, at::ProviderRateLimit, RateLimitLayer<W>>
    where
        L: Replace<at::ProviderRateLimit, RateLimitLayer<W>>,
    {
        self.set(layer)
    }

    /// Limits how many calls run at once.
    #[cfg(feature = "bulkhead")]
    #[cfg_attr(docsrs, doc(cfg(feature = "bulkhead")))]
    pub fn bulkhead<W>(self, layer: BulkheadLayer<W>) -> With<L, at::Bulkhead, BulkheadLayer<W>>
    where
        L: Replace<at::Bulkhead, BulkheadLayer<W>>,
    {
        self.set(layer)
    }

    /// Ends calls that take too long.
    #[cfg(feature = "timeout")]
    #[cfg_attr(docsrs, doc(cfg(feature = "timeout")))]
    pub fn timeout<W>(self, layer: TimeoutLayer<W>) -> With<L, at::Timeout, TimeoutLayer<W>>
    where
        L: Replace<at::Timeout, TimeoutLayer<W>>,
    {
        self.set(layer)
    }

    /// The stack.
    pub fn build(self) -> Stack<L> {
        Stack { slots: self.slots }
    }

    fn set<P, N>(self, layer: N) -> With<L, P, N>
    where
        L: Replace<P, N>,
    {
        StackBuilder {
            slots: self.slots.replace(layer),
        }
    }
}

impl<S, L: Layer<S>> Layer<S> for Stack<L> {
    type Service = L::Service;

    fn layer(&self, client: S) -> L::Service {
        self.slots.layer(client)
    }
}
