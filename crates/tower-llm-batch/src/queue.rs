//! All calls of a layer, from their arrival to their answer.
//!
//! One lock guards them. It is held for look-ups in maps, never while a method of the [`Batcher`](crate::Batcher), a waker or
//! a destructor runs: what is to be woken or dropped is returned.

mod flights;

use std::{collections::HashMap, hash::Hash, sync::Arc, task::Waker, time::Duration};

use slab::Slab;
use tokio::time::Instant;
use tower_llm_core::{BoxError, Priority};

use crate::{
    after::After,
    batcher::Terms,
    call_times::CallTimes,
    error::{BatchFailed, BatchFull},
    flight::{Flight, Work},
    handle::{BatchStats, Counts},
    lane::{Lane, Limits, Place, Waiting, Window},
    settings::Settings,
};

/// All calls of a layer.
pub(crate) struct Queue<K, R, T> {
    settings: Settings,
    by_key: HashMap<Arc<K>, usize>,
    lanes: Slab<KeyState<K, R>>,
    calls: HashMap<u64, Call<T>>,
    next_id: u64,
    call_times: CallTimes,
    pub(crate) counts: Counts,
}

/// The calls of one key; it is there as long as some wait or are in flight.
struct KeyState<K, R> {
    key: Arc<K>,
    lane: Lane<R>,
    flights: Vec<InFlight>,
}

struct InFlight {
    flight: Arc<Flight>,
    calls: Vec<u64>,
    /// How many of them still wait for an answer.
    waiting: usize,
}

struct Call<T> {
    stage: Stage<T>,
    waker: Option<Waker>,
}

enum Stage<T> {
    Waiting {
        lane: usize,
        place: Place,
        until: Instant,
    },
    Flying(Arc<Flight>),
    /// With the flight that it was in, if it was sent.
    Done(Result<T, BoxError>, Option<Arc<Flight>>),
}

/// What a call finds when it looks.
pub(crate) enum Found<T> {
    Done(Result<T, BoxError>),
    Flying(Arc<Flight>),
    /// The next batch of its key can be sent.
    Due,
    /// It waits. It looks again then, or when it is woken.
    Waiting(Instant),
}

/// The calls of a batch.
pub(crate) struct Taken<R> {
    pub(crate) calls: Vec<u64>,
    pub(crate) requests: Vec<R>,
}

/// How a call has left.
#[derive(Debug)]
pub(crate) enum Left {
    /// It was not sent.
    Waiting,
    /// It was the last one of a call in flight.
    Last(Arc<Flight>),
    Other,
}

