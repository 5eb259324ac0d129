//! What all clones of a cache have in common, and what it does with a request.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Response, StatusCode, header::CONTENT_LENGTH, request::Parts};
use tokio::{runtime::Handle, time::Instant};
use tower_llm_core::{Call, Completion, Dialect, Outcome, Served};

use crate::{
    body::CacheBody,
    coding::{Accepted, is_readable},
    directives::Directives,
    error::FlightFailed,
    flight::{Drive, End, FlightKey, Flights, Head, Join, Participant, Recorded, Recorder, Start},
    form::Form,
    headers::{Did, StatusHeader, Why, shareable},
    items::Claims,
    key::{self, Asked, Bypass, CacheKey, KeySettings},
    latency::Histogram,
    memory::{Entry, Store, Stored},
    policy::{Policies, Policy, is_completion},
    record::Record,
    refresh::Refresh,
    replay,
    stale::OrStale,
    values::Values,
};
#[cfg(feature = "redis")]
use crate::{
    items::Batch,
    second::{LookFirst, Opened, SecondTier},
};
#[cfg(feature = "redis")]
use futures_util::{StreamExt as _, future, stream};

/// The settings and the state of a cache.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) keys: KeySettings,
    pub(crate) policies: Policies,
    pub(crate) status: StatusHeader,
    pub(crate) memory: Option<Arc<dyn Store>>,
    #[cfg(feature = "redis")]
    pub(crate) second: Option<SecondTier>,
    pub(crate) flights: Arc<Flights>,
    pub(crate) claims: Claims,
    pub(crate) values: Values,
    pub(crate) refresh: Option<Refresh>,
    pub(crate) counters: Arc<Counters>,
}

/// What has happened to requests.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) misses: AtomicU64,
    pub(crate) collapsed: AtomicU64,
    pub(crate) stored: AtomicU64,
    pub(crate) not_stored: AtomicU64,
    pub(crate) stale: AtomicU64,
    pub(crate) revalidations: AtomicU64,
    pub(crate) refreshes: AtomicU64,
    pub(crate) items_reused: AtomicU64,
    pub(crate) items_sent: AtomicU64,
    pub(crate) shared_hits: AtomicU64,
    pub(crate) shared_stored: AtomicU64,
    pub(crate) shared_not_stored: AtomicU64,
    pub(crate) shared_failures: AtomicU64,
    pub(crate) shared_unreadable: AtomicU64,
    bypassed: [AtomicU64; Bypass::ALL.len()],
    /// Of all hits, which it counts, and of those of `misses` whose response headers have arrived.
    pub(crate) hit_latency: Histogram,
    pub(crate) miss_latency: Histogram,
}

/// A request whose answer may be cached.
#[derive(Clone)]
pub(crate) struct Lookup {
    pub(crate) call: Call,
    pub(crate) asked: Asked,
    pub(crate) form: Form,
    pub(crate) policy: Policy,
    directives: Directives,
    asked_at: Instant,
}

/// A caller's part in a flight, and what to tell it of the cache.
pub(crate) struct Boarded {
    pub(crate) participant: Participant,
    did: Did,
    status: StatusHeader,
    key: Option<CacheKey>,
    tally: Option<Tally>,
    timer: Timer,
    accepted: Accepted,
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

/// A stored answer.
pub(crate) struct Hit<B> {
    pub(crate) response: Response<CacheBody<B>>,
    /// Whether it is to be [renewed](Shared::refresh).
    pub(crate) is_due: bool,
}

/// What a call that was not answered from the store becomes.
pub(crate) enum Boarding<B> {
    Flying(Boarded),
    /// The answer was stored just now.
    Stored(Response<CacheBody<B>>),
}

/// Look-ups for the items of one batch that are made at once.
#[cfg(feature = "redis")]
const ITEMS_AT_ONCE: usize = 64;

/// An answer from Redis.
#[cfg(feature = "redis")]
pub(crate) struct Fetched {
    pub(crate) record: Record,
    pub(crate) age: Duration,
    /// The time that is left.
    pub(crate) ttl: Duration,
}

/// Stores what a flight has brought.
struct Keep {
    shared: Arc<Shared>,
    key: CacheKey,
    policy: Policy,
    says_why_it_ended: bool,
    includes_usage: bool,
    streams_lists: bool,
}

impl Shared {
    /// Reads what a request asks for; an error if it has nothing to do with the cache.
    pub(crate) fn read(
        &self,
        request: &Parts,
        body: Option<&Bytes>,
        call: &Call,
    ) -> Result<Lookup, Bypass> {
        let asked_at = Instant::now();
        let policy = self.policies.of(call.operation());
        let (Some(policy), Some(body)) = (policy, body) else {
            return Err(Bypass::Operation);
        };
        let directives = Directives::read(&request.headers);
        if directives.no_store {
            return Err(Bypass::NoStore);
        }
        let asked = key::read(&self.keys, request, body, call)?;
        if policy.deterministic_only && !asked.is_deterministic {
            return Err(Bypass::NotDeterministic);
        }
        Ok(Lookup {
            asked,
            form: Form::asked(call, &request.uri),
            policy: *policy,
            directives,
            asked_at,
            call: call.clone(),
        })
    }

