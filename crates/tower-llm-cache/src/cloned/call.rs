//! The call that a flight makes to a typed service.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use http::Response;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_llm_core::{BoxError, Completion, Outcome};

use super::layer::Strategy;
use crate::{
    flight::{Drive, End, Recorded, Recorder, Step},
    key::CacheKey,
    memory::{Content, Entry, Stored, Value},
    policy::Policy,
    shared::Shared,
};

pin_project! {
    /// The inner service's future; its response is stored before any caller gets it.
    pub(super) struct TypedCall<F, Req, R> {
        // `None` once it has answered.
        #[pin]
        future: Option<F>,
        shared: Arc<Shared>,
        strategy: Strategy<Req, R>,
        key: CacheKey,
        policy: Policy,
        asked_at: Instant,
    }
}

/// The call itself stores its response: a closure of the user's may panic, which only a poll survives.
pub(super) struct NoRecorder;

impl Recorder for NoRecorder {
    fn record(&self, _: &Recorded, _: &End) {}
}

impl<F, Req, R> TypedCall<F, Req, R> {
    pub(super) fn new(
        future: F,
        shared: Arc<Shared>,
        strategy: Strategy<Req, R>,
        key: CacheKey,
        policy: Policy,
        asked_at: Instant,
    ) -> Self {
        Self {
            future: Some(future),
            shared,
            strategy,
            key,
            policy,
            asked_at,
        }
    }
}

impl<F, Req, R, E> Drive for TypedCall<F, Req, R>
where
    F: Future<Output = Result<R, E>> + Send,
    E: Into<BoxError>,
    R: Send + Sync + 'static,
{
    fn poll_step(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Step> {
        let mut this = self.project();
        let Some(future) = this.future.as_mut().as_pin_mut() else {
            return Poll::Ready(Step::End(End {
                is_certain: true,
                completion: Completion::new(Outcome::Success),
                is_event_stream: false,
            }));
        };
        let response = match ready!(future.poll(cx)) {
            Ok(response) => response,
            Err(error) => {
                let error = error.into();
                let completion = Completion::of_error(&*error);
                return Poll::Ready(Step::Failed(error, completion));
            }
        };
        this.future.set(None);
        let took = this.asked_at.elapsed();
        this.shared.counters.miss_latency.record(took);
        let bytes = (this.strategy.store_if)(&response).then(|| (this.strategy.weigh)(&response));
        let bytes = bytes.filter(|&bytes| bytes <= this.policy.max_answer_bytes);
        let value: Value = Arc::new(response);
        this.shared
            .store_value(this.key, &value, bytes, this.policy);
        let mut head = Response::new(());
        head.extensions_mut().insert(value);
        Poll::Ready(Step::Head(Box::new(head.into_parts().0)))
    }

    fn end(&self) -> Option<End> {
        None
    }

    fn give_up(self: Pin<Box<Self>>) -> End {
        match &self.future {
            Some(_) => End::dropped(|| drop(self)),
            None => End::without_answer(Outcome::Success),
        }
    }
}

impl Shared {
    /// A clone of the stored response, if there is one of this type and it is fresh.
    pub(super) fn value_hit<R: Clone + 'static>(
        &self,
        key: &CacheKey,
        asked_at: Instant,
    ) -> Option<R> {
        let Entry(stored) = self.current_memory()?.get(key.digest())?;
        let now = Instant::now();
        let Content::Value(value, _) = &stored.content else {
            return None;
        };
        let response = value
            .downcast_ref::<R>()
            .filter(|_| now < stored.fresh_until())?;
        stored.renew(now);
        let took = now.saturating_duration_since(asked_at);
        self.counters.hit_latency.record(took);
        Some(response.clone())
    }

    /// Stores a response of `bytes`; `None` if it is not to be stored.
    fn store_value(&self, key: &CacheKey, value: &Value, bytes: Option<usize>, policy: &Policy) {
        let (Some(memory), Some(bytes)) = (self.current_memory(), bytes) else {
            self.counters.not_stored.fetch_add(1, Ordering::Relaxed);
            return;
        };
        // It is of no use once it is stale.
        let policy = policy
            .stale_while_revalidate(Duration::ZERO)
            .stale_if_error(Duration::ZERO);
        let content = Content::Value(Arc::clone(value), bytes);
        let stored = Stored::new(key.clone(), content, Instant::now(), policy.ttl, &policy);
        memory.insert(Entry(Arc::new(stored)));
        self.counters.stored.fetch_add(1, Ordering::Relaxed);
    }
}
