use tower_layer::{Identity, Layer};
#[cfg(feature = "bulkhead")]
use tower_llm_bulkhead::BulkheadLayer;
use tower_llm_core::{DescribeLayer, RefusalLayer};
#[cfg(feature = "timeout")]
use tower_llm_timeout::TimeoutLayer;

/// The chosen layers as one, in their order; made by [`Stack::builder`].
///
/// A clone, and each service it makes, shares the layers' state.
#[derive(Clone, Copy, Debug)]
pub struct Stack<R, D, B, T> {
    refusal: R,
    describe: D,
    bulkhead: B,
    timeout: T,
}

/// Chooses the layers of a [`Stack`].
///
/// Each setter takes a layer as its own crate builds it; the order in which they are called does not matter.
#[derive(Clone, Copy, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct StackBuilder<R = Identity, D = DescribeLayer, B = Identity, T = Identity> {
    stack: Stack<R, D, B, T>,
}

impl Stack<Identity, DescribeLayer, Identity, Identity> {
    /// Starts a stack that only describes requests.
    pub fn builder() -> StackBuilder {
        StackBuilder {
            stack: Self {
                refusal: Identity::new(),
                describe: DescribeLayer::new(),
                bulkhead: Identity::new(),
                timeout: Identity::new(),
            },
        }
    }
}

impl<R, D, B, T> StackBuilder<R, D, B, T> {
    /// Answers refusals and time-outs with responses, for a server. A client leaves it out and gets them as errors.
    pub fn refusal(self, layer: RefusalLayer) -> StackBuilder<RefusalLayer, D, B, T> {
        let Stack {
            describe,
            bulkhead,
            timeout,
            ..
        } = self.stack;
        StackBuilder {
            stack: Stack {
                refusal: layer,
                describe,
                bulkhead,
                timeout,
            },
        }
    }

    /// Describes requests by `layer`, in place of one with the defaults.
    pub fn describe(self, layer: DescribeLayer) -> StackBuilder<R, DescribeLayer, B, T> {
        self.with_describe(layer)
    }

    /// Takes requests as they are: for gRPC, and for types that describe themselves.
    pub fn without_describe(self) -> StackBuilder<R, Identity, B, T> {
        self.with_describe(Identity::new())
    }

    /// Limits how many calls run at once.
    #[cfg(feature = "bulkhead")]
    #[cfg_attr(docsrs, doc(cfg(feature = "bulkhead")))]
    pub fn bulkhead<W>(self, layer: BulkheadLayer<W>) -> StackBuilder<R, D, BulkheadLayer<W>, T> {
        let Stack {
            refusal,
            describe,
            timeout,
            ..
        } = self.stack;
        StackBuilder {
            stack: Stack {
                refusal,
                describe,
                bulkhead: layer,
                timeout,
            },
        }
    }

    /// Ends calls that take too long.
    #[cfg(feature = "timeout")]
    #[cfg_attr(docsrs, doc(cfg(feature = "timeout")))]
    pub fn timeout<W>(self, layer: TimeoutLayer<W>) -> StackBuilder<R, D, B, TimeoutLayer<W>> {
        let Stack {
            refusal,
            describe,
            bulkhead,
            ..
        } = self.stack;
        StackBuilder {
            stack: Stack {
                refusal,
                describe,
                bulkhead,
                timeout: layer,
            },
        }
    }

    /// The stack.
    pub fn build(self) -> Stack<R, D, B, T> {
        self.stack
    }

    fn with_describe<E>(self, describe: E) -> StackBuilder<R, E, B, T> {
        let Stack {
            refusal,
            bulkhead,
            timeout,
            ..
        } = self.stack;
        StackBuilder {
            stack: Stack {
                refusal,
                describe,
                bulkhead,
                timeout,
            },
        }
    }
}

impl<S, R, D, B, T> Layer<S> for Stack<R, D, B, T>
where
    T: Layer<S>,
    B: Layer<T::Service>,
    D: Layer<B::Service>,
    R: Layer<D::Service>,
{
    type Service = R::Service;

    fn layer(&self, client: S) -> R::Service {
        let timeout = self.timeout.layer(client);
        let bulkhead = self.bulkhead.layer(timeout);
        let describe = self.describe.layer(bulkhead);
        self.refusal.layer(describe)
    }
}
