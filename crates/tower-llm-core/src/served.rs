//! Responses that cost no call of their own, and who pays for a call that several callers share.

use std::{
    error::Error,
    fmt, mem,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use crate::{
    Armed, BoxError, Completion, Failure, Guard, Outcome, Usage,
    error::chain,
    watch::{report_bill, stop_leading, while_dropping},
};

/// How a response came to its caller without a call to the provider that was made for it.
///
/// A cache puts it into the response's extensions, and the layers around it find it as
/// [`Completion::served`](crate::Completion::served): its usage was paid for by another call, and it says nothing of how the
/// provider does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Served {
    /// From the store.
    Hit,
    /// From a call in flight that another caller pays for.
    Follower,
}

/// What a caller that shares a call pays for it.
///
/// Of the callers that share a call, one pays: at first the one that it was made for. When that one leaves, another takes over.
/// The last one to leave pays what the call has used, of which it may have seen less. If the call goes on without it, layers
/// can [wait](Self::settle_later) for its end.
///
/// A cache puts a bill into the response's extensions or into the [error](Billed), or [reports](Self::report) it when the
/// caller leaves before either. The layers around the cache find the result in the [`Completion`].
///
/// A new bill changes nothing: its caller pays for what it has seen.
#[derive(Clone, Default)]
pub struct Bill(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Another caller pays.
    is_waived: bool,
    /// The call, if its caller may have seen less of it.
    call: Option<Completion>,
    /// What other calls for the same response have used.
    extra: Option<Usage>,
    /// Calls that go on without the caller.
    unfinished: usize,
    /// Guards that wait for the end of those.
    waiting: Vec<Box<dyn Guard + Send>>,
}

/// A call that goes on after its caller has left. Dropping it ends the wait for it.
#[derive(Debug)]
#[must_use = "the call counts as ended when this is dropped"]
pub struct Unfinished(Bill);

/// An error of a shared call, and what its caller pays.
///
/// It displays as the error that it wraps, which is its [`source`](Error::source).
#[derive(Debug)]
pub struct Billed {
    bill: Bill,
    source: Arc<BoxError>,
}

// === impl Bill ===

impl Bill {
    /// Creates the bill of a caller that pays for what it has seen.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole before anything in it could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another caller pays for the call.
    pub fn waive(&self) {
        self.state().is_waived = true;
    }

    /// The caller pays for the call after all: the one that paid has left.
    pub fn take_over(&self) {
        self.state().is_waived = false;
    }

    /// The caller leaves, and pays for `call`, of which it may have seen less.
    pub fn charge(&self, call: &Completion) {
        self.state().call = Some(call.clone());
    }

    /// The caller also pays for another call, which was made for the same response and is not part of its usage.
    pub fn charge_extra(&self, used: Usage) {
        let mut state = self.state();
        let extra = state.extra.unwrap_or_default();
        state.extra = Some(extra.plus(&used));
    }

    /// Has the caller of a response, whose extensions these are, pay for other calls that were made for it, such as those of the
    /// candidates of an ensemble.
    ///
    /// The layers around the response find that in its [`Completion`]; without a bill in the response already, they read its body
    /// themselves again.
    pub fn charge_response(extensions: &mut http::Extensions, used: Usage) {
        if used == Usage::default() {
            return;
        }
        if let Some(bill) = extensions.get::<Self>() {
            // A layer that has read the body holds it too.
            return bill.charge_extra(used);
        }
        stop_leading(extensions);
        let bill = Self::new();
        bill.charge_extra(used);
        extensions.insert(bill);
    }

    /// The caller leaves, and its call goes on without it.
    pub fn outlive(&self) -> Unfinished {
        self.state().unfinished += 1;
        Unfinished(self.clone())
    }

    /// Has `guard` end when the call has ended that goes on without the caller, or at once if it has already. For
    /// [`Guard::outlived`].
    pub fn settle_later(&self, mut guard: Box<dyn Guard + Send>) {
        let mut state = self.state();
        if state.unfinished > 0 {
            state.waiting.push(guard);
            return;
        }
        let total = state.total();
        drop(state);
        guard.end(&total);
    }

    /// Reports the bill to the guards around a future that is being dropped. Without effect at any other time.
    pub fn report(&self) {
        report_bill(self);
    }

    /// Ends a guard of the caller, which has seen as much as `seen`.
    pub(crate) fn end<G: Guard>(&self, armed: &mut Armed<G>, seen: Completion) {
        if armed.has_ended() {
            return;
        }
        let mut state = self.state();
        let is_unfinished = state.unfinished > 0;
        if is_unfinished {
            state.call.get_or_insert_with(|| seen.clone());
        }
        drop(state);
        if is_unfinished {
            armed.outlived(self);
        }
        armed.end(&self.of(seen));
    }

