//! The future of a call at a gate.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use super::{Entry, Wait, pair::Unsettled};
use crate::{Armed, BoxError, Call, Described, Guard, Guarded, Unsent, Watch};

pin_project! {
    /// Resolves when the gate has admitted the call and the inner service has answered, or when the call is refused.
    ///
    /// Dropping it gives back what the call holds or waits for.
    pub struct GatedFuture<S: Service<Req>, Req, W, G: Guard> {
        #[pin]
        state: State<Guarded<S::Future, W, G>, Rare<S, Req, W, G>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, R> {
        Running { #[pin] future: F },
        // Boxed to keep calls that are admitted at once small.
        Rare { rare: Box<R> },
    }
}

/// A call that was not admitted at once.
struct Rare<S, Req, W, G: Guard> {
    stage: Stage<G>,
    /// `None` once it is sent, and for a call that is refused.
    not_sent: Option<NotSent<S, Req, W>>,
}

enum Stage<G: Guard> {
    /// `None` once it was handed out. Its call was not sent.
    Refused(Option<(BoxError, Unsent)>),
    Waiting(Box<dyn Wait<G>>),
    Readying(Unsettled<G>),
}

impl<G: Guard> Stage<G> {
    fn refused(error: BoxError) -> Self {
        Self::Refused(Some((error, Unsent::new())))
    }
}

/// A call that is not sent yet, and the service for it.
struct NotSent<S, Req, W> {
    inner: S,
    request: Req,
    watch: W,
    /// A drop reports that it was not sent, so outer layers give back what they hold for it.
    _unsent: Unsent,
}

impl<S: Service<Req>, Req, W, G: Guard> GatedFuture<S, Req, W, G> {
    pub(super) fn running(inner: S::Future, watch: W, call: Option<Call>, armed: Armed<G>) -> Self {
        let future = Guarded::new(inner, watch, call, armed);
        Self {
            state: State::Running { future },
        }
    }

    pub(super) fn refused(error: BoxError) -> Self {
        Self::rare(Stage::refused(error), None)
    }

    pub(super) fn waiting(wait: Box<dyn Wait<G>>, inner: S, request: Req, watch: W) -> Self {
        let not_sent = NotSent {
            inner,
            request,
            watch,
            _unsent: Unsent::new(),
        };
        Self::rare(Stage::Waiting(wait), Some(not_sent))
    }

    fn rare(stage: Stage<G>, not_sent: Option<NotSent<S, Req, W>>) -> Self {
        Self {
            state: State::Rare {
                rare: Box::new(Rare { stage, not_sent }),
            },
        }
    }
}

impl<S, Req, W, G> Future for GatedFuture<S, Req, W, G>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
    Req: Described,
    W: Watch<S::Response>,
    G: Guard,
{
    type Output = Result<W::Out<G>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Running { future } => return future.poll(cx),
                StateProj::Rare { rare } => {
                    let future = ready!(rare.poll(cx))?;
                    this.state.set(State::Running { future });
                }
            }
        }
    }
}

impl<S, Req, W, G> Rare<S, Req, W, G>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
    Req: Described,
    W: Watch<S::Response>,
    G: Guard,
{
    /// Ready when the call is sent, or refused.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Guarded<S::Future, W, G>, BoxError>> {
        const OVER: &str = "polled after it was ready";
        loop {
            match &mut self.stage {
                Stage::Refused(error) => {
                    // What the call held is given back before its caller knows.
                    self.not_sent = None;
                    let (error, _unsent) = error.take().expect(OVER);
                    return Poll::Ready(Err(error));
                }
                Stage::Waiting(wait) => {
                    let not_sent = self.not_sent.as_ref().expect(OVER);
                    let admitted = ready!(wait.poll(&not_sent.entry(), cx));
                    self.stage = match admitted {
                        Ok(guard) => Stage::Readying(Unsettled::new(guard)),
                        Err(error) => Stage::refused(error),
                    };
                }
                Stage::Readying(unsettled) => {
                    let not_sent = self.not_sent.as_mut().expect(OVER);
                    let is_ready = ready!(unsettled.enter(|| not_sent.inner.poll_ready(cx)));
                    if let Err(error) = is_ready {
                        self.stage = Stage::refused(error.into());
                        continue;
                    }
                    let both = unsettled.settle().zip(self.not_sent.take());
                    let (guard, not_sent) = both.expect(OVER);
                    return Poll::Ready(Ok(not_sent.send(guard)));
                }
            }
        }
    }
}

impl<S, Req, W> NotSent<S, Req, W>
where
    S: Service<Req>,
    Req: Described,
    W: Watch<S::Response>,
{
    fn entry(&self) -> Entry<'_> {
        Entry::new(&self.request, self.watch.reports_usage())
    }

    /// Calls the service, which is ready.
    fn send<G: Guard>(mut self, guard: G) -> Guarded<S::Future, W, G> {
        let mut armed = Armed::new(guard);
        let call = self.watch.keep(self.request.call().as_deref());
        let inner = armed.enter(|| self.inner.call(self.request));
        Guarded::new(inner, self.watch, call, armed)
    }
}

impl<S: Service<Req>, Req, W, G: Guard> fmt::Debug for GatedFuture<S, Req, W, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatedFuture").finish_non_exhaustive()
    }
}
