//! The calls that wait for the limits of one key: plain data with `now` as an argument.
//!
//! Each caller has a *lane*, in which its calls go in the order in which they were made. Lanes take turns: a lane that was
//! served goes to the end. So a caller with a thousand calls delays another caller's first one by a single call.
//!
//! Only the *head* tries: it sleeps until the limits have room for it, or until it is woken because something was settled.
//! So a large call is not starved by a flow of small ones.
//!
//! A call can be alive without being polled, for example in a set whose owner is busy. As head it would block all others.
//! Every call therefore has a time by which it should be polled, because its timer fires or because it was woken. If it is
//! late by a second, it is *stalled*: it is skipped until it is polled again, and does not count as waiting. The other
//! calls check for that on their own timers, because no other task would wake them.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    task::Waker,
};

use tower_llm_core::Caller;

use crate::pricing::Amounts;

/// How late a call may be polled before it is skipped.
pub(crate) const PATIENCE_NANOS: u64 = 1_000_000_000;

/// The calls that wait; it exists only while there are any.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    lanes: HashMap<LaneId, Lane>,
    ids: HashMap<Option<Caller>, LaneId>,
    /// The lanes in the order of their turns.
    turns: BTreeMap<u64, LaneId>,
    /// Numbers lanes, turns and calls.
    next: u64,
}

type LaneId = u64;

/// The calls of one caller; never empty.
#[derive(Debug)]
struct Lane {
    caller: Option<Caller>,
    turn: u64,
    /// By number.
    calls: BTreeMap<u64, Entry>,
}

/// The position of a call in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    lane: LaneId,
    number: u64,
}

#[derive(Debug)]
struct Entry {
    reserves: Amounts,
    /// `None` before its first poll.
    waker: Option<Waker>,
    /// Whether it was woken to try again, or to check whether it can still be admitted.
    is_woken: bool,
    /// The latest time of its next poll, unless it is stalled.
    due_nanos: u64,
}

/// What a polled call should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Polled {
    /// Nothing has changed.
    Sleep,
    /// It is the head: it tries.
    Try,
    /// It checks whether it can still be admitted, and sleeps until then at the latest.
    Look { until_nanos: u64 },
}

/// Why a call leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaves {
    /// It was served: its lane goes to the end.
    Served,
    Unserved,
}

impl Queue {
    /// Joins; the call should be polled soon.
    pub(crate) fn join(
        &mut self,
        caller: Option<Caller>,
        reserves: Amounts,
        now_nanos: u64,
    ) -> Position {
        let number = self.number();
        let lane = match self.ids.get(&caller) {
            Some(&lane) => lane,
            None => self.add_lane(caller),
        };
        let entry = Entry {
            reserves,
            waker: None,
            is_woken: true,
            due_nanos: now_nanos,
        };
        let calls = self.lanes.get_mut(&lane).map(|lane| &mut lane.calls);
        calls.expect("it is there").insert(number, entry);
        Position { lane, number }
    }

    fn add_lane(&mut self, caller: Option<Caller>) -> LaneId {
        let (id, turn) = (self.number(), self.number());
        self.ids.insert(caller.clone(), id);
        self.turns.insert(turn, id);
        let calls = BTreeMap::new();
        self.lanes.insert(
            id,
            Lane {
                caller,
                turn,
                calls,
            },
        );
        id
    }

    /// Leaves. Returns the waker of the new head, if the call was the head.
    pub(crate) fn leave(
        &mut self,
        position: Position,
        leaves: Leaves,
        now_nanos: u64,
    ) -> Option<Waker> {
        let was_head = self.head(now_nanos) == Some(position);
        let turn = self.number();
        let lane = self.lanes.get_mut(&position.lane)?;
        lane.calls.remove(&position.number);
        if lane.calls.is_empty() {
            self.turns.remove(&lane.turn);
            self.ids.remove(&lane.caller);
            self.lanes.remove(&position.lane);
        } else if leaves == Leaves::Served {
            self.turns.remove(&lane.turn);
            lane.turn = turn;
            self.turns.insert(turn, position.lane);
        }
        was_head.then(|| self.wake_head(now_nanos)).flatten()
    }

