//! Running to the end what never waits, without a runtime in the figures.

use std::{
    fmt::Debug,
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// The output of a future that is ready at once.
///
/// # Panics
///
/// If it is not.
pub fn now<F: Future>(future: F) -> F::Output {
    let mut cx = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut cx) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("nothing here waits"),
    }
}

/// Reads a body to its end; returns how many bytes it had.
///
/// # Panics
///
/// If it fails, or is not ready at once.
pub fn drain<B>(body: B) -> usize
where
    B: Body<Data = Bytes>,
    B::Error: Debug,
{
    let mut cx = Context::from_waker(Waker::noop());
    let mut body = pin!(body);
    let mut bytes = 0;
    loop {
        match body.as_mut().poll_frame(&mut cx) {
            Poll::Ready(Some(frame)) => {
                let frame = frame.expect("the body does not fail");
                bytes += frame.data_ref().map_or(0, Bytes::len);
            }
            Poll::Ready(None) => return bytes,
            Poll::Pending => panic!("nothing here waits"),
        }
    }
}

/// A body whose frames are at hand; handing one out costs next to nothing.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    left: &'static [Bytes],
}

impl Frames {
    /// A body of `frames`.
    #[must_use]
    pub fn new(frames: &'static [Bytes]) -> Self {
        Self { left: frames }
    }

    /// The frames that are left.
    #[must_use]
    pub fn frames(self) -> &'static [Bytes] {
        self.left
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some((first, left)) = self.left.split_first() else {
            return Poll::Ready(None);
        };
        self.left = left;
        Poll::Ready(Some(Ok(Frame::data(first.clone()))))
    }

    // As of a chunked response: its length is unknown before it ends.
    fn is_end_stream(&self) -> bool {
        false
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
