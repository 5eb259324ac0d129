use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tower_llm_core::{Armed, BoxError, Call, Guarded, Watch};

use crate::{BreakerGuard, CircuitOpen};

pin_project! {
    /// Resolves when the inner service has answered, or at once if a circuit is open.
    ///
    /// Dropping it is neutral, and frees a probe's lease.
    pub struct ResponseFuture<F, W> {
        #[pin]
        state: State<Guarded<F, W, BreakerGuard>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F> {
        // Boxed, because only a refused call has one.
        Refused { error: Option<Box<CircuitOpen>> },
        Running { #[pin] future: F },
    }
}

impl<F, W> ResponseFuture<F, W> {
    pub(crate) fn refused(error: CircuitOpen) -> Self {
        let error = Some(Box::new(error));
        Self {
            state: State::Refused { error },
        }
    }

    pub(crate) fn running(
        inner: F,
        watch: W,
        call: Option<Call>,
        armed: Armed<BreakerGuard>,
    ) -> Self {
        let future = Guarded::new(inner, watch, call, armed);
        Self {
            state: State::Running { future },
        }
    }
}

impl<F, W, R, E> Future for ResponseFuture<F, W>
where
    F: Future<Output = Result<R, E>>,
    E: Into<BoxError>,
    W: Watch<R>,
{
    type Output = Result<W::Out<BreakerGuard>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Refused { error } => {
                let error = error.take().expect("polled after it was ready");
                Poll::Ready(Err(error))
            }
            StateProj::Running { future } => future.poll(cx),
        }
    }
}

impl<F, W> fmt::Debug for ResponseFuture<F, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
