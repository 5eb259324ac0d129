//! One circuit: a word, a lock, and windows around the state machine.
//!
//! While a circuit is closed, a call reads one word to be admitted, and its success changes at most one bucket of a window.
//! Everything else is an [`Input`] of the machine, under the lock, and only its holder writes the word. No user code runs
//! under the lock: events are sent after it is released.

mod ends;

use std::sync::Arc;

use tokio::time::Instant;
use tower_llm_core::{Evictable, Key};

use crate::{
    CircuitId, CircuitStats, Scope, State,
    clock::Now,
    config::Config,
    ejection::Membership,
    events::Event,
    group::Group,
    machine::{Input, Machine, Status},
    sync::{AtomicU64, Mutex, Ordering, lock},
    window::Window,
    word::{AtomicWord, Pass},
};

#[derive(Debug)]
pub(crate) struct Circuit {
    group: Arc<Group>,
    /// `None` for the circuit that all keys beyond the maximum share; it is always disabled.
    key: Option<Key>,
    /// That of the machine; written under the lock.
    word: AtomicWord,
    failures: Window,
    slow: Option<Window>,
    locked: Mutex<Locked>,
    refused: AtomicU64,
    stale: AtomicU64,
    /// When it last changed or counted something bad, in milliseconds.
    last_event: AtomicU64,
    /// 1 once it is a member of its group, or if it need not be; written under the lock.
    has_joined: AtomicU64,
}

#[derive(Debug)]
struct Locked {
    machine: Machine,
    member: Membership,
}

impl Circuit {
    pub(crate) fn new(group: Arc<Group>, key: Option<Key>) -> Self {
        // The overflow circuit refuses no calls, because they have nothing in common.
        let state = match &key {
            Some(_) => group.config.initial_state,
            None => State::Disabled,
        };
        let machine = Machine::new(state);
        Self {
            word: AtomicWord::new(machine.word),
            failures: group.failures(),
            slow: group.slow(),
            locked: Mutex::new(Locked {
                machine,
                member: Membership::default(),
            }),
            refused: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            last_event: AtomicU64::new(0),
            has_joined: AtomicU64::new(u64::from(!group.ejection.is_limited())),
            group,
            key,
        }
    }

    pub(crate) fn id(&self) -> CircuitId {
        let key = self.key.clone().unwrap_or_else(|| Key::new(""));
        CircuitId::new(self.group.scope, key)
    }

    pub(crate) fn scope(&self) -> Scope {
        self.group.scope
    }

    /// Whether it has a key; the overflow circuit has none.
    pub(crate) fn has_key(&self) -> bool {
        self.key.is_some()
    }

    fn config(&self) -> &Config {
        &self.group.config
    }

    // === a call comes ===

    /// Admits a call if the word alone allows it.
    pub(crate) fn admit_free(&self) -> Option<Pass> {
        let word = self.word.load();
        word.state.is_free().then(|| Pass::of(word))
    }

    /// Admits a call, or refuses it.
    pub(crate) fn admit(&self, now: Instant) -> Result<Pass, Status> {
        let word = self.word.load();
        if word.state.is_free() {
            Ok(Pass::of(word))
        } else if word.is_shut(|| self.config().clock.millis(now)) {
            Err(Status::of(word, now, self.config()))
        } else {
            let admission = self.change(Input::Call, now);
            admission.unwrap_or_else(|| Ok(Pass::of(word)))
        }
    }

    /// How it would refuse a call now; `None` if it would admit one.
    pub(crate) fn refusal(&self, now: Instant) -> Option<Status> {
        lock(&self.locked).machine.refusal(now, self.config())
    }

    /// Counts a refused call.
    pub(crate) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// An admitted call is not sent after all.
    pub(crate) fn was_not_sent(&self, pass: Pass, now: Instant) {
        if pass.is_probe() || self.word.load().state == State::Ramping {
            self.change(Input::NotSent(pass), now);
        }
    }

    // === changes ===

