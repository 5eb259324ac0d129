use tower_layer::{Identity, Layer};
use tower_llm_core::DescribeLayer;

#[cfg(feature = "tonic")]
use crate::adapters::tonic::{ChannelLayer, Refusals, StatusLayer};
#[cfg(feature = "tonic")]
use crate::slot::Slots;
use crate::{
    assemble::{Assemble, Assembled, Plain},
    slot::{self, Chain, Fill, Own, Replace, Unset, at},
};

/// Layers composed in their order; made by [`Stack::builder`].
///
/// Breaker, rate limits and bulkhead that stand next to each other are one service, which watches each response once.
/// They must therefore have the same [`Watch`](crate::Watch).
///
/// Clones, and all services that it makes, share the layers' state.
#[derive(Clone, Copy, Debug)]
pub struct Stack<L> {
    slots: L,
}

/// Chooses the layers of a [`Stack`].
///
/// Each setter takes a layer, or an `Option` of it to leave it out at run time; `describe` and `batch` take only the layer. The
/// order of the setters does not matter. If a layer is set twice, the last one is used.
///
/// ```
/// use tower_llm_stack::{BulkheadLayer, Stack};
///
/// # fn run(concurrency: Option<usize>) -> Result<(), tower_llm_stack::ConfigError> {
/// let bulkhead = concurrency.map(BulkheadLayer::new).transpose()?;
/// let stack = Stack::builder().bulkhead(bulkhead).build();
/// # let _ = stack;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct StackBuilder<L = Unset> {
    slots: L,
}

/// A builder with `N` in the slot at `P`.
type With<L, P, N> = StackBuilder<<L as Replace<P, <N as Fill<P>>::Layer>>::Replaced>;

impl Stack<Unset> {
    /// Starts a stack that only describes requests.
    pub fn builder() -> StackBuilder {
        let slots = slot::slots(Identity::new(), DescribeLayer::new(), Identity::new());
        StackBuilder { slots }
    }

    /// Starts a stack for gRPC: requests are not described, errors become statuses, and the errors of the channel are
    /// classified. See [`adapters::tonic`](crate::adapters::tonic).
    #[cfg(feature = "tonic")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tonic")))]
    pub fn grpc() -> StackBuilder<Slots<StatusLayer<Refusals>, Identity, ChannelLayer>> {
        let slots = slot::slots(
            StatusLayer::refusals(),
            Identity::new(),
            ChannelLayer::new(),
        );
        StackBuilder { slots }
    }
}

impl<L> StackBuilder<L> {
    /// Turns refusals and timeouts into responses; takes a [`RefusalLayer`](crate::RefusalLayer).
    ///
    /// For servers. A client leaves it out and gets them as errors.
    pub fn refusal<N>(self, layer: N) -> With<L, at::Refusal, N>
    where
        N: Fill<at::Refusal>,
        L: Replace<at::Refusal, N::Layer>,
    {
        self.set(layer)
    }

    /// Describes requests by this [`DescribeLayer`] instead of one with the defaults.
    pub fn describe<N>(self, layer: N) -> With<L, at::Describe, N>
    where
        N: Fill<at::Describe>,
        L: Replace<at::Describe, N::Layer>,
    {
        self.set(layer)
    }

    /// Takes requests as they are: for request types that implement [`Described`](crate::Described) themselves.
    pub fn without_describe(self) -> StackBuilder<<L as Replace<at::Describe, Identity>>::Replaced>
    where
        L: Replace<at::Describe, Identity>,
    {
        self.put::<at::Describe, _>(Identity::new())
    }

    /// Counts calls; takes a [`MonitorLayer`](crate::MonitorLayer).
    ///
    /// It counts what all layers inside refuse, and what your own does.
    #[cfg(feature = "monitor")]
    #[cfg_attr(docsrs, doc(cfg(feature = "monitor")))]
    pub fn monitor<N>(self, layer: N) -> With<L, at::Monitor, N>
    where
        N: Fill<at::Monitor>,
        L: Replace<at::Monitor, N::Layer>,
    {
        self.set(layer)
    }

    /// Counts attempts, inside of the fan-out; takes what [`MonitorLayer::attempts`](crate::MonitorLayer::attempts) returns.
    #[cfg(feature = "monitor")]
    #[cfg_attr(docsrs, doc(cfg(feature = "monitor")))]
    pub fn attempts<N>(self, layer: N) -> With<L, at::Attempts, N>
    where
        N: Fill<at::Attempts>,
        L: Replace<at::Attempts, N::Layer>,
    {
        self.set(layer)
    }

    /// Adds a layer of your own, for example to count, log or check. It sees described requests, and refusals as errors.
    ///
    /// Combine several with a `tower::ServiceBuilder`. For one that is left out at run time, use `tower::util::option_layer`.
    pub fn own<M>(self, layer: M) -> StackBuilder<<L as Replace<at::Own, Own<M>>>::Replaced>
    where
        L: Replace<at::Own, Own<M>>,
    {
        self.put::<at::Own, _>(Own(layer))
    }

    /// Limits each caller; takes a [`RateLimitLayer`](crate::RateLimitLayer), usually one
    /// [`for_callers`](crate::RateLimitLayer::for_callers).
    #[cfg(feature = "ratelimit")]
    #[cfg_attr(docsrs, doc(cfg(feature = "ratelimit")))]
    pub fn caller_rate_limit<N>(self, layer: N) -> With<L, at::CallerRateLimit, N>
    where
        N: Fill<at::CallerRateLimit>,
        L: Replace<at::CallerRateLimit, N::Layer>,
    {
        self.set(layer)
    }

