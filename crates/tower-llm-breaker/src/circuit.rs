//! One circuit: whether a call may pass, and what its end changes.
//!
//! While a circuit is closed a call reads one word to pass, and its success changes one bucket of a window. Everything
//! else - to open, to probe, to close - is done under a lock, which alone writes the word. Nothing of the user's runs
//! while it is held: events are sent after it.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tower_llm_core::{Forget, Key};

use crate::{
    CircuitId, State,
    event::{Event, EventKind, Reason},
    group::Group,
    policy::Policy,
    sync::{AtomicU64, Mutex, MutexGuard, Ordering},
    window::{Entry, Now, Tally, Window},
    word::{GENERATION_BITS, MAX_GENERATION, Phase, Word},
};

#[derive(Debug)]
pub(crate) struct Circuit {
    group: Arc<Group>,
    /// `None` for the circuit that keys share when there is room for no more: it is disabled for good.
    key: Option<Key>,
    /// A packed [`Word`]; written under the lock.
    word: AtomicU64,
    /// `None` where nothing is counted: the circuit is opened by single calls alone.
    judged: Option<Judged>,
    core: Mutex<Core>,
    refused: AtomicU64,
    stale: AtomicU64,
    /// When it last changed or something bad was counted, in milliseconds.
    last_event: AtomicU64,
    /// One once the group counts it.
    is_member: AtomicU64,
}

/// What the ends of calls are counted in.
#[derive(Debug)]
struct Judged {
    /// `None` where no share of them opens a circuit.
    failures: Option<Window>,
    slow: Option<Window>,
    /// Failures one after the other: the generation, and in the lower half how many.
    run: AtomicU64,
}

/// What only changes together.
#[derive(Debug, Default)]
struct Core {
    /// How often it has opened without staying closed in between.
    openings: u32,
    closed_at: Option<Instant>,
    /// Probes that hold a place.
    leases: Vec<Lease>,
    next_lease: u32,
    successes: u32,
    /// What is due of the next call to be let through while it is ramping: each adds its share.
    due: f64,
    /// Until when the provider has asked to wait with one of the failures that count.
    not_before: Option<Instant>,
    /// Whether it was told that too many others are open.
    kept_closed: bool,
}

#[derive(Debug)]
struct Lease {
    number: u32,
    until: Instant,
}

/// That a call was let through: in which generation, and in the upper bits a probe's lease.
///
/// One number, since a call carries one for each of its circuits wherever it is moved to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pass(u32);

const LEASE_BITS: u32 = u32::BITS - GENERATION_BITS;

/// Most probes that may be told apart. Zero is none.
pub(crate) const MOST_PROBES: usize = (1 << LEASE_BITS) - 1;

/// That a call was not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shut {
    pub(crate) state: State,
    pub(crate) retry_after: Option<Duration>,
}

/// What a call's end says of one circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Success,
    Failure {
        /// How long the provider asks to wait, if it says.
        retry_after: Option<Duration>,
    },
    Neutral,
    /// The provider's clock, if it shows one.
    Throttled {
        retry_after: Option<Duration>,
    },
    /// It will not do for long.
    Exhausted,
}

/// The circuit with its lock held, and what is to be told when it is free.
struct Held<'a> {
    circuit: &'a Circuit,
    core: MutexGuard<'a, Core>,
    happened: Vec<EventKind>,
    /// Whether its group counts it as open already, since it was asked whether it may.
    is_counted: bool,
    now: Instant,
}

impl Circuit {
    pub(crate) fn new(group: Arc<Group>, key: Option<Key>) -> Self {
        let policy = &group.policy;
        let judged = group.counts().then(|| Judged {
            failures: policy.failure_ratio.map(|_| policy.window()),
            slow: policy.slow.map(|_| policy.window()),
            run: AtomicU64::new(0),
        });
        // Calls that share a circuit for want of room have nothing else in common: it keeps none of them out.
        let phase = match &key {
            Some(_) => policy.at_first,
            None => Phase::Disabled,
        };
        Self {
            word: AtomicU64::new(Word::first(phase).pack()),
            judged,
            core: Mutex::new(Core::default()),
            refused: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            last_event: AtomicU64::new(0),
            is_member: AtomicU64::new(0),
            group,
            key,
        }
    }

