//! What one key has taken of the limits that share it.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use smallvec::SmallVec;
use tower_llm_core::{Evictable, Keyed};

use crate::{
    lease::Share,
    limit::Rate,
    meter::Meter,
    pace::Pace,
    queue::Line,
    scope::{Bound, Scope},
    tier::Tier,
};

#[cfg(feature = "redis")]
use {crate::store::Terms, tokio::time::Instant};

/// One key's state, and the scope it is of.
pub(crate) struct Cell {
    pub(crate) scope: Arc<Scope>,
    // A std mutex, not tokio's: it is held for a few additions and never across an await.
    state: Mutex<State>,
}

/// The cells of a call, in the order of their scopes: also the order in which they are locked.
pub(crate) type Cells = SmallVec<[Arc<Keyed<Cell>>; 3]>;

pub(crate) struct State {
    pub(crate) gauges: Gauges,
    pub(crate) admitted: u64,
    /// What few keys have.
    extra: Option<Box<Extra>>,
}

/// A gauge for each limit; one that is alone lies in place.
pub(crate) enum Gauges {
    One(Gauge),
    Many(Box<[Gauge]>),
}

/// A meter, and all that was ever taken by it.
pub(crate) struct Gauge {
    pub(crate) meter: Meter,
    pub(crate) consumed: u64,
}

#[derive(Default)]
pub(crate) struct Extra {
    pub(crate) pace: Option<Pace>,
    pub(crate) line: Option<Line>,
    /// Of shared limits, what this process may spend of each; empty before the first.
    pub(crate) shares: Box<[Share]>,
    /// Whether somebody looks for what is left when they end.
    is_looked_after: bool,
}

// === impl Cell ===