impl<K: Eq + Hash, R, T> Queue<K, R, T> {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            by_key: HashMap::new(),
            lanes: Slab::new(),
            calls: HashMap::new(),
            next_id: 0,
            call_times: CallTimes::new(settings.call_time),
            counts: Counts::default(),
        }
    }

    /// Adds a call to the queue of its key, unless that is full; then the request is left in `request`.
    pub(crate) fn join(
        &mut self,
        request: &mut Option<R>,
        terms: &Terms<Arc<K>>,
        now: Instant,
    ) -> Result<u64, BatchFull> {
        let known = self.by_key.get(&terms.key).copied();
        if let Some(lane) = known
            && self.lanes[lane].lane.waiting_of(terms.priority) >= self.settings.max_waiting
        {
            self.counts.refused += 1;
            return Err(self.full(lane, terms.priority, None));
        }
        let Some(request) = request.take() else {
            unreachable!("it is given by the caller");
        };
        let lane = known.unwrap_or_else(|| self.add_key(terms));
        let id = self.next_id;
        self.next_id += 1;
        let place = Place {
            priority: terms.priority,
            id,
        };
        let latest = now + self.settings.max_wait;
        let until = terms.deadline.map_or(latest, |at| at.min(latest));
        let call = Waiting {
            request,
            items: terms.items,
            tokens: terms.tokens,
            arrived: now,
            deadline: terms.deadline,
            until,
        };
        self.lanes[lane].lane.join(place, call);
        let stage = Stage::Waiting { lane, place, until };
        self.calls.insert(id, Call { stage, waker: None });
        Ok(id)
    }

    fn add_key(&mut self, terms: &Terms<Arc<K>>) -> usize {
        let limits = Limits {
            items: self.settings.max_items.min(terms.max_items),
            tokens: self.settings.max_tokens.min(terms.max_tokens),
        };
        // First the map, which runs code of the user's key.
        self.by_key
            .insert(Arc::clone(&terms.key), self.lanes.vacant_key());
        self.lanes.insert(KeyState {
            key: Arc::clone(&terms.key),
            lane: Lane::new(limits),
            flights: Vec::new(),
        })
    }

    /// Looks what has become of a call, and has it woken by `waker` when that changes.
    ///
    /// A call that has waited for as long as it may is refused, even if it could be sent at this moment.
    pub(crate) fn look(&mut self, id: u64, waker: Waker, after: &mut After<K, R, T>) -> Found<T> {
        let window = self.window();
        let Some(call) = self.calls.get_mut(&id) else {
            // Not reached: a call that has its answer does not look again.
            return Found::Done(Err(BatchFailed::no_answer().into()));
        };
        after.drop_waker(call.waker.replace(waker));
        match &call.stage {
            Stage::Done(..) => match self.calls.remove(&id) {
                Some(Call {
                    stage: Stage::Done(result, flight),
                    waker,
                }) => {
                    after.drop_waker(waker);
                    self.hand_over(flight.as_ref(), id, after);
                    Found::Done(result)
                }
                _ => unreachable!("it was done just now"),
            },
            Stage::Flying(flight) => Found::Flying(Arc::clone(flight)),
            &Stage::Waiting { lane, place, until } => {
                let now = Instant::now();
                if until <= now {
                    let waiting = self.lanes[lane].lane.leave(place);
                    let call = self.calls.remove(&id);
                    after.drop_waker(call.and_then(|call| call.waker));
                    let full = self.expire(lane, place, waiting, now, after);
                    self.tidy(lane, after);
                    return Found::Done(Err(full.into()));
                }
                let waiting = &self.lanes[lane].lane;
                if self.may_fly(lane) && waiting.is_due(window, now) {
                    return Found::Due;
                }
                // A batch whose window has closed waits for another one to end, which wakes it.
                let closes_at = waiting.closes_at(window).filter(|at| *at > now);
                Found::Waiting(closes_at.map_or(until, |at| at.min(until)))
            }
        }
    }

    /// The error of a call that has waited for too long, which has left its lane.
    fn expire(
        &mut self,
        lane: usize,
        place: Place,
        call: Option<Waiting<R>>,
        now: Instant,
        after: &mut After<K, R, T>,
    ) -> BatchFull {
        self.counts.refused += 1;
        let arrived = call.as_ref().map_or(now, |call| call.arrived);
        after.drop_request(call);
        let waited = now.saturating_duration_since(arrived);
        self.full(lane, place.priority, Some(waited))
    }

    /// Takes the next batch of a call's key, if it is still due; `start` is taken then.
    pub(crate) fn take<F>(&mut self, id: u64, start: &mut Option<F>, after: &mut After<K, R, T>)
    where
        F: FnOnce(Taken<R>) -> Work,
    {
        let Some(&Stage::Waiting { lane, .. }) = self.calls.get(&id).map(|call| &call.stage) else {
            return;
        };
        let (window, now) = (self.window(), Instant::now());
        if !self.may_fly(lane) || !self.lanes[lane].lane.is_due(window, now) {
            return;
        }
        let max_items = self.lanes[lane].lane.limits().items;
        let next = self.lanes[lane].lane.take(now);
        for (place, call) in next.expired {
            let full = self.expire(lane, place, Some(call), now, after);
            if let Some(call) = self.calls.get_mut(&place.id) {
                call.stage = Stage::Done(Err(full.into()), None);
                after.wakers.extend(call.waker.take());
            }
        }
        if let Some(start) = start.take_if(|_| !next.calls.is_empty()) {
            self.counts.took(&next.calls, max_items, now);
            self.start(id, lane, next.calls, start, after);
        }
        self.tidy(lane, after);
    }

    /// Removes a call.
    pub(crate) fn leave(&mut self, id: u64, after: &mut After<K, R, T>) -> Left {
        let Some(call) = self.calls.remove(&id) else {
            return Left::Other;
        };
        after.drop_waker(call.waker);
        match call.stage {
            Stage::Waiting { lane, place, .. } => {
                self.counts.left += 1;
                after.drop_request(self.lanes[lane].lane.leave(place));
                self.tidy(lane, after);
                Left::Waiting
            }
            Stage::Flying(flight) => {
                self.counts.left += 1;
                let in_flight = self.in_flight(&flight);
                let is_last = in_flight.is_some_and(|in_flight| {
                    in_flight.waiting -= 1;
                    in_flight.waiting == 0
                });
                self.hand_over(Some(&flight), id, after);
                match is_last {
                    true => Left::Last(flight),
                    false => Left::Other,
                }
            }
            Stage::Done(result, flight) => {
                after.drop_result(result);
                self.hand_over(flight.as_ref(), id, after);
                Left::Other
            }
        }
    }

    /// Notes how long an upstream call took.
    pub(crate) fn called(&mut self, time: Duration) {
        self.call_times.record(time);
    }

    pub(crate) fn stats(&self) -> BatchStats {
        let lanes = self.lanes.iter().map(|(_, state)| state);
        let waiting = lanes.clone().map(|state| state.lane.len()).sum();
        let in_flight = lanes.map(|state| state.flights.len()).sum();
        self.counts.stats(self.lanes.len(), waiting, in_flight)
    }

    fn window(&self) -> Window {
        Window {
            length: self.settings.window,
            call_time: self.call_times.expected(),
        }
    }

    fn may_fly(&self, lane: usize) -> bool {
        self.lanes[lane].flights.len() < self.settings.max_in_flight
    }

    fn full(&self, lane: usize, priority: Priority, waited: Option<Duration>) -> BatchFull {
        let state = &self.lanes[lane];
        BatchFull {
            priority,
            queued: state.lane.waiting_of(priority),
            max_waiting: self.settings.max_waiting,
            in_flight: state.flights.len(),
            waited,
            refusal: BatchFull::REFUSAL,
        }
    }

    /// Removes a key without calls, or wakes a call that can be sent.
    fn tidy(&mut self, lane: usize, after: &mut After<K, R, T>) {
        let state = &self.lanes[lane];
        if state.lane.len() > 0 || !state.flights.is_empty() {
            self.wake_due(lane, Instant::now(), after);
            return;
        }
        let known = self.by_key.remove_entry(&state.key);
        let state = self.lanes.remove(lane);
        after.drop_key(state.key, known.map(|(key, _)| key));
    }

    /// Wakes the first call that waits, if its batch can be sent.
    fn wake_due(&mut self, lane: usize, now: Instant, after: &mut After<K, R, T>) {
        let (may_fly, window) = (self.may_fly(lane), self.window());
        let waiting = &self.lanes[lane].lane;
        if may_fly && waiting.is_due(window, now) {
            let mut calls = waiting.calls();
            let waker = calls.find_map(|id| self.calls.get_mut(&id)?.waker.take());
            after.wakers.extend(waker);
        }
    }
}
