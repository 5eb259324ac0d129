//! Whether calls to a server are sent: a small circuit breaker.
//!
//! State and generation are one word, which is odd while the server is unavailable. A call stores the word at its
//! admission, and only a failure in the same generation shuts the gate. So of sixty-four calls that time out together only
//! the first shuts it, and a late failure cannot shut it against a server that has recovered.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// Counters of all servers together.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) failures: AtomicU64,
    pub(crate) outages: AtomicU64,
}

/// The generation in which a call was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pass(u64);

/// The state of the connection on which a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connection {
    /// It may be fine, and only the response late.
    Doubtful,
    /// It is lost, or leads to a server that cannot serve: it must be replaced.
    Useless,
}

#[derive(Debug)]
pub(crate) struct Gate {
    state: AtomicU64,
    shut: Mutex<Option<Shut>>,
    /// Wakes the task that opens it again.
    tripped: Notify,
    /// Wakes the owner of several gates.
    news: Option<Arc<Notify>>,
    counters: Arc<Counters>,
}

#[derive(Clone, Copy, Debug)]
struct Shut {
    since: Instant,
    connection: Connection,
}

impl Gate {
    /// Creates an open gate, although the server has not answered yet: the first calls wait for it.
    pub(crate) fn new(counters: Arc<Counters>, news: Option<Arc<Notify>>) -> Self {
        Self {
            state: AtomicU64::new(0),
            shut: Mutex::new(None),
            tripped: Notify::new(),
            news,
            counters,
        }
    }

    /// Admits a call, unless the server is unavailable.
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

    /// A call got no response: shuts the gate, if the call was admitted in this generation.
    pub(crate) fn fail(&self, Pass(state): Pass, connection: Connection, now: Instant) {
        self.count_failure();
        self.shut_from(state, connection, now);
    }

    /// The server cannot serve this call now, but can serve others: does not shut the gate.
    pub(crate) fn count_failure(&self) {
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// The connection was lost without a call on it.
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

    /// Waits until it is shut, and returns the state of the connection.
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
        // Under the lock, so that `open` sees both or neither.
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
    async fn a_late_waiter_still_gets_the_reason() {
        let (gate, _) = gate();
        gate.fail(gate.enter().unwrap(), Connection::Useless, Instant::now());
        assert_eq!(gate.shut_down().await, Connection::Useless);
        gate.open();
        let waiting = tokio::time::timeout(Duration::from_secs(1), gate.shut_down());
        waiting.await.unwrap_err();
    }
}
