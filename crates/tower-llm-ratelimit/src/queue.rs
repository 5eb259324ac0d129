//! Calls that wait for one key's limits.
//!
//! Only the first in the line tries: it sleeps until there is room for it by what is known, or until somebody gives
//! something back. So a large call is not starved by a flow of small ones, and nobody overtakes.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, timeout_at},
};
use tower_llm_core::Keyed;

use crate::{
    RateLimited,
    engine::{Blocked, Demand, Engine, Turns},
    key_state::{KeyState, KeyStates},
    reservation::Reservation,
};

/// The line before one key's limits; there is none while nobody waits.
#[derive(Debug)]
pub(crate) struct Queue {
    turn: Arc<Turn>,
    pub(crate) waiting: usize,
    /// What those who wait will take, by limit.
    pub(crate) ahead: Box<[u64]>,
}

/// Whose turn it is: tokio's semaphore hands its one permit out in the order in which it was asked for.
#[derive(Debug)]
struct Turn {
    permit: Semaphore,
    freed: Notify,
}

/// A place in a line; dropping it leaves.
#[derive(Debug)]
struct Place {
    group: usize,
    key: Arc<Keyed<KeyState>>,
    turn: Arc<Turn>,
    amounts: Box<[u64]>,
}

/// A call that waits: in a line, or for the store of shared limits.
#[derive(Debug)]
pub(crate) struct Waiting {
    engine: Arc<Engine>,
    keys: KeyStates,
    demand: Demand,
    until: Instant,
    turns: Turns,
    /// `None` before it was denied for the first time.
    place: Option<Place>,
}

const PAUSE: Duration = Duration::from_millis(1);

// === impl Queue ===

impl Queue {
    pub(crate) fn new(limits: usize) -> Self {
        Self {
            turn: Arc::new(Turn {
                permit: Semaphore::new(1),
                freed: Notify::new(),
            }),
            waiting: 0,
            ahead: vec![0; limits].into(),
        }
    }

    /// Has the first try again: there may be room earlier than it knew. To be woken with the cell's lock free.
    pub(crate) fn freed(&self) -> impl FnOnce() + use<> {
        let turn = Arc::clone(&self.turn);
        move || turn.freed.notify_one()
    }
}

// === impl Place ===

impl Place {
    /// Joins the line before one of `cells`; `None` if `max_waiting` are in it.
    fn join(keys: &KeyStates, group: usize, demand: &Demand, max_waiting: usize) -> Option<Self> {
        let key = &keys[group];
        let limits = &key.group.limits;
        let amounts: Box<[u64]> = limits
            .iter()
            .map(|checked| demand.amount(checked))
            .collect();
        let mut state = key.lock();
        if state.waiting() >= max_waiting {
            return None;
        }
        let queue = state.queue_or_new(amounts.len());
        queue.waiting += 1;
        for (ahead, amount) in queue.ahead.iter_mut().zip(&amounts) {
            *ahead = ahead.saturating_add(*amount);
        }
        Some(Self {
            group,
            key: Arc::clone(key),
            turn: Arc::clone(&queue.turn),
            amounts,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.key.lock();
        let Some(queue) = state.queue() else { return };
        queue.waiting -= 1;
        for (ahead, amount) in queue.ahead.iter_mut().zip(&self.amounts) {
            *ahead = ahead.saturating_sub(*amount);
        }
        if queue.waiting == 0 {
            state.drop_queue();
        }
    }
}

// === impl Waiting ===

impl Waiting {
    /// A call that is decided by a store.
    pub(crate) fn for_store(
        engine: &Arc<Engine>,
        keys: KeyStates,
        demand: Demand,
        now: Instant,
    ) -> Self {
        Self {
            engine: Arc::clone(engine),
            keys,
            demand,
            until: now + engine.max_wait,
            turns: Turns::default(),
            place: None,
        }
    }

    /// A call that was denied, unless it cannot be admitted in time, or there is no room in the line.
    pub(crate) fn in_line(
        engine: &Arc<Engine>,
        keys: KeyStates,
        demand: Demand,
        blocked: &Blocked,
        now: Instant,
    ) -> Result<Self, RateLimited> {
        let mut waiting = Self::for_store(engine, keys, demand, now);
        waiting.join(blocked, now)?;
        Ok(waiting)
    }

    /// Waits until the call is admitted, or cannot be any more.
    pub(crate) async fn admitted(mut self) -> Result<Reservation, RateLimited> {
        loop {
            let attempted = match self.place.take() {
                Some(place) => self.attempt_in_line(place).await?,
                None => self.attempt().await,
            };
            match attempted {
                Ok(reservation) => return Ok(reservation),
                // It joins the line where it is held up now, and its turn in the one before is somebody else's.
                Err(blocked) => self.join(&blocked, Instant::now())?,
            }
        }
    }

    /// Waits for its turn, and then for room at this cell. What another cell denies is for that one's line.
    async fn attempt_in_line(
        &mut self,
        place: Place,
    ) -> Result<Result<Reservation, Blocked>, RateLimited> {
        let turn = &*place.turn;
        let Ok(_permit) = timeout_at(self.until, turn.permit.acquire()).await else {
            let refused = self.engine.waited(&self.keys, &self.demand, place.group);
            return Err(refused);
        };
        self.turns.come(place.group);
        loop {
            let blocked = match self.attempt().await {
                Err(blocked) if blocked.group == place.group => blocked,
                admitted_or_elsewhere => return Ok(admitted_or_elsewhere),
            };
            let now = Instant::now();
            self.check_in_time(&blocked, now)?;
            // Whatever it was told, it does not try again and again without a pause.
            let room_at = now + Duration::from_nanos(blocked.here_nanos).max(PAUSE);
            // It tries again either way.
            let _ = timeout_at(room_at, turn.freed.notified()).await;
        }
    }

    async fn attempt(&self) -> Result<Reservation, Blocked> {
        let Self {
            engine,
            keys,
            demand,
            ..
        } = self;
        engine.attempt(keys, demand, self.turns).await
    }

    fn join(&mut self, blocked: &Blocked, now: Instant) -> Result<(), RateLimited> {
        self.check_in_time(blocked, now)?;
        let place = Place::join(
            &self.keys,
            blocked.group,
            &self.demand,
            self.engine.max_waiting,
        );
        self.place =
            Some(place.ok_or_else(|| self.engine.refuse(&self.keys, &self.demand, blocked))?);
        Ok(())
    }

    fn check_in_time(&self, blocked: &Blocked, now: Instant) -> Result<(), RateLimited> {
        let left = self.until.saturating_duration_since(now);
        if left.is_zero() || left < Duration::from_nanos(blocked.wait_nanos) {
            return Err(self.engine.refuse(&self.keys, &self.demand, blocked));
        }
        Ok(())
    }
}
