//! Detecting the end of a response: the hook that all layers share.
//!
//! Response headers say little: errors arrive inside a 200, usage arrives last, and a stream may last for minutes. So a
//! layer puts what it holds for a call into a [`Guard`], which travels with the response body and runs when the body ends
//! or is dropped.
//!
//! The innermost watching layer *leads*: it alone reads the frames. It publishes what it finds in the response's
//! extensions, and the layers around it *follow* that instead of reading again. A layer that gives several readers copies
//! of one response must leave the extensions out: they describe the body of the first reader.

mod armed;
mod body;
mod cached;
mod dropping;
mod future;
mod lead;

use std::task::Context;

use crate::{Bill, Call, Completion, Outcome};
use http::response::Parts;
use http_body::Body;
use tokio::time::Instant;

pub use self::{
    armed::Armed,
    body::Watched,
    cached::{Cached, CachedGuard},
    dropping::{Unsent, drop_as},
    future::Guarded,
};
pub(crate) use dropping::{report_bill, while_dropping};
pub(crate) use lead::stop_leading;

/// How the end of a response is detected: [`HttpBody`] for [`http::Response`], [`Unary`] for any other type.
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

    /// Puts `guard` into `response`, which ends it.
    fn watch<G: Guard>(&self, call: Option<&Call>, response: R, guard: G) -> Self::Out<G>;

    /// The same for a guard in `armed` that has not ended, without moving it if that can be avoided.
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
    /// If it cannot, layers charge a call its estimate, without a guess of its output.
    fn reports_usage(&self) -> bool {
        true
    }

    /// The call that a layer holds for [`watch`](Self::watch) until the response arrives; `None` if `watch` does not read
    /// it, which saves a reference count.
    fn keep(&self, call: Option<&Call>) -> Option<Call> {
        call.cloned()
    }
}

/// What a layer does during a call and at its end.
///
/// A guard ends once, on every path: after the last frame, on an error, and when the future or the body is dropped. A drop
/// ends it as [`Outcome::Abandoned`] unless what has arrived shows another outcome. A guard runs on the caller's task,
/// within a poll or a drop, and must not block. It should not panic either: a panic in a drop may abort the process.
pub trait Guard {
    /// The response headers have arrived; `None` if the response is not an [`http::Response`].
    ///
    /// Headers may be read and added. Those that describe the body have been read already.
    fn response_headers(&mut self, head: Option<&mut Parts>) {
        let _ = head;
    }

    /// The first content token of a stream has passed, `at`.
    ///
    /// Role-only frames, empty deltas and keep-alive comments are not content. Never called for a response that is not
    /// streamed.
    fn first_token(&mut self, at: Instant) {
        let _ = at;
    }

    /// Whether [`content`](Self::content) is to be called. Checked for every frame.
    fn follows_content(&self) -> bool {
        false
    }

    /// A frame has passed. `seen` is the content so far, in bytes; `None` while it cannot be distinguished from the rest of
    /// the body.
    fn content(&mut self, seen: Option<u64>) {
        let _ = seen;
    }

    /// Neither the response nor its next frame is there yet. The caller's task is polled again when `cx` is woken.
    ///
    /// A guard that measures silence may register the waker with a timer.
    fn pending(&mut self, cx: &mut Context<'_>) {
        let _ = cx;
    }

    /// The caller has left, and its call goes on without it: a cache reads the answer to its end. [`end`](Self::end) follows at
    /// once.
    ///
    /// What settles the use of the call can take that out of the guard, and [have it end later](Bill::settle_later).
    fn outlived(&mut self, bill: &Bill) {
        let _ = bill;
    }

    /// The call has ended. Nothing is called after this.
    fn end(&mut self, completion: &Completion);
}

/// Watches an [`http::Response`] to the end of its body.
///
/// A compressed body cannot be read: its usage is not known, and a clean end counts as a success. Send
/// `accept-encoding: identity` where that matters, or let the client decompress underneath.
#[derive(Clone, Copy, Debug, Default)]
pub struct HttpBody;

/// Counts any response as the end of its call, and as a success.
///
/// It reads no clock and knows no usage. Around the cache of a typed service, use [`Cached`].
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

    fn watch_armed<G: Guard>(&self, _: Option<&Call>, response: R, armed: &mut Armed<G>) -> R {
        static SUCCESS: Completion = Completion::new(Outcome::Success);
        armed.response_headers(None);
        armed.end(&SUCCESS);
        response
    }

    fn keep(&self, _: Option<&Call>) -> Option<Call> {
        None
    }
}
