use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use tokio::time::Instant;
use tower_llm_core::{Answer, BoxError, Described, Oneshot};
use tower_service::Service;

use super::{
    call::{NoRecorder, TypedCall},
    future::ClonedFuture,
    layer::Strategy,
};
use crate::{
    flight::{FlightKey, Join, Start},
    shared::Shared,
};

/// Answers typed requests from the cache if it can; see [`ClonedLayer`](crate::ClonedLayer).
pub struct Cloned<S, Req, R> {
    inner: S,
    shared: Arc<Shared>,
    strategy: Strategy<Req, R>,
}

impl<S, Req, R> Cloned<S, Req, R> {
    pub(super) fn new(inner: S, shared: Arc<Shared>, strategy: Strategy<Req, R>) -> Self {
        Self {
            inner,
            shared,
            strategy,
        }
    }
}

impl<S, Req, R> Service<Req> for Cloned<S, Req, R>
where
    S: Service<Req, Response = R> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    Req: Described + Send + 'static,
    R: Clone + Send + Sync + 'static,
{
    type Response = Answer<R>;
    type Error = BoxError;
    type Future = ClonedFuture<S, Req>;

    /// Always ready: a stored answer does not wait for the inner service, and a call that is sent waits for it in its future.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let asked_at = Instant::now();
        let shared = &self.shared;
        let (key, policy) = match self.strategy.read(shared, &request) {
            Ok(read) => read,
            Err(reason) => {
                shared.bypassed(reason);
                return ClonedFuture::passing(Oneshot::new(self.inner.clone(), request));
            }
        };
        if let Some(response) = shared.value_hit(&key, asked_at) {
            return ClonedFuture::hit(response);
        }
        let start = || Start {
            upstream: Box::pin(TypedCall::new(
                Oneshot::new(self.inner.clone(), request),
                Arc::clone(shared),
                self.strategy.clone(),
                key.clone(),
                policy,
                asked_at,
            )),
            recorder: Box::new(NoRecorder),
            max_recording: policy.max_answer_bytes,
            max_silence: policy.max_silence,
            max_unattended: policy.max_unattended,
            finishes: policy.finish_abandoned,
        };
        let flight = FlightKey::of_object(*key.digest());
        let stored = || shared.value_hit(&key, asked_at);
        let (participant, count) = match shared.flights.join_or_start(flight, stored, start) {
            Join::Stored(response) => return ClonedFuture::hit(response),
            Join::Leader(leader) => (leader, &shared.counters.misses),
            Join::Follower(follower) => (follower, &shared.counters.collapsed),
        };
        count.fetch_add(1, Ordering::Relaxed);
        ClonedFuture::flying(participant)
    }
}

// Derives would ask for requests and responses that are `Clone` and `Debug`.

impl<S: Clone, Req, R> Clone for Cloned<S, Req, R> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            shared: Arc::clone(&self.shared),
            strategy: self.strategy.clone(),
        }
    }
}

impl<S: fmt::Debug, Req, R> fmt::Debug for Cloned<S, Req, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cloned")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}
