//! What changes under a circuit's lock: its phase, its probes, its ramp.

use std::time::Duration;

use tokio::time::Instant;

use super::{Circuit, MOST_PROBES, Pass, Shut, Verdict};
use crate::{
    State,
    event::{EventKind, Reason},
    group::OpenSlot,
    policy::Policy,
    sync::{MutexGuard, Ordering},
    word::{Phase, Word},
};

/// State that changes together.
#[derive(Debug, Default)]
pub(super) struct Core {
    /// How often it has opened without staying closed in between.
    openings: u32,
    closed_at: Option<Instant>,
    /// Probes in flight.
    leases: Vec<Lease>,
    next_lease: u32,
    /// Probes that have succeeded since it became half-open.
    successes: u32,
    /// Probes that have succeeded and failed since the circuit was created.
    probe_successes: u64,
    probe_failures: u64,
    /// The part of a call that is due while ramping: each call adds the current ratio.
    due: f64,
    /// The latest time that the provider named with one of the failures that count.
    not_before: Option<Instant>,
    /// Whether it was reported that too many others are open.
    kept_closed: bool,
    /// In metrics-only mode: when it would be half-open again.
    would_open_until: Option<Instant>,
    /// The end of the ramp that a pause has interrupted.
    ramp_until: Option<u64>,
    /// Set while its group counts it as open.
    slot: Option<OpenSlot>,
}

#[derive(Debug)]
struct Lease {
    number: u32,
    until: Instant,
}

/// A circuit with its lock held, and the events to send when it is released.
pub(super) struct Held<'a> {
    circuit: &'a Circuit,
    core: MutexGuard<'a, Core>,
    happened: Vec<EventKind>,
    now: Instant,
}

impl<'a> Held<'a> {
    pub(super) fn new(circuit: &'a Circuit, core: MutexGuard<'a, Core>, now: Instant) -> Self {
        Self {
            circuit,
            core,
            happened: Vec::new(),
            now,
        }
    }

    /// Releases the lock, and returns what happened.
    pub(super) fn release(self) -> Vec<EventKind> {
        self.happened
    }

    pub(super) fn word(&self) -> Word {
        self.circuit.word()
    }

    fn policy(&self) -> &Policy {
        self.circuit.policy()
    }

    pub(super) fn admit(&mut self) -> Result<Pass, Shut> {
        self.lapse();
        let word = self.word();
        if self.circuit.is_shut(word, self.now) {
            return Err(self.circuit.shut(word, self.now));
        }
        match word.phase {
            Phase::HalfOpen => self.probe(),
            Phase::Ramping if self.circuit.is_over(word, self.now) => {
                // Counts are kept.
                let closed = Word {
                    phase: Phase::Closed,
                    until: 0,
                    ..word
                };
                self.set(closed, Reason::Elapsed);
                Ok(Pass::of(closed))
            }
            Phase::Ramping => self.ramp(word),
            _ => Ok(Pass::of(word)),
        }
    }

    /// Admits a probe if there is a lease for it.
    fn probe(&mut self) -> Result<Pass, Shut> {
        let now = self.now;
        self.core.leases.retain(|lease| lease.until > now);
        if let Some(busy) = self.core.busy(&self.circuit.group.policy, now) {
            return Err(busy);
        }
        let number = self.core.free_number();
        let until = now + self.policy().probe_lease;
        self.core.leases.push(Lease { number, until });
        self.update_slot();
        Ok(Pass::of(self.word()).with_lease(number))
    }

    /// Admits a growing ratio of the calls, from a tenth to all.
    fn ramp(&mut self, word: Word) -> Result<Pass, Shut> {
        /// A call that is refused on the ramp has a good chance a second later.
        const RETRY_AFTER: Duration = Duration::from_secs(1);

        let length = self.policy().ramp.unwrap_or_default().as_secs_f64();
        let left = self.policy().clock.left(word.until, self.now);
        let ratio = (1.0 - left.as_secs_f64() / length).max(0.1);
        let due = &mut self.core.due;
        *due += ratio;
        if *due < 1.0 {
            return Err(Shut {
                state: State::Ramping,
                retry_after: Some(left.min(RETRY_AFTER)),
            });
        }
        *due -= 1.0;
        Ok(Pass::of(word))
    }

    /// An admitted call is not sent: its lease is free again, or the ramp admits another call instead.
    pub(super) fn was_not_sent(&mut self, pass: Pass) {
        /// Calls that another circuit refuses are added too, and must not accumulate to a burst.
        const MOST_DUE: f64 = 2.0;

        self.give_back(pass);
        if self.word().phase == Phase::Ramping && self.circuit.is_current(pass) {
            self.core.due = (self.core.due + 1.0).min(MOST_DUE);
        }
    }