    /// Answers repeated calls from memory, and shares calls in flight; takes a [`CacheLayer`](crate::CacheLayer), or, for a typed
    /// service, what [`CacheLayer::cloned`](crate::CacheLayer::cloned) returns.
    ///
    /// Its answers count as one request of the caller's limit and use no tokens. It needs a client that is `Clone`, and futures
    /// and bodies that are `Send` and own what they hold.
    #[cfg(feature = "cache")]
    #[cfg_attr(docsrs, doc(cfg(feature = "cache")))]
    pub fn cache<N>(self, layer: N) -> With<L, at::Cache, N>
    where
        N: Fill<at::Cache>,
        L: Replace<at::Cache, N::Layer>,
    {
        self.set(layer)
    }

    /// Merges small calls into fewer upstream calls; takes a [`BatchLayer`](crate::BatchLayer), usually one of
    /// [`Embeddings`](crate::Embeddings).
    ///
    /// The layers inside see merged calls. It needs a client that is `Clone`, and futures and bodies that are `Send` and own
    /// what they hold.
    #[cfg(feature = "batch")]
    #[cfg_attr(docsrs, doc(cfg(feature = "batch")))]
    pub fn batch<N>(self, layer: N) -> With<L, at::Batch, N>
    where
        N: Fill<at::Batch>,
        L: Replace<at::Batch, N::Layer>,
    {
        self.set(layer)
    }

    /// Sends a call in several branches, such as a hedge or retries; takes a [`FanoutLayer`](crate::FanoutLayer).
    ///
    /// All branches go to the same client, each through its own circuit, limit and permit. For branches that go to several
    /// targets, build a stack for each, and put this one around a [`Pool`](crate::Pool) of them.
    ///
    /// Only a layer whose calls have one answer can be left out at run time: no map and no vote of several.
    #[cfg(feature = "fanout")]
    #[cfg_attr(docsrs, doc(cfg(feature = "fanout")))]
    pub fn fanout<N>(self, layer: N) -> With<L, at::Fanout, N>
    where
        N: Fill<at::Fanout>,
        L: Replace<at::Fanout, N::Layer>,
    {
        self.set(layer)
    }

    /// Stops calling what fails; takes a [`BreakerLayer`](crate::BreakerLayer).
    ///
    /// If the stack has a [provider limit](Self::provider_rate_limit) that enforces reported limits, a 429 is left to that
    /// limit, where calls can wait for it, and opens no circuit.
    #[cfg(feature = "breaker")]
    #[cfg_attr(docsrs, doc(cfg(feature = "breaker")))]
    pub fn breaker<N>(self, layer: N) -> With<L, at::Breaker, N>
    where
        N: Fill<at::Breaker>,
        L: Replace<at::Breaker, N::Layer>,
    {
        self.set(layer)
    }

    /// Stays within the limits of the provider; takes a [`RateLimitLayer`](crate::RateLimitLayer), usually one
    /// [`for_providers`](crate::RateLimitLayer::for_providers).
    #[cfg(feature = "ratelimit")]
    #[cfg_attr(docsrs, doc(cfg(feature = "ratelimit")))]
    pub fn provider_rate_limit<N>(self, layer: N) -> With<L, at::ProviderRateLimit, N>
    where
        N: Fill<at::ProviderRateLimit>,
        L: Replace<at::ProviderRateLimit, N::Layer>,
    {
        self.set(layer)
    }

    /// Limits how many calls run at once; takes a [`BulkheadLayer`](crate::BulkheadLayer).
    #[cfg(feature = "bulkhead")]
    #[cfg_attr(docsrs, doc(cfg(feature = "bulkhead")))]
    pub fn bulkhead<N>(self, layer: N) -> With<L, at::Bulkhead, N>
    where
        N: Fill<at::Bulkhead>,
        L: Replace<at::Bulkhead, N::Layer>,
    {
        self.set(layer)
    }

    /// Ends calls that take too long; takes a [`TimeoutLayer`](crate::TimeoutLayer).
    #[cfg(feature = "timeout")]
    #[cfg_attr(docsrs, doc(cfg(feature = "timeout")))]
    pub fn timeout<N>(self, layer: N) -> With<L, at::Timeout, N>
    where
        N: Fill<at::Timeout>,
        L: Replace<at::Timeout, N::Layer>,
    {
        self.set(layer)
    }

    /// Builds the stack.
    pub fn build(mut self) -> Stack<L>
    where
        L: Chain,
    {
        self.slots.agree();
        Stack { slots: self.slots }
    }

    fn set<P, N>(self, layer: N) -> With<L, P, N>
    where
        N: Fill<P>,
        L: Replace<P, N::Layer>,
    {
        self.put(layer.into_layer())
    }

    fn put<P, N>(self, layer: N) -> StackBuilder<L::Replaced>
    where
        L: Replace<P, N>,
    {
        StackBuilder {
            slots: self.slots.replace(layer),
        }
    }
}

impl<S, L> Layer<S> for Stack<L>
where
    L: Assemble<Plain<S>>,
    L::Out: Assembled,
{
    type Service = <L::Out as Assembled>::Service;

    fn layer(&self, client: S) -> Self::Service {
        self.slots.assemble(Plain(client)).into_service()
    }
}
