use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tower_llm_core::{Armed, BoxError, Described, Watch};
use tower_service::Service;

use crate::{BulkheadGuard, ResponseFuture, layer::Shared, permit::Admission};

/// Limits how many calls run at once; see [`BulkheadLayer`](crate::BulkheadLayer).
#[derive(Clone, Debug)]
pub struct Bulkhead<S, W> {
    inner: S,
    shared: Arc<Shared>,
    watch: W,
}

impl<S, W> Bulkhead<S, W> {
    pub(crate) fn new(inner: S, shared: Arc<Shared>, watch: W) -> Self {
        Self {
            inner,
            shared,
            watch,
        }
    }

    /// Gives up what the inner service reserved when it became ready: another call may need it.
    fn unready(&mut self)
    where
        S: Clone,
    {
        self.inner = self.inner.clone();
    }
}

impl<S, W, Req> Service<Req> for Bulkhead<S, W>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    Req: Described,
    W: Watch<S::Response>,
{
    type Response = W::Out<BulkheadGuard>;
    type Error = BoxError;
    type Future = ResponseFuture<S, Req, W>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        match self.shared.admit(&request) {
            Admission::Admitted(permit) => {
                let call = self.watch.keep(request.call().as_deref());
                let mut armed =
                    Armed::new(permit.hold(self.shared.release_at, request.call().as_deref()));
                let inner = armed.enter(|| self.inner.call(request));
                ResponseFuture::running(inner, self.watch.clone(), call, armed)
            }
            Admission::Waiting(ticket) => {
                self.unready();
                let inner = self.inner.clone();
                ResponseFuture::waiting(inner, request, self.watch.clone(), &self.shared, ticket)
            }
            Admission::Full(error) => {
                self.unready();
                ResponseFuture::refused(error)
            }
        }
    }
}