    /// The provider throttled a call without naming a time.
    pub(super) fn throttled_for_no_time(&mut self, pass: Pass) {
        self.give_back(pass);
        self.happened.push(EventKind::Throttled);
    }

    /// Restarts in `phase` with empty counts.
    pub(super) fn restart(&mut self, phase: Phase) {
        self.core.openings = 0;
        self.core.closed_at = None;
        self.go(phase, None, Reason::Manual);
    }

    /// A probe gives its lease back.
    pub(super) fn give_back(&mut self, pass: Pass) {
        if pass.is_probe() && self.circuit.is_current(pass) {
            self.core
                .leases
                .retain(|lease| lease.number != pass.lease());
        }
    }

    /// A probe has ended. Its result counts even if its lease has expired, unless the circuit has changed state since.
    pub(super) fn probed(&mut self, pass: Pass, verdict: Verdict) {
        self.give_back(pass);
        if !self.circuit.is_current(pass) {
            self.circuit.stale.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if matches!(verdict, Verdict::Success | Verdict::Failure { .. }) {
            self.enter_group();
        }
        match verdict {
            Verdict::Success => {
                self.core.successes += 1;
                self.core.probe_successes += 1;
                if self.core.successes >= self.policy().success_threshold {
                    self.close(Reason::ProbesSucceeded);
                }
            }
            Verdict::Failure { retry_after } => {
                self.core.probe_failures += 1;
                self.reopen(retry_after);
            }
            _ => {}
        }
    }

    /// A call that had counted as a successful probe has failed, and the circuit is still half-open.
    pub(super) fn fail(&mut self, pass: Pass) {
        if self.circuit.is_current(pass) {
            self.reopen(None);
        }
    }

    fn reopen(&mut self, retry_after: Option<Duration>) {
        let until = self.next_opening(retry_after);
        self.open(until, Reason::ProbeFailed);
    }

    fn close(&mut self, reason: Reason) {
        self.core.closed_at = Some(self.now);
        match self.policy().ramp {
            Some(ramp) => {
                let until = self.now + ramp;
                self.go(Phase::Ramping, Some(until), reason);
            }
            None => self.go(Phase::Closed, None, reason),
        }
    }

    /// The calls of `pass`'s generation have failed too often.
    pub(super) fn trip(&mut self, pass: Pass, reason: Reason, retry_after: Option<Duration>) {
        let word = self.word();
        if word.generation != pass.generation() || !word.phase.is_judged() {
            // Another call has opened the circuit meanwhile.
            return;
        }
        if word.phase == Phase::MetricsOnly {
            let until = self.now + self.policy().open_time(0, retry_after);
            self.would_open(
                self.core.not_before.map_or(until, |at| until.max(at)),
                reason,
            );
            return;
        }
        if !self.may_open(reason) {
            return;
        }
        let until = self.next_opening(retry_after);
        self.open(until, reason);
    }

    /// A metrics-only circuit would have opened until `until`. Reported once until then: an open circuit would not have
    /// sent the calls that fail meanwhile.
    fn would_open(&mut self, until: Instant, reason: Reason) {
        if self
            .core
            .would_open_until
            .is_none_or(|open| self.now >= open)
        {
            self.core.would_open_until = Some(until);
            let duration = until.saturating_duration_since(self.now);
            self.happened
                .push(EventKind::WouldOpen { reason, duration });
        }
    }

    /// Whether its group allows one more open circuit; if not, that is reported once.
    fn may_open(&mut self, reason: Reason) -> bool {
        self.core.slot = self.circuit.group.may_open(self.now);
        let may_open = self.core.slot.is_some();
        if !may_open && !self.core.kept_closed {
            self.core.kept_closed = true;
            self.happened.push(EventKind::KeptClosed { reason });
        }
        may_open
    }

    /// A call is counted, maybe the first one: the circuit is a member of its group from now on.
    pub(super) fn enter_group(&mut self) {
        if !self.circuit.is_member() {
            self.circuit.is_member.store(1, Ordering::Relaxed);
            self.circuit.group.entered();
            self.update_slot();
        }
    }

    /// Reports to its group whether it is open.
    fn update_slot(&mut self) {
        if !self.circuit.is_member() {
            return;
        }
        let (word, group) = (self.word(), &self.circuit.group);
        let had = self.core.slot.take();
        if word.phase.is_ejected() {
            let now = self.policy().clock.millis(self.now);
            self.core.slot = Some(group.is_open(had, word.until.max(now)));
        } else {
            group.is_closed(had);
        }
    }

    /// Returns until when failures open it: for longer each time, until the circuit has stayed closed.
    fn next_opening(&mut self, retry_after: Option<Duration>) -> Instant {
        self.leave_closed();
        let time = self.policy().open_time(self.core.openings, retry_after);
        self.core.openings = self.core.openings.saturating_add(1);
        let until = self.now + time;
        self.core.not_before.map_or(until, |at| until.max(at))
    }

    /// The provider named a time to wait with a failure: the circuit opens for at least that time, whichever failure opens
    /// it.
    pub(super) fn wait_at_least(&mut self, time: Duration) {
        let until = self.now + self.policy().capped(time);
        self.core.not_before = self.core.not_before.max(Some(until));
    }

    /// The same for a call of an earlier generation, while the circuit is open.
    pub(super) fn wait_at_least_late(&mut self, time: Duration) {
        self.lapse();
        if self.word().phase == Phase::Open {
            let until = self.now + self.policy().capped(time);
            self.extend(until, Reason::FailureRatio);
        }
    }

    /// Ends a state whose time has passed.
    fn lapse(&mut self) {
        let word = self.word();
        if self.circuit.is_over(word, self.now) {
            match word.phase {
                Phase::Open => self.go(Phase::HalfOpen, None, Reason::Elapsed),
                Phase::Paused => {
                    let now = self.policy().clock.millis(self.now);
                    let resumed = self.core.after_pause(word, now);
                    self.set(resumed, Reason::Elapsed);
                }
                _ => {}
            }
        }
    }

    /// The next opening is as short as the first, if the circuit has stayed closed for that time.
    fn leave_closed(&mut self) {
        let (now, open_for) = (self.now, self.policy().open_for);
        let closed_at = self.core.closed_at.take();
        if closed_at.is_some_and(|at| now.saturating_duration_since(at) >= open_for) {
            self.core.openings = 0;
        }
    }

    pub(super) fn exhausted(&mut self, pass: Pass, reason: Reason) {
        let policy = self.policy();
        let until = self.now + policy.jittered(policy.exhausted_for);
        if pass.is_probe() && self.circuit.is_current(pass) {
            self.core.probe_failures += 1;
        }
        if self.is_about_now(pass, until, reason) {
            self.open(until, reason);
        }
    }

    pub(super) fn throttled(&mut self, pass: Pass, time: Duration) {
        let policy = self.policy();
        let until = self.now + policy.jittered(policy.capped(time));
        if !self.is_about_now(pass, until, Reason::Throttled) {
            return;
        }
        match self.word().phase {
            Phase::Closed | Phase::Ramping => self.pause(until, Reason::Throttled),
            Phase::Paused => self.extend(until, Reason::Throttled),
            _ => self.open(until, Reason::Throttled),
        }
    }

    /// Refuses calls until `until`, then continues as before. Generation and counts are kept: otherwise the failures
    /// between two throttled calls would never open it.
    fn pause(&mut self, until: Instant, reason: Reason) {
        let word = self.word();
        self.core.ramp_until = (word.phase == Phase::Ramping).then_some(word.until);
        let until = self.policy().clock.until(until);
        let paused = Word {
            phase: Phase::Paused,
            ..word.lasting_until(until)
        };
        self.set(paused, reason);
    }

    /// Whether one call may open the circuit until `until`, or extend its opening. A call of an earlier generation does not
    /// open a circuit that has closed since.
    fn is_about_now(&mut self, pass: Pass, until: Instant, reason: Reason) -> bool {
        self.lapse();
        match self.word().phase {
            Phase::ForcedOpen | Phase::Disabled => false,
            Phase::MetricsOnly => {
                self.would_open(until, reason);
                false
            }
            Phase::Open | Phase::Paused => true,
            _ if self.circuit.is_current(pass) => true,
            _ => {
                self.circuit.stale.fetch_add(1, Ordering::Relaxed);
                false
            }
        }
    }

    /// Opens until `until`, or until the end of the current state if that is later.
    pub(super) fn open(&mut self, until: Instant, reason: Reason) {
        let word = self.word();
        match word.phase {
            Phase::Open => self.extend(until, reason),
            Phase::Paused => {
                let paused_until = self.now + self.policy().clock.left(word.until, self.now);
                self.go(Phase::Open, Some(until.max(paused_until)), reason);
            }
            _ => self.go(Phase::Open, Some(until), reason),
        }
    }

    /// The later of two ends wins. The generation is kept, because nothing else changes.
    fn extend(&mut self, until: Instant, reason: Reason) {
        let word = self.word();
        let longer = word.lasting_until(self.policy().clock.until(until));
        if longer.until <= word.until {
            return;
        }
        self.publish(longer);
        self.update_slot();
        self.happened.push(EventKind::Extended {
            state: State::of(word.phase),
            reason,
            duration: self.policy().clock.left(longer.until, self.now),
        });
    }

    /// A change that another process reports is applied as if it had happened here.
    #[cfg(feature = "redis")]
    pub(super) fn observe(&mut self, change: crate::shared::Change) {
        use crate::shared::Change;
        /// What this process published comes back later, by the time of the round trip.
        const ECHO: Duration = Duration::from_millis(50);

        let word = self.word();
        let until = match change {
            Change::Open { until } | Change::Throttled { until } => Some(until),
            Change::Closed => None,
        };
        match (word.phase, change, until) {
            (phase, _, _) if phase.is_by_hand() => {}
            (Phase::Open, _, Some(until)) | (Phase::Paused, Change::Throttled { until }, _) => {
                if until > self.now + self.policy().clock.left(word.until, self.now) + ECHO {
                    self.extend(until, Reason::Shared);
                }
            }
            (Phase::Closed | Phase::Ramping, Change::Throttled { until }, _) => {
                self.pause(until, Reason::Shared);
            }
            (Phase::HalfOpen, _, Some(_)) => self.go(Phase::Open, until, Reason::Shared),
            // A pause too: after it, no call would probe a circuit that failed in another process.
            (_, _, Some(until)) => {
                if self.may_follow() {
                    self.open(until, Reason::Shared);
                }
            }
            (Phase::Open | Phase::HalfOpen | Phase::Paused, _, None) => self.close(Reason::Shared),
            (_, _, None) => {}
        }
    }

    /// Whether a circuit that another process has opened opens here too. Each process keeps other circuits closed; if all
    /// followed all peers, every circuit would open.
    #[cfg(feature = "redis")]
    fn may_follow(&mut self) -> bool {
        if !self.circuit.group.counts() {
            // Failures open no circuit of this kind.
            return true;
        }
        // The circuit is in use, though maybe not in this process.
        self.enter_group();
        self.may_open(Reason::Shared)
    }

    /// Begins a generation.
    pub(super) fn go(&mut self, phase: Phase, until: Option<Instant>, reason: Reason) {
        if phase == Phase::Open {
            self.leave_closed();
        }
        let until = until.map_or(0, |until| self.policy().clock.until(until));
        let word = self.word().next(phase, until);
        self.core.leases.clear();
        self.core.successes = 0;
        // The ramp admits its first call.
        self.core.due = 1.0;
        self.core.not_before = None;
        self.core.kept_closed = false;
        self.core.would_open_until = None;
        if let Some(judged) = &self.circuit.judged {
            judged.clear();
        }
        self.set(word, reason);
    }

    fn set(&mut self, word: Word, reason: Reason) {
        let from = self.word().phase;
        self.publish(word);
        self.update_slot();
        self.circuit.note_event(self.now);
        let duration = self.circuit.shut(word, self.now).retry_after;
        self.happened.push(EventKind::Transition {
            from: State::of(from),
            to: State::of(word.phase),
            reason,
            duration,
            generation: word.generation,
        });
    }

    fn publish(&self, word: Word) {
        self.circuit.word.store(word.pack(), Ordering::Release);
    }
}

impl Core {
    /// Probes in flight, and how many have succeeded and failed.
    pub(super) fn probes(&self, now: Instant) -> (usize, u64, u64) {
        let in_flight = self.leased(now).count();
        (in_flight, self.probe_successes, self.probe_failures)
    }