    /// The stored answer, if there is one that the caller can be given.
    pub(crate) fn hit<B>(&self, lookup: &Lookup) -> Option<Hit<B>> {
        // It was read just now, on the same thread.
        let now = lookup.asked_at;
        let (stored, age) = self.fresh(lookup, now)?;
        self.replay(lookup, &stored, age)
    }

    /// A stored answer as a response; `None` if it cannot be told for certain in the form that is asked for.
    fn replay<B>(&self, lookup: &Lookup, stored: &Stored, age: Duration) -> Option<Hit<B>> {
        let now = lookup.asked_at;
        let response = replay::response(stored.record()?, lookup)?;
        stored.renew(now);
        let did = Did::Hit {
            age,
            ttl: stored.fresh_until().saturating_duration_since(now),
        };
        let refresh = self.refresh.as_ref();
        Some(Hit {
            response: self.as_hit(did, lookup, response),
            is_due: refresh.is_some_and(|refresh| {
                !lookup.directives.only_if_cached && refresh.is_due(stored, now)
            }),
        })
    }

    /// The answer in memory and its age, if it is fresh and the request wants one that old.
    fn fresh(&self, lookup: &Lookup, now: Instant) -> Option<(Arc<Stored>, Duration)> {
        self.held(lookup, now)
            .filter(|(stored, _)| now < stored.fresh_until())
    }

    /// The answer in memory and its age, fresh or not, if the request wants one that old.
    fn held(&self, lookup: &Lookup, now: Instant) -> Option<(Arc<Stored>, Duration)> {
        let Entry(stored) = self.memory.as_ref()?.get(lookup.asked.key.digest())?;
        let age = now.saturating_duration_since(stored.stored_at);
        let is_wanted = lookup.directives.allows(age) && lookup.policy.serves(stored.record()?);
        is_wanted.then_some((stored, age))
    }

