//! A call that waits: in the queue of a key, or for the store of shared limits.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};
use tower_llm_core::{BoxError, Call, Described, Entry, Keyed};

use crate::{
    blocked::{Blocked, QueuesPassed},
    demand::Demand,
    group::{Keys, LimitedKey},
    limiter::{Limiter, check_limits},
    queue::{Leaves, Polled, Position},
    reservation::Reservation,
};

/// A call that waits; dropping it leaves the queue.
pub(crate) struct Waiting {
    limiter: Arc<Limiter>,
    keys: Keys,
    demand: Demand,
    reports_usage: bool,
    until: Instant,
    /// The longest queue that the call joins.
    max_waiting: usize,
    passed: QueuesPassed,
    entry: Option<QueueEntry>,
    /// The request to the store of shared limits.
    asking: Option<Asking>,
    sleep: Option<Pin<Box<Sleep>>>,
}

type Asking = Pin<Box<dyn Future<Output = Result<Reservation, Blocked>> + Send>>;

/// An entry in the queue of a key; dropping it leaves the queue.
struct QueueEntry {
    group: usize,
    key: Arc<Keyed<LimitedKey>>,
    position: Position,
    leaves: Leaves,
}

/// Minimum pause between two attempts of a call.
const PAUSE_NANOS: u64 = 1_000_000;

// === impl Waiting ===

impl Waiting {
    /// A call that asks the store of shared limits.
    pub(crate) fn for_store(
        limiter: &Arc<Limiter>,
        keys: Keys,
        demand: Demand,
        entry: &Entry<'_>,
    ) -> Self {
        let mut waiting = Self::new(limiter, keys, demand, entry);
        waiting.asking = waiting.ask();
        waiting
    }

    /// A call that is blocked, unless it cannot be admitted in time, or the queue is full.
    pub(crate) fn in_queue(
        limiter: &Arc<Limiter>,
        keys: Keys,
        demand: Demand,
        entry: &Entry<'_>,
        blocked: &Blocked,
    ) -> Result<Self, BoxError> {
        let mut waiting = Self::new(limiter, keys, demand, entry);
        waiting.join(blocked, entry.now())?;
        Ok(waiting)
    }

    fn new(limiter: &Arc<Limiter>, keys: Keys, demand: Demand, entry: &Entry<'_>) -> Self {
        Self {
            limiter: Arc::clone(limiter),
            keys,
            demand,
            reports_usage: entry.reports_usage(),
            until: entry.now() + limiter.max_wait,
            max_waiting: match entry.may_queue() {
                true => limiter.max_waiting,
                false => 0,
            },
            passed: QueuesPassed::default(),
            entry: None,
            asking: None,
            sleep: None,
        }
    }

    /// Ready when the call is admitted, or can no longer be.
    pub(crate) fn poll_admitted(
        &mut self,
        cx: &mut Context<'_>,
        request: &dyn Described,
    ) -> Poll<Result<Reservation, BoxError>> {
        loop {
            let attempted = if let Some(asking) = &mut self.asking {
                let answered = ready!(asking.as_mut().poll(cx));
                self.asking = None;
                Some(answered)
            } else {
                ready!(self.poll_turn(cx, request))?
            };
            let now = Instant::now();
            match attempted {
                // The request to the store is pending.
                None => {}
                Some(Ok(reservation)) => {
                    self.leave(Leaves::Served);
                    return Poll::Ready(Ok(reservation));
                }
                Some(Err(blocked)) => self.wait_on(&blocked, request, now)?,
            }
        }
    }

    /// Ready when the call has tried, or has sent a request to the store.
    fn poll_turn(
        &mut self,
        cx: &mut Context<'_>,
        request: &dyn Described,
    ) -> Poll<Result<Option<Result<Reservation, Blocked>>, BoxError>> {
        loop {
            let now = Instant::now();
            match self.poll_place(cx, now) {
                Polled::Sleep => {
                    // Once it has slept, it is due.
                    ready!(self.poll_sleep(cx));
                }
                Polled::Try => {
                    self.choose_tier(request)?;
                    return Poll::Ready(Ok(self.try_now(now)));
                }
                Polled::Look { until_nanos } => {
                    self.choose_tier(request)?;
                    self.look(now)?;
                    self.sleep_until(self.limiter.clock.at(until_nanos));
                }
            }
        }
    }

    fn poll_place(&self, cx: &Context<'_>, now: Instant) -> Polled {
        let now_nanos = self.limiter.clock.nanos(now);
        let Some(entry) = &self.entry else {
            return Polled::Try;
        };
        let mut state = entry.key.lock();
        let queue = state.queue();
        queue.map_or(Polled::Try, |queue| {
            queue.poll(entry.position, cx.waker(), now_nanos)
        })
    }

    /// Tries to be admitted, as the head of its queue; `None` if that needs the store.
    fn try_now(&mut self, now: Instant) -> Option<Result<Reservation, Blocked>> {
        if let Some(entry) = &self.entry {
            self.passed.add(entry.group);
        }
        self.asking = self.ask();
        if self.asking.is_some() {
            return None;
        }
        let now = self.limiter.clock.nanos(now);
        let (keys, demand) = (&self.keys, &self.demand);
        let taken = self
            .limiter
            .take_if(check_limits, keys, demand, self.passed, now);
        Some(taken.map(|taken| Reservation::new(keys.clone(), demand.clone(), taken)))
    }

