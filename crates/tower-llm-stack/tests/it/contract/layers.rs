//! The layers under test, the upstream behind them, and their state after an event.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future, stream};
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_llm_stack::{
    BoxError, BreakerHandle, BreakerLayer, BulkheadHandle, BulkheadLayer, CacheLayer, FanoutLayer,
    Limit, RateLimitHandle, RateLimitLayer, RequestBody, Scope, Stack,
    breaker::{CircuitId, CircuitStats, State},
    fanout::FanoutBuilder,
};
use tower_llm_testkit::{
    Behavior,
    wire::{self, End},
};

pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;
pub(crate) type Client<A = Full<Bytes>> = BoxCloneSyncService<Request<A>, Response<Body>, BoxError>;

/// The client side: it calls the layer that describes requests.
pub(crate) type Attempts = Client<RequestBody>;

/// An estimated 10 tokens of input: 40 bytes of text.
pub(crate) const REQUEST: &str = r#"{
    "model": "m", "max_tokens": 100, "stream": true, "stream_options": {"include_usage": true},
    "messages": [{"role": "user", "content": "forty bytes of text are ten tokens or so"}]
}"#;

pub(crate) const ESTIMATED_INPUT: u64 = 10;

/// Reserved in a caller's limit: the estimated input and the maximum output.
pub(crate) const RESERVED_OF_CALLER: Taken = taken(1, ESTIMATED_INPUT + 100);

/// Reserved in OpenAI's limit: the larger of the two.
pub(crate) const RESERVED_OF_PROVIDER: Taken = taken(1, 100);

/// The usage that the provider reports for a response.
pub(crate) const USED: Taken = taken(1, 12 + 7);

/// The charge of a call that was sent and got no response.
pub(crate) const INPUT: Taken = taken(1, ESTIMATED_INPUT);

pub(crate) const A_REQUEST: Taken = taken(1, 0);
pub(crate) const NOTHING: Taken = taken(0, 0);

pub(crate) fn answer() -> Behavior {
    Behavior::new().input_tokens(12).output_tokens(7)
}

pub(crate) fn request() -> Request<Full<Bytes>> {
    let request = Request::post("/v1/chat/completions");
    request.body(REQUEST.into()).unwrap()
}

// === the layers under test ===

/// What is charged to a limit of requests and one of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) requests: u64,
    pub(crate) tokens: u64,
}

pub(crate) const fn taken(requests: u64, tokens: u64) -> Taken {
    Taken { requests, tokens }
}

/// A caller's limit, a provider's limit, and permits: in one stack, or with a layer between the first two.
pub(crate) struct Layers {
    callers: RateLimitLayer,
    breaker: BreakerLayer,
    providers: RateLimitLayer,
    bulkhead: BulkheadLayer,
    cache: Option<CacheLayer>,
    fanout: Option<FanoutLayer>,
    #[cfg(feature = "monitor")]
    monitor: tower_llm_stack::MonitorLayer,
    model: Model,
}

/// The state of the layers after an event.
pub(crate) struct Stand {
    pub(crate) callers: RateLimitHandle,
    pub(crate) breaker: BreakerHandle,
    pub(crate) providers: RateLimitHandle,
    pub(crate) bulkhead: BulkheadHandle,
    fanout: Option<FanoutLayer>,
    #[cfg(feature = "monitor")]
    pub(crate) monitor: tower_llm_stack::MonitorHandle,
}

impl Layers {
    /// Room for 100 calls in each layer.
    pub(crate) fn new(answers: impl IntoIterator<Item = Behavior>) -> Self {
        Self::with_room(100, 100, 100, answers)
    }

    /// Room for these numbers of calls in the caller's limit, the provider's and the bulkhead; no call waits for any.
    pub(crate) fn with_room(
        callers: u64,
        providers: u64,
        permits: usize,
        answers: impl IntoIterator<Item = Behavior>,
    ) -> Self {
        let limits = |requests| {
            [
                Limit::requests(requests).per_minute(),
                Limit::tokens(1_000_000).per_minute(),
            ]
        };
        let callers = RateLimitLayer::for_callers().limits(limits(callers));
        let providers = RateLimitLayer::for_providers()
            .limits(limits(providers))
            .max_waiting(0);
        let bulkhead = BulkheadLayer::builder(permits).max_waiting(0);
        Self {
            callers: callers.build().unwrap(),
            breaker: BreakerLayer::new(),
            providers: providers.build().unwrap(),
            bulkhead: bulkhead.build().unwrap(),
            cache: None,
            fanout: None,
            #[cfg(feature = "monitor")]
            monitor: monitor(),
            model: Model::new(answers),
        }
    }

