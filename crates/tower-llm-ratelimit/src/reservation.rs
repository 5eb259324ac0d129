//! What a call has taken, from when it was admitted until it has ended.

use std::cmp::Ordering;

use http::response::Parts;
use tokio::time::Instant;
use tower_llm_core::{Completion, Guard, Outcome};

use crate::{
    Headers,
    cell::{Cell, Cells, State},
    cost::Cost,
    engine::{Ask, Taken},
    headers::Standings,
    lease::Back,
    scope::{Bound, Policy},
    store::{Holding, Terms},
    told::Told,
};

/// What a call has taken of its limits: its guard.
///
/// It is settled once: with what the call has used when that has ended, or given back whole when it is dropped before
/// the call was sent.
#[derive(Debug)]
pub struct Reservation {
    cells: Cells,
    ask: Ask,
    // `None` once it is settled.
    taken: Option<Taken>,
    /// What was taken from a store besides.
    holding: Option<Box<Holding>>,
}

/// How a settlement changes what was reserved of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    None,
    Less(u64),
    More(u64),
}

impl Reservation {
    pub(crate) fn new(cells: Cells, ask: Ask, taken: Taken) -> Self {
        Self {
            cells,
            ask,
            taken: Some(taken),
            holding: None,
        }
    }

    pub(crate) fn held_by(mut self, holding: Holding) -> Self {
        self.holding = Some(Box::new(holding));
        self
    }

    fn policy(&self) -> Option<&Policy> {
        // A layer without any limit has no cells, and nothing to settle.
        self.cells.first().map(|cell| &*cell.scope.policy)
    }

    /// Changes what was taken to what was used, once.
    fn settle(&mut self, used: &Cost, ended_at: Option<Instant>) {
        if self.learns() {
            match *used == Cost::NONE {
                true => self.never_sent(),
                false => self.answered(None),
            }
        }
        let Some(taken) = self.taken.take() else {
            return;
        };
        if *used == self.ask.estimate.reserved && self.holding.is_none() {
            return;
        }
        if let Some(holding) = self.holding.take() {
            let bounds = self.cells.iter().flat_map(|cell| &cell.scope.bounds);
            holding.settle(bounds.map(|bound| used.of(bound.limit.unit())));
        }
        if !taken.leases.is_empty() {
            self.settle_shares(&taken.leases, used);
        }
        let mut marks = &taken.marks[..];
        for cell in &self.cells {
            let (of_cell, others) = marks.split_at(cell.scope.bounds.len());
            marks = others;
            let mut bounds = cell.scope.bounds.iter();
            if bounds.any(|bound| self.change(bound, used) != Change::None) {
                self.settle_cell(cell, of_cell, used, ended_at);
            }
        }
    }

    fn settle_cell(&self, cell: &Cell, marks: &[u32], used: &Cost, ended_at: Option<Instant>) {
        let scope = &cell.scope;
        let mut state = cell.lock();
        let mut has_freed = false;
        let gauges = state.gauges.iter_mut();
        for ((bound, gauge), &mark) in scope.bounds.iter().zip(gauges).zip(marks) {
            let rate = bound.own_rate(self.ask.tier);
            match self.change(bound, used) {
                Change::None => {}
                Change::Less(less) => {
                    gauge.settle_down(bound, rate, mark, less);
                    has_freed = true;
                }
                Change::More(more) => {
                    // Seldom, so that the clock is seldom read.
                    let now = ended_at.unwrap_or_else(Instant::now);
                    let tier = self.ask.tier;
                    gauge.settle_up(bound, tier, more, scope.clock.nanos(now));
                }
            }
        }
        if has_freed {
            State::free(state);
        }
    }