    /// Says in a response, and counts, that it cost no call.
    fn as_hit<B>(
        &self,
        did: Did,
        lookup: &Lookup,
        mut response: Response<CacheBody<B>>,
    ) -> Response<CacheBody<B>> {
        let key = Some(&lookup.asked.key);
        self.status.write(did, key, response.headers_mut());
        response.extensions_mut().insert(Served::Hit);
        let took = lookup.asked_at.elapsed();
        self.counters.hit_latency.record(took);
        response
    }

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
                Some(hit) => return Join::Stored(hit.response),
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
            let stale = move || shared.stale(&lookup, within).map(|(_, found)| found);
            Box::pin(OrStale::new(upstream, Box::new(stale)))
        };
        Start {
            upstream: self.look_first(self.looks_first(lookup), lookup, upstream),
            recorder: Box::new(Keep::new(self, lookup)),
            max_recording: lookup.policy.max_answer_bytes,
            max_silence: lookup.policy.max_silence,
            finishes: lookup.policy.finish_abandoned,
        }
    }

    /// The stored answer, if it is past its time by less than `within`.
    fn stale<B>(&self, lookup: &Lookup, within: Duration) -> Option<(Did, Response<CacheBody<B>>)> {
        if within.is_zero() {
            return None;
        }
        let now = Instant::now();
        let (stored, age) = self.held(lookup, now)?;
        let since = now.checked_duration_since(stored.fresh_until())?;
        if since >= within {
            return None;
        }
        let mut response = replay::response(stored.record()?, lookup)?;
        let did = Did::Stale { age, since };
        response.extensions_mut().insert(did);
        Some((did, response))
    }

    /// The stored answer, if it may be served while a new one is fetched: see [`revalidate`](Self::revalidate).
    pub(crate) fn stale_while_revalidate<B>(
        &self,
        lookup: &Lookup,
    ) -> Option<Response<CacheBody<B>>> {
        let (did, response) = self.stale(lookup, lookup.policy.stale_while_revalidate)?;
        self.counters.stale.fetch_add(1, Ordering::Relaxed);
        Some(self.as_hit(did, lookup, response))
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

    /// Stores an answer; returns whether there is a store.
    pub(crate) fn store(&self, key: CacheKey, record: Record, policy: &Policy) -> bool {
        let is_shared = self.share(&key, &record, policy.ttl);
        let Some(memory) = &self.memory else {
            return is_shared;
        };
        let stored = Stored::new(key, record, Instant::now(), policy.ttl, policy);
        memory.insert(Entry(Arc::new(stored)));
        true
    }

    /// Counts a request that has nothing to do with the cache.
    pub(crate) fn bypassed(&self, reason: Bypass) {
        self.counters.bypassed[reason as usize].fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(feature = "redis")]
impl Shared {
    /// Has an answer stored in Redis; returns whether there is one.
    fn share(&self, key: &CacheKey, record: &Record, ttl: Duration) -> bool {
        let Some(second) = &self.second else {
            return false;
        };
        second.store(key, record, ttl);
        true
    }

    /// Whether a call looks into Redis before it is made.
    fn looks_first(&self, lookup: &Lookup) -> bool {
        self.second.is_some() && !lookup.directives.no_cache
    }

    fn look_first(
        self: &Arc<Self>,
        looks: bool,
        lookup: &Lookup,
        upstream: Pin<Box<dyn Drive>>,
    ) -> Pin<Box<dyn Drive>> {
        if !looks {
            return upstream;
        }
        let (shared, lookup) = (Arc::clone(self), lookup.clone());
        let looking = async move {
            let (did, mut found) = shared.find(&lookup).await?;
            found.extensions_mut().insert(did);
            Some(found)
        };
        Box::pin(LookFirst::new(Box::pin(looking), upstream))
    }

    /// The answer that is stored in Redis, for a call that is not made otherwise; `None` without Redis.
    pub(crate) fn look_only<B: Send + 'static>(
        self: &Arc<Self>,
        lookup: &Lookup,
    ) -> Option<impl Future<Output = Option<Response<CacheBody<B>>>> + Send + use<B>> {
        let looks = self.looks_first(lookup);
        let (shared, lookup) = looks.then(|| (Arc::clone(self), lookup.clone()))?;
        Some(async move {
            let (did, response) = shared.find(&lookup).await?;
            shared.counters.shared_hits.fetch_add(1, Ordering::Relaxed);
            Some(shared.as_hit(did, &lookup, response))
        })
    }

    /// Looks for the items of a batch that are not in memory; `None` if none is to be looked for.
    pub(crate) fn look_for_items(
        self: &Arc<Self>,
        batch: &mut Batch,
    ) -> Option<impl Future<Output = Vec<(u32, Fetched)>> + Send + use<>> {
        self.second.as_ref()?;
        let (policy, directives) = batch.wanted()?;
        batch.find_all(self);
        let missing = batch.missing_keys();
        if missing.is_empty() {
            return None;
        }
        let fetching = missing.into_iter().map({
            let shared = Arc::clone(self);
            move |(item, key)| Arc::clone(&shared).fetch_item(item, key, policy, directives)
        });
        let found = stream::iter(fetching).buffer_unordered(ITEMS_AT_ONCE);
        Some(found.filter_map(future::ready).collect())
    }

    async fn fetch_item(
        self: Arc<Self>,
        item: u32,
        key: CacheKey,
        policy: Policy,
        directives: Directives,
    ) -> Option<(u32, Fetched)> {
        // Another caller may have fetched it since this one has looked into the memory.
        if self.holds(&key, directives) {
            return None;
        }
        let fetched = self.fetch(&key, &policy, directives).await?;
        Some((item, fetched))
    }

    /// Whether there is a fresh answer in memory.
    fn holds(&self, key: &CacheKey, directives: Directives) -> bool {
        let found = self
            .memory
            .as_ref()
            .and_then(|memory| memory.get(key.digest()));
        found.is_some_and(|Entry(stored)| {
            let now = Instant::now();
            let age = now.saturating_duration_since(stored.stored_at);
            now < stored.fresh_until() && directives.allows(age)
        })
    }

    /// Looks into Redis for the answer to one call.
    async fn find<B>(&self, lookup: &Lookup) -> Option<(Did, Response<CacheBody<B>>)> {
        let fetching = self.fetch(&lookup.asked.key, &lookup.policy, lookup.directives);
        let Fetched { record, age, ttl } = fetching.await?;
        let response = replay::response(&record, lookup)?;
        Some((Did::Hit { age, ttl }, response))
    }

    /// Looks into Redis; what is found enters the memory for the time that is left.
    async fn fetch(
        &self,
        key: &CacheKey,
        policy: &Policy,
        directives: Directives,
    ) -> Option<Fetched> {
        let second = self.second.as_ref()?;
        let (epoch, opened) = second.get(key).await;
        let Opened { record, age, ttl } = opened?;
        // Another process may store answers for longer than this one wants them.
        let ttl = ttl.min(policy.ttl).saturating_sub(age);
        if ttl.is_zero() || !directives.allows(age) || !policy.serves(&record) {
            return None;
        }
        if let Some(memory) = &self.memory {
            let now = Instant::now();
            let stored_at = now.checked_sub(age).unwrap_or(now);
            let fresh_for = (now + ttl).duration_since(stored_at);
            let stored = Stored::new(key.clone(), record.clone(), stored_at, fresh_for, policy);
            // A call that did not look here may have stored a newer answer meanwhile.
            memory.insert_unless_newer(Entry(Arc::new(stored)));
            // If a removal came after it was read and before this, it has not removed it.
            if second.was_removed(key, epoch) {
                memory.remove(key.digest());
            }
        }
        Some(Fetched { record, age, ttl })
    }
}