    /// Why no further probe is admitted, if all leases are in use.
    ///
    /// Reports a shorter wait than the lease: most probes end much sooner.
    pub(super) fn busy(&self, policy: &Policy, now: Instant) -> Option<Shut> {
        if self.leased(now).count() < policy.probes {
            return None;
        }
        let first = self.leased(now).map(|lease| lease.until - now).min();
        Some(Shut {
            state: State::HalfOpen,
            retry_after: first.map(|left| left.min(policy.probe_wait())),
        })
    }

    fn leased(&self, now: Instant) -> impl Iterator<Item = &Lease> {
        self.leases.iter().filter(move |lease| lease.until > now)
    }

    /// The state after a pause: the ramp that it interrupted, or closed if that has ended too.
    pub(super) fn after_pause(&self, paused: Word, now: u64) -> Word {
        let (phase, until) = match self.ramp_until {
            Some(until) if now < until => (Phase::Ramping, until),
            _ => (Phase::Closed, 0),
        };
        Word {
            phase,
            until,
            ..paused
        }
    }

    pub(super) fn slot(&self) -> Option<OpenSlot> {
        self.slot
    }

    #[cfg(all(test, breaker_loom))]
    pub(super) fn openings(&self) -> u32 {
        self.openings
    }

    /// A lease number that is free and was not used lately.
    fn free_number(&mut self) -> u32 {
        loop {
            self.next_lease = self.next_lease % MOST_PROBES as u32 + 1;
            let number = self.next_lease;
            if self.leases.iter().all(|lease| lease.number != number) {
                return number;
            }
        }
    }
}