    /// The same, with a cache whose responses all callers share.
    pub(crate) fn with_cache(answers: impl IntoIterator<Item = Behavior>) -> Self {
        Self::new(answers).cached()
    }

    /// A cache whose responses all callers share.
    pub(crate) fn cached(mut self) -> Self {
        let cache = CacheLayer::builder(Scope::shared());
        self.cache = Some(cache.build().unwrap());
        self
    }

    /// Extra branches, between the cache and the provider's layers.
    pub(crate) fn fanout(mut self, fanout: FanoutBuilder) -> Self {
        self.fanout = Some(fanout.build().unwrap());
        self
    }

    /// The same with this cache, and so many permits; calls wait for one.
    pub(crate) fn around_cache(cache: CacheLayer, permits: usize) -> Self {
        let bulkhead = BulkheadLayer::builder(permits).max_waiting(100);
        Self {
            cache: Some(cache),
            bulkhead: bulkhead.build().unwrap(),
            ..Self::with_room(10_000, 10_000, permits, [])
        }
    }

    /// One permit, and a queue for calls that find it in use.
    pub(crate) fn with_queue(answers: impl IntoIterator<Item = Behavior>) -> Self {
        let bulkhead = BulkheadLayer::builder(1).max_waiting(10);
        Self {
            bulkhead: bulkhead.build().unwrap(),
            ..Self::new(answers)
        }
    }

    pub(crate) fn model(&self) -> Model {
        self.model.clone()
    }

    pub(crate) fn stack(&self) -> Client {
        self.stack_over(self.model.clone().service())
    }

    /// The layers around a client other than the model.
    pub(crate) fn stack_over(&self, client: Attempts) -> Client {
        let stack = Stack::builder()
            .caller_rate_limit(self.callers.clone())
            .cache(self.cache.clone())
            .fanout(self.fanout.clone())
            .breaker(self.breaker.clone())
            .provider_rate_limit(self.providers.clone())
            .bulkhead(self.bulkhead.clone());
        #[cfg(feature = "monitor")]
        let stack = stack
            .monitor(self.monitor.clone())
            .attempts(self.monitor.attempts());
        let stack = stack.build();
        boxed(stack.layer(client))
    }

    /// The layers around a client, with `between` between the caller's limit and the cache.
    pub(crate) fn stack_with<S>(
        &self,
        between: impl Layer<Attempts, Service = S>,
        client: Attempts,
    ) -> Client
    where
        S: Service<Request<RequestBody>, Response = Response<Body>, Error = BoxError>,
        S: Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        let inside = Stack::builder()
            .without_describe()
            .cache(self.cache.clone())
            .breaker(self.breaker.clone())
            .provider_rate_limit(self.providers.clone())
            .bulkhead(self.bulkhead.clone())
            .build();
        let attempts: Attempts = boxed(inside.layer(client));
        let outside = Stack::builder()
            .caller_rate_limit(self.callers.clone())
            .build();
        boxed(outside.layer(between.layer(attempts)))
    }

    /// Opens the model's circuit for no time, so that the next call probes it.
    pub(crate) fn half_open(&self) {
        self.breaker.handle().trip(&model(), Duration::ZERO);
    }

    pub(crate) fn stand(&self) -> Stand {
        Stand {
            callers: self.callers.handle(),
            breaker: self.breaker.handle(),
            providers: self.providers.handle(),
            bulkhead: self.bulkhead.handle(),
            fanout: self.fanout.clone(),
            #[cfg(feature = "monitor")]
            monitor: self.monitor.handle(),
        }
    }
}

/// A million dollars for a million tokens, so that each costs one.
#[cfg(feature = "monitor")]
fn monitor() -> tower_llm_stack::MonitorLayer {
    use tower_llm_stack::monitor::{Price, PriceTable};

    let price = Price::per_million(1e6, 1e6).unwrap();
    let prices = PriceTable::empty().set("m", price);
    let builder = tower_llm_stack::MonitorLayer::builder()
        .prices(prices)
        .records(10);
    builder.build().unwrap()
}

