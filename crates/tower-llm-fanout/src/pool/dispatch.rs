//! Sends a call to the target that was picked for it.

use std::{
    borrow::Cow,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::Instant;
use tower_llm_core::{Armed, BoxError, Call, Described, Guarded, HttpBody, Oneshot, Watch};
use tower_service::Service;

use super::{load::LoadGuard, target::Member};

/// Sends each call to the target that [`Route`](crate::Route) has picked for it, and counts it there until its response body
/// ends.
#[derive(Clone, Copy, Debug)]
pub struct Dispatch<W = HttpBody> {
    watch: W,
}

/// A request with the target that it goes to.
pub struct Routed<S, Req> {
    request: Req,
    to: Arc<Member<S>>,
    picked_at: Instant,
}

impl<W> Dispatch<W> {
    pub(crate) const fn new(watch: W) -> Self {
        Self { watch }
    }
}

impl<S, Req> Routed<S, Req> {
    pub(crate) const fn new(request: Req, to: Arc<Member<S>>, picked_at: Instant) -> Self {
        Self {
            request,
            to,
            picked_at,
        }
    }
}

impl<S, Req: Described> Described for Routed<S, Req> {
    fn call(&self) -> Option<Cow<'_, Call>> {
        self.request.call()
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.request.header(name)
    }

    fn set_call(&mut self, call: Call) {
        self.request.set_call(call);
    }
}

impl<S, W, Req> Service<Routed<S, Req>> for Dispatch<W>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    Req: Described,
    W: Watch<S::Response>,
{
    type Response = W::Out<LoadGuard>;
    type Error = BoxError;
    type Future = Guarded<Oneshot<S, Req>, W, LoadGuard>;

    /// Always ready: each call waits for its own target.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, routed: Routed<S, Req>) -> Self::Future {
        let Routed {
            request,
            to,
            picked_at,
        } = routed;
        let (guard, call) = {
            let call = request.call();
            let guard = to.load.dispatch(call.as_deref(), picked_at);
            (guard, self.watch.keep(call.as_deref()))
        };
        let future = Oneshot::new(to.service.clone(), request);
        Guarded::new(future, self.watch.clone(), call, Armed::new(guard))
    }
}

impl<S, Req> fmt::Debug for Routed<S, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the request: its headers hold credentials.
        f.debug_struct("Routed")
            .field("to", &self.to.name)
            .finish_non_exhaustive()
    }
}
