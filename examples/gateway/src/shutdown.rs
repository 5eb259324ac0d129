//! The end of a gateway: first it is not ready, then it does not listen, and at last it cuts what is left.

use std::{
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Response, header};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::sync::{Notify, futures::OwnedNotified};
use tower_llm_stack::{BoxError, Completion, Dialect, Guard, HttpBody, Watch, core::Watched};

use crate::problem::Problem;

/// How far the end has come; shared by all connections.
#[derive(Debug, Default)]
pub(crate) struct Shutdown {
    drains: AtomicBool,
    cuts: AtomicBool,
    cut: Arc<Notify>,
}

/// Makes a gateway unready, so that load balancers send it nothing more.
#[derive(Clone, Debug)]
pub struct Drain(pub(crate) Arc<Shutdown>);

pin_project! {
    /// A response body that ends when the gateway cuts it; a stream of events with one that says so. Whether it is one, its first
    /// bytes tell, and not its content type.
    pub(crate) struct CutBody<B> {
        // `None` once it was cut.
        #[pin]
        inner: Option<Watched<B, Ignore>>,
        shutdown: Arc<Shutdown>,
        // Made when the body first waits: most of a stream's frames are there when they are asked for.
        cut: Option<Pin<Box<OwnedNotified>>>,
        // `None` for a body that can only be broken off.
        dialect: Option<Dialect>,
    }
}

/// The body is watched only to know what it is.
#[derive(Debug)]
pub(crate) struct Ignore;

// === impl Shutdown ===

impl Shutdown {
    pub(crate) fn drain(&self) {
        self.drains.store(true, Ordering::Relaxed);
    }

    pub(crate) fn drains(&self) -> bool {
        self.drains.load(Ordering::Relaxed)
    }

    /// Ends what is under way.
    pub(crate) fn cut(&self) {
        self.cuts.store(true, Ordering::Release);
        self.cut.notify_waiters();
    }

    fn cuts(&self) -> bool {
        self.cuts.load(Ordering::Acquire)
    }

    /// Waits until it cuts.
    pub(crate) async fn until_cut(&self) {
        let mut cut = pin!(self.cut.notified());
        cut.as_mut().enable();
        // One that was cut before it waited is not notified.
        if !self.cuts() {
            cut.await;
        }
    }
}

// === impl Drain ===

impl Drain {
    /// `/readyz` fails from now on. Requests are served as before.
    pub fn start(&self) {
        self.0.drain();
    }
}

// === impl CutBody ===

impl<B: Body<Data = Bytes>> CutBody<B> {
    pub(crate) fn response(
        response: Response<B>,
        dialect: Dialect,
        shutdown: Arc<Shutdown>,
    ) -> Response<Self> {
        // Nothing can be added to a body whose length or encoding is settled.
        let headers = response.headers();
        let is_open = !headers.contains_key(header::CONTENT_LENGTH)
            && !headers.contains_key(header::CONTENT_ENCODING)
            && response.body().size_hint().exact().is_none();
        let response = HttpBody.watch(None, response, Ignore);
        response.map(|inner| Self {
            inner: Some(inner),
            shutdown,
            cut: None,
            dialect: Some(dialect).filter(|_| is_open),
        })
    }
}

impl<B> Body for CutBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        let Some(mut inner) = this.inner.as_mut().as_pin_mut() else {
            return Poll::Ready(None);
        };
        let Some(dialect) = *this.dialect else {
            return inner.poll_frame(cx);
        };
        // A body that always has a frame is cut too.
        if !this.shutdown.cuts() || !inner.is_event_stream() {
            if let Poll::Ready(frame) = inner.as_mut().poll_frame(cx) {
                return Poll::Ready(frame);
            }
            let cut = this
                .cut
                .get_or_insert_with(|| Box::pin(Arc::clone(&this.shutdown.cut).notified_owned()));
            // Asked before the second look, so that a cut between the two is not missed.
            let is_cut = cut.as_mut().poll(cx).is_ready() || this.shutdown.cuts();
            if !is_cut || !inner.is_event_stream() {
                return Poll::Pending;
            }
        }
        // The upstream is closed first.
        this.inner.set(None);
        Poll::Ready(Some(Ok(Frame::data(Problem::SHUTTING_DOWN.event(dialect)))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.inner, self.dialect) {
            (None, _) => SizeHint::with_exact(0),
            (Some(inner), None) => inner.size_hint(),
            // It may be cut before the end, and then says more.
            (Some(_), Some(_)) => SizeHint::default(),
        }
    }
}

impl Guard for Ignore {
    fn end(&mut self, _: &Completion) {}
}
