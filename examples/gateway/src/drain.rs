//! Reading what a caller still sends after its request has been answered.
//!
//! Most clients write their whole request before they read. If the server answered early - the body is over the limit, the key
//! is wrong - and closed the connection, the system would reset it, and the reset destroys the answer before the client reads
//! it. So the rest of the body is read and discarded, within bounds.

use std::{
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use tokio::time::timeout;

/// The most that is read of a body for nothing: several times what a client sends by mistake.
const MAX_BYTES: usize = 256 * 1024 * 1024;

/// The longest that is spent on it.
const MAX_TIME: Duration = Duration::from_secs(30);

/// The part of a request's body that the gateway has not read.
///
/// It is drained once the answer has been written *and* the body has been given up: a drain that begins earlier would ask a
/// client that waits for `100 Continue` to send its body for nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rest(Arc<Mutex<State>>);

#[derive(Debug, Default)]
enum State {
    /// Neither.
    #[default]
    InUse,
    /// The body has been given up before its end.
    GivenUp(Incoming),
    /// The answer has been written.
    Answered,
}

pin_project! {
    /// The body of an answer; the rest of the request is drained when it has been written.
    #[derive(Debug)]
    pub(crate) struct Drained<B> {
        #[pin]
        inner: B,
        rest: Answering,
    }
}

/// Marks the answer as written when it is dropped.
#[derive(Debug)]
struct Answering(Rest);

// === impl Rest ===

impl Rest {
    /// Takes back a body that is read no further.
    pub(crate) fn give_up(&self, body: Incoming) {
        if body.is_end_stream() {
            return;
        }
        let mut state = self.lock();
        match *state {
            State::Answered => drain(body),
            _ => *state = State::GivenUp(body),
        }
    }

    /// Whether the body has been given up before its end.
    pub(crate) fn is_given_up(&self) -> bool {
        matches!(*self.lock(), State::GivenUp(_))
    }

    fn answered(&self) {
        if let State::GivenUp(body) = mem::replace(&mut *self.lock(), State::Answered) {
            drain(body);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn drain(mut body: Incoming) {
    let reading = async move {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, bytes::Bytes::len);
            if bytes > MAX_BYTES {
                break;
            }
        }
    };
    // It ends with its connection. Outside of a runtime there are no connections left.
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(timeout(MAX_TIME, reading));
    }
}

// === impl Drained ===

impl<B> Drained<B> {
    pub(crate) fn new(inner: B, rest: Rest) -> Self {
        let rest = Answering(rest);
        Self { inner, rest }
    }
}

impl<B: Body> Body for Drained<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().inner.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

// === impl Answering ===

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answered();
    }
}