    /// Asks the store of shared limits; `None` if there is none.
    fn ask(&self) -> Option<Asking> {
        let shared = self.limiter.shared.clone()?;
        let (limiter, keys) = (Arc::clone(&self.limiter), self.keys.clone());
        let (demand, passed) = (self.demand.clone(), self.passed);
        Some(Box::pin(async move {
            limiter.acquire(&shared, &keys, &demand, passed).await
        }))
    }

    /// Checks whether it can still be admitted, although it is not the head.
    fn look(&self, now: Instant) -> Result<(), BoxError> {
        let group = self.entry.as_ref().map_or(0, |entry| entry.group);
        let now_nanos = self.limiter.clock.nanos(now);
        if let Some(blocked) = self.limiter.known_wait(&self.keys, &self.demand, now_nanos)
            && self.is_too_late(blocked.known_nanos, now)
        {
            return Err(self
                .limiter
                .refuse(&self.keys, &self.demand, &blocked)
                .into());
        }
        if now >= self.until {
            return Err(self
                .limiter
                .waited(&self.keys, &self.demand, group, now_nanos)
                .into());
        }
        Ok(())
    }

    /// Continues to wait at the key that blocks it now.
    fn wait_on(
        &mut self,
        blocked: &Blocked,
        request: &dyn Described,
        now: Instant,
    ) -> Result<(), BoxError> {
        if self
            .entry
            .as_ref()
            .is_none_or(|entry| entry.group != blocked.group)
        {
            // It was served in the earlier queue.
            self.leave(Leaves::Served);
            if self.demand.caller.is_none() {
                self.demand.caller = caller(request);
            }
            return self.join(blocked, now);
        }
        self.check_in_time(blocked, now)?;
        self.sleep_until(now + Duration::from_nanos(blocked.here_nanos.max(PAUSE_NANOS)));
        Ok(())
    }

    fn join(&mut self, blocked: &Blocked, now: Instant) -> Result<(), BoxError> {
        self.check_in_time(blocked, now)?;
        let key = &self.keys[blocked.group];
        let now_nanos = self.limiter.clock.nanos(now);
        let mut state = key.lock();
        if state.queue_is_full(self.max_waiting, now_nanos) {
            drop(state);
            return Err(self
                .limiter
                .refuse(&self.keys, &self.demand, blocked)
                .into());
        }
        let (caller, reserves) = (self.demand.caller.clone(), self.demand.estimate.reserved);
        let position = state.queue_or_new().join(caller, reserves, now_nanos);
        drop(state);
        self.entry = Some(QueueEntry {
            group: blocked.group,
            key: Arc::clone(key),
            position,
            leaves: Leaves::Unserved,
        });
        Ok(())
    }

    fn leave(&mut self, leaves: Leaves) {
        if let Some(mut entry) = self.entry.take() {
            entry.leaves = leaves;
        }
    }

    /// Sleeps until `at`, or for the rest of its maximum wait.
    fn sleep_until(&mut self, at: Instant) {
        let Some(entry) = &self.entry else { return };
        let at = at.min(self.until);
        let mut state = entry.key.lock();
        let queue = state.queue();
        let sleeps =
            queue.is_none_or(|queue| queue.sleep(entry.position, self.limiter.clock.nanos(at)));
        drop(state);
        match &mut self.sleep {
            Some(sleep) if sleeps => sleep.as_mut().reset(at),
            None if sleeps => self.sleep = Some(Box::pin(sleep_until(at))),
            // The call was woken meanwhile.
            _ => {}
        }
    }

    fn poll_sleep(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.sleep
            .as_mut()
            .map_or(Poll::Pending, |sleep| sleep.as_mut().poll(cx))
    }

    /// The tier may have changed since the call was made.
    fn choose_tier(&mut self, request: &dyn Described) -> Result<(), BoxError> {
        if self.limiter.tiers.of(request) == self.demand.tier {
            return Ok(());
        }
        let caller = self.demand.caller.take();
        self.demand = self.limiter.demand(request, self.reports_usage)?;
        self.demand.caller = caller;
        Ok(())
    }

    fn check_in_time(&self, blocked: &Blocked, now: Instant) -> Result<(), BoxError> {
        if now >= self.until || self.is_too_late(blocked.known_nanos, now) {
            return Err(self
                .limiter
                .refuse(&self.keys, &self.demand, blocked)
                .into());
        }
        Ok(())
    }

    fn is_too_late(&self, wait_nanos: u64, now: Instant) -> bool {
        self.until.saturating_duration_since(now) < Duration::from_nanos(wait_nanos)
    }
}

/// The caller of a request.
pub(crate) fn caller(request: &dyn Described) -> Option<tower_llm_core::Caller> {
    request.call().as_deref().and_then(Call::caller).cloned()
}

// === impl QueueEntry ===

impl Drop for QueueEntry {
    fn drop(&mut self) {
        let now_nanos = self.key.group.clock.now_nanos();
        let mut state = self.key.lock();
        let Some(queue) = state.queue() else { return };
        let head = queue.leave(self.position, self.leaves, now_nanos);
        if queue.is_empty() {
            state.drop_queue();
        }
        drop(state);
        // Without the lock, because a waker runs foreign code.
        if let Some(head) = head {
            head.wake();
        }
    }
}
