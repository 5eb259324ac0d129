//! Gates that are composed, and what they hold.

use std::task::{Context, Poll, ready};

use http::response::Parts;
use tokio::time::Instant;

use super::{Admission, Availability, Entry, Gate, Wait};
use crate::{Armed, Bill, BoxError, Completion, Failure, Guard, Outcome};

/// The guards of two gates; the inner one is told first.
#[derive(Debug)]
pub struct Both<A: Guard, B: Guard> {
    // Dropped first.
    inner: Armed<B>,
    outer: Armed<A>,
}

/// The guard of a call that is not sent yet; dropped, it ends as refused.
pub(super) struct Unsettled<G: Guard>(Armed<G>);

/// A call that waits at the outer gate first, and then perhaps at the inner one.
enum Outer<A: Gate, B: Gate> {
    Outer(Box<dyn Wait<A::Guard>>, B),
    Inner(Box<dyn Wait<Both<A::Guard, B::Guard>>>),
}

/// A call that the outer gate has admitted, and that waits at the inner one.
struct Inner<A: Guard, B> {
    // Dropped first.
    wait: Box<dyn Wait<B>>,
    outer: Unsettled<A>,
}

/// An optional gate that is there.
struct Present<G>(Box<dyn Wait<G>>);

// === impl Gate ===

impl<A: Gate, B: Gate> Gate for (A, B) {
    type Guard = Both<A::Guard, B::Guard>;

    fn admit(&self, entry: &Entry<'_>) -> Admission<Self::Guard> {
        match self.0.admit(entry) {
            Admission::Admitted(outer) => admit_inner(outer, &self.1, entry),
            Admission::Waits(wait) => {
                let wait = Outer::<A, B>::Outer(wait, self.1.clone());
                Admission::Waits(Box::new(wait))
            }
            Admission::Refused(error) => Admission::Refused(error),
        }
    }

    fn would_admit(&self, entry: &Entry<'_>) -> Availability {
        self.0.would_admit(entry).max(self.1.would_admit(entry))
    }
}

