//! One circuit: which calls it admits, and how their outcomes change it.
//!
//! While a circuit is closed, a call reads one word to be admitted, and its success changes one bucket of a window.
//! Opening, probing and closing happen under a lock, and only its holder writes the word. No user code runs under the lock:
//! events are sent after it is released.

mod held;
mod judged;

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tower_llm_core::{Evictable, Key};

use self::{
    held::{Core, Held},
    judged::{Judged, Run},
};
use crate::{
    CircuitId, State,
    event::{Event, Reason},
    group::Group,
    policy::Policy,
    sync::{AtomicU64, Mutex, MutexGuard, Ordering},
    window::{Entry, Now, Tally, Window},
    word::{GENERATION_BITS, MAX_GENERATION, Phase, Word},
};

#[derive(Debug)]
pub(crate) struct Circuit {
    group: Arc<Group>,
    /// `None` for the circuit that all keys beyond the maximum share; it is always disabled.
    key: Option<Key>,
    /// A packed [`Word`]; written under the lock.
    word: AtomicU64,
    /// `None` for a circuit without windows, which opens at single calls and at credential errors in a row.
    judged: Option<Judged>,
    /// Failures in a row; credential errors in a row if there are no windows.
    run: Run,
    core: Mutex<Core>,
    refused: AtomicU64,
    stale: AtomicU64,
    /// When it last changed or counted something bad, in milliseconds.
    last_event: AtomicU64,
    /// 1 once it is a member of its group; written under the lock.
    is_member: AtomicU64,
}

/// An admitted call: the generation it was admitted in, and in the upper bits a probe's lease.
///
/// Packed into one number, because a call carries one for each of its circuits and is moved often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pass(u32);

const LEASE_BITS: u32 = u32::BITS - GENERATION_BITS;

/// Maximum number of leases; zero means no lease.
pub(crate) const MOST_PROBES: usize = (1 << LEASE_BITS) - 1;

/// Credential errors in a row that open a circuit. A single one may be a replica that does not know a new key yet.
const CREDENTIAL_ERRORS: u32 = 3;

/// A circuit refuses a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shut {
    pub(crate) state: State,
    pub(crate) retry_after: Option<Duration>,
}

/// What the outcome of a call means for one circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Success,
    Failure {
        /// How long the provider asks to wait, if it says.
        retry_after: Option<Duration>,
    },
    Neutral,
    /// The provider's rate limit, with a time to wait if it names one.
    Throttled {
        retry_after: Option<Duration>,
    },
    /// Money or quota is used up for a long time.
    Exhausted,
    /// The provider refused the credential.
    Credential,
}

