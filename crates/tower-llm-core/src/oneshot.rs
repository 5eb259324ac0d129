//! Readies a service and calls it once.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::Unsent;

pin_project! {
    /// Readies a service and then calls it: for a layer that waits between its own `call` and the inner one.
    ///
    /// Such a layer must not hold the readied service while it waits: no other call could use the permit or connection that
    /// it holds.
    pub struct Oneshot<S: Service<Req>, Req> {
        #[pin]
        state: State<S, S::Future, Req>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, F, Req> {
        // `None` only while it turns into `Called`.
        NotReady { service: S, request: Option<Req>, _unsent: Unsent },
        Called { #[pin] future: F },
    }
}

impl<S: Service<Req>, Req> Oneshot<S, Req> {
    /// Calls `service`, which need not be ready, with `request`.
    pub fn new(service: S, request: Req) -> Self {
        let request = Some(request);
        Self {
            state: State::NotReady {
                service,
                request,
                _unsent: Unsent::new(),
            },
        }
    }
}

impl<S: Service<Req>, Req> Future for Oneshot<S, Req> {
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::NotReady {
                    service, request, ..
                } => {
                    ready!(service.poll_ready(cx))?;
                    let request = request.take().expect("polled after it was ready");
                    let future = service.call(request);
                    this.state.set(State::Called { future });
                }
                StateProj::Called { future } => return future.poll(cx),
            }
        }
    }
}

impl<S: Service<Req>, Req> fmt::Debug for Oneshot<S, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the request: its headers hold credentials.
        f.debug_struct("Oneshot").finish_non_exhaustive()
    }
}