    /// What the caller pays, which has seen as much as `seen`.
    pub(crate) fn of(&self, seen: Completion) -> Completion {
        self.state().of(seen)
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Adds another bill of the same caller.
    pub(crate) fn add(&self, other: &Self) {
        let (call, extra, is_waived) = {
            let other = other.state();
            (other.call.clone(), other.extra, other.is_waived)
        };
        let mut state = self.state();
        let used = if is_waived {
            None
        } else if state.is_waived {
            // Of several calls, the one that the caller pays for decides.
            (state.is_waived, state.call) = (false, call);
            None
        } else {
            call.and_then(|call| call.usage)
        };
        drop(state);
        used.into_iter()
            .chain(extra)
            .for_each(|used| self.charge_extra(used));
    }

    /// How the call failed, if it did.
    fn failure(&self) -> Option<Outcome> {
        let state = self.state();
        let outcome = state.call.as_ref().map(|call| call.outcome);
        outcome.filter(|outcome| *outcome != Outcome::Success)
    }

    fn finish(&self) {
        let mut state = self.state();
        state.unfinished -= 1;
        if state.unfinished > 0 {
            return;
        }
        let (total, waiting) = (state.total(), mem::take(&mut state.waiting));
        drop(state);
        let mut panic = None;
        for mut guard in waiting {
            // One that panics does not keep the others from their end.
            let ended = catch_unwind(AssertUnwindSafe(|| guard.end(&total)));
            panic = panic.or(ended.err());
        }
        if let Some(panic) = panic.filter(|_| !thread::panicking()) {
            resume_unwind(panic);
        }
    }
}

impl State {
    fn of(&self, mut seen: Completion) -> Completion {
        if let Some(call) = &self.call {
            seen.usage = call.usage.or(seen.usage);
            seen.output_seen = call.output_seen.max(seen.output_seen);
            seen.finish = call.finish.or(seen.finish);
            seen.status = seen.status.or(call.status);
            seen.refused_by = seen.refused_by.or(call.refused_by);
            // That its caller has left, or ran out of time, says nothing of a call that failed, or was never sent.
            seen.outcome = match (seen.outcome, call.outcome) {
                (seen, Outcome::Success | Outcome::Abandoned) => seen,
                (Outcome::Abandoned | Outcome::Failed(Failure::Timeout), call) => call,
                (seen, _) => seen,
            };
            if seen.outcome != Outcome::Refused {
                seen.refused_by = None;
            }
        }
        let served = seen.served.unwrap_or(Served::Follower);
        seen.served = self.is_waived.then_some(served);
        seen.extra_usage = self.extra;
        seen
    }

    /// What the caller pays when its calls have ended.
    fn total(&self) -> Completion {
        let call = self.call.clone();
        self.of(call.unwrap_or(Completion::new(Outcome::Abandoned)))
    }
}

impl fmt::Debug for Bill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Bill")
            .field("is_waived", &state.is_waived)
            .field("call", &state.call)
            .field("extra", &state.extra)
            .field("unfinished", &state.unfinished)
            .finish_non_exhaustive()
    }
}

// === impl Unfinished ===

impl Unfinished {
    /// The bill of the caller.
    #[must_use]
    pub fn bill(&self) -> &Bill {
        &self.0
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.0.finish();
    }
}

// === impl Billed ===

impl Billed {
    /// Wraps the `source` that callers get instead of a response, for one of them.
    #[must_use]
    pub const fn new(bill: Bill, source: Arc<BoxError>) -> Self {
        Self { bill, source }
    }

    /// Runs `drop`, which drops the future of a call that ends with `error`, and returns the error. If the drop reports a bill, or
    /// that a call whose time was up was never sent, the error is wrapped so that the layers around find that in it.
    ///
    /// For a layer that gives up a call before it returns an error, such as a timeout. If the future is dropped elsewhere, what
    /// its drop reports is lost.
    pub fn dropping(error: impl Into<BoxError>, drop: impl FnOnce()) -> BoxError {
        let error = error.into();
        let report = while_dropping(drop);
        let is_late = || Completion::of_error(&*error).outcome == Outcome::Failed(Failure::Timeout);
        let bill = match report.bill {
            Some(bill) => bill,
            None if report.is_unsent && is_late() => {
                let bill = Bill::new();
                bill.charge(&Completion::new(Outcome::Refused));
                bill
            }
            None => return error,
        };
        match Self::find(&*error) {
            Some(known) if known.bill.is_same(&bill) => error,
            Some(known) => {
                known.bill.add(&bill);
                error
            }
            None => Self::new(bill, Arc::new(error)).into(),
        }
    }

    /// Returns the one among `error` and its sources, if there is one.
    pub(crate) fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        chain(error).find_map(<dyn Error>::downcast_ref)
    }

    pub(crate) fn bill(&self) -> &Bill {
        &self.bill
    }

    pub(crate) fn outcome(&self) -> Option<Outcome> {
        self.bill.failure()
    }
}

impl fmt::Display for Billed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.source, f)
    }
}

impl Error for Billed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&**self.source)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::*;

    struct Count(Arc<AtomicU32>);

    impl Guard for Count {
        fn end(&mut self, _: &Completion) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    struct Panic;

    impl Guard for Panic {
        fn end(&mut self, _: &Completion) {
            panic!("a bug of a guard");
        }
    }

    #[test]
    fn a_guard_that_panics_does_not_keep_the_others_from_their_end() {
        let (bill, ended) = (Bill::new(), Arc::<AtomicU32>::default());
        let unfinished = bill.outlive();
        bill.settle_later(Box::new(Count(Arc::clone(&ended))));
        bill.settle_later(Box::new(Panic));
        bill.settle_later(Box::new(Count(Arc::clone(&ended))));
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(unfinished)));
        assert!(dropped.is_err());
        assert_eq!(ended.load(Relaxed), 2);
        bill.settle_later(Box::new(Count(Arc::clone(&ended))));
        assert_eq!(ended.load(Relaxed), 3);
    }
}
