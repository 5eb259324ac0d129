//! A guard that ends on every path.

use std::{mem, task::Context};

use http::response::Parts;
use tokio::time::Instant;

use super::{Guard, dropping};
use crate::{Bill, Completion, Failure, Outcome};

/// Holds a [`Guard`] from the moment a call is admitted until it has ended, and ends it when dropped.
///
/// A panic inside [`enter`](Self::enter) ends the call as failed; a drop outside of it ends it as abandoned, or as [`drop_as`](crate::drop_as) says.
#[derive(Debug)]
pub struct Armed<G: Guard> {
    /// `None` once it has ended, or was taken out.
    guard: Option<G>,
    entered: bool,
    /// Set before the guard ends, so that one that panics then does not end again.
    has_ended: bool,
}

impl<G: Guard> Armed<G> {
    /// Holds `guard`.
    pub fn new(guard: G) -> Self {
        Self {
            guard: Some(guard),
            entered: false,
            has_ended: false,
        }
    }

    /// Runs the inner service's code, so that a panic in it does not count as a disconnect of the caller.
    pub fn enter<T>(&mut self, inner: impl FnOnce() -> T) -> T {
        self.entered = true;
        let result = inner();
        self.entered = false;
        result
    }

    /// Calls [`Guard::response_headers`].
    pub fn response_headers(&mut self, head: Option<&mut Parts>) {
        if let Some(guard) = &mut self.guard {
            guard.response_headers(head);
        }
    }

    /// Calls [`Guard::first_token`].
    pub fn first_token(&mut self, at: Instant) {
        if let Some(guard) = &mut self.guard {
            guard.first_token(at);
        }
    }

    /// See [`Guard::follows_content`].
    pub(crate) fn follows_content(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::follows_content)
    }

    /// Calls [`Guard::content`].
    pub(crate) fn content(&mut self, seen: Option<u64>) {
        if let Some(guard) = &mut self.guard {
            guard.content(seen);
        }
    }

    /// Calls [`Guard::pending`].
    pub fn pending(&mut self, cx: &mut Context<'_>) {
        if let Some(guard) = &mut self.guard {
            guard.pending(cx);
        }
    }

    /// Calls [`Guard::outlived`].
    pub(crate) fn outlived(&mut self, bill: &Bill) {
        if let Some(guard) = &mut self.guard {
            guard.outlived(bill);
        }
    }

    /// Ends the guard; does nothing the second time.
    pub fn end(&mut self, completion: &Completion) {
        // Where it is: the guards of several gates cost more to move than to end.
        if !mem::replace(&mut self.has_ended, true)
            && let Some(guard) = &mut self.guard
        {
            guard.end(completion);
        }
        self.guard = None;
    }

    /// Whether the guard has ended, or was taken out.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.has_ended || self.guard.is_none()
    }

    /// Takes the guard out; `None` if it has ended.
    pub fn disarm(&mut self) -> Option<G> {
        self.guard.take()
    }

    /// The outcome of dropping it now.
    pub(crate) fn dropped(&self) -> Outcome {
        if self.entered {
            Outcome::Failed(Failure::Panic)
        } else {
            dropping::dropped()
        }
    }
}

impl<G: Guard> Drop for Armed<G> {
    fn drop(&mut self) {
        if !self.has_ended() {
            self.end(&Completion::new(self.dropped()));
        }
    }
}
