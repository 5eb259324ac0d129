//! What the leading layer has found, shared with the outer ones.

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use http_body::Frame;
use tokio::time::Instant;

use super::{Armed, Guard};
use crate::{
    Bill, Completion, Outcome,
    scan::{End, Scanner},
};

/// One response as the innermost watching layer reads it.
#[derive(Clone)]
pub(super) struct Lead(Arc<Shared>);

/// The reference to it for outer layers, in the response's extensions.
///
/// It ends with the leading body, so stored headers that are sent again do not mislead a layer.
#[derive(Clone)]
pub(super) struct Led(Weak<Shared>);

/// Has the layers around a response read its body themselves.
pub(crate) fn stop_leading(extensions: &mut http::Extensions) {
    extensions.remove::<Led>();
}

struct Shared {
    // A body and its outer layers are polled by one task, so the lock is never contended.
    scanner: Mutex<Scanner>,
    has_first_token: AtomicBool,
    is_over: AtomicBool,
    completion: OnceLock<Completion>,
    /// What the caller pays, if others share its call.
    bill: Option<Bill>,
}

impl Lead {
    pub(super) fn new(scanner: Scanner, bill: Option<Bill>) -> Self {
        Self(Arc::new(Shared {
            scanner: Mutex::new(scanner),
            has_first_token: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            completion: OnceLock::new(),
            bill,
        }))
    }

    pub(super) fn led(&self) -> Led {
        Led(Arc::downgrade(&self.0))
    }

    pub(super) fn frame(&self, frame: &Frame<Bytes>) {
        let seen = self.scanner(|scanner| scanner.frame(frame));
        if seen.first_token {
            self.0.has_first_token.store(true, Ordering::Release);
        }
        if seen.is_over {
            self.0.is_over.store(true, Ordering::Release);
        }
    }

    /// Whether everything has arrived that shows how the call ended.
    pub(super) fn is_over(&self) -> bool {
        self.0.is_over.load(Ordering::Acquire)
    }

    pub(super) fn first_token_at(&self) -> Option<Instant> {
        // The flag spares the followers the lock on every frame before and after the first token.
        if !self.0.has_first_token.load(Ordering::Acquire) {
            return None;
        }
        self.scanner(|scanner| scanner.first_token_at())
    }

    /// How much content has passed, in bytes, if that is known.
    pub(super) fn content_bytes(&self) -> Option<u64> {
        self.scanner(|scanner| scanner.content_bytes())
    }

    /// Ends a guard of the caller. What is inside of its layer has been dropped, or is over.
    pub(super) fn end<G: Guard>(&self, armed: &mut Armed<G>, end: End) {
        let seen = self.finish(end);
        match &self.0.bill {
            Some(bill) => bill.end(armed, seen.clone()),
            None => armed.end(seen),
        }
    }

    /// How the call ended, if that is decided.
    pub(super) fn completion(&self) -> Option<&Completion> {
        self.0.completion.get()
    }

    /// Decides how the call ended, unless that is decided already.
    fn finish(&self, end: End) -> &Completion {
        self.0
            .completion
            .get_or_init(|| self.scanner(|scanner| scanner.finish(end)))
    }

    /// Decides that the call was cut with this outcome, unless how it ended is decided already.
    pub(super) fn cut(&self, outcome: Outcome) {
        self.finish(End::Cut(outcome));
    }

    pub(super) fn scanner<T>(&self, read: impl FnOnce(&mut Scanner) -> T) -> T {
        // A scanner is never left half changed, so a poisoned lock is as good as any.
        read(
            &mut self
                .0
                .scanner
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

impl Led {
    pub(super) fn lead(&self) -> Option<Lead> {
        self.0.upgrade().map(Lead)
    }
}

impl fmt::Debug for Lead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lead")
            .field("completion", &self.0.completion.get())
            .finish_non_exhaustive()
    }
}
