//! The decision: all limits of a call at once, or none.

use std::{
    sync::{Arc, MutexGuard},
    time::Duration,
};

use http::HeaderMap;
use smallvec::SmallVec;
use tokio::time::Instant;
use tower_llm_core::{Described, Keyed, Registry};

use crate::{
    ExceedsLimit, Headers, RateLimited, Unit,
    cell::{Cell, Cells, State},
    cost::Estimate,
    error::Reason,
    headers::Standings,
    learned::Learned,
    pace::Mark,
    scope::{Bound, Clock, Policy, Scope},
    tier::{Tier, Tiers},
};

/// The limits of a layer, and what their keys have taken of them.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) scopes: Box<[(Arc<Scope>, Registry<Cell>)]>,
    pub(crate) tiers: Tiers,
    pub(crate) policy: Arc<Policy>,
    pub(crate) clock: Clock,
    pub(crate) max_waiting: usize,
    pub(crate) max_wait: Duration,
}

/// What a call asks for.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) estimate: Estimate,
    pub(crate) tier: Tier,
    /// Where what it produces is to be learned.
    pub(crate) learned: Option<Arc<Keyed<Learned>>>,
}

/// What a call has taken: of each limit, in the order of the cells and their limits.
#[derive(Debug)]
pub(crate) struct Taken {
    /// Where each limit's meter has it.
    pub(crate) marks: SmallVec<[u32; 6]>,
    /// Where the provider's limits are learned, until the call is answered.
    pub(crate) pace: Option<Mark>,
    /// Of shared limits, in which lease it was taken; nothing where there are none.
    pub(crate) leases: SmallVec<[u64; 2]>,
}

/// Why a call cannot be admitted now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Denied {
    /// The cell that held it up.
    pub(crate) scope: usize,
    pub(crate) why: Why,
    /// How long that cell does.
    pub(crate) here_nanos: u64,
    /// How long any of them does.
    pub(crate) wait_nanos: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Why {
    Limit(usize),
    Told(Unit),
    Closed,
    Queue,
    /// The share of a shared limit is spent.
    Share,
    /// The store of shared limits is away.
    Store,
}

// === impl Engine ===

impl Engine {
    /// What `request` asks for.
    ///
    /// # Errors
    ///
    /// If it asks for more than there ever is.
    pub(crate) fn ask(&self, request: &dyn Described) -> Result<Ask, ExceedsLimit> {
        let (estimate, learned) = self.policy.estimate(request);
        let mut ask = Ask {
            estimate,
            tier: self.tiers.of(request),
            learned,
        };
        for bound in self.scopes.iter().flat_map(|(scope, _)| &scope.bounds) {
            let (unit, capacity) = (bound.limit.unit(), bound.rate(ask.tier).capacity);
            if ask.amount(bound) <= capacity {
                continue;
            }
            let needed = self
                .policy
                .pricing
                .needed(request.call().as_deref())
                .of(unit);
            if needed > capacity {
                bound.refused();
                return Err(ExceedsLimit::new(bound.limit.clone(), needed, capacity));
            }
            // The rest is only expected of it: that makes it wait for all there is, and keeps it out for ever from nothing.
            ask.estimate.reserved.cap(unit, capacity);
        }
        Ok(ask)
    }

    /// The cells that `request` is counted in.
    pub(crate) fn cells(&self, request: &dyn Described) -> Cells {
        let mut cells = Cells::new();
        for (_, registry) in &self.scopes {
            cells.push(registry.get(request));
        }
        cells
    }

    /// Takes what is asked for from all cells, or nothing from any.
    ///
    /// The cells are locked together, always in the same order, so that two calls cannot each take a part. Whoever waits
    /// in a cell's line goes first, unless `turns` say that the call came before.
    pub(crate) fn admit(
        &self,
        cells: &Cells,
        ask: &Ask,
        now: Instant,
        turns: Turns,
        heed: Heed,
    ) -> Result<Taken, Denied> {
        let now = self.clock.nanos(now);
        let mut states = lock(cells);
        let is_free = heed == Heed::All && ask.is_free(cells, &mut states, now);
        if !is_free {
            Self::look_at(cells, &mut states, ask, now, turns, heed)?;
        }
        Ok(ask.take(cells, &mut states, now, heed))
    }

    /// As [`admit`](Self::admit), but takes nothing.
    pub(crate) fn look(
        &self,
        cells: &Cells,
        ask: &Ask,
        now: Instant,
        turns: Turns,
        heed: Heed,
    ) -> Result<(), Denied> {
        let mut states = lock(cells);
        Self::look_at(cells, &mut states, ask, self.clock.nanos(now), turns, heed)
    }