impl Circuit {
    pub(crate) fn new(group: Arc<Group>, key: Option<Key>) -> Self {
        let policy = &group.policy;
        let judged = group.counts().then(|| Judged::new(policy));
        // The overflow circuit refuses no calls, because they have nothing in common.
        let phase = match &key {
            Some(_) => policy.initial_state,
            None => Phase::Disabled,
        };
        Self {
            word: AtomicU64::new(Word::first(phase).pack()),
            judged,
            run: Run::new(),
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

    /// Admits a call if reading the word is enough for that.
    pub(crate) fn admit_free(&self) -> Option<Pass> {
        let word = self.word();
        word.phase.is_free().then(|| Pass::of(word))
    }

    /// Admits a call, or refuses it.
    pub(crate) fn admit(&self, now: Instant) -> Result<Pass, Shut> {
        let word = self.word();
        if word.phase.is_free() {
            Ok(Pass::of(word))
        } else if self.is_shut(word, now) {
            Err(self.shut(word, now))
        } else {
            self.change(now, |held| held.admit())
        }
    }

    /// Whether it would refuse a call now, without admitting one.
    pub(crate) fn refusal(&self, now: Instant) -> Option<Shut> {
        let word = self.word();
        if self.is_shut(word, now) {
            return Some(self.shut(word, now));
        }
        let is_probed = word.phase == Phase::HalfOpen;
        is_probed
            .then(|| self.core().busy(self.policy(), now))
            .flatten()
    }

    /// Counts a refused call.
    pub(crate) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether it refuses every call.
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

    /// An admitted call is not sent after all.
    pub(crate) fn give_back(&self, pass: Pass, now: Instant) {
        if pass.is_probe() || self.word().phase == Phase::Ramping {
            self.change(now, |held| held.was_not_sent(pass));
        }
    }

    // === a call ends ===

    /// Counts the outcome of a call, and opens or closes the circuit if that is due.
    pub(crate) fn record(&self, pass: Pass, verdict: Verdict, now: &mut Now) {
        match verdict {
            Verdict::Exhausted => self.exhausted(pass, Reason::Exhausted, now),
            Verdict::Credential => self.credential_refused(pass, now),
            Verdict::Throttled {
                retry_after: Some(time),
            } if !time.is_zero() && self.policy().throttled_opens => {
                self.change(now.get(), |held| {
                    held.give_back(pass);
                    held.throttled(pass, time);
                })
            }
            Verdict::Throttled { .. } => {
                self.change(now.get(), |held| held.throttled_for_no_time(pass));
            }
            Verdict::Success => self.succeeded(pass, now),
            _ if pass.is_probe() => self.change(now.get(), |held| held.probed(pass, verdict)),
            Verdict::Neutral => {}
            Verdict::Failure { retry_after } => self.count(pass, Some(retry_after), now),
        }
    }

    fn exhausted(&self, pass: Pass, reason: Reason, now: &mut Now) {
        self.change(now.get(), |held| {
            held.give_back(pass);
            held.exhausted(pass, reason);
        });
    }

    /// Counts a credential error; that of a probe opens the circuit at once.
    fn credential_refused(&self, pass: Pass, now: &mut Now) {
        let is_current = self.is_current(pass);
        if !is_current {
            self.stale.fetch_add(1, Ordering::Relaxed);
        }
        let in_a_row = self.run.count(pass, true, || is_current);
        if pass.is_probe() || is_current && in_a_row >= CREDENTIAL_ERRORS {
            self.exhausted(pass, Reason::Credential, now);
        }
    }

    /// Counts a success, the most common outcome.
    pub(crate) fn succeeded(&self, pass: Pass, now: &mut Now) {
        if pass.is_probe() {
            self.change(now.get(), |held| held.probed(pass, Verdict::Success));
        } else {
            self.count(pass, None, now);
        }
    }

    /// Counts a success, or a failure.
    fn count(&self, pass: Pass, failure: Option<Option<Duration>>, now: &mut Now) {
        let word = self.word();
        if word.generation != pass.generation() {
            self.stale.fetch_add(1, Ordering::Relaxed);
            if let (Phase::Open, Some(Some(time))) = (word.phase, failure) {
                // The call is of an earlier generation, but the provider's time has not passed yet.
                self.change(now.get(), |held| held.wait_at_least_late(time));
            }
            return;
        }
        let (Some(judged), true) = (&self.judged, word.phase.is_judged()) else {
            if self.judged.is_none() && failure.is_none() {
                self.run.count(pass, false, || self.is_current(pass));
            }
            if word.phase == Phase::HalfOpen && failure.is_some() {
                // A probe that counted as a success at its first token has failed after all.
                self.change(now.get(), |held| held.fail(pass));
            }
            return;
        };
        self.enter_group(now);
        let is_bad = failure.is_some();
        if is_bad {
            self.note_event(now.get());
        }
        if let Some(Some(time)) = failure {
            self.change(now.get(), |held| held.wait_at_least(time));
        }
        if let Some(failures) = &judged.failures
            && !self.enter(failures, pass, is_bad, now)
        {
            self.stale.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let in_a_row = match self.policy().failure_threshold {
            Some(_) => self.run.count(pass, is_bad, || self.is_current(pass)),
            None => 0,
        };
        let Some(retry_after) = failure else {
            return;
        };
        if let Some(reason) = self.judge_failures(judged, pass, in_a_row, now) {
            self.change(now.get(), |held| held.trip(pass, reason, retry_after));
        }
    }

    /// A circuit joins its group when it counts its first call, so circuits of invented names do not.
    fn enter_group(&self, now: &mut Now) {
        if !self.is_member() {
            self.change(now.get(), |held| held.enter_group());
        }
    }

    fn is_member(&self) -> bool {
        self.is_member.load(Ordering::Relaxed) == 1
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
        self.enter_group(now);
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

    /// Whether a failure that was just counted opens the circuit. A success never does, because it raises no ratio.
    fn judge_failures(
        &self,
        judged: &Judged,
        pass: Pass,
        in_a_row: u32,
        now: &mut Now,
    ) -> Option<Reason> {
        let policy = self.policy();
        if policy
            .failure_threshold
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

    /// A probe's first token counts as its success. From then on it counts like any other call.
    pub(crate) fn probed_early(&self, pass: Pass, now: &mut Now) -> Pass {
        self.change(now.get(), |held| {
            if !self.is_current(pass) {
                return pass;
            }
            held.probed(pass, Verdict::Success);
            match held.word() {
                // It has closed the circuit, and its outcome counts like that of other calls.
                word if word.phase.is_judged() => Pass::of(word),
                _ => pass.with_lease(0),
            }
        })
    }

    // === manual control ===

    /// Opens for `time`.
    pub(crate) fn trip(&self, time: Duration, now: Instant) {
        self.change(now, |held| held.open(now + time, Reason::Manual));
    }

    /// Returns to the initial state.
    pub(crate) fn reset(&self, now: Instant) {
        self.restart(self.policy().initial_state, now);
    }

    pub(crate) fn close(&self, now: Instant) {
        self.restart(Phase::Closed, now);
    }

    fn restart(&self, phase: Phase, now: Instant) {
        self.change(now, |held| held.restart(phase));
    }

    /// Forces `phase`.
    pub(crate) fn force(&self, phase: Phase, now: Instant) {
        self.change(now, |held| held.go(phase, None, Reason::Manual));
    }

    /// Whether it has a key; the overflow circuit has none.
    pub(crate) fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// Follows what another process reports.
    #[cfg(feature = "redis")]
    pub(crate) fn observe(&self, change: crate::shared::Change, now: Instant) {
        self.change(now, |held| held.observe(change));
    }

    // === statistics ===

    pub(crate) fn status(&self, now: Instant) -> Shut {
        let core = self.core();
        let word = self.word();
        match word.phase {
            Phase::Open | Phase::Paused | Phase::Ramping if !self.is_over(word, now) => {
                self.shut(word, now)
            }
            // Its time is over; the next call changes the state to this.
            Phase::Open => Shut::untimed(State::HalfOpen),
            Phase::Paused => {
                let millis = self.policy().clock.millis(now);
                self.shut(core.after_pause(word, millis), now)
            }
            Phase::Ramping => Shut::untimed(State::Closed),
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

    /// Probes in flight, and how many have succeeded and failed.
    pub(crate) fn probes(&self, now: Instant) -> (usize, u64, u64) {
        self.core().probes(now)
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
        let mut held = Held::new(self, self.core(), now);
        let result = change(&mut held);
        let happened = held.release();
        if !self.has_key() {
            // The overflow circuit has no key to report.
            return result;
        }
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

    /// The lease of a probe; zero for other calls.
    fn lease(self) -> u32 {
        self.0 >> GENERATION_BITS
    }

    pub(crate) fn is_probe(self) -> bool {
        self.lease() != 0
    }
}

impl Shut {
    /// How long it refuses; an unknown time counts as the longest.
    pub(crate) fn lasts(self) -> Duration {
        self.retry_after.unwrap_or(Duration::MAX)
    }

    fn untimed(state: State) -> Self {
        Self {
            state,
            retry_after: None,
        }
    }
}

impl Evictable for Circuit {
    /// A circuit that is closed and has counted nothing bad for a while, or that is open and was not probed for long. A
    /// forced circuit is not evictable: a new one would start in the initial state.
    fn is_evictable(&self) -> bool {
        let policy = self.policy();
        let word = self.word();
        let is_by_hand = word.phase.is_by_hand() || policy.initial_state.is_by_hand();
        if is_by_hand && word.phase != policy.initial_state {
            return false;
        }
        let quiet_after = policy.quiet_after().as_millis() as u64;
        let since = self.last_event.load(Ordering::Relaxed).max(word.until);
        since == 0 || policy.clock.millis(Instant::now()).saturating_sub(since) >= quiet_after
    }
}

impl Drop for Circuit {
    fn drop(&mut self) {
        if self.is_member() {
            self.group.left(self.core().slot());
        }
    }
}

// Loom's types work only inside its models, so these tests replace the others.
#[cfg(all(test, breaker_loom))]
mod loom;
#[cfg(all(test, not(breaker_loom)))]
mod tests;