impl Cell {
    pub(crate) fn new(scope: Arc<Scope>) -> Self {
        let gauges = Gauges::new(&scope.bounds);
        Self {
            scope,
            state: Mutex::new(State {
                gauges,
                admitted: 0,
                extra: None,
            }),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What goes back to the store of shared limits, and when to look for more if shares were granted meanwhile.
#[cfg(feature = "redis")]
pub(crate) fn left_of_shares(cell: &Keyed<Cell>) -> (Vec<Terms>, Option<Instant>) {
    let clock = cell.scope.clock;
    let now = clock.now_nanos();
    let bounds = &cell.scope.bounds;
    let mut state = cell.lock();
    let shares = state.shares(bounds.len()).iter_mut();
    let left = bounds.iter().zip(shares).filter_map(|(bound, share)| {
        let back = share.clear_if_over(now)?;
        bound.give_back(cell.key(), back, now)
    });
    let left = left.collect();
    let next_end = state.extra.as_mut().and_then(|extra| {
        extra.is_looked_after = false;
        extra.look_after(now)
    });
    (left, next_end.map(|nanos| clock.at(nanos)))
}

impl Evictable for Cell {
    fn is_evictable(&self) -> bool {
        let now_nanos = self.scope.clock.now_nanos();
        let mut state = self.lock();
        let extra = state.extra.as_deref_mut();
        let is_quiet = extra.is_none_or(|extra| {
            let pace = extra.pace.as_mut();
            let is_spent = |share: &Share| share.is_spent(now_nanos);
            let is_spent = extra.shares.iter().all(is_spent);
            is_spent && extra.line.is_none() && pace.is_none_or(|pace| pace.is_over(now_nanos))
        });
        is_quiet
            && self
                .scope
                .bounds
                .iter()
                .zip(state.gauges.iter())
                .all(|(bound, gauge)| {
                    // By the slowest rate, and on a copy: nobody knows which tier the caller is in.
                    let mut meter = gauge.meter.clone();
                    meter.full_in(bound.slowest(), bound.now(now_nanos)) == 0
                })
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.scope.forgotten.add(state);
    }
}

// === impl State ===

impl State {
    /// The gauges, if a call need heed nothing else.
    pub(crate) fn plain_gauges(&mut self) -> Option<&mut Gauges> {
        self.extra.is_none().then_some(&mut self.gauges)
    }

    pub(crate) fn pace(&mut self) -> Option<&mut Pace> {
        self.extra.as_mut()?.pace.as_mut()
    }

    pub(crate) fn pace_or_new(&mut self) -> &mut Pace {
        let extra = self.extra.get_or_insert_default();
        extra.pace.get_or_insert_default()
    }

    /// What may be spent of each of the cell's limits, as many as `limits`.
    pub(crate) fn shares(&mut self, limits: usize) -> &mut [Share] {
        let extra = self.extra.get_or_insert_default();
        if extra.shares.len() != limits {
            extra.shares = vec![Share::default(); limits].into();
        }
        &mut extra.shares
    }

    /// When the next of its shares ends, if nobody looks for what is left then: whoever is told does from now on.
    pub(crate) fn look_after_shares(&mut self, now_nanos: u64) -> Option<u64> {
        let extra = self.extra.as_mut()?;
        (!extra.is_looked_after)
            .then(|| extra.look_after(now_nanos))
            .flatten()
    }

    /// Who was told could not.
    pub(crate) fn look_after_no_more(&mut self) {
        if let Some(extra) = &mut self.extra {
            extra.is_looked_after = false;
        }
    }

    pub(crate) fn gauges_and_line(&mut self) -> (&mut Gauges, Option<&Line>) {
        let line = self.extra.as_ref().and_then(|extra| extra.line.as_ref());
        (&mut self.gauges, line)
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        let line = self.extra.as_ref().and_then(|extra| extra.line.as_ref());
        line.map_or(0, |line| line.waiting)
    }

    /// Has the first in the line try again, if there is one: woken with the lock free.
    pub(crate) fn free(mut this: MutexGuard<'_, Self>) {
        let freed = this.line().map(|line| line.freed());
        drop(this);
        if let Some(wake) = freed {
            wake();
        }
    }

    pub(crate) fn line(&mut self) -> Option<&mut Line> {
        self.extra.as_mut()?.line.as_mut()
    }

    pub(crate) fn line_or_new(&mut self, limits: usize) -> &mut Line {
        let extra = self.extra.get_or_insert_default();
        extra.line.get_or_insert_with(|| Line::new(limits))
    }

    /// Ends the queue, when nobody is in it any more.
    pub(crate) fn drop_line(&mut self) {
        if let Some(extra) = &mut self.extra {
            extra.line = None;
            if extra.pace.is_none() && extra.shares.is_empty() {
                self.extra = None;
            }
        }
    }
}

impl Extra {
    fn look_after(&mut self, now_nanos: u64) -> Option<u64> {
        let ends = self.shares.iter().filter_map(|share| share.ends(now_nanos));
        let next = ends.min();
        self.is_looked_after = next.is_some();
        next
    }
}

// === impl Gauges ===

impl Gauges {
    fn new(bounds: &[Bound]) -> Self {
        let gauge = |bound: &Bound| Gauge {
            meter: Meter::new(bound.kind),
            consumed: 0,
        };
        match bounds {
            [bound] => Self::One(gauge(bound)),
            _ => Self::Many(bounds.iter().map(gauge).collect()),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Gauge> {
        match self {
            Self::One(gauge) => std::slice::from_ref(gauge).iter(),
            Self::Many(gauges) => gauges.iter(),
        }
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Gauge> {
        match self {
            Self::One(gauge) => std::slice::from_mut(gauge).iter_mut(),
            Self::Many(gauges) => gauges.iter_mut(),
        }
    }
}

// === impl Gauge ===

impl Gauge {
    /// Whether `amount` can be taken now, of a limit that nobody waits for.
    pub(crate) fn has_room(&mut self, bound: &Bound, tier: Tier, amount: u64, now: u64) -> bool {
        let rate = bound.own_rate(tier);
        // Who asks for nothing waits all the same for debts to be paid off.
        amount <= rate.capacity && self.meter.wait(rate, amount.max(1), bound.now(now)) == 0
    }

    /// Takes `amount`; returns the mark by which it is settled.
    pub(crate) fn take(&mut self, bound: &Bound, rate: &Rate, amount: u64, now: u64) -> u32 {
        self.consumed = self.consumed.saturating_add(amount);
        self.meter.take(rate, amount, bound.now(now))
    }

    /// Gives back what was reserved and not used.
    pub(crate) fn settle_down(&mut self, bound: &Bound, rate: &Rate, mark: u32, less: u64) {
        self.consumed = self.consumed.saturating_sub(less);
        self.meter.give_back(rate, mark, less);
        bound.counts.settled_down.fetch_add(less, Ordering::Relaxed);
    }

    /// Charges what was used beyond what was reserved.
    pub(crate) fn settle_up(&mut self, bound: &Bound, tier: Tier, more: u64, now: u64) {
        let (counts, now) = (&bound.counts, bound.now(now));
        self.consumed = self.consumed.saturating_add(more);
        self.meter.take(bound.own_rate(tier), more, now);
        counts.settled_up.fetch_add(more, Ordering::Relaxed);
        if self.meter.is_over(bound.rate(tier), now) {
            counts.violations.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl std::fmt::Debug for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cell").finish_non_exhaustive()
    }
}

const _: () = assert!(
    mem::size_of::<Cell>() <= 120,
    "a key's memory is promised to be small"
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Grant;

    /// The state of a key that has been granted shares until then.
    fn state(untils: &[u64]) -> State {
        let mut state = State {
            gauges: Gauges::Many([].into()),
            admitted: 0,
            extra: None,
        };
        for (share, until) in state.shares(untils.len()).iter_mut().zip(untils) {
            let grant = Grant { amount: 5, mark: 1 };
            share.replace(grant, *until, Tier::NONE);
        }
        state
    }

    #[test]
    fn shares_are_looked_after_by_one() {
        let mut state = state(&[300, 200]);
        assert_eq!(state.look_after_shares(100), Some(200));
        assert_eq!(state.look_after_shares(150), None, "somebody does");
        state.look_after_no_more();
        assert_eq!(state.look_after_shares(250), Some(300), "he could not");
    }

    #[test]
    fn where_no_share_is_held_there_is_nothing_to_look_after() {
        let mut state = state(&[0, 100]);
        assert_eq!(state.look_after_shares(100), None);
        state.shares(2)[0].replace(Grant { amount: 5, mark: 1 }, 400, Tier::NONE);
        assert_eq!(state.look_after_shares(100), Some(400));
    }
}