    /// Has the machine take `input`, and publishes what that changes.
    pub(crate) fn change(&self, input: Input, now: Instant) -> Option<Result<Pass, Status>> {
        let mut locked = lock(&self.locked);
        let Locked { machine, member } = &mut *locked;
        let (before, millis) = (machine.word, self.config().clock.millis(now));
        let mut may_open = || member.may_open(&self.group.ejection, millis);
        let transition = machine.on(input, now, self.config(), &mut may_open);
        let word = machine.word;
        if word.generation != before.generation {
            // Before the word: a call of the new generation must not count among those of the last.
            self.failures.clear();
            self.slow.iter().for_each(Window::clear);
        }
        if word != before {
            self.word.store(word);
            self.last_event.store(millis, Ordering::Relaxed);
        }
        if transition.has_counted {
            member.join(&self.group.ejection);
        }
        let is_probe = matches!(transition.admission, Some(Ok(pass)) if pass.is_probe());
        if word != before || is_probe || transition.has_counted {
            member.update(&self.group.ejection, word.open_until(millis));
        }
        drop(locked);
        if transition.is_stale {
            self.stale.fetch_add(1, Ordering::Relaxed);
        }
        // The overflow circuit has no key to report.
        for kind in transition.reports.into_iter().filter(|_| self.has_key()) {
            self.group.events.send(Event {
                circuit: self.id(),
                at: now,
                kind,
            });
        }
        transition.admission
    }

    /// A circuit joins its group when it counts its first call, so circuits of invented names do not.
    fn join(&self, now: &mut Now) {
        if self.has_joined.load(Ordering::Relaxed) == 0 {
            let millis = self.config().clock.millis(now.get());
            let mut locked = lock(&self.locked);
            let open_until = locked.machine.word.open_until(millis);
            locked.member.join(&self.group.ejection);
            locked.member.update(&self.group.ejection, open_until);
            self.has_joined.store(1, Ordering::Relaxed);
        }
    }

    fn note_event(&self, now: Instant) {
        let millis = self.config().clock.millis(now);
        self.last_event.store(millis, Ordering::Relaxed);
    }

    // === statistics ===

    pub(crate) fn status(&self, now: Instant) -> Status {
        lock(&self.locked).machine.status(now, self.config())
    }

    pub(crate) fn stats(&self, now: Instant) -> CircuitStats {
        let generation = self.word.load().generation;
        let tally = |window: &Window| window.tally(generation, &mut Now::at(Some(now)));
        let failures = tally(&self.failures);
        let slow = self.slow.as_ref().map(tally).unwrap_or_default();
        let machine = &lock(&self.locked).machine;
        let (status, probes) = (machine.status(now, self.config()), &machine.probes);
        CircuitStats {
            circuit: self.id(),
            state: status.state,
            remaining: status.left,
            calls: failures.total,
            failures: failures.bad,
            slow_calls: slow.bad,
            probes: probes.in_flight(now),
            probe_successes: probes.all_successes,
            probe_failures: probes.all_failures,
            refused: self.refused.load(Ordering::Relaxed),
            stale: self.stale.load(Ordering::Relaxed),
        }
    }
}

impl Evictable for Circuit {
    /// A circuit that is closed and has counted nothing bad for a while, or that is open and was not probed for long. A
    /// forced circuit is not evictable: a new one would start in the initial state.
    fn is_evictable(&self) -> bool {
        let (config, word) = (self.config(), self.word.load());
        let is_forced = word.state.is_forced() || config.initial_state.is_forced();
        if is_forced && word.state != config.initial_state {
            return false;
        }
        let quiet_after = config.quiet_after().as_millis() as u64;
        let since = self.last_event.load(Ordering::Relaxed).max(word.until);
        since == 0 || config.clock.millis(Instant::now()).saturating_sub(since) >= quiet_after
    }
}

impl Drop for Circuit {
    fn drop(&mut self) {
        lock(&self.locked).member.leave(&self.group.ejection);
    }
}

// Loom's types work only inside its models, so these tests replace the others.
#[cfg(all(test, breaker_loom))]
mod loom;
#[cfg(all(test, not(breaker_loom)))]
mod tests;