    /// Changes what was taken of shares to what was used; what is not of a present one is for the store.
    fn settle_shares(&self, leases: &[u64], used: &Cost) {
        let policy = self.policy();
        let Some(shared) = policy.and_then(|policy| policy.shared.as_ref()) else {
            return;
        };
        let mut leases = leases.iter();
        let mut for_store = Vec::new();
        for cell in &self.cells {
            let now = cell.scope.clock.now_nanos();
            let bounds = &cell.scope.bounds;
            let mut state = cell.lock();
            let shares = state.shares(bounds.len()).iter_mut();
            for ((bound, share), &mark) in bounds.iter().zip(shares).zip(&mut leases) {
                let (less, more) = match self.change(bound, used) {
                    Change::None => continue,
                    Change::Less(less) => (less, 0),
                    Change::More(more) => (0, more),
                };
                if share.settle(mark, less, more, now) {
                    continue;
                }
                let (amount, tier) = (less, self.ask.tier);
                for_store.push(Terms {
                    claim: bound.claim(cell.key(), tier, now),
                    want: 0,
                    back: Back { amount, mark, tier },
                    charge: more,
                });
            }
        }
        if !for_store.is_empty() {
            shared.store.adjust(for_store);
        }
    }

    /// What was used of a limit, beside what was reserved.
    fn change(&self, bound: &Bound, used: &Cost) -> Change {
        let (reserved, used) = (self.ask.amount(bound), used.of(bound.limit.unit()));
        match used.cmp(&reserved) {
            Ordering::Equal => Change::None,
            Ordering::Less => Change::Less(reserved - used),
            Ordering::Greater => Change::More(used - reserved),
        }
    }

    /// Whether it waits to hear from the provider.
    fn learns(&self) -> bool {
        self.taken
            .as_ref()
            .is_some_and(|taken| taken.pace.is_some())
    }

    /// The cell in which the provider's limits are learned.
    fn learning(&self) -> Option<&Cell> {
        let cells = self.cells.iter().map(|cell| &***cell);
        cells.into_iter().find(|cell| cell.scope.learns)
    }

    /// Has it learned that the call was answered, or ended without that, and what it was told; once.
    fn answered(&mut self, head: Option<&Parts>) {
        let mark = self.taken.as_mut().and_then(|taken| taken.pace.take());
        let (Some(cell), Some(mark)) = (self.learning(), mark) else {
            return;
        };
        let told = head.map_or_else(Told::default, |head| Told::read(&head.headers));
        let now = cell.scope.clock.now_nanos();
        let cost = &self.ask.estimate.reserved;
        let mut state = cell.lock();
        state.pace_or_new().answered(cost, mark, &told, now);
        // There may be room earlier than the first in the line knew.
        if told != Told::default() {
            State::free(state);
        }
    }

    /// Gives back what was taken of what the provider told, unless the call was answered.
    fn never_sent(&mut self) {
        let mark = self.taken.as_mut().and_then(|taken| taken.pace.take());
        let (Some(cell), Some(mark)) = (self.learning(), mark) else {
            return;
        };
        let now = cell.scope.clock.now_nanos();
        let cost = &self.ask.estimate.reserved;
        let mut state = cell.lock();
        state.pace_or_new().never_sent(cost, mark, now);
        State::free(state);
    }

    fn close(&self, completion: &Completion) {
        let Outcome::Throttled {
            retry_after: Some(wait),
        } = completion.outcome
        else {
            return;
        };
        if let Some(cell) = self.learning() {
            // It may be any time, of a `Watch` that is not ours.
            let wait = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
            let until = cell.scope.clock.now_nanos().saturating_add(wait);
            cell.lock().pace_or_new().close_until(until);
        }
    }
}

impl Guard for Reservation {
    fn response_headers(&mut self, head: Option<&mut Parts>) {
        let Some(parts) = head else { return };
        self.answered(Some(parts));
        let Some(policy) = self.policy() else { return };
        let headers = policy.headers;
        let shared = self.holding.as_deref().map_or(&[][..], |held| &held.stands);
        // How limits stand that many processes share only their store knows.
        let is_known = policy.shared.is_none() || !shared.is_empty();
        if headers != Headers::None && is_known {
            Standings::of(&self.cells, self.ask.tier, shared).write(headers, &mut parts.headers);
        }
    }

    fn end(&mut self, completion: &Completion) {
        self.close(completion);
        let Some(policy) = self.policy() else { return };
        if let (Some(learned), Outcome::Success, Some(usage)) =
            (&self.ask.learned, completion.outcome, completion.usage)
        {
            learned.record(usage.output);
        }
        let used = policy.pricing.settle(&self.ask.estimate, completion);
        self.settle(&used, completion.ended_at);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.taken.is_some() {
            self.settle(&Cost::NONE, None);
        }
    }
}