    fn look_at(
        cells: &Cells,
        states: &mut [MutexGuard<'_, State>],
        ask: &Ask,
        now: u64,
        turns: Turns,
        heed: Heed,
    ) -> Result<(), Denied> {
        let mut denied: Option<Denied> = None;
        let mut wait_nanos = 0;
        for (scope, (cell, state)) in cells.iter().zip(states).enumerate() {
            let is_here = turns.here == Some(scope);
            let held_up = ask.held_up(&cell.scope, state, turns.has(scope), now, heed);
            let Some((here_nanos, why)) = held_up else {
                continue;
            };
            wait_nanos = wait_nanos.max(here_nanos);
            // It stays in its line if that holds it up; else it is for the longest.
            let is_longer =
                |denied: Denied| Some(denied.scope) != turns.here && here_nanos > denied.here_nanos;
            if is_here || denied.is_none_or(is_longer) {
                denied = Some(Denied {
                    scope,
                    why,
                    here_nanos,
                    wait_nanos,
                });
            }
        }
        match denied {
            Some(denied) => Err(Denied {
                wait_nanos,
                ..denied
            }),
            None => Ok(()),
        }
    }

    /// The error for a call that is not going to wait any longer.
    pub(crate) fn refuse(&self, cells: &Cells, ask: &Ask, denied: &Denied) -> RateLimited {
        let bounds = &cells[denied.scope].scope.bounds;
        let reason = match denied.why {
            Why::Limit(limit) => {
                bounds[limit].refused();
                Reason::Limit(Box::new(bounds[limit].limit.clone()))
            }
            Why::Told(unit) => Reason::Told(unit),
            Why::Closed => Reason::Closed,
            Why::Queue => Reason::Queue,
            Why::Share | Why::Store => Reason::Store,
        };
        if !matches!(denied.why, Why::Limit(_)) {
            bounds.iter().for_each(Bound::refused);
        }
        let refused = RateLimited::new(reason, known(denied.wait_nanos));
        self.with_standings(refused, cells, ask)
    }

    /// The error for a call whose turn did not come in time.
    pub(crate) fn waited(&self, cells: &Cells, ask: &Ask, scope: usize) -> RateLimited {
        let cell = &cells[scope];
        let now = self.clock.now_nanos();
        let held_up = ask.held_up(&cell.scope, &mut cell.lock(), true, now, Heed::All);
        let wait = held_up.and_then(|(nanos, _)| known(nanos));
        cell.scope.bounds.iter().for_each(Bound::refused);
        self.with_standings(RateLimited::new(Reason::Queue, wait), cells, ask)
    }

    /// The error, with headers that say how the limits stand.
    fn with_standings(&self, refused: RateLimited, cells: &Cells, ask: &Ask) -> RateLimited {
        let form = self.policy.headers;
        // How limits stand that many processes share only their store knows.
        if form == Headers::None || self.policy.shared.is_some() {
            return refused;
        }
        let mut headers = HeaderMap::new();
        Standings::of(cells, ask.tier, &[]).write(form, &mut headers);
        refused.with_headers(headers)
    }
}

/// A wait that can be told: others go first where there is none to be seen, and no limit makes anybody wait for ever.
fn known(wait_nanos: u64) -> Option<Duration> {
    let wait = Duration::from_nanos(wait_nanos);
    (!wait.is_zero() && wait_nanos < u64::MAX).then_some(wait)
}

/// In whose lines a call's turn has come.
///
/// One that had its turn in a line, and was held up elsewhere, is not sent back behind those who came after it: whoever is
/// in that line now did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Turns {
    /// In whose line it is the first.
    here: Option<usize>,
    /// In whose lines it was, a bit for each cell.
    had: u64,
}

impl Turns {
    /// It is the first in the line before the cell of `scope`.
    pub(crate) fn come(&mut self, scope: usize) {
        self.here = Some(scope);
        self.had |= Self::bit(scope);
    }

    /// It is not to wait in any line, because it has been let through elsewhere.
    pub(crate) fn everywhere(self) -> Self {
        Self {
            had: u64::MAX,
            ..self
        }
    }

    fn has(self, scope: usize) -> bool {
        self.here == Some(scope) || self.had & Self::bit(scope) != 0
    }

