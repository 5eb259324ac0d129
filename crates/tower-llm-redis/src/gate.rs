//! Whether a server is asked at all: the small breaker.
//!
//! State and generation are one word, odd while the server is away. A call remembers the word it was let in with, and
//! only a failure of that same generation shuts the gate: of sixty-four calls that time out together, the first does,
//! and one that comes late cannot shut it against a server that is back already.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// What is counted of all servers together.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) failures: AtomicU64,
    pub(crate) outages: AtomicU64,
}

/// What a call was let in with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pass(u64);

/// What is thought of the connection that a call failed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connection {
    /// It may be fine, and only the answer late.
    Doubtful,
    /// It is gone, or leads to a server that can't serve: only another may do better.
    Useless,
}

#[derive(Debug)]
pub(crate) struct Gate {
    state: AtomicU64,
    shut: Mutex<Option<Shut>>,
    /// For the one task that opens it again.
    tripped: Notify,
    /// For whoever looks after several gates.
    news: Option<Arc<Notify>>,
    counters: Arc<Counters>,
}

#[derive(Clone, Copy, Debug)]
struct Shut {
    since: Instant,
    connection: Connection,
}

impl Gate {
    /// A gate that is open, though nobody has seen the server yet: the first calls wait for it.
    pub(crate) fn new(counters: Arc<Counters>, news: Option<Arc<Notify>>) -> Self {
        Self {
            state: AtomicU64::new(0),
            shut: Mutex::new(None),
            tripped: Notify::new(),
            news,
            counters,
        }
    }

    /// Lets a call in, unless the server is away.
    pub(crate) fn enter(&self) -> Option<Pass> {
        let state = self.state.load(Ordering::Acquire);
        state.is_multiple_of(2).then_some(Pass(state))
    }

    pub(crate) fn is_open(&self) -> bool {
        self.enter().is_some()
    }

    /// How long it has been shut.
    pub(crate) fn shut_for(&self, now: Instant) -> Option<Duration> {
        let shut = (*self.shut())?;
        Some(now.saturating_duration_since(shut.since))
    }

    /// A call got no answer: shuts the gate, if it is still the one that the call came through.
    pub(crate) fn fail(&self, Pass(state): Pass, connection: Connection, now: Instant) {
        self.count_failure();
        self.shut_from(state, connection, now);
    }

    /// A call was answered that it can't be served now, though others can: shuts nothing.
    pub(crate) fn count_failure(&self) {
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// The connection broke, with no call on it to tell.
    pub(crate) fn broke(&self, now: Instant) {
        if let Some(Pass(state)) = self.enter() {
            self.shut_from(state, Connection::Useless, now);
        }
    }

    /// The server answers again.
    pub(crate) fn open(&self) {
        let mut shut = self.shut();
        if shut.take().is_some() {
            self.state.fetch_add(1, Ordering::AcqRel);
            drop(shut);
            self.tell();
        }
    }

    /// Waits until it is shut, and says what is thought of the connection.
    pub(crate) async fn shut_down(&self) -> Connection {
        loop {
            let tripped = self.tripped.notified();
            if let Some(shut) = *self.shut() {
                return shut.connection;
            }
            tripped.await;
        }
    }

    fn shut_from(&self, state: u64, connection: Connection, now: Instant) {
        let mut shut = self.shut();
        // Under the lock, so that `open` finds both or neither.
        let first =
            self.state
                .compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
        if first.is_ok() {
            *shut = Some(Shut {
                since: now,
                connection,
            });
            drop(shut);
            self.counters.outages.fetch_add(1, Ordering::Relaxed);
            self.tripped.notify_one();
            self.tell();
        }
    }

    fn tell(&self) {
        if let Some(news) = &self.news {
            news.notify_one();
        }
    }

    fn shut(&self) -> MutexGuard<'_, Option<Shut>> {
        // Nothing that can panic runs while it is held.
        self.shut.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> (Gate, Arc<Counters>) {
        let counters = Arc::new(Counters::default());
        (Gate::new(Arc::clone(&counters), None), counters)
    }

    fn counted(counters: &Counters) -> (u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (load(&counters.failures), load(&counters.outages))
    }

    #[test]
    fn of_calls_that_fail_together_the_first_shuts_it() {
        let (gate, counters) = gate();
        let passes: Vec<_> = (0..64).map(|_| gate.enter().unwrap()).collect();
        for pass in passes {
            gate.fail(pass, Connection::Doubtful, Instant::now());
            assert!(gate.enter().is_none());
        }
        assert_eq!(counted(&counters), (64, 1));
    }

    #[test]
    fn a_late_failure_does_not_shut_it_again() {
        let (gate, counters) = gate();
        let (first, late) = (gate.enter().unwrap(), gate.enter().unwrap());
        gate.fail(first, Connection::Doubtful, Instant::now());
        gate.open();
        gate.fail(late, Connection::Doubtful, Instant::now());
        assert!(gate.is_open());
        assert_eq!(counted(&counters), (2, 1));
    }

    #[test]
    fn opening_an_open_one_changes_nothing() {
        let (gate, _) = gate();
        let pass = gate.enter().unwrap();
        gate.open();
        assert_eq!(gate.enter(), Some(pass));
    }

    #[tokio::test(start_paused = true)]
    async fn says_for_how_long_it_is_shut() {
        let (gate, _) = gate();
        assert_eq!(gate.shut_for(Instant::now()), None);
        gate.broke(Instant::now());
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(gate.shut_for(Instant::now()), Some(Duration::from_secs(3)));
        gate.open();
        assert_eq!(gate.shut_for(Instant::now()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_it_to_shut_learns_why_however_late() {
        let (gate, _) = gate();
        gate.fail(gate.enter().unwrap(), Connection::Useless, Instant::now());
        assert_eq!(gate.shut_down().await, Connection::Useless);
        gate.open();
        let waiting = tokio::time::timeout(Duration::from_secs(1), gate.shut_down());
        waiting.await.unwrap_err();
    }
}
