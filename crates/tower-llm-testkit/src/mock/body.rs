//! A response body whose frames a test sends one by one.

use std::{
    error::Error,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame};
use tokio::sync::mpsc;
use tokio_test::task;

type BoxError = Box<dyn Error + Send + Sync>;

/// A body whose frames come from a [`Sender`].
pub struct Upstream {
    frames: mpsc::UnboundedReceiver<Result<Bytes, BoxError>>,
    left: Option<usize>,
    on_drop: Option<Box<dyn FnOnce() + Send>>,
}

/// Sends frames to an [`Upstream`]; dropping it ends the body.
#[derive(Debug)]
pub struct Sender(mpsc::UnboundedSender<Result<Bytes, BoxError>>);

impl Upstream {
    /// A body and its sender.
    #[must_use]
    pub fn new() -> (Sender, Self) {
        let (sender, frames) = mpsc::unbounded_channel();
        let body = Self {
            frames,
            left: None,
            on_drop: None,
        };
        (Sender(sender), body)
    }

    /// Reports the end of the stream together with frame number `frames`.
    #[must_use]
    pub fn of_known_length(mut self, frames: usize) -> Self {
        self.left = Some(frames);
        self
    }

    /// Runs `run` when it is dropped.
    #[must_use]
    pub fn on_drop(mut self, run: impl FnOnce() + Send + 'static) -> Self {
        self.on_drop = Some(Box::new(run));
        self
    }
}

impl Sender {
    /// Sends a frame. The frame `panic` makes the body panic.
    pub fn send(&self, frame: &'static str) {
        self.send_bytes(Bytes::from(frame));
    }

    /// Sends a frame that is made at run time.
    pub fn send_bytes(&self, frame: Bytes) {
        let _ = self.0.send(Ok(frame));
    }

    /// Makes the body fail.
    pub fn fail(&self, error: impl Into<BoxError>) {
        let _ = self.0.send(Err(error.into()));
    }
}

impl Body for Upstream {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = self.frames.poll_recv(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            assert_ne!(&frame[..], b"panic", "as it was told");
            self.left = self.left.map(|left| left - 1);
        }
        polled.map(|frame| frame.map(|frame| frame.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").finish_non_exhaustive()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(run) = self.on_drop.take() {
            run();
        }
    }
}

/// A response with the headers of an event stream, around `body`.
pub fn stream<B>(body: B) -> Response<B> {
    let mut response = Response::new(body);
    let streamed = http::HeaderValue::from_static("text/event-stream");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, streamed);
    response
}

/// Polls `body` once.
pub fn poll_frame<B>(body: &mut B) -> Poll<Option<Result<Frame<B::Data>, B::Error>>>
where
    B: Body + Unpin,
{
    task::spawn(()).enter(|cx, _| Pin::new(body).poll_frame(cx))
}