    /// None for more kinds of key than there are bits: they just wait again.
    fn bit(scope: usize) -> u64 {
        u32::try_from(scope)
            .ok()
            .and_then(|scope| 1_u64.checked_shl(scope))
            .unwrap_or(0)
    }
}

/// What can deny a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heed {
    All,
    /// Who waits, and what the provider told.
    AllButLimits,
    /// Who waits, what the provider told, and the shares of shared limits.
    Shares,
}

fn lock(cells: &Cells) -> SmallVec<[MutexGuard<'_, State>; 3]> {
    let mut states = SmallVec::new();
    for cell in cells {
        states.push(cell.lock());
    }
    states
}

// === impl Ask ===

impl Ask {
    /// What is asked of one limit.
    pub(crate) fn amount(&self, bound: &Bound) -> u64 {
        self.estimate.reserved.of(bound.limit.unit())
    }

    /// How long a cell holds the call up, in nanoseconds, and why; `None` if it does not.
    fn held_up(
        &self,
        scope: &Scope,
        state: &mut State,
        has_turn: bool,
        now: u64,
        heed: Heed,
    ) -> Option<(u64, Why)> {
        let mut longest = state.pace().and_then(|pace| {
            let (wait, unit) = pace.wait(&self.estimate.reserved, now);
            (wait > 0).then(|| (wait, unit.map_or(Why::Closed, Why::Told)))
        });
        if heed == Heed::Shares && longest.is_none() && !self.has_shares(scope, state, now) {
            longest = Some((0, Why::Share));
        }
        let (gauges, line) = state.gauges_and_line();
        let line = line.filter(|_| !has_turn);
        let bounds = match heed {
            Heed::All => &scope.bounds[..],
            _ => &[],
        };
        for (limit, (bound, gauge)) in bounds.iter().zip(gauges.iter_mut()).enumerate() {
            let ahead = line.map_or(0, |line| line.ahead[limit]);
            let rate = bound.own_rate(self.tier);
            // Who asks for nothing, because it is charged afterwards, waits all the same for debts to be paid off.
            let amount = self.amount(bound).max(1);
            let wait = gauge.meter.wait_behind(rate, ahead, amount, bound.now(now));
            if wait > longest.map_or(0, |(longest, _)| longest) {
                longest = Some((wait, Why::Limit(limit)));
            }
        }
        match line {
            Some(_) => Some((longest.map_or(0, |(wait, _)| wait), Why::Queue)),
            None => longest,
        }
    }

    /// Whether nobody waits, no provider has told anything, and all limits have room: nearly always, and soon seen.
    fn is_free(&self, cells: &Cells, states: &mut [MutexGuard<'_, State>], now: u64) -> bool {
        cells.iter().zip(states).all(|(cell, state)| {
            let gauges = state.plain_gauges();
            gauges.is_some_and(|gauges| {
                let mut limits = cell.scope.bounds.iter().zip(gauges.iter_mut());
                limits
                    .all(|(bound, gauge)| gauge.has_room(bound, self.tier, self.amount(bound), now))
            })
        })
    }

    fn has_shares(&self, scope: &Scope, state: &mut State, now: u64) -> bool {
        let shares = state.shares(scope.bounds.len()).iter();
        let mut shares = scope.bounds.iter().zip(shares);
        shares.all(|(bound, share)| share.has(self.amount(bound).max(1), now))
    }

    fn take(
        &self,
        cells: &Cells,
        states: &mut [MutexGuard<'_, State>],
        now: u64,
        heed: Heed,
    ) -> Taken {
        let mut taken = Taken {
            marks: SmallVec::new(),
            pace: None,
            leases: SmallVec::new(),
        };
        for (cell, state) in cells.iter().zip(states) {
            state.admitted += 1;
            if heed == Heed::Shares {
                let bounds = cell.scope.bounds.iter();
                let shares = state.shares(bounds.len()).iter_mut();
                let spent = bounds
                    .zip(shares)
                    .map(|(bound, share)| share.spend(self.amount(bound)));
                taken.leases.extend(spent);
            }
            if cell.scope.learns {
                // From the first call on, so that those under way are known when one is told something.
                taken.pace = Some(state.pace_or_new().take(&self.estimate.reserved, now));
            }
            for (bound, gauge) in cell.scope.bounds.iter().zip(state.gauges.iter_mut()) {
                let rate = bound.own_rate(self.tier);
                taken
                    .marks
                    .push(gauge.take(bound, rate, self.amount(bound), now));
            }
        }
        taken
    }
}
