//! Seeing the end of a response: the one hook that all layers share.
//!
//! A response's head says little: errors come inside a 200, usage comes last, and a stream may last for minutes.
//! So what a layer holds for a call, it holds in a [`Guard`] that travels with the response's body and is told
//! when the body has ended, or was dropped.
//!
//! The innermost watching layer *leads*: it alone reads the frames. What it finds it publishes in the response's
//! extensions, and the layers around it *follow* that instead of reading again. A layer that answers a second reader with
//! what a first one is still reading must leave the extensions out: what they tell of is the first one's body.

mod armed;
mod body;
mod future;
mod lead;
mod unsent;

use std::task::Context;

use crate::{Call, Completion, Outcome};
use http::response::Parts;
use http_body::Body;
use tokio::time::Instant;

pub use self::{armed::Armed, body::Watched, future::Guarded, unsent::Unsent};

/// How the end of a response is seen: [`HttpBody`] for [`http::Response`], [`Unary`] for any other type.
///
/// Implement it for response types of your own that are streams, or that know their usage.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot tell when a response of type `{R}` has ended",
    label = "does not implement `Watch<{R}>`",
    note = "for a service whose response is not an `http::Response`, build each layer with another `Watch`, as in `BulkheadLayer::builder(10).watch(Unary)`",
    note = "implement `Watch` on your own type for a response that is a stream or knows its usage"
)]
pub trait Watch<R>: Clone {
    /// The response, with the guard in it.
    type Out<G: Guard>;

    /// Puts `guard` into `response`, to be told of its end.
    fn watch<G: Guard>(&self, call: Option<&Call>, response: R, guard: G) -> Self::Out<G>;

    /// The same for the guard in `armed`, which has not ended: for a layer that has it there, and a watch that ends it there.
    fn watch_armed<G: Guard>(
        &self,
        call: Option<&Call>,
        response: R,
        armed: &mut Armed<G>,
    ) -> Self::Out<G> {
        let guard = armed.disarm().expect("it has not ended yet");
        self.watch(call, response, guard)
    }

    /// Returns whether a response can report what its call used.
    ///
    /// If it cannot, layers charge a call what was estimated, without a guess of its output.
    fn reports_usage(&self) -> bool {
        true
    }

    /// The call that a layer keeps for [`watch`](Self::watch) until the response comes; none where it is not read, so
    /// that no reference to it need be counted.
    fn keep(&self, call: Option<&Call>) -> Option<Call> {
        call.cloned()
    }
}

/// What a layer wants to know of a call.
///
/// A guard is told of the end once, on every path: after the last frame, on an error, and when the future or the
/// body is dropped, which ends it as [`Outcome::Abandoned`] unless what had come tells otherwise. It runs on the
/// caller's task, within a poll or a drop, and must not block. It should not panic either: one that does in a
/// drop may abort the process.
pub trait Guard {
    /// The response's head has come; `None` where the response is not an [`http::Response`].
    ///
    /// Headers may be read and added. What says how the body is written has been read before.
    fn response_headers(&mut self, head: Option<&mut Parts>) {
        let _ = head;
    }

    /// The first content token of a stream has passed, `at`.
    ///
    /// Role-only frames, empty deltas and keep-alive comments are not content. Never called for a response that
    /// is not streamed.
    fn first_token(&mut self, at: Instant) {
        let _ = at;
    }

    /// Whether it wants to be told of [`content`](Self::content). Asked again for every frame.
    fn follows_content(&self) -> bool {
        false
    }

    /// A frame has passed, and so much content up to now, in bytes; `None` while content cannot be told from the rest.
    fn content(&mut self, seen: Option<u64>) {
        let _ = seen;
    }

    /// Neither the response nor its next frame is there yet: whoever waits is polled when `cx` is woken.
    ///
    /// A guard that is to see how long nothing comes may leave the waker with a timer.
    fn pending(&mut self, cx: &mut Context<'_>) {
        let _ = cx;
    }

    /// The call has ended: the last that it is told, before it is dropped.
    fn end(&mut self, completion: &Completion);
}

/// Watches an [`http::Response`] to the end of its body.
///
/// A compressed body cannot be read: its usage is not known, and its end is taken for a good one. Send
/// `accept-encoding: identity` where that matters, or have the client undo the compression underneath.
#[derive(Clone, Copy, Debug, Default)]
pub struct HttpBody;

/// Takes any response as the end of its call, and as a success.
///
/// It reads no clock and knows no usage.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unary;

impl<B> Watch<http::Response<B>> for HttpBody
where
    B: Body<Data = bytes::Bytes>,
{
    type Out<G: Guard> = http::Response<Watched<B, G>>;

    fn watch<G: Guard>(
        &self,
        call: Option<&Call>,
        response: http::Response<B>,
        guard: G,
    ) -> Self::Out<G> {
        Watched::response(call, response, Armed::new(guard))
    }
}

impl<R> Watch<R> for Unary {
    type Out<G: Guard> = R;

    fn watch<G: Guard>(&self, call: Option<&Call>, response: R, guard: G) -> R {
        self.watch_armed(call, response, &mut Armed::new(guard))
    }

    fn reports_usage(&self) -> bool {
        false
    }

    // Where the guard lies: moving it costs more than ending it.
    fn watch_armed<G: Guard>(&self, _: Option<&Call>, response: R, armed: &mut Armed<G>) -> R {
        armed.response_headers(None);
        armed.end(&Completion::new(Outcome::Success));
        response
    }

    fn keep(&self, _: Option<&Call>) -> Option<Call> {
        None
    }
}