#[cfg(not(feature = "redis"))]
impl Shared {
    const fn share(&self, _: &CacheKey, _: &Record, _: Duration) -> bool {
        false
    }

    const fn looks_first(&self, _: &Lookup) -> bool {
        false
    }

    fn look_first(
        &self,
        _: bool,
        _: &Lookup,
        upstream: Pin<Box<dyn Drive>>,
    ) -> Pin<Box<dyn Drive>> {
        upstream
    }
}

impl Counters {
    pub(crate) fn bypassed(&self) -> impl Iterator<Item = (Bypass, u64)> {
        let counts = self.bypassed.iter();
        let counts = counts.map(|count| count.load(Ordering::Relaxed));
        Bypass::ALL.into_iter().zip(counts)
    }
}

impl Lookup {
    pub(crate) fn only_if_cached(&self) -> bool {
        self.directives.only_if_cached
    }

    /// Whether it wants an answer that was asked for now, and not one in flight.
    fn wants_new(&self) -> bool {
        self.directives.no_cache || self.directives.max_age.is_some()
    }

    fn flight(&self) -> FlightKey {
        FlightKey {
            digest: *self.asked.key.digest(),
            form: self.form,
            include_usage: self.asked.include_usage,
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
        }
    }

    /// Sets what the caller accepts.
    pub(crate) fn accepting(self, accepted: Accepted) -> Self {
        Self { accepted, ..self }
    }

    /// The response that begins with `head`.
    ///
    /// # Errors
    ///
    /// [`FlightFailed`] if the caller cannot read what another one's call has brought. Its own it gets as it is.
    pub(crate) fn response<B>(
        mut self,
        head: Head,
    ) -> Result<Response<CacheBody<B>>, FlightFailed> {
        let is_leader = self.participant.is_leader();
        if !is_leader && !self.accepted.reads(&head.headers) {
            return Err(FlightFailed::encoded());
        }
        let did = head.found.unwrap_or(self.did);
        if let Some(mut tally) = self.tally.take() {
            tally.did = did;
        }
        self.timer.stop(did);
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
        if let Some(served) = head.served.filter(|_| is_leader) {
            // By a cache nearer to the provider.
            response.extensions_mut().insert(served);
        } else if head.found.is_some() {
            response.extensions_mut().insert(Served::Hit);
        } else if let Err(taken_over) = pays {
            response.extensions_mut().insert(Served::Follower);
            response.extensions_mut().insert(taken_over);
        }
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

impl Recorder for Keep {
    fn record(&self, answer: &Recorded, end: &End) {
        if answer.head.found.is_some() {
            // It is stored.
            return;
        }
        let count = match self.store(answer, end) {
            Some(()) => &self.shared.counters.stored,
            None => &self.shared.counters.not_stored,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

impl Keep {
    fn new(shared: &Arc<Shared>, lookup: &Lookup) -> Self {
        Self {
            shared: Arc::clone(shared),
            key: lookup.asked.key.clone(),
            policy: lookup.policy,
            says_why_it_ended: is_completion(lookup.call.operation()),
            includes_usage: lookup.asked.include_usage,
            streams_lists: lookup.call.dialect() == Some(Dialect::Gemini),
        }
    }

    fn store(&self, answer: &Recorded, end: &End) -> Option<()> {
        if !self.may_store(&answer.head, &end.completion) {
            return None;
        }
        let mut frames = answer.frames.iter();
        let first = frames.find(|frame| !frame.trim_ascii().is_empty());
        let form = match Form::of_body(end.is_event_stream, first.map_or(&[][..], |frame| frame)) {
            // An array is a stream in one dialect, and a document in all others.
            Form::List if !self.streams_lists => Form::Object,
            form => form,
        };
        let record = Record::new(
            form,
            self.includes_usage,
            end.completion.finish,
            &shareable(&answer.head.headers),
            &answer.frames,
        )?;
        let is_stored = self.shared.store(self.key.clone(), record, &self.policy);
        is_stored.then_some(())
    }

    /// Whether others may be given this answer: it is whole, and not one that another try would better.
    fn may_store(&self, head: &Head, completion: &Completion) -> bool {
        let has_ended_well = match completion.finish {
            Some(finish) => self.policy.allows(finish),
            None => !self.says_why_it_ended,
        };
        head.status == StatusCode::OK
            && completion.outcome == Outcome::Success
            && has_ended_well
            && is_readable(&head.headers)
    }
}
