//! The inner service's future, with a guard in it.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

use super::{Armed, Guard, Watch};
use crate::{BoxError, Call, Completion};

pin_project! {
    /// Drives an admitted call to its response, and then has the response watched to its end.
    ///
    /// A failed or dropped future ends the guard, as [`Completion::of_error`] says or as abandoned. The inner
    /// future goes first, so that what is upstream is closed before what the guard holds is given back.
    #[derive(Debug)]
    pub struct Guarded<F, W, G: Guard> {
        // `None` once it has answered.
        #[pin]
        inner: Option<F>,
        armed: Armed<G>,
        watch: W,
        call: Option<Call>,
    }
}

impl<F, W, G: Guard> Guarded<F, W, G> {
    /// Watches what `inner` answers to `call` by `watch`, for the guard in `armed`.
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
        this.inner.set(None);
        match result {
            Ok(response) => {
                let (watch, call) = (this.watch, this.call.as_ref());
                Poll::Ready(Ok(watch.watch_armed(call, response, this.armed)))
            }
            Err(error) => {
                let error = error.into();
                this.armed.end(&Completion::of_error(&*error));
                Poll::Ready(Err(error))
            }
        }
    }
}
