//! The inner service's future with a guard.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

use super::{Armed, Guard, Watch, dropping};
use crate::{Billed, BoxError, Call, Completion, Failure, Outcome};

pin_project! {
    /// Drives an admitted call to its response, which is then watched to its end.
    ///
    /// A failed future ends the guard as [`Completion::of_error`] says. A dropped one ends it as abandoned, or as refused if
    /// the call was still waiting in an inner layer (see [`Unsent`](crate::Unsent)); the [`Bill`](crate::Bill) of a shared
    /// call may say otherwise. The inner future is
    /// dropped first, so that the upstream is closed before what the guard holds is given back.
    #[derive(Debug)]
    pub struct Guarded<F, W, G: Guard> {
        // `None` once it has answered, or is dropped.
        #[pin]
        inner: Option<F>,
        armed: Armed<G>,
        watch: W,
        call: Option<Call>,
    }

    impl<F, W, G: Guard> PinnedDrop for Guarded<F, W, G> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if this.armed.has_ended() {
                return;
            }
            let dropped = this.armed.dropped();
            let report = dropping::while_dropping(|| this.inner.set(None));
            let seen = Completion::new(match dropped {
                Outcome::Failed(Failure::Panic) => dropped,
                _ if report.is_unsent => Outcome::Refused,
                _ => dropped,
            });
            match report.bill {
                Some(bill) => {
                    // It is that of the guards around, too.
                    bill.report();
                    bill.end(this.armed, seen);
                }
                None => this.armed.end(&seen),
            }
        }
    }
}

impl<F, W, G: Guard> Guarded<F, W, G> {
    /// Watches the response of `inner` to `call` with `watch`, for the guard in `armed`.
    pub fn new(inner: F, watch: W, call: Option<Call>, armed: Armed<G>) -> Self {
        Self {
            inner: Some(inner),
            armed,
            watch,
            call,
        }
    }
}

impl<F, W, G, R, E> Future for Guarded<F, W, G>
where
    F: Future<Output = Result<R, E>>,
    E: Into<BoxError>,
    W: Watch<R>,
    G: Guard,
{
    type Output = Result<W::Out<G>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let inner = this.inner.as_mut().as_pin_mut();
        let inner = inner.expect("polled after it was ready");
        let Poll::Ready(result) = this.armed.enter(|| inner.poll(cx)) else {
            this.armed.pending(cx);
            return Poll::Pending;
        };
        match result {
            Ok(response) => {
                this.inner.set(None);
                let (watch, call) = (this.watch, this.call.as_ref());
                Poll::Ready(Ok(watch.watch_armed(call, response, this.armed)))
            }
            Err(error) => {
                // A timeout of another crate drops its call with its own future.
                let error = Billed::dropping(error, || this.inner.set(None));
                let seen = Completion::of_error(&*error);
                match Billed::find(&*error) {
                    Some(billed) => billed.bill().end(this.armed, seen),
                    None => this.armed.end(&seen),
                }
                Poll::Ready(Err(error))
            }
        }
    }
}