/// Has a call that the outer gate has admitted decided on by the inner one.
fn admit_inner<A, B>(outer: A, inner: &B, entry: &Entry<'_>) -> Admission<Both<A, B::Guard>>
where
    A: Guard + Send + 'static,
    B: Gate,
{
    let mut outer = Armed::new(outer);
    match inner.admit(entry) {
        Admission::Admitted(inner) => Admission::Admitted(Both {
            inner: Armed::new(inner),
            outer,
        }),
        Admission::Waits(wait) => Admission::Waits(Box::new(Inner {
            wait,
            outer: Unsettled(outer),
        })),
        Admission::Refused(error) => {
            outer.end(&Completion::of_error(&*error));
            Admission::Refused(error)
        }
    }
}

impl<G: Gate> Gate for Option<G> {
    type Guard = Option<G::Guard>;

    fn admit(&self, entry: &Entry<'_>) -> Admission<Self::Guard> {
        let Some(gate) = self else {
            return Admission::Admitted(None);
        };
        match gate.admit(entry) {
            Admission::Admitted(guard) => Admission::Admitted(Some(guard)),
            Admission::Waits(wait) => Admission::Waits(Box::new(Present(wait))),
            Admission::Refused(error) => Admission::Refused(error),
        }
    }

    fn would_admit(&self, entry: &Entry<'_>) -> Availability {
        let gate = self.as_ref();
        gate.map_or(Availability::Now, |gate| gate.would_admit(entry))
    }
}

// === impl Wait ===

impl<A: Gate, B: Gate> Wait<Both<A::Guard, B::Guard>> for Outer<A, B> {
    fn poll(
        &mut self,
        entry: &Entry<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Both<A::Guard, B::Guard>, BoxError>> {
        loop {
            match self {
                Self::Outer(wait, inner) => {
                    let outer = ready!(wait.poll(entry, cx))?;
                    match admit_inner(outer, inner, entry) {
                        Admission::Admitted(both) => return Poll::Ready(Ok(both)),
                        Admission::Waits(wait) => *self = Self::Inner(wait),
                        Admission::Refused(error) => return Poll::Ready(Err(error)),
                    }
                }
                Self::Inner(wait) => return wait.poll(entry, cx),
            }
        }
    }
}

impl<A, B> Wait<Both<A, B>> for Inner<A, B>
where
    A: Guard + Send + 'static,
    B: Guard + Send + 'static,
{
    fn poll(
        &mut self,
        entry: &Entry<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Both<A, B>, BoxError>> {
        let admitted = ready!(self.wait.poll(entry, cx));
        let outer = self.outer.settle().expect("polled after it was ready");
        let mut outer = Armed::new(outer);
        Poll::Ready(match admitted {
            Ok(inner) => Ok(Both {
                inner: Armed::new(inner),
                outer,
            }),
            Err(error) => {
                outer.end(&Completion::of_error(&*error));
                Err(error)
            }
        })
    }
}

impl<G: Guard + Send + 'static> Wait<Option<G>> for Present<G> {
    fn poll(
        &mut self,
        entry: &Entry<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<G>, BoxError>> {
        self.0.poll(entry, cx).map_ok(Some)
    }
}

// === impl Guard ===

impl<A: Guard, B: Guard> Guard for Both<A, B> {
    fn response_headers(&mut self, mut head: Option<&mut Parts>) {
        self.inner.response_headers(head.as_deref_mut());
        self.outer.response_headers(head);
    }

    fn first_token(&mut self, at: Instant) {
        self.inner.first_token(at);
        self.outer.first_token(at);
    }

    fn follows_content(&self) -> bool {
        self.inner.follows_content() || self.outer.follows_content()
    }

    fn content(&mut self, seen: Option<u64>) {
        for_one(&mut self.inner, seen);
        for_one(&mut self.outer, seen);
    }

    fn pending(&mut self, cx: &mut Context<'_>) {
        self.inner.pending(cx);
        self.outer.pending(cx);
    }

    fn outlived(&mut self, bill: &Bill) {
        self.inner.outlived(bill);
        self.outer.outlived(bill);
    }

    fn end(&mut self, completion: &Completion) {
        self.inner.end(completion);
        self.outer.end(completion);
    }
}

fn for_one<G: Guard>(armed: &mut Armed<G>, seen: Option<u64>) {
    if armed.follows_content() {
        armed.content(seen);
    }
}

impl<G: Guard> Guard for Option<G> {
    fn response_headers(&mut self, head: Option<&mut Parts>) {
        if let Some(guard) = self {
            guard.response_headers(head);
        }
    }

    fn first_token(&mut self, at: Instant) {
        if let Some(guard) = self {
            guard.first_token(at);
        }
    }

    fn follows_content(&self) -> bool {
        self.as_ref().is_some_and(Guard::follows_content)
    }

    fn content(&mut self, seen: Option<u64>) {
        if let Some(guard) = self {
            guard.content(seen);
        }
    }

    fn pending(&mut self, cx: &mut Context<'_>) {
        if let Some(guard) = self {
            guard.pending(cx);
        }
    }

    fn outlived(&mut self, bill: &Bill) {
        if let Some(guard) = self {
            guard.outlived(bill);
        }
    }

    fn end(&mut self, completion: &Completion) {
        if let Some(guard) = self {
            guard.end(completion);
        }
    }
}

// === impl Unsettled ===

impl<G: Guard> Unsettled<G> {
    pub(super) fn new(guard: G) -> Self {
        Self(Armed::new(guard))
    }

    /// Runs code that may panic, which is no disconnect of the caller.
    pub(super) fn enter<T>(&mut self, inner: impl FnOnce() -> T) -> T {
        self.0.enter(inner)
    }

    /// Takes the guard out: its call is sent now.
    pub(super) fn settle(&mut self) -> Option<G> {
        self.0.disarm()
    }
}

impl<G: Guard> Drop for Unsettled<G> {
    fn drop(&mut self) {
        if !self.0.has_ended() {
            let outcome = match self.0.dropped() {
                panicked @ Outcome::Failed(Failure::Panic) => panicked,
                _ => Outcome::Refused,
            };
            self.0.end(&Completion::new(outcome));
        }
    }
}
