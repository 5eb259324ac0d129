use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tower_llm_core::{Armed, BoxError, Call, Described, Watch};
use tower_service::Service;

use crate::{
    BreakerGuard, ResponseFuture,
    route::{Board, Kind},
};

/// Stops calls to what is failing; see [`BreakerLayer`](crate::BreakerLayer).
#[derive(Clone, Debug)]
pub struct Breaker<S, W> {
    inner: S,
    board: Arc<Board>,
    ignores_throttled: bool,
    watch: W,
}

impl<S, W> Breaker<S, W> {
    pub(crate) fn new(inner: S, board: Arc<Board>, ignores_throttled: bool, watch: W) -> Self {
        Self {
            inner,
            board,
            ignores_throttled,
            watch,
        }
    }
}

impl<S, W, Req> Service<Req> for Breaker<S, W>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    Req: Described,
    W: Watch<S::Response>,
{
    type Response = W::Out<BreakerGuard>;
    type Error = BoxError;
    type Future = ResponseFuture<S::Future, W>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        // All user code runs before the call is admitted: otherwise a panic in it would hold a probe's lease.
        let (streamed, kind) = {
            let call = request.call();
            let streamed = call.as_deref().is_some_and(Call::streamed);
            (streamed, Kind::of(call.as_deref()))
        };
        let route = self.board.route(&request, kind);
        let call = self.watch.keep(request.call().as_deref());
        match route.admit() {
            Ok(passes) => {
                let mut guard = BreakerGuard::new(route, passes, streamed);
                guard.ignores_throttled = self.ignores_throttled;
                let mut armed = Armed::new(guard);
                let inner = armed.enter(|| self.inner.call(request));
                ResponseFuture::running(inner, self.watch.clone(), call, armed)
            }
            Err(open) => {
                // Gives up what the inner service reserved when it became ready: another call may need it.
                self.inner = self.inner.clone();
                ResponseFuture::refused(open)
            }
        }
    }
}