    /// The call is polled, and woken by `waker` from now on.
    pub(crate) fn poll(&mut self, position: Position, waker: &Waker, now_nanos: u64) -> Polled {
        let Some(entry) = self.entry(position) else {
            return Polled::Try;
        };
        match &mut entry.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        let is_due = mem::take(&mut entry.is_woken) || now_nanos >= entry.due_nanos;
        if !is_due {
            return Polled::Sleep;
        }
        entry.due_nanos = now_nanos;
        match self.head(now_nanos) {
            Some(head) if head != position => {
                let due_nanos = self.entry(head).map_or(now_nanos, |entry| entry.due_nanos);
                let until_nanos = due_nanos.saturating_add(PATIENCE_NANOS);
                Polled::Look { until_nanos }
            }
            _ => Polled::Try,
        }
    }

    /// The call sleeps until `due_nanos`. Returns `false` if it was woken meanwhile.
    pub(crate) fn sleep(&mut self, position: Position, due_nanos: u64) -> bool {
        let Some(entry) = self.entry(position) else {
            return true;
        };
        if !entry.is_woken {
            entry.due_nanos = due_nanos;
        }
        !entry.is_woken
    }

    /// Makes the head try again; returns its waker.
    pub(crate) fn wake_head(&mut self, now_nanos: u64) -> Option<Waker> {
        let head = self.head(now_nanos)?;
        self.entry(head)?.wake(now_nanos)
    }

    /// Makes every call check whether it can still be admitted; returns their wakers.
    pub(crate) fn wake_all(&mut self, now_nanos: u64) -> Vec<Waker> {
        let lanes = self.lanes.values_mut();
        let calls = lanes.flat_map(|lane| lane.calls.values_mut());
        calls.filter_map(|entry| entry.wake(now_nanos)).collect()
    }

    /// The first call that is not stalled, of the first lane that has one.
    fn head(&self, now_nanos: u64) -> Option<Position> {
        self.turns.values().find_map(|&lane| {
            let mut calls = self.lanes.get(&lane)?.calls.iter();
            let first = calls.find(|(_, entry)| !entry.is_stalled(now_nanos));
            first.map(|(&number, _)| Position { lane, number })
        })
    }

    /// What the calls ahead of a new one of `caller` reserve: all calls of that caller, as many of each other caller, and
    /// one more of callers whose lane comes first.
    pub(crate) fn ahead(&self, caller: Option<&Caller>) -> Amounts {
        let caller = caller.cloned();
        let own = self.ids.get(&caller).and_then(|id| self.lanes.get(id));
        let (before, turn) = own.map_or((0, u64::MAX), |lane| (lane.calls.len(), lane.turn));
        let mut ahead = Amounts::NONE;
        for lane in self.lanes.values() {
            let most = before + usize::from(lane.turn < turn);
            for entry in lane.calls.values().take(most) {
                ahead = ahead.plus(&entry.reserves);
            }
        }
        ahead
    }

    /// How many calls there are.
    pub(crate) fn len(&self) -> usize {
        self.lanes.values().map(|lane| lane.calls.len()).sum()
    }

    /// Whether `most` calls wait that are not stalled.
    pub(crate) fn is_full(&self, most: usize, now_nanos: u64) -> bool {
        let calls = self.lanes.values().flat_map(|lane| lane.calls.values());
        let waiting = calls.filter(|entry| !entry.is_stalled(now_nanos));
        waiting.count() >= most
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    fn entry(&mut self, position: Position) -> Option<&mut Entry> {
        let lane = self.lanes.get_mut(&position.lane)?;
        lane.calls.get_mut(&position.number)
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

impl Entry {
    fn wake(&mut self, now_nanos: u64) -> Option<Waker> {
        self.is_woken = true;
        self.due_nanos = self.due_nanos.min(now_nanos);
        self.waker.clone()
    }

    fn is_stalled(&self, now_nanos: u64) -> bool {
        now_nanos >= self.due_nanos.saturating_add(PATIENCE_NANOS)
    }
}

#[cfg(test)]
mod tests;
