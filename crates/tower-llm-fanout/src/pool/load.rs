//! What a target has in flight, and how its calls have ended.
//!
//! A call counts from its dispatch until its response body ends or is dropped. The [`LoadGuard`] that counts it travels with
//! it, so the number cannot drift.

use std::{
    sync::{
        Arc, PoisonError,
        atomic::Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
    time::Duration,
};

use tokio::time::Instant;
use tower_llm_core::{Call, Completion, Guard, Outcome};

use super::{
    ewma::PeakEwma,
    standing::{End, Record, Standing},
};
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, MutexGuard};

/// The load of one target, shared by all that send to it.
#[derive(Debug, Default)]
pub(crate) struct Load {
    in_flight: AtomicUsize,
    /// Those among them without a first content token.
    waiting: AtomicUsize,
    ended: AtomicU64,
    failed: AtomicU64,
    superseded: AtomicU64,
    /// The record is not clean. The records of all targets are looked at for each call, and most are clean.
    is_marred: AtomicBool,
    // A std mutex: it is held for a few operations, and never while other code runs.
    seen: Mutex<Seen>,
}

/// What the calls to a target have shown.
#[derive(Debug, Default)]
struct Seen {
    record: Record,
    /// The time until a whole answer, for calls that are not streamed.
    whole: PeakEwma,
    /// The time until the first content token, for streams.
    first_token: PeakEwma,
}

/// How a target looks to a policy.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(crate) struct Rank(pub(crate) Standing, pub(crate) f64);

/// A call in flight to a target.
#[derive(Debug)]
pub struct LoadGuard {
    load: Arc<Load>,
    began_at: Instant,
    streamed: bool,
    owns_credential: bool,
    has_first_token: bool,
}

// === impl Load ===

impl Load {
    /// A call is dispatched.
    pub(crate) fn dispatch(self: &Arc<Self>, call: Option<&Call>, now: Instant) -> LoadGuard {
        self.in_flight.fetch_add(1, AcqRel);
        self.waiting.fetch_add(1, AcqRel);
        if self.is_marred.load(Acquire) {
            self.seen().record.dispatched(now);
        }
        LoadGuard {
            load: Arc::clone(self),
            began_at: now,
            streamed: call.is_some_and(Call::streamed),
            owns_credential: call.and_then(Call::account).is_some(),
            has_first_token: false,
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Acquire)
    }

    /// The calls that were sent and have ended.
    pub(crate) fn ended(&self) -> u64 {
        self.ended.load(Relaxed)
    }

    /// Those that failed.
    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }

    /// Those that were given up because another branch had the answer.
    pub(crate) fn superseded(&self) -> u64 {
        self.superseded.load(Relaxed)
    }

    /// What the record itself says, whatever the flag does.
    #[cfg(all(test, fanout_loom))]
    pub(crate) fn recorded_standing(&self, now: Instant) -> Standing {
        self.seen().record.standing(now)
    }

    #[cfg(all(test, fanout_loom))]
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Acquire)
    }

    pub(crate) fn standing(&self, now: Instant) -> Standing {
        match self.is_marred.load(Acquire) {
            true => self.seen().record.standing(now),
            false => Standing::Good,
        }
    }

    /// Latency times calls in flight: what another call would wait for.
    ///
    /// Without any latency, one call at a time finds out.
    pub(crate) fn cost(&self, streamed: bool, now: Instant) -> f64 {
        let in_flight = self.in_flight();
        match self.latency(streamed, now) {
            Some(seconds) => seconds * (in_flight + 1) as f64,
            None if in_flight == 0 => 0.0,
            None => f64::MAX,
        }
    }

    /// The latency in seconds of streams, or of other calls; that of the others if it is not known.
    fn latency(&self, streamed: bool, now: Instant) -> Option<f64> {
        let (whole, first_token) = {
            let seen = self.seen();
            (seen.whole, seen.first_token)
        };
        // A target that hangs must not look better with time.
        let is_waited_for = self.waiting.load(Acquire) > 0;
        let read = |latency: PeakEwma| match is_waited_for {
            true => latency.recorded(),
            false => latency.at(now),
        };
        match streamed {
            true => read(first_token).or_else(|| read(whole)),
            false => read(whole).or_else(|| read(first_token)),
        }
    }

    /// The latencies of whole answers, and of first tokens.
    pub(crate) fn latencies(&self) -> [Option<Duration>; 2] {
        let seen = self.seen();
        [seen.whole, seen.first_token]
            .map(|latency| latency.recorded().map(Duration::from_secs_f64))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn latency(&mut self, streamed: bool) -> &mut PeakEwma {
        match streamed {
            true => &mut self.first_token,
            false => &mut self.whole,
        }
    }
}

