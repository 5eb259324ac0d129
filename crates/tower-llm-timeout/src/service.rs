use std::{
    borrow::Cow,
    task::{Context, Poll},
};

use tokio::time::Instant;
use tower_llm_core::{BoxError, Call, Described};
use tower_service::Service;

use crate::{
    ResponseFuture,
    deadlines::{Deadlines, Progress},
    future::Bound,
};

/// Ends calls that take too long; see [`TimeoutLayer`](crate::TimeoutLayer).
#[derive(Clone, Debug)]
pub struct Timeout<S, W> {
    inner: S,
    deadlines: Deadlines,
    watch: W,
}

impl<S, W> Timeout<S, W> {
    pub(crate) fn new(inner: S, deadlines: Deadlines, watch: W) -> Self {
        Self {
            inner,
            deadlines,
            watch,
        }
    }
}

impl<S, W, Req> Service<Req> for Timeout<S, W>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
    Req: Described,
    W: Bound<S::Response> + Clone,
{
    type Response = W::Out;
    type Error = BoxError;
    type Future = ResponseFuture<S::Future, W>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let call = request.call().map(Cow::into_owned);
        let mut progress = Progress::new(Instant::now());
        let mut deadlines = self.deadlines;
        if call.as_ref().is_some_and(Call::streamed) {
            progress.await_token();
            deadlines = deadlines.of_stream();
        }
        let inner = self.inner.call(request);
        ResponseFuture::new(inner, self.watch.clone(), deadlines, progress, call)
    }
}