    pub(crate) fn id(&self) -> CircuitId {
        let key = self.key.clone().unwrap_or_else(|| Key::new(""));
        CircuitId::new(self.group.scope, key)
    }

    fn policy(&self) -> &Policy {
        &self.group.policy
    }

    fn word(&self) -> Word {
        Word::unpack(self.word.load(Ordering::Acquire))
    }

    // === a call comes ===

    /// Lets a call through if that takes no more than a look.
    pub(crate) fn admit_free(&self) -> Option<Pass> {
        let word = self.word();
        word.phase.is_free().then(|| Pass::of(word))
    }

    /// Lets a call through, or does not.
    pub(crate) fn admit(&self, now: Instant) -> Result<Pass, Shut> {
        let word = self.word();
        let admitted = if word.phase.is_free() {
            Ok(Pass::of(word))
        } else if self.is_shut(word, now) {
            Err(self.shut(word, now))
        } else {
            self.change(now, |held| held.admit())
        };
        if admitted.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    /// Whether nobody passes, whoever comes.
    fn is_shut(&self, word: Word, now: Instant) -> bool {
        match word.phase {
            Phase::ForcedOpen => true,
            Phase::Open | Phase::Paused => self.policy().clock.millis(now) < word.until,
            _ => false,
        }
    }

    fn shut(&self, word: Word, now: Instant) -> Shut {
        let is_timed = word.until > 0;
        Shut {
            state: State::of(word.phase),
            retry_after: is_timed.then(|| self.policy().clock.left(word.until, now)),
        }
    }

    // === a call ends ===

    /// Counts what a call's end says, and opens or closes if that is due.
    pub(crate) fn record(&self, pass: Pass, verdict: Verdict, now: &mut Now) {
        match verdict {
            Verdict::Exhausted => self.change(now.get(), |held| {
                held.give_back(pass);
                held.exhausted(pass);
            }),
            Verdict::Throttled {
                retry_after: Some(time),
            } if !time.is_zero() && self.policy().throttled_opens => {
                self.change(now.get(), |held| {
                    held.give_back(pass);
                    held.throttled(pass, time);
                })
            }
            Verdict::Throttled { .. } => self.change(now.get(), |held| {
                held.give_back(pass);
                held.happened.push(EventKind::Throttled);
            }),
            _ if pass.is_probe() => self.change(now.get(), |held| held.probed(pass, verdict)),
            Verdict::Neutral => {}
            Verdict::Success => self.count(pass, None, now),
            Verdict::Failure { retry_after } => self.count(pass, Some(retry_after), now),
        }
    }

    /// Counts a success, or a failure.
    fn count(&self, pass: Pass, failure: Option<Option<Duration>>, now: &mut Now) {
        let word = self.word();
        if word.generation != pass.generation() {
            self.stale.fetch_add(1, Ordering::Relaxed);
            if let (Phase::Open, Some(Some(time))) = (word.phase, failure) {
                // It says nothing of what the circuit is now, but the provider's clock goes on.
                self.change(now.get(), |held| held.told_late(time));
            }
            return;
        }
        let (Some(judged), true) = (&self.judged, word.phase.is_judged()) else {
            if word.phase == Phase::HalfOpen && failure.is_some() {
                // A probe that was taken for a success at its first token, and was none.
                self.change(now.get(), |held| held.fail(pass));
            }
            return;
        };
        self.enter_group();
        let is_bad = failure.is_some();
        if is_bad {
            self.note_event(now.get());
        }
        if let Some(Some(time)) = failure {
            self.change(now.get(), |held| held.told(time));
        }
        if let Some(failures) = &judged.failures
            && !self.enter(failures, pass, is_bad, now)
        {
            self.stale.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let in_a_row = match self.policy().consecutive_failures {
            Some(_) => judged.follow(pass, is_bad, || self.is_current(pass)),
            None => 0,
        };
        let Some(retry_after) = failure else {
            return;
        };
        if let Some(reason) = self.judge_failures(judged, pass, in_a_row, now) {
            self.change(now.get(), |held| held.trip(pass, reason, retry_after));
        }
    }

    /// A circuit is one of its group once something was counted in it: names that somebody invents are not.
    fn enter_group(&self) {
        if self.is_member.load(Ordering::Relaxed) == 0
            && self.is_member.swap(1, Ordering::Relaxed) == 0
        {
            self.group.entered();
        }
    }

    /// Counts whether a call was slow.
    pub(crate) fn record_slow(&self, pass: Pass, is_slow: bool, now: &mut Now) {
        let (Some(judged), Some(slow)) = (&self.judged, self.policy().slow) else {
            return;
        };
        let Some(window) = &judged.slow else {
            return;
        };
        if !self.is_current(pass) || !self.word().phase.is_judged() {
            return;
        }
        if !self.enter(window, pass, is_slow, now) || !is_slow {
            return;
        }
        self.note_event(now.get());
        let tally = window.tally(pass.generation(), now);
        if tally.reaches(slow.ratio, self.policy().minimum_calls) {
            self.change(now.get(), |held| held.trip(pass, Reason::SlowRatio, None));
        }
    }

    fn enter(&self, window: &Window, pass: Pass, bad: bool, now: &mut Now) -> bool {
        let entry = Entry {
            bad,
            generation: pass.generation(),
            is_current: &|| self.is_current(pass),
        };
        window.record(&entry, now)
    }

    fn note_event(&self, now: Instant) {
        let millis = self.policy().clock.millis(now);
        self.last_event.store(millis, Ordering::Relaxed);
    }

    /// Whether a failure that was just counted opens the circuit. A success never does: it makes no share larger.
    fn judge_failures(
        &self,
        judged: &Judged,
        pass: Pass,
        in_a_row: u32,
        now: &mut Now,
    ) -> Option<Reason> {
        let policy = self.policy();
        if policy
            .consecutive_failures
            .is_some_and(|most| in_a_row >= most)
        {
            return Some(Reason::ConsecutiveFailures);
        }
        let ratio = policy.failure_ratio?;
        let tally = judged.failures.as_ref()?.tally(pass.generation(), now);
        tally
            .reaches(ratio, policy.minimum_calls)
            .then_some(Reason::FailureRatio)
    }

    fn is_current(&self, pass: Pass) -> bool {
        self.word().generation == pass.generation()
    }

    /// A probe's first token has come: taken for its success. What comes of it later counts as of any call.
    pub(crate) fn probed_early(&self, pass: Pass, now: &mut Now) -> Pass {
        self.change(now.get(), |held| {
            if !held.circuit.is_current(pass) {
                return pass;
            }
            held.probed(pass, Verdict::Success);
            match held.word() {
                // It has closed the circuit, and is one of the calls that are judged now.
                word if word.phase.is_judged() => Pass::of(word),
                _ => pass.with_lease(0),
            }
        })
    }

    // === by hand ===

    /// Opens for `time`, whatever has happened.
    pub(crate) fn trip(&self, time: Duration, now: Instant) {
        self.change(now, |held| held.open(now + time, Reason::ByHand));
    }

    /// As it was before anything had happened.
    pub(crate) fn reset(&self, now: Instant) {
        self.begin_anew(self.policy().at_first, now);
    }

    pub(crate) fn close(&self, now: Instant) {
        self.begin_anew(Phase::Closed, now);
    }

    fn begin_anew(&self, phase: Phase, now: Instant) {
        self.change(now, |held| {
            held.core.openings = 0;
            held.core.closed_at = None;
            held.go(phase, None, Reason::ByHand);
        });
    }

    /// Goes on in `phase`.
    pub(crate) fn force(&self, phase: Phase, now: Instant) {
        self.change(now, |held| held.go(phase, None, Reason::ByHand));
    }

    /// Whether it is one that somebody can mean by its name.
    pub(crate) fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// What another process says.
    #[cfg(feature = "redis")]
    pub(crate) fn learn(&self, change: crate::shared::Change, now: Instant) {
        self.change(now, |held| held.learn(change));
    }

    // === to look at ===

    pub(crate) fn standing(&self, now: Instant) -> Shut {
        let word = self.word();
        match word.phase {
            Phase::Open | Phase::Paused | Phase::Ramping if !self.is_over(word, now) => {
                self.shut(word, now)
            }
            // Its time is over; the next call makes it what it is taken for.
            Phase::Open => Shut::untimed(State::HalfOpen),
            Phase::Paused | Phase::Ramping => Shut::untimed(State::Closed),
            phase => Shut::untimed(State::of(phase)),
        }
    }

    fn is_over(&self, word: Word, now: Instant) -> bool {
        self.policy().clock.millis(now) >= word.until
    }

    pub(crate) fn failures(&self, now: Instant) -> Tally {
        let window = self
            .judged
            .as_ref()
            .and_then(|judged| judged.failures.as_ref());
        self.tally(window, now)
    }

    pub(crate) fn slow(&self, now: Instant) -> Tally {
        let window = self.judged.as_ref().and_then(|judged| judged.slow.as_ref());
        self.tally(window, now)
    }

    fn tally(&self, window: Option<&Window>, now: Instant) -> Tally {
        let generation = self.word().generation;
        let tally = window.map(|window| window.tally(generation, &mut Now::at(Some(now))));
        tally.unwrap_or_default()
    }

    pub(crate) fn probes(&self, now: Instant) -> usize {
        let core = self.core();
        core.leases.iter().filter(|lease| lease.until > now).count()
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub(crate) fn stale(&self) -> u64 {
        self.stale.load(Ordering::Relaxed)
    }

    // === under the lock ===

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, now: Instant, change: impl FnOnce(&mut Held<'_>) -> T) -> T {
        let mut held = Held {
            circuit: self,
            core: self.core(),
            happened: Vec::new(),
            is_counted: false,
            now,
        };
        let result = change(&mut held);
        let Held { core, happened, .. } = held;
        drop(core);
        for kind in happened {
            let event = Event {
                circuit: self.id(),
                at: now,
                kind,
            };
            self.policy().tell(event);
        }
        result
    }
}

impl Held<'_> {
    fn word(&self) -> Word {
        self.circuit.word()
    }

    fn policy(&self) -> &Policy {
        self.circuit.policy()
    }

    fn admit(&mut self) -> Result<Pass, Shut> {
        let word = self.word();
        if self.circuit.is_shut(word, self.now) {
            return Err(self.circuit.shut(word, self.now));
        }
        match word.phase {
            Phase::Open => {
                self.go(Phase::HalfOpen, None, Reason::TimeOver);
                self.probe()
            }
            Phase::HalfOpen => self.probe(),
            Phase::Paused => {
                self.go(Phase::Closed, None, Reason::TimeOver);
                Ok(Pass::of(self.word()))
            }
            Phase::Ramping if self.circuit.is_over(word, self.now) => {
                // What is counted goes on counting.
                let closed = Word {
                    phase: Phase::Closed,
                    until: 0,
                    ..word
                };
                self.set(closed, Reason::TimeOver);
                Ok(Pass::of(closed))
            }
            Phase::Ramping => self.ramp(word),
            _ => Ok(Pass::of(word)),
        }
    }

    /// Lets a probe through if a place is free.
    fn probe(&mut self) -> Result<Pass, Shut> {
        let now = self.now;
        self.core.leases.retain(|lease| lease.until > now);
        if self.core.leases.len() >= self.policy().probes {
            let next = self.core.leases.iter().map(|lease| lease.until).min();
            return Err(Shut {
                state: State::HalfOpen,
                retry_after: next.map(|until| until - now),
            });
        }
        let number = self.core.free_number();
        let until = now + self.policy().probe_lease;
        self.core.leases.push(Lease { number, until });
        Ok(Pass::of(self.word()).with_lease(number))
    }

    /// Lets so many through that their share of all grows with the time, from a tenth to all.
    fn ramp(&mut self, word: Word) -> Result<Pass, Shut> {
        let length = self.policy().ramp.unwrap_or_default().as_secs_f64();
        let left = self.policy().clock.left(word.until, self.now);
        let share = (1.0 - left.as_secs_f64() / length).max(0.1);
        let due = &mut self.core.due;
        *due += share;
        if *due < 1.0 {
            return Err(Shut::untimed(State::Ramping));
        }
        *due -= 1.0;
        Ok(Pass::of(word))
    }

    /// A place that a probe has is free again.
    fn give_back(&mut self, pass: Pass) {
        if pass.is_probe() && self.circuit.is_current(pass) {
            self.core
                .leases
                .retain(|lease| lease.number != pass.lease());
        }
    }

    /// A probe has ended. One whose lease had run out still tells the truth, if nothing else was decided meanwhile.
    fn probed(&mut self, pass: Pass, verdict: Verdict) {
        self.give_back(pass);
        if !self.circuit.is_current(pass) {
            self.circuit.stale.fetch_add(1, Ordering::Relaxed);
            return;
        }
        match verdict {
            Verdict::Success => {
                self.core.successes += 1;
                if self.core.successes >= self.policy().successes_to_close {
                    self.close(Reason::ProbesSucceeded);
                }
            }
            Verdict::Failure { retry_after } => self.reopen(retry_after),
            _ => {}
        }
    }

    /// A call has failed that had counted as a probe's success, and the circuit is still being probed.
    fn fail(&mut self, pass: Pass) {
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
    fn trip(&mut self, pass: Pass, reason: Reason, retry_after: Option<Duration>) {
        let word = self.word();
        if word.generation != pass.generation() || !word.phase.is_judged() {
            // Somebody else was faster.
            return;
        }
        if word.phase == Phase::MetricsOnly {
            self.happened.push(EventKind::WouldOpen { reason });
            self.publish(word.next(Phase::MetricsOnly, 0));
            return;
        }
        if !self.circuit.group.may_open() {
            if !self.core.kept_closed {
                self.core.kept_closed = true;
                self.happened.push(EventKind::KeptClosed { reason });
            }
            return;
        }
        self.is_counted = true;
        let until = self.next_opening(retry_after);
        self.open(until, reason);
    }

    /// Until when it opens now, if it was opened by failures: longer each time, until it has stayed closed.
    fn next_opening(&mut self, retry_after: Option<Duration>) -> Instant {
        self.leave_closed();
        let time = self.policy().open_time(self.core.openings, retry_after);
        self.core.openings = self.core.openings.saturating_add(1);
        let until = self.now + time;
        self.core.not_before.map_or(until, |at| until.max(at))
    }

    /// The provider has asked to wait, with a failure: it is not open for less, whichever failure opens it.
    fn told(&mut self, time: Duration) {
        let until = self.now + self.policy().told(time);
        self.core.not_before = self.core.not_before.max(Some(until));
    }

    /// The same of a call that was let through earlier, while it is open.
    fn told_late(&mut self, time: Duration) {
        self.lapse();
        if self.word().phase == Phase::Open {
            let until = self.now + self.policy().told(time);
            self.prolong(until, Reason::FailureRatio);
        }
    }

    /// What has ended by itself, though no call has come since, is over.
    fn lapse(&mut self) {
        let word = self.word();
        if self.circuit.is_over(word, self.now) {
            match word.phase {
                Phase::Open => self.go(Phase::HalfOpen, None, Reason::TimeOver),
                Phase::Paused => self.go(Phase::Closed, None, Reason::TimeOver),
                _ => {}
            }
        }
    }

    /// It is open for as long as the first time again, if it has stayed closed for that long.
    fn leave_closed(&mut self) {
        let (now, open_for) = (self.now, self.policy().open_for);
        let closed_at = self.core.closed_at.take();
        if closed_at.is_some_and(|at| now.saturating_duration_since(at) >= open_for) {
            self.core.openings = 0;
        }
    }

    fn exhausted(&mut self, pass: Pass) {
        let policy = self.policy();
        let until = self.now + policy.jittered(policy.exhausted_for);
        if self.is_about_now(pass, Reason::Exhausted) {
            self.open(until, Reason::Exhausted);
        }
    }

    fn throttled(&mut self, pass: Pass, time: Duration) {
        let policy = self.policy();
        let until = self.now + policy.jittered(policy.told(time));
        if !self.is_about_now(pass, Reason::Throttled) {
            return;
        }
        match self.word().phase {
            Phase::Closed | Phase::Ramping => {
                self.go(Phase::Paused, Some(until), Reason::Throttled);
            }
            Phase::Paused => self.prolong(until, Reason::Throttled),
            _ => self.open(until, Reason::Throttled),
        }
    }

    /// Whether what one call says opens the circuit, or may prolong it: a call that was let through earlier opens nothing
    /// that has closed since.
    fn is_about_now(&mut self, pass: Pass, reason: Reason) -> bool {
        self.lapse();
        match self.word().phase {
            Phase::ForcedOpen | Phase::Disabled => false,
            Phase::MetricsOnly => {
                self.happened.push(EventKind::WouldOpen { reason });
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

    /// Opens until `until`, or for as long as it lets nobody through already if that is later.
    fn open(&mut self, until: Instant, reason: Reason) {
        let word = self.word();
        match word.phase {
            Phase::Open => self.prolong(until, reason),
            Phase::Paused => {
                let paused_until = self.now + self.policy().clock.left(word.until, self.now);
                self.go(Phase::Open, Some(until.max(paused_until)), reason);
            }
            _ => self.go(Phase::Open, Some(until), reason),
        }
    }

    /// The later of two ends wins. The generation stays: nothing else has changed.
    fn prolong(&mut self, until: Instant, reason: Reason) {
        let word = self.word();
        let longer = word.lasting_until(self.policy().clock.until(until));
        if longer.until <= word.until {
            return;
        }
        self.publish(longer);
        self.happened.push(EventKind::Prolonged {
            state: State::of(word.phase),
            reason,
            lasts: self.policy().clock.left(longer.until, self.now),
        });
    }

    /// What another process says counts as if it had happened here.
    #[cfg(feature = "redis")]
    fn learn(&mut self, change: crate::shared::Change) {
        use crate::shared::Change;
        /// What was told from here comes back with what it took on its way.
        const ECHO: Duration = Duration::from_millis(50);

        let word = self.word();
        let until = match change {
            Change::Open { until } | Change::Throttled { until } => Some(until),
            Change::Closed => None,
        };
        match (word.phase, change, until) {
            (phase, _, _) if phase.is_by_hand() => {}
            (Phase::Open | Phase::Paused, _, Some(until)) => {
                if until > self.now + self.policy().clock.left(word.until, self.now) + ECHO {
                    self.prolong(until, Reason::Shared);
                }
            }
            (Phase::Closed | Phase::Ramping, Change::Throttled { .. }, _) => {
                self.go(Phase::Paused, until, Reason::Shared);
            }
            (_, _, Some(_)) => self.go(Phase::Open, until, Reason::Shared),
            (Phase::Open | Phase::HalfOpen | Phase::Paused, _, None) => self.close(Reason::Shared),
            (_, _, None) => {}
        }
    }

    /// Begins a generation.
    fn go(&mut self, phase: Phase, until: Option<Instant>, reason: Reason) {
        if phase == Phase::Open {
            self.leave_closed();
        }
        let until = until.map_or(0, |until| self.policy().clock.until(until));
        let word = self.word().next(phase, until);
        self.core.leases.clear();
        self.core.successes = 0;
        // The first is let through.
        self.core.due = 1.0;
        self.core.not_before = None;
        self.core.kept_closed = false;
        if let Some(judged) = &self.circuit.judged {
            judged.clear();
        }
        self.set(word, reason);
    }

    fn set(&mut self, word: Word, reason: Reason) {
        let from = self.word().phase;
        match (from.is_ejected(), word.phase.is_ejected()) {
            (false, true) if self.is_counted => {}
            (false, true) => self.circuit.group.opened(),
            (true, false) => self.circuit.group.closed(),
            _ => {}
        }
        self.publish(word);
        self.circuit.note_event(self.now);
        let lasts = self.circuit.shut(word, self.now).retry_after;
        self.happened.push(EventKind::Transition {
            from: State::of(from),
            to: State::of(word.phase),
            reason,
            lasts,
            generation: word.generation,
        });
    }

    fn publish(&self, word: Word) {
        self.circuit.word.store(word.pack(), Ordering::Release);
    }
}

impl Core {
    /// A number that no probe has now, and none had lately.
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

impl Judged {
    /// Notes a success or a failure, and says how many failures came one after the other.
    fn follow(&self, pass: Pass, is_bad: bool, is_current: impl Fn() -> bool) -> u32 {
        let mut seen = self.run.load(Ordering::Acquire);
        loop {
            let is_of = seen >> 32 == u64::from(pass.generation());
            if !is_of && !is_current() {
                // The run of a later generation is not for this one to break.
                return 0;
            }
            let before = if is_of { seen as u32 } else { 0 };
            let in_a_row = if is_bad { before.saturating_add(1) } else { 0 };
            if is_of && in_a_row == before {
                return in_a_row;
            }
            let next = u64::from(pass.generation()) << 32 | u64::from(in_a_row);
            let noted =
                self.run
                    .compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Acquire);
            match noted {
                Ok(_) => return in_a_row,
                Err(now) => seen = now,
            }
        }
    }

    fn clear(&self) {
        for window in self.failures.iter().chain(&self.slow) {
            window.clear();
        }
    }
}

impl Pass {
    fn of(word: Word) -> Self {
        Self(word.generation)
    }

    fn with_lease(self, number: u32) -> Self {
        Self(self.generation() | number << GENERATION_BITS)
    }

    fn generation(self) -> u32 {
        self.0 & MAX_GENERATION
    }

    /// Of a probe; zero for other calls.
    fn lease(self) -> u32 {
        self.0 >> GENERATION_BITS
    }

    pub(crate) fn is_probe(self) -> bool {
        self.lease() != 0
    }
}

impl Shut {
    fn untimed(state: State) -> Self {
        Self {
            state,
            retry_after: None,
        }
    }
}

impl Forget for Circuit {
    /// Closed, and nothing bad has happened for a while; or open, and long since nobody has come to probe it.
    fn may_forget(&self) -> bool {
        let policy = self.policy();
        let word = self.word();
        if word.phase.is_by_hand() && word.phase != policy.at_first {
            return false;
        }
        let quiet_after = policy.quiet_after().as_millis() as u64;
        let since = self.last_event.load(Ordering::Relaxed).max(word.until);
        since == 0 || policy.clock.millis(Instant::now()).saturating_sub(since) >= quiet_after
    }
}

impl Drop for Circuit {
    fn drop(&mut self) {
        let was_member = self.is_member.load(Ordering::Relaxed) == 1;
        self.group.left(was_member, self.word().phase.is_ejected());
    }
}

// Loom's types work inside its models only, so that it is one or the other.
#[cfg(all(test, breaker_loom))]
mod loom;
#[cfg(all(test, not(breaker_loom)))]
mod tests;