// === impl LoadGuard ===

impl LoadGuard {
    /// The call is answered, or its answer has begun.
    fn answered(&mut self, at: Instant, seen: &mut Seen) {
        let latency = at.saturating_duration_since(self.began_at);
        seen.latency(self.streamed).record(latency, at);
    }
}

impl Guard for LoadGuard {
    fn first_token(&mut self, at: Instant) {
        if !self.has_first_token {
            self.has_first_token = true;
            self.load.waiting.fetch_sub(1, AcqRel);
            if self.streamed {
                let load = Arc::clone(&self.load);
                self.answered(at, &mut load.seen());
            }
        }
    }

    fn end(&mut self, completion: &Completion) {
        let now = completion.ended_at.unwrap_or_else(Instant::now);
        let end = End::of(completion, self.owns_credential);
        if end != End::Refused {
            self.load.ended.fetch_add(1, Relaxed);
        }
        if completion.outcome == Outcome::Superseded {
            self.load.superseded.fetch_add(1, Relaxed);
        }
        if matches!(end, End::Failure(_)) {
            self.load.failed.fetch_add(1, Relaxed);
        }
        let load = Arc::clone(&self.load);
        let mut seen = load.seen();
        seen.record.ended(end, now);
        let is_marred = !seen.record.is_clean();
        load.is_marred.store(is_marred, Release);
        if self.streamed && self.has_first_token {
            return;
        }
        match completion.outcome {
            Outcome::Success => self.answered(now, &mut seen),
            Outcome::Superseded | Outcome::Abandoned => {
                let ran = now.saturating_duration_since(self.began_at);
                seen.latency(self.streamed).record_at_least(ran, now);
            }
            _ => {}
        }
    }
}

impl Drop for LoadGuard {
    fn drop(&mut self) {
        if !self.has_first_token {
            self.load.waiting.fetch_sub(1, AcqRel);
        }
        self.load.in_flight.fetch_sub(1, AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use tower_llm_core::{Operation, Provider};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn stream() -> Call {
        let call = Call::builder(Provider::OPENAI, Operation::CHAT);
        call.streamed(true).build()
    }

    #[test]
    fn a_stream_waits_until_its_first_token_and_is_in_flight_until_it_ends() {
        let (load, start) = (Arc::new(Load::default()), Instant::now());
        let mut guard = load.dispatch(Some(&stream()), start);
        let counts = || (load.in_flight(), load.waiting.load(Acquire));
        assert_eq!(counts(), (1, 1));
        guard.first_token(start + SECOND);
        assert_eq!(counts(), (1, 0));
        guard.end(&Completion::new(Outcome::Success));
        drop(guard);
        assert_eq!(counts(), (0, 0));
        assert_eq!(load.latencies(), [None, Some(SECOND)]);

        // Dropped before that.
        drop(load.dispatch(Some(&stream()), start));
        assert_eq!(counts(), (0, 0));
    }

    #[test]
    fn a_latency_is_forgotten_unless_a_call_waits() {
        let (load, start) = (Arc::new(Load::default()), Instant::now());
        let mut guard = load.dispatch(Some(&stream()), start);
        guard.first_token(start + SECOND);
        // The stream goes on, and nothing waits.
        let later = start + 11 * SECOND;
        let forgotten = 2.0 / std::f64::consts::E;
        assert!((load.cost(true, later) - forgotten).abs() < 1e-6);
        // What is not known of whole answers is taken from streams.
        assert_eq!(load.cost(false, later), load.cost(true, later));
        let _waiting = load.dispatch(Some(&stream()), later);
        assert!((load.cost(true, later) - 3.0).abs() < 1e-6);
    }

    #[test]
    fn without_a_latency_one_call_at_a_time_is_cheap() {
        let (load, start) = (Arc::new(Load::default()), Instant::now());
        assert_eq!(load.cost(true, start), 0.0);
        let _probe = load.dispatch(None, start);
        assert_eq!(load.cost(true, start), f64::MAX);
    }
}
