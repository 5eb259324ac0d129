use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use std::sync::Arc;

use tower_llm_core::BoxError;
use tower_service::Service;

use crate::{BatchFull, Batcher, shared::Shared, ticket::Ticket};

/// Resolves with the caller's part of a merged call.
///
/// Dropping it leaves the batch. The last caller to leave a batch in flight drops the upstream call.
pub struct ResponseFuture<S, Bt: Batcher> {
    state: State<S, Bt>,
}

enum State<S, Bt: Batcher> {
    Merged(Ticket<S, Bt>),
    Alone(Pin<Box<dyn Future<Output = Result<Bt::Response, BoxError>> + Send>>),
    Refused(Option<BatchFull>),
}

impl<S, Bt: Batcher> ResponseFuture<S, Bt> {
    pub(crate) fn waiting(shared: Arc<Shared<Bt>>, inner: S, id: u64) -> Self {
        Self {
            state: State::Merged(Ticket::new(shared, inner, id)),
        }
    }

    pub(crate) fn alone(
        sending: impl Future<Output = Result<Bt::Response, BoxError>> + Send + 'static,
    ) -> Self {
        Self {
            state: State::Alone(Box::pin(sending)),
        }
    }

    pub(crate) fn refused(full: BatchFull) -> Self {
        Self {
            state: State::Refused(Some(full)),
        }
    }
}

// Nothing in it is pinned in place.
impl<S, Bt: Batcher> Unpin for ResponseFuture<S, Bt> {}

impl<S, Bt> Future for ResponseFuture<S, Bt>
where
    Bt: Batcher,
    S: Service<Bt::Batch, Response = Bt::Reply> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Output = Result<Bt::Response, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.state {
            State::Merged(ticket) => ticket.poll(cx),
            State::Alone(sending) => sending.as_mut().poll(cx),
            State::Refused(full) => {
                let full = full.take().expect("polled after it was ready");
                Poll::Ready(Err(full.into()))
            }
        }
    }
}

impl<S, Bt: Batcher> fmt::Debug for ResponseFuture<S, Bt> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
