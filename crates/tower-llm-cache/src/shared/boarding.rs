//! A call's way into a flight, and the response that it gets there.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
};

use http::{Response, header::CONTENT_LENGTH};
use tokio::{runtime::Handle, time::Instant};
use tower_llm_core::{Bill, BoxError, Served};

use super::{Counters, Lookup, Shared, keep::Keep};
use crate::{
    body::CacheBody,
    coding::Accepted,
    error::FlightFailed,
    flight::{Account, Drive, Head, Join, Participant, Start},
    headers::{Did, StatusHeader, Why, shareable},
    key::CacheKey,
    memory::Stored,
    stale::OrStale,
};

/// A caller's part in a flight, and what to tell it of the cache.
pub(crate) struct Boarded {
    pub(crate) participant: Participant,
    did: Did,
    status: StatusHeader,
    key: Option<CacheKey>,
    tally: Option<Tally>,
    timer: Timer,
    accepted: Accepted,
    bill: Bill,
}

/// Measures the time to the response headers.
pub(crate) struct Timer {
    pub(crate) counters: Arc<Counters>,
    pub(crate) asked_at: Instant,
}

/// Counts a call once: by what the cache did, or, if the caller leaves before that is known, as what it was about to be.
struct Tally {
    counters: Arc<Counters>,
    did: Did,
}

/// What a call that was not answered from the store becomes.
pub(crate) enum Boarding<B> {
    Flying(Boarded),
    /// The answer was stored just now.
    Stored(Response<CacheBody<B>>),
}

impl Shared {
    /// Joins the call in flight for the same answer, or makes it.
    pub(crate) fn board<B>(
        self: &Arc<Self>,
        lookup: Lookup,
        upstream: impl FnOnce() -> Pin<Box<dyn Drive>>,
    ) -> Boarding<B> {
        let looks = self.looks_first(&lookup);
        let is_still_open = looks || !lookup.policy.stale_if_error.is_zero();
        let (participant, did) = match self.join(&lookup, upstream) {
            Join::Leader(leader) if lookup.wants_new() => (leader, Did::Forwarded(Why::Request)),
            Join::Leader(leader) => (leader, Did::Forwarded(Why::Miss)),
            Join::Follower(follower) => (follower, Did::Collapsed(Why::Miss)),
            Join::Stored(response) => return Boarding::Stored(response),
        };
        let tally = Tally {
            counters: Arc::clone(&self.counters),
            did,
        };
        let timer = Timer {
            counters: Arc::clone(&self.counters),
            asked_at: lookup.asked_at,
        };
        let key = Some(lookup.asked.key);
        Boarding::Flying(Boarded {
            // What cannot become a hit any more is counted at once.
            tally: Some(tally).filter(|_| is_still_open),
            ..Boarded::new(participant, did, self.status, key, timer)
        })
    }

    /// Joins the call in flight for the same answer, takes an answer that was stored just now, or makes the call.
    fn join<B>(
        self: &Arc<Self>,
        lookup: &Lookup,
        upstream: impl FnOnce() -> Pin<Box<dyn Drive>>,
    ) -> Join<Response<CacheBody<B>>> {
        let flight = lookup.flight();
        let mut upstream = Some(upstream);
        let mut start = || {
            let upstream = upstream.take().expect("a flight is started once");
            self.start(lookup, upstream())
        };
        if lookup.wants_new() {
            return Join::Leader(self.flights.start_alone(flight, start()));
        }
        // An answer that was stored, and cannot be told in the form that is asked for.
        let mut useless: Option<Arc<Stored>> = None;
        loop {
            let is_useless = |stored: &Arc<Stored>| {
                let useless = useless.as_ref();
                useless.is_some_and(|useless| Arc::ptr_eq(useless, stored))
            };
            // The table is locked meanwhile, so the answer is only taken. It is converted after that: a large one takes
            // milliseconds.
            let stored = || {
                self.fresh(lookup, lookup.asked_at)
                    .filter(|(stored, _)| !is_useless(stored))
            };
            let (stored, age) = match self.flights.join_or_start(flight, stored, &mut start) {
                Join::Leader(leader) => return Join::Leader(leader),
                Join::Follower(follower) => return Join::Follower(follower),
                Join::Stored(stored) => stored,
            };
            match self.replay(lookup, &stored, age) {
                Some(response) => return Join::Stored(response),
                None => useless = Some(stored),
            }
        }
    }

    /// What a new flight for `lookup` needs.
    fn start(self: &Arc<Self>, lookup: &Lookup, upstream: Pin<Box<dyn Drive>>) -> Start {
        let within = lookup.policy.stale_if_error;
        let upstream: Pin<Box<dyn Drive>> = if within.is_zero() {
            upstream
        } else {
            // Looked for at the failure: until then it may have been removed, or its time may be over.
            let (shared, lookup) = (Arc::clone(self), lookup.clone());
            let input_tokens = lookup.call.input_tokens();
            let stale = move || shared.stale(&lookup, within).map(|(_, found)| found);
            Box::pin(OrStale::new(upstream, input_tokens, Box::new(stale)))
        };
        Start {
            upstream: self.look_first(self.looks_first(lookup), lookup, upstream),
            recorder: Box::new(Keep::new(self, lookup)),
            max_recording: lookup.policy.max_answer_bytes,
            max_silence: lookup.policy.max_silence,
            max_unattended: lookup.policy.max_unattended,
            finishes: lookup.policy.finish_abandoned,
        }
    }

