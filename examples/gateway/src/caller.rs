//! Inactivity timeouts for clients: an idle client must not hold what others need.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use crate::drain::Rest;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::{body::Incoming, rt::Executor};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep, timeout},
};

/// A timeout that starts with a wait and restarts with progress.
#[derive(Debug)]
struct Patience {
    limit: Duration,
    // Created with the first wait: most never wait.
    timer: Option<Pin<Box<Sleep>>>,
}

/// A socket that fails when the client reads nothing for too long.
///
/// While the client reads nothing, the response body is not polled, so no deadline of the stack can pass.
#[derive(Debug)]
pub(crate) struct PatientSocket {
    stream: TcpStream,
    patience: Patience,
}

/// A request body that fails when nothing arrives for too long.
///
/// When it is dropped before its end, it passes the remainder to [`Rest`].
#[derive(Debug)]
pub(crate) struct PatientBody {
    // `None` once it has ended.
    inner: Option<Incoming>,
    /// The body of a call of the gateway's own.
    own: Option<Bytes>,
    patience: Patience,
    stalled: Stalled,
    rest: Rest,
}

/// Whether a request body failed because nothing arrived; the error of the call does not show it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stalled(Arc<AtomicBool>);

/// Runs the streams of HTTP/2 connections, each for a limited time.
///
/// Each HTTP/2 stream has its own flow-control window, so a client may stop reading one stream while the socket makes
/// progress.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PatientExecutor {
    limit: Duration,
}

// === impl Patience ===

impl Patience {
    fn new(limit: Duration) -> Self {
        Self { limit, timer: None }
    }

    /// Returns `polled`, or an error if it has been pending for too long.
    fn check<T>(
        &mut self,
        polled: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.timer = None;
            return polled;
        }
        ready!(self.poll_over(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        timer.as_mut().poll(cx)
    }
}

// === impl PatientSocket ===

impl PatientSocket {
    pub(crate) fn new(stream: TcpStream, limit: Duration) -> Self {
        let patience = Patience::new(limit);
        Self { stream, patience }
    }
}

impl AsyncRead for PatientSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // hyper has its own timeout for reads.
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for PatientSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.patience.check(polled, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.patience.check(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

// === impl PatientBody ===

impl PatientBody {
    pub(crate) fn new(inner: Incoming, limit: Duration, rest: Rest) -> (Self, Stalled) {
        let stalled = Stalled::default();
        let body = Self {
            inner: (!inner.is_end_stream()).then_some(inner),
            own: None,
            patience: Patience::new(limit),
            stalled: stalled.clone(),
            rest,
        };
        (body, stalled)
    }

    /// The body of a call of the gateway's own, which is there at once.
    pub(crate) fn own(body: Bytes) -> Self {
        Self {
            inner: None,
            own: Some(body),
            patience: Patience::new(Duration::ZERO),
            stalled: Stalled::default(),
            rest: Rest::default(),
        }
    }
}

impl Body for PatientBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(self.own.take().map(|body| Ok(Frame::data(body))));
        };
        if let Poll::Ready(frame) = Pin::new(inner).poll_frame(cx) {
            self.patience.timer = None;
            if !matches!(frame, Some(Ok(_))) {
                self.inner = None;
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)));
        }
        ready!(self.patience.poll_over(cx));
        self.stalled.0.store(true, Ordering::Relaxed);
        Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.own.is_none() && self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let own = || SizeHint::with_exact(self.own.as_ref().map_or(0, Bytes::len) as u64);
        self.inner.as_ref().map_or_else(own, Body::size_hint)
    }
}

impl Drop for PatientBody {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            self.rest.give_up(inner);
        }
    }
}

// === impl Stalled ===

impl Stalled {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

// === impl PatientExecutor ===

impl PatientExecutor {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { limit }
    }
}

impl<F> Executor<F> for PatientExecutor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        tokio::spawn(timeout(self.limit, stream));
    }
}
