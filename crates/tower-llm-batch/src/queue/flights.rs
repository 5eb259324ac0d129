//! The batches of a queue that are in flight.

use std::{hash::Hash, sync::Arc, task::Waker};

use tower_llm_core::BoxError;

use super::{InFlight, Queue, Stage, Taken};
use crate::{
    after::After,
    error::BatchFailed,
    flight::{Flight, Work},
    lane::{Place, Waiting},
};

impl<K: Eq + Hash, R, T> Queue<K, R, T> {
    /// Puts calls in flight that `by` has taken.
    pub(super) fn start(
        &mut self,
        by: u64,
        lane: usize,
        taken: Vec<(Place, Waiting<R>)>,
        start: impl FnOnce(Taken<R>) -> Work,
        after: &mut After<K, R, T>,
    ) {
        let calls: Vec<u64> = taken.iter().map(|(place, _)| place.id).collect();
        let requests = taken.into_iter().map(|(_, call)| call.request).collect();
        let work = start(Taken {
            calls: calls.clone(),
            requests,
        });
        let flight = Arc::new(Flight::new(lane, work));
        for id in &calls {
            if let Some(call) = self.calls.get_mut(id) {
                call.stage = Stage::Flying(Arc::clone(&flight));
            }
        }
        let is_own = calls.contains(&by);
        self.lanes[lane].flights.push(InFlight {
            flight: Arc::clone(&flight),
            waiting: calls.len(),
            calls,
        });
        if !is_own {
            after.wakers.extend(self.waker_of(&flight));
        }
    }

    /// Which of the calls of a batch still wait for an answer.
    pub(crate) fn are_waiting(&self, calls: &[u64]) -> Vec<bool> {
        let is_waiting = |id| {
            let call = self.calls.get(id);
            call.is_some_and(|call| matches!(call.stage, Stage::Flying(_)))
        };
        calls.iter().map(is_waiting).collect()
    }

    /// Gives calls of a flight their answers; those of calls that have left are dropped.
    pub(crate) fn deliver(
        &mut self,
        calls: &[u64],
        results: Vec<Result<T, BoxError>>,
        after: &mut After<K, R, T>,
    ) {
        for (id, result) in calls.iter().zip(results) {
            let flight = match self.calls.get(id).map(|call| &call.stage) {
                Some(Stage::Flying(flight)) => Arc::clone(flight),
                _ => {
                    after.drop_result(result);
                    continue;
                }
            };
            if let Some(in_flight) = self.in_flight(&flight) {
                in_flight.waiting -= 1;
            }
            if let Some(call) = self.calls.get_mut(id) {
                call.stage = Stage::Done(result, Some(flight));
                after.wakers.extend(call.waker.take());
            }
        }
    }

    /// Ends a flight. Calls that have no answer yet get an error.
    pub(crate) fn ended(
        &mut self,
        flight: &Arc<Flight>,
        error: impl Fn() -> BatchFailed,
        after: &mut After<K, R, T>,
    ) {
        let Some(state) = self.lanes.get_mut(flight.lane) else {
            return;
        };
        let flights = &mut state.flights;
        let Some(at) = flights
            .iter()
            .position(|other| Arc::ptr_eq(&other.flight, flight))
        else {
            return;
        };
        let mut calls = flights[at].calls.clone();
        let mut are_waiting = self.are_waiting(&calls).into_iter();
        calls.retain(|_| are_waiting.next() == Some(true));
        self.deliver(&calls, BatchFailed::copies(calls.len(), error), after);
        self.lanes[flight.lane].flights.swap_remove(at);
        self.tidy(flight.lane, after);
    }

    /// Flights of a call that waits, which it looks after.
    pub(crate) fn flights_before(&self, id: u64) -> Vec<Arc<Flight>> {
        match self.calls.get(&id).map(|call| &call.stage) {
            Some(&Stage::Waiting { lane, .. }) => {
                let flights = self.lanes[lane].flights.iter();
                flights
                    .map(|in_flight| Arc::clone(&in_flight.flight))
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    pub(super) fn in_flight(&mut self, flight: &Arc<Flight>) -> Option<&mut InFlight> {
        // The lane may be another key's by now.
        let flights = &mut self.lanes.get_mut(flight.lane)?.flights;
        flights
            .iter_mut()
            .find(|in_flight| Arc::ptr_eq(&in_flight.flight, flight))
    }

    /// A call that is no longer in a flight may have been its driver: then another one is woken.
    pub(crate) fn hand_over(
        &mut self,
        flight: Option<&Arc<Flight>>,
        id: u64,
        after: &mut After<K, R, T>,
    ) {
        let Some(flight) = flight else {
            return;
        };
        let (needs_driver, waker) = flight.hand_over(id);
        after.drop_waker(waker);
        if needs_driver {
            after.wakers.extend(self.waker_of(flight));
        }
    }

    /// The waker of any call in a flight.
    fn waker_of(&mut self, flight: &Arc<Flight>) -> Option<Waker> {
        let state = self.lanes.get(flight.lane)?;
        let mut flights = state.flights.iter();
        let in_flight = flights.find(|in_flight| Arc::ptr_eq(&in_flight.flight, flight))?;
        in_flight.calls.iter().find_map(|id| {
            let call = self.calls.get_mut(id)?;
            let flies = matches!(call.stage, Stage::Flying(_));
            call.waker.take_if(|_| flies)
        })
    }
}