impl Stand {
    pub(crate) fn of_caller(&self) -> Taken {
        Taken::of(&self.callers)
    }

    pub(crate) fn of_provider(&self) -> Taken {
        Taken::of(&self.providers)
    }

    /// Calls that had branches, and the branches.
    pub(crate) fn branches(&self) -> (u64, u64) {
        let stats = self.fanout.as_ref().unwrap().stats();
        (stats.calls, stats.branches)
    }

    fn circuit(&self) -> CircuitStats {
        self.breaker.stats_of(&model()).unwrap()
    }

    pub(crate) fn verdicts(&self) -> Verdicts {
        let CircuitStats {
            calls, failures, ..
        } = self.circuit();
        verdicts(calls - failures, failures)
    }

    pub(crate) fn probes(&self) -> (State, usize) {
        let circuit = self.circuit();
        (circuit.state, circuit.probes)
    }

    pub(crate) fn waiting(&self) -> usize {
        let stats = self.bulkhead.stats();
        stats.iter().map(|stats| stats.waiting).sum()
    }

    pub(crate) fn places_held(&self) -> usize {
        let stats = self.bulkhead.stats();
        stats.iter().map(|stats| stats.in_flight).sum()
    }
}

/// How the calls to the model ended, as counted by its circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdicts {
    pub(crate) successes: u64,
    pub(crate) failures: u64,
}

pub(crate) const NEITHER: Verdicts = verdicts(0, 0);

pub(crate) const fn verdicts(successes: u64, failures: u64) -> Verdicts {
    Verdicts {
        successes,
        failures,
    }
}

/// The circuit of the requested model.
pub(crate) fn model() -> CircuitId {
    CircuitId::model("openai", "m")
}

impl Taken {
    /// The charges of both limits of a layer; what is charged must be missing from what remains.
    pub(crate) fn of(handle: &RateLimitHandle) -> Self {
        let stats = handle.stats();
        let [requests, tokens] = &*stats else {
            panic!("two limits: {stats:?}");
        };
        for stats in [requests, tokens] {
            assert_eq!(stats.remaining, stats.limit.amount() - stats.consumed);
        }
        taken(requests.consumed, tokens.consumed)
    }
}

/// The upstream: scripted answers first, and then [`answer`].
#[derive(Clone)]
pub(crate) struct Model(Arc<Mutex<VecDeque<Behavior>>>);

impl Model {
    pub(crate) fn new(answers: impl IntoIterator<Item = Behavior>) -> Self {
        Self(Arc::new(Mutex::new(answers.into_iter().collect())))
    }

    pub(crate) fn service(self) -> Attempts {
        Attempts::new(service_fn(move |request: Request<RequestBody>| {
            let behavior = self.0.lock().unwrap().pop_front();
            let path = request.uri().path().to_owned();
            let reply = request.into_body().collect().map(move |body| {
                let body = body.unwrap().to_bytes();
                let behavior = behavior.unwrap_or_else(answer);
                wire::reply(&path, &body, &behavior)
            });
            async { respond(reply.await).await }
        }))
    }
}

async fn respond(reply: wire::Reply) -> Result<Response<Body>, BoxError> {
    tokio::time::sleep(reply.before_head).await;
    let end = match reply.end {
        End::Clean => stream::empty().boxed(),
        End::Silence => stream::pending().boxed(),
        End::NoHead => future::pending().await,
        _ => return Err("connection reset".into()),
    };
    let started = Instant::now();
    let frames = stream::iter(reply.frames).then(move |frame| async move {
        if !frame.due.is_zero() {
            tokio::time::sleep_until(started + frame.due).await;
        }
        Ok(Frame::data(frame.bytes))
    });
    let body = StreamBody::new(frames.chain(end));
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(reply.status)?;
    *response.headers_mut() = reply.headers;
    Ok(response)
}

pub(crate) fn boxed<S, A, B>(service: S) -> Client<A>
where
    S: Service<Request<A>, Response = Response<B>, Error = BoxError>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    Client::new(service.map_response(|response: Response<B>| {
        response.map(|body| body.map_err(Into::into).boxed_unsync())
    }))
}
