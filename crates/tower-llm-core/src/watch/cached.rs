//! Responses that may have cost no call of their own.

use std::task::Context;

use http::response::Parts;
use tokio::time::Instant;

use super::{Guard, Unary, Watch};
use crate::{Answer, Bill, Call, Completion, Served};

/// Watches an [`Answer`]: its response as `W` does, and its [`served`](Answer::served), which the layer's guard finds as
/// [`Completion::served`].
///
/// For the layers around the cache of a typed service. Each of these layers counts an answer that cost no call as what it is;
/// built with [`Unary`] alone, a rate limit would charge a hit its estimated tokens.
///
/// ```
/// use tower_llm_core::{Answer, Cached, Completion, Guard, Served, Unary, Watch};
///
/// struct Expect(Option<Served>);
///
/// impl Guard for Expect {
///     fn end(&mut self, completion: &Completion) {
///         assert_eq!(completion.served, self.0);
///     }
/// }
///
/// let hit = Answer::new("Because.", Some(Served::Hit));
/// assert_eq!(Cached(Unary).watch(None, hit, Expect(Some(Served::Hit))), hit);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Cached<W = Unary>(pub W);

/// The guard of [`Cached`]: another one that is told where the response came from.
#[derive(Debug)]
pub struct CachedGuard<G> {
    inner: G,
    served: Option<Served>,
}

impl<R, W: Watch<R>> Watch<Answer<R>> for Cached<W> {
    type Out<G: Guard> = Answer<W::Out<CachedGuard<G>>>;

    fn watch<G: Guard>(&self, call: Option<&Call>, answer: Answer<R>, guard: G) -> Self::Out<G> {
        let guard = CachedGuard {
            inner: guard,
            served: answer.served(),
        };
        answer.map(|response| self.0.watch(call, response, guard))
    }

    fn reports_usage(&self) -> bool {
        self.0.reports_usage()
    }

    fn keep(&self, call: Option<&Call>) -> Option<Call> {
        self.0.keep(call)
    }
}

impl<G: Guard> Guard for CachedGuard<G> {
    fn response_headers(&mut self, head: Option<&mut Parts>) {
        self.inner.response_headers(head);
    }

    fn first_token(&mut self, at: Instant) {
        self.inner.first_token(at);
    }

    fn follows_content(&self) -> bool {
        self.inner.follows_content()
    }

    fn content(&mut self, seen: Option<u64>) {
        self.inner.content(seen);
    }

    fn pending(&mut self, cx: &mut Context<'_>) {
        self.inner.pending(cx);
    }

    fn outlived(&mut self, bill: &Bill) {
        self.inner.outlived(bill);
    }

    fn end(&mut self, completion: &Completion) {
        if self.served.is_none() {
            return self.inner.end(completion);
        }
        let mut completion = completion.clone();
        completion.served = self.served;
        self.inner.end(&completion);
    }
}
