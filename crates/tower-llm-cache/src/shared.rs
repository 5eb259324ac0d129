//! What all clones of a cache have in common, and what it finds in memory for a request.

#[cfg(feature = "redis")]
mod beyond;
mod boarding;
mod keep;
#[cfg(not(feature = "redis"))]
mod memory_only;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Response, request::Parts};
use tokio::time::Instant;
use tower_llm_core::{Call, Served};

#[cfg(feature = "redis")]
use crate::second::SecondTier;
use crate::{
    body::CacheBody,
    directives::Directives,
    flight::{FlightKey, Flights},
    form::Form,
    headers::{Did, StatusHeader},
    items::Claims,
    key::{self, Asked, Bypass, CacheKey, KeySettings},
    latency::Histogram,
    memory::{Entry, Store, Stored},
    policy::{Policies, Policy},
    record::Record,
    refresh::Refresh,
    replay,
    values::Values,
};
pub(crate) use boarding::{Boarded, Boarding, Timer};

/// The settings and the state of a cache.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) keys: KeySettings,
    pub(crate) policies: Policies,
    pub(crate) status: StatusHeader,
    /// Read and written through [`current_memory`](Self::current_memory) only.
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

/// A stored answer.
pub(crate) struct Hit<B> {
    pub(crate) response: Response<CacheBody<B>>,
    /// Whether it is to be [renewed](Shared::refresh).
    pub(crate) is_due: bool,
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
        let asked = key::read(&self.keys, request, body, call, policy.deterministic_only)?;
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
        let response = self.replay(lookup, &stored, age)?;
        let refresh = self.refresh.as_ref();
        let is_due = refresh.is_some_and(|refresh| {
            !lookup.directives.only_if_cached && refresh.is_due(&stored, now)
        });
        Some(Hit { response, is_due })
    }

    /// A stored answer as a response; `None` if it cannot be told for certain in the form that is asked for.
    fn replay<B>(
        &self,
        lookup: &Lookup,
        stored: &Stored,
        age: Duration,
    ) -> Option<Response<CacheBody<B>>> {
        let now = lookup.asked_at;
        let response = replay::response(stored.record()?, lookup)?;
        stored.renew(now);
        let did = Did::Hit {
            age,
            ttl: stored.fresh_until().saturating_duration_since(now),
        };
        Some(self.as_hit(did, lookup, response))
    }

    /// The answer in memory and its age, if it is fresh and the request wants one that old.
    fn fresh(&self, lookup: &Lookup, now: Instant) -> Option<(Arc<Stored>, Duration)> {
        self.held(lookup, now)
            .filter(|(stored, _)| now < stored.fresh_until())
    }

    /// The answer in memory and its age, fresh or not, if the request wants one that old.
    fn held(&self, lookup: &Lookup, now: Instant) -> Option<(Arc<Stored>, Duration)> {
        let Entry(stored) = self.current_memory()?.get(lookup.asked.key.digest())?;
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

    /// Stores an answer; returns whether there is a store.
    pub(crate) fn store(&self, key: CacheKey, record: Record, policy: &Policy) -> bool {
        let is_shared = self.share(&key, &record, policy.ttl);
        let Some(memory) = self.current_memory() else {
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
