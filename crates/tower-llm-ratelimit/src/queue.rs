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
    cell::{Cell, Cells},
    engine::{Ask, Denied, Engine, Turns},
    reservation::Reservation,
};

/// The line before one key's limits; there is none while nobody waits.
#[derive(Debug)]
pub(crate) struct Line {
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
    scope: usize,
    cell: Arc<Keyed<Cell>>,
    turn: Arc<Turn>,
    amounts: Box<[u64]>,
}

/// A call that waits: in a line, or for the store of shared limits.
#[derive(Debug)]
pub(crate) struct Waiting {
    engine: Arc<Engine>,
    cells: Cells,
    ask: Ask,
    until: Instant,
    turns: Turns,
    /// `None` before it was denied for the first time.
    place: Option<Place>,
}

const PAUSE: Duration = Duration::from_millis(1);

// === impl Line ===

impl Line {
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
    fn join(cells: &Cells, scope: usize, ask: &Ask, max_waiting: usize) -> Option<Self> {
        let cell = &cells[scope];
        let bounds = &cell.scope.bounds;
        let amounts: Box<[u64]> = bounds.iter().map(|bound| ask.amount(bound)).collect();
        let mut state = cell.lock();
        if state.waiting() >= max_waiting {
            return None;
        }
        let line = state.line_or_new(amounts.len());
        line.waiting += 1;
        for (ahead, amount) in line.ahead.iter_mut().zip(&amounts) {
            *ahead = ahead.saturating_add(*amount);
        }
        Some(Self {
            scope,
            cell: Arc::clone(cell),
            turn: Arc::clone(&line.turn),
            amounts,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.cell.lock();
        let Some(line) = state.line() else { return };
        line.waiting -= 1;
        for (ahead, amount) in line.ahead.iter_mut().zip(&self.amounts) {
            *ahead = ahead.saturating_sub(*amount);
        }
        if line.waiting == 0 {
            state.drop_line();
        }
    }
}

// === impl Waiting ===

impl Waiting {
    /// A call that is decided by a store.
    pub(crate) fn for_store(engine: &Arc<Engine>, cells: Cells, ask: Ask, now: Instant) -> Self {
        Self {
            engine: Arc::clone(engine),
            cells,
            ask,
            until: now + engine.max_wait,
            turns: Turns::default(),
            place: None,
        }
    }

    /// A call that was denied, unless it cannot be admitted in time, or there is no room in the line.
    pub(crate) fn in_line(
        engine: &Arc<Engine>,
        cells: Cells,
        ask: Ask,
        denied: &Denied,
        now: Instant,
    ) -> Result<Self, RateLimited> {
        let mut waiting = Self::for_store(engine, cells, ask, now);
        waiting.join(denied, now)?;
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
                Err(denied) => self.join(&denied, Instant::now())?,
            }
        }
    }

    /// Waits for its turn, and then for room at this cell. What another cell denies is for that one's line.
    async fn attempt_in_line(
        &mut self,
        place: Place,
    ) -> Result<Result<Reservation, Denied>, RateLimited> {
        let turn = &*place.turn;
        let Ok(_permit) = timeout_at(self.until, turn.permit.acquire()).await else {
            let refused = self.engine.waited(&self.cells, &self.ask, place.scope);
            return Err(refused);
        };
        self.turns.come(place.scope);
        loop {
            let denied = match self.attempt().await {
                Err(denied) if denied.scope == place.scope => denied,
                admitted_or_elsewhere => return Ok(admitted_or_elsewhere),
            };
            let now = Instant::now();
            self.check_in_time(&denied, now)?;
            // Whatever it was told, it does not try again and again without a pause.
            let room_at = now + Duration::from_nanos(denied.here_nanos).max(PAUSE);
            // It tries again either way.
            let _ = timeout_at(room_at, turn.freed.notified()).await;
        }
    }

    async fn attempt(&self) -> Result<Reservation, Denied> {
        let Self {
            engine, cells, ask, ..
        } = self;
        engine.attempt(cells, ask, self.turns).await
    }

    fn join(&mut self, denied: &Denied, now: Instant) -> Result<(), RateLimited> {
        self.check_in_time(denied, now)?;
        let place = Place::join(
            &self.cells,
            denied.scope,
            &self.ask,
            self.engine.max_waiting,
        );
        self.place = Some(place.ok_or_else(|| self.engine.refuse(&self.cells, &self.ask, denied))?);
        Ok(())
    }

    fn check_in_time(&self, denied: &Denied, now: Instant) -> Result<(), RateLimited> {
        let left = self.until.saturating_duration_since(now);
        if left.is_zero() || left < Duration::from_nanos(denied.wait_nanos) {
            return Err(self.engine.refuse(&self.cells, &self.ask, denied));
        }
        Ok(())
    }
}