    /// Fetches a new answer in a task, unless one is on its way.
    pub(crate) fn revalidate(
        self: &Arc<Self>,
        lookup: &Lookup,
        upstream: impl FnOnce() -> Pin<Box<dyn Drive>>,
        runtime: &Handle,
    ) {
        let start = || self.start(lookup, upstream());
        // It may have been stored just now.
        let stored = || self.fresh(lookup, lookup.asked_at);
        if let Join::Leader(leader) = self.flights.join_or_start(lookup.flight(), stored, start) {
            self.counters.revalidations.fetch_add(1, Ordering::Relaxed);
            runtime.spawn(leader.read_to_end());
        }
    }

    /// Fetches a new answer in a task, before the one that is stored expires.
    pub(crate) fn refresh(
        self: &Arc<Self>,
        mut lookup: Lookup,
        upstream: Pin<Box<dyn Drive>>,
        runtime: &Handle,
    ) {
        // Another process may have renewed it, in Redis.
        lookup.directives.max_age = Some(lookup.policy.ttl / 2);
        let start = || self.start(&lookup, upstream);
        let stored = || None::<Infallible>;
        if let Join::Leader(leader) = self.flights.join_or_start(lookup.flight(), stored, start) {
            self.counters.refreshes.fetch_add(1, Ordering::Relaxed);
            runtime.spawn(leader.read_to_end());
        }
    }
}

impl Boarded {
    pub(crate) fn new(
        participant: Participant,
        did: Did,
        status: StatusHeader,
        key: Option<CacheKey>,
        timer: Timer,
    ) -> Self {
        Self {
            participant,
            did,
            status,
            key,
            tally: None,
            timer,
            accepted: Accepted::default(),
            bill: Bill::new(),
        }
    }

    /// Sets what the caller accepts.
    pub(crate) fn accepting(self, accepted: Accepted) -> Self {
        Self { accepted, ..self }
    }

    /// Sets what the caller has to pay for already.
    pub(crate) fn billed(self, bill: Bill) -> Self {
        self.participant
            .open_account(Account::of_response(bill.clone()));
        Self { bill, ..self }
    }

    /// The response that begins with `head`.
    ///
    /// # Errors
    ///
    /// [`FlightFailed`] if the caller cannot read what another one's call has brought. Its own it gets as it is.
    pub(crate) fn response<B>(mut self, head: Head) -> Result<Response<CacheBody<B>>, BoxError> {
        let is_leader = self.participant.is_leader();
        if !is_leader && !self.accepted.reads(&head.headers) {
            return Err(self.participant.billed(FlightFailed::encoded()));
        }
        let did = head.found.unwrap_or(self.did);
        if let Some(mut tally) = self.tally.take() {
            tally.did = did;
        }
        self.timer.stop(did);
        self.participant
            .open_account(Account::of_response(self.bill.clone()));
        let pays = self.participant.pays();
        let mut response = Response::new(CacheBody::shared(self.participant));
        *response.status_mut() = head.status;
        *response.version_mut() = head.version;
        let headers = response.headers_mut();
        if is_leader {
            *headers = head.headers;
        } else {
            *headers = shareable(&head.headers);
            // The body is the same.
            if let Some(length) = head.headers.get(CONTENT_LENGTH) {
                headers.insert(CONTENT_LENGTH, length.clone());
            }
        }
        self.status.write(did, self.key.as_ref(), headers);
        // Or by a cache nearer to the provider.
        let is_hit = head.found.is_some() || is_leader && head.served == Some(Served::Hit);
        if is_hit {
            response.extensions_mut().insert(Served::Hit);
        } else if !pays || head.served.is_some() {
            response.extensions_mut().insert(Served::Follower);
        }
        // Also of a hit: other calls may have been made for the same response.
        response.extensions_mut().insert(self.bill);
        Ok(response)
    }
}

impl Timer {
    /// The response headers are there. The time of a follower says nothing of the cache, and nothing of the provider.
    pub(crate) fn stop(&self, did: Did) {
        let latency = match did {
            Did::Hit { .. } | Did::Stale { .. } => &self.counters.hit_latency,
            Did::Forwarded(_) => &self.counters.miss_latency,
            Did::Collapsed(_) => return,
        };
        latency.record(self.asked_at.elapsed());
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let counters = &*self.counters;
        let count = match self.did {
            // The timer counts it among the hits.
            Did::Hit { .. } => &counters.shared_hits,
            Did::Stale { .. } => &counters.stale,
            Did::Collapsed(_) => &counters.collapsed,
            Did::Forwarded(_) => &counters.misses,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}
