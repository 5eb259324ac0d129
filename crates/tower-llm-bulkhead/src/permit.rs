//! The permits that a call holds, and when it gives them back.

use std::task::Context;

use http::response::Parts;
use tokio::time::Instant;
use tower_llm_core::{Call, Completion, Guard};

use crate::{
    adaptive::Observer,
    permits::{Overtook, SharedPermits},
};

/// When a call gives its permits back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReleaseAt {
    /// When the response headers arrive: limits calls that start, not streams that run.
    ResponseHeaders,
    /// With the first content token of a stream, or at the end if there is none.
    FirstToken,
    /// When the response body ends or is dropped.
    #[default]
    End,
}

/// The permits that a call holds, as many as it weighs; dropping this gives them back.
#[derive(Debug)]
pub(crate) struct Permit {
    permits: SharedPermits,
    weight: u32,
    overtook: Overtook,
}

/// Holds a call's permits until the point of release: its guard.
#[derive(Debug)]
pub struct BulkheadGuard {
    permit: Option<Permit>,
    release_at: ReleaseAt,
    /// Only with an adaptive limit.
    observer: Option<Box<Observer>>,
}

// === impl Permit ===

impl Permit {
    /// Takes `weight` permits if they are free; returns `permits` if not.
    pub(crate) fn try_acquire(permits: SharedPermits, weight: u32) -> Result<Self, SharedPermits> {
        if permits.try_acquire(weight) {
            Ok(Self::new(permits, weight, Overtook::default()))
        } else {
            Err(permits)
        }
    }

    /// Holds permits that are taken already.
    pub(crate) fn new(permits: SharedPermits, weight: u32, overtook: Overtook) -> Self {
        Self {
            permits,
            weight,
            overtook,
        }
    }

    /// Turns this permit into the guard of `call`.
    pub(crate) fn hold(self, release_at: ReleaseAt, call: Option<&Call>) -> BulkheadGuard {
        BulkheadGuard {
            observer: Observer::of(&self.permits, call),
            permit: Some(self),
            release_at,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.permits.release(self.weight, self.overtook);
    }
}

// === impl BulkheadGuard ===

impl BulkheadGuard {
    fn release(&mut self, reached: ReleaseAt) {
        if self.release_at == reached {
            self.permit = None;
        }
    }
}

impl Guard for BulkheadGuard {
    fn response_headers(&mut self, _: Option<&mut Parts>) {
        if let Some(observer) = &mut self.observer {
            observer.response_headers();
        }
        self.release(ReleaseAt::ResponseHeaders);
    }

    fn pending(&mut self, cx: &mut Context<'_>) {
        if let Some(observer) = &mut self.observer {
            observer.pending(cx);
        }
    }

    fn first_token(&mut self, at: Instant) {
        if let Some(observer) = &mut self.observer {
            observer.first_token(at);
        }
        self.release(ReleaseAt::FirstToken);
    }

    fn end(&mut self, completion: &Completion) {
        // Reported before the permits are free, so that they are granted by the new limit.
        if let Some(observer) = &self.observer {
            observer.end(completion);
        }
    }
}
