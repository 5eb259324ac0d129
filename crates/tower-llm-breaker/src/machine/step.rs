//! One input, and what it changes.

use std::time::Duration;

use tokio::time::Instant;

use super::{Input, Machine, Status, Transition};
use crate::{
    State,
    config::Config,
    events::{EventKind, Reason},
    verdict::Verdict,
    word::{Pass, Word},
};

/// A machine that takes an input at `now`.
pub(super) struct Step<'a> {
    pub(super) machine: &'a mut Machine,
    pub(super) now: Instant,
    pub(super) config: &'a Config,
    pub(super) may_open: &'a mut dyn FnMut() -> bool,
    pub(super) transition: Transition,
}

impl Step<'_> {
    pub(super) fn take(&mut self, input: Input) {
        match input {
            Input::Call => self.transition.admission = Some(self.admit()),
            Input::NotSent(pass) => self.was_not_sent(pass),
            Input::FirstToken(pass) => self.first_token(pass),
            Input::ProbeEnded(pass, verdict) => self.probe_ended(pass, verdict),
            Input::RetryAfter(pass, time) => self.retry_after(pass, time),
            Input::Tripped(pass, reason, time) => self.trip(pass, reason, time),
            Input::Throttled(pass, time) => self.throttled(pass, time),
            Input::Exhausted(pass, reason) => self.exhausted(pass, reason),
            Input::Open(until) => self.open(until, Reason::Manual),
            Input::Restart(state) => {
                self.machine.openings = 0;
                self.machine.closed_at = None;
                self.begin(state, None, Reason::Manual);
            }
            Input::Force(state) => self.begin(state, None, Reason::Manual),
            #[cfg(feature = "redis")]
            Input::Peer(change) => self.follow(change),
        }
    }

    // === a call comes ===

    fn admit(&mut self) -> Result<Pass, Status> {
        self.lapse();
        let (word, now, config) = (self.machine.word, self.now, self.config);
        let pass = Pass::of(word);
        match word.state {
            State::Open | State::Throttled | State::ForcedOpen => {
                Err(Status::of(word, now, config))
            }
            State::HalfOpen => {
                let lease = self.machine.probes.lease(now, config)?;
                Ok(pass.with_lease(lease))
            }
            State::Ramping => self.machine.ramp.admit(word, now, config).map(|()| pass),
            State::Closed | State::Disabled | State::MetricsOnly => Ok(pass),
        }
    }

    fn was_not_sent(&mut self, pass: Pass) {
        self.release(pass);
        if self.machine.word.state == State::Ramping && self.is_current(pass) {
            self.machine.ramp.was_not_sent();
        }
    }

    // === a probe ends ===

    fn first_token(&mut self, pass: Pass) {
        let mut pass = pass;
        if self.is_current(pass) {
            self.release(pass);
            self.probe_succeeded();
            pass = match self.machine.word {
                // It has closed the circuit, and its outcome counts like that of other calls.
                word if word.state.is_counting() => Pass::of(word),
                _ => pass.with_lease(0),
            };
        }
        self.transition.admission = Some(Ok(pass));
    }

    /// The result counts even if the lease has expired, unless the circuit has changed state since.
    fn probe_ended(&mut self, pass: Pass, verdict: Verdict) {
        self.release(pass);
        match verdict {
            _ if !self.is_current(pass) => self.transition.is_stale = true,
            Verdict::Success => self.probe_succeeded(),
            Verdict::Failure { retry_after } => {
                self.transition.has_counted = true;
                self.machine.probes.all_failures += u64::from(pass.is_probe());
                let until = self.next_opening(retry_after);
                self.open(until, Reason::ProbeFailed);
            }
            _ => {}
        }
    }

    fn probe_succeeded(&mut self) {
        self.transition.has_counted = true;
        if self.machine.probes.succeeded(self.config) {
            self.close(Reason::ProbesSucceeded);
        }
    }

    /// A probe gives its lease back.
    fn release(&mut self, pass: Pass) {
        if pass.is_probe() && self.is_current(pass) {
            self.machine.probes.release(pass.lease());
        }
    }

    // === calls fail ===

    /// The circuit opens for at least that time, whichever failure opens it. A time that comes with an earlier call extends an
    /// open circuit: the call is of an earlier generation, but the provider's time has not passed yet.
    fn retry_after(&mut self, pass: Pass, time: Duration) {
        let until = self.now + self.config.capped(time);
        if self.is_current(pass) {
            self.machine.not_before = self.machine.not_before.max(Some(until));
            return;
        }
        self.lapse();
        if self.machine.word.state == State::Open {
            self.extend(until, Reason::FailureRatio);
        }
    }

    fn trip(&mut self, pass: Pass, reason: Reason, retry_after: Option<Duration>) {
        let state = self.machine.word.state;
        if !self.is_current(pass) || !state.is_counting() {
            // Another call has opened the circuit meanwhile.
            return;
        }
        if state == State::MetricsOnly {
            let until = self.now + self.config.open_time(0, retry_after);
            self.would_open(self.not_before(until), reason);
        } else if self.has_room(reason) {
            let until = self.next_opening(retry_after);
            self.open(until, reason);
        }
    }

    /// Whether the other circuits leave room for this one to open; if not, that is reported once.
    fn has_room(&mut self, reason: Reason) -> bool {
        let has_room = (self.may_open)();
        if !has_room && !self.machine.reported_kept_closed {
            self.machine.reported_kept_closed = true;
            self.report(EventKind::KeptClosed { reason });
        }
        has_room
    }

    /// A metrics-only circuit would have opened until `until`. Reported once until then: an open circuit would not have
    /// sent the calls that fail meanwhile.
    fn would_open(&mut self, until: Instant, reason: Reason) {
        let would_be = self.machine.would_open_until;
        if would_be.is_none_or(|would_be| self.now >= would_be) {
            self.machine.would_open_until = Some(until);
            let duration = until.saturating_duration_since(self.now);
            self.report(EventKind::WouldOpen { reason, duration });
        }
    }

    /// Returns until when failures open it: for longer each time, until the circuit has stayed closed.
    fn next_opening(&mut self, retry_after: Option<Duration>) -> Instant {
        self.leave_closed();
        let time = self.config.open_time(self.machine.openings, retry_after);
        self.machine.openings = self.machine.openings.saturating_add(1);
        self.not_before(self.now + time)
    }

    /// `until`, or the latest time that the provider has named.
    fn not_before(&self, until: Instant) -> Instant {
        let named = self.machine.not_before;
        named.map_or(until, |named| named.max(until))
    }

    // === one call is enough ===

    fn throttled(&mut self, pass: Pass, retry_after: Option<Duration>) {
        self.release(pass);
        let named = retry_after.filter(|time| !time.is_zero() && self.config.throttled_opens);
        let Some(time) = named else {
            return self.report(EventKind::Throttled);
        };
        let until = self.now + self.config.jittered(self.config.capped(time));
        if !self.concerns_now(pass, until, Reason::Throttled) {
            return;
        }
        match self.machine.word.state {
            State::Closed | State::Ramping => self.throttle(until, Reason::Throttled),
            State::Throttled => self.extend(until, Reason::Throttled),
            _ => self.open(until, Reason::Throttled),
        }
    }

    fn exhausted(&mut self, pass: Pass, reason: Reason) {
        self.release(pass);
        let until = self.now + self.config.jittered(self.config.advanced.exhausted_for);
        if pass.is_probe() && self.is_current(pass) {
            self.machine.probes.all_failures += 1;
        }
        if self.concerns_now(pass, until, reason) {
            self.open(until, reason);
        }
    }

    /// Whether one call may open the circuit until `until`, or extend its opening. A call of an earlier generation does not
    /// open a circuit that has closed since.
    fn concerns_now(&mut self, pass: Pass, until: Instant, reason: Reason) -> bool {
        self.lapse();
        match self.machine.word.state {
            State::ForcedOpen | State::Disabled => false,
            State::MetricsOnly => {
                self.would_open(until, reason);
                false
            }
            State::Open | State::Throttled => true,
            _ => {
                self.transition.is_stale = !self.is_current(pass);
                !self.transition.is_stale
            }
        }
    }

    // === other processes ===

    /// A change in another process is applied as if it had happened here.
    #[cfg(feature = "redis")]
    fn follow(&mut self, change: super::PeerChange) {
        use super::PeerChange as Peer;
        /// What this process published comes back later, by the time of the round trip.
        const ECHO: Duration = Duration::from_millis(50);

        let word = self.machine.word;
        let left = self.config.clock.left(word.until, self.now);
        let is_longer = |until| until > self.now + left + ECHO;
        match (word.state, change) {
            (state, _) if state.is_forced() => {}
            (State::Open, Peer::Open(until) | Peer::Throttled(until))
            | (State::Throttled, Peer::Throttled(until)) => {
                if is_longer(until) {
                    self.extend(until, Reason::Shared);
                }
            }
            (State::Closed | State::Ramping, Peer::Throttled(until)) => {
                self.throttle(until, Reason::Shared);
            }
            (State::HalfOpen, Peer::Open(until) | Peer::Throttled(until)) => {
                self.begin(State::Open, Some(until), Reason::Shared);
            }
            // A throttled circuit too: after that time, no call would probe a circuit that failed in another process.
            (_, Peer::Open(until) | Peer::Throttled(until)) => {
                if self.has_room(Reason::Shared) {
                    self.open(until, Reason::Shared);
                }
            }
            (State::Open | State::HalfOpen | State::Throttled, Peer::Closed) => {
                self.close(Reason::Shared);
            }
            (_, Peer::Closed) => {}
        }
    }

    // === transitions ===

    fn is_current(&self, pass: Pass) -> bool {
        pass.is_of(self.machine.word)
    }

    /// Ends a state whose time has passed.
    fn lapse(&mut self) {
        let word = self.machine.word_at(self.now, self.config);
        if word.state == State::HalfOpen && word != self.machine.word {
            self.begin(State::HalfOpen, None, Reason::Elapsed);
        } else if word != self.machine.word {
            self.set(word, Reason::Elapsed);
        }
    }

    /// Opens until `until`, or until the end of the current state if that is later.
    fn open(&mut self, until: Instant, reason: Reason) {
        let word = self.machine.word;
        match word.state {
            State::Open => self.extend(until, reason),
            State::Throttled => {
                let named_until = self.now + self.config.clock.left(word.until, self.now);
                self.begin(State::Open, Some(until.max(named_until)), reason);
            }
            _ => self.begin(State::Open, Some(until), reason),
        }
    }

    /// Refuses calls until `until`, then continues as before. Generation and counts are kept: otherwise the failures
    /// between two throttled calls would never open it.
    fn throttle(&mut self, until: Instant, reason: Reason) {
        let word = self.machine.word;
        self.machine.ramp.interrupt(word);
        let until = self.config.clock.until(until);
        self.set(word.changed_to(State::Throttled, until), reason);
    }

    /// The later of two ends wins. The generation is kept, because nothing else changes.
    fn extend(&mut self, until: Instant, reason: Reason) {
        let word = self.machine.word;
        let longer = word.changed_to(word.state, self.config.clock.until(until));
        if longer.until <= word.until {
            return;
        }
        self.machine.word = longer;
        self.report(EventKind::Extended {
            state: word.state,
            reason,
            duration: self.config.clock.left(longer.until, self.now),
        });
    }

    fn close(&mut self, reason: Reason) {
        self.machine.closed_at = Some(self.now);
        match self.config.advanced.ramp {
            Some(ramp) => self.begin(State::Ramping, Some(self.now + ramp), reason),
            None => self.begin(State::Closed, None, reason),
        }
    }

    /// The next opening is as short as the first, if the circuit has stayed closed for that time.
    fn leave_closed(&mut self) {
        let closed_for = |at| self.now.saturating_duration_since(at);
        let closed_at = self.machine.closed_at.take();
        if closed_at.is_some_and(|at| closed_for(at) >= self.config.open_for) {
            self.machine.openings = 0;
        }
    }

    /// Begins a generation.
    fn begin(&mut self, state: State, until: Option<Instant>, reason: Reason) {
        if state == State::Open {
            self.leave_closed();
        }
        let until = until.map_or(0, |until| self.config.clock.until(until));
        self.machine.probes.restart();
        self.machine.ramp.restart();
        self.machine.not_before = None;
        self.machine.reported_kept_closed = false;
        self.machine.would_open_until = None;
        self.set(self.machine.word.next(state, until), reason);
    }

    fn set(&mut self, word: Word, reason: Reason) {
        let from = self.machine.word.state;
        self.machine.word = word;
        self.report(EventKind::Transition {
            from,
            to: word.state,
            reason,
            duration: Status::of(word, self.now, self.config).left,
            generation: word.generation,
        });
    }

    fn report(&mut self, kind: EventKind) {
        self.transition.reports.push(kind);
    }
}
