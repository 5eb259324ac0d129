//! Processes that share a Redis, and an upstream that counts its calls.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode, request};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use tokio::time::timeout;
use tower::{ServiceExt, service_fn, util::BoxCloneService};
use tower_layer::Layer;
use tower_llm_cache::{
    Cache, CacheBody, CacheBuilder, CacheHandle, CacheKey, CacheLayer, CacheStats, Scope,
    SharedCache, StatusHeader,
};
use tower_llm_core::{BoxError, DescribeLayer, RequestBody, Served};
use tower_llm_redis::Redis;
use tower_llm_testkit::{Behavior, Stopwatch, redis::RedisServer, wire};
use tower_service::Service;

pub(crate) type Sent = Request<RequestBody>;
type Body = UnsyncBoxBody<Bytes, BoxError>;
type Inner = BoxCloneService<Sent, Response<Body>, BoxError>;

/// Far more than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const QUESTION: &str =
    r#"{"model":"gpt-5.4","messages":[{"role":"user","content":"Why?"}],"stream":true}"#;

/// A layer as one process has it.
pub(crate) struct Process {
    cache: Cache<Inner>,
    handle: CacheHandle,
    calls: Arc<AtomicU64>,
}

/// What a caller got.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) status: String,
    pub(crate) age: Option<String>,
    pub(crate) content_type: String,
    pub(crate) served: Option<Served>,
    pub(crate) frames: Vec<Bytes>,
}

pub(crate) async fn client(url: impl Into<String>) -> Redis {
    let redis = Redis::builder(url).command_timeout(PATIENCE).connect();
    timeout(PATIENCE, redis).await.unwrap().unwrap()
}

/// The processes that hear of removals.
async fn subscribers(server: &RedisServer, channel: &str) -> u64 {
    let words = ["PUBSUB", "NUMSUB", channel];
    let reply = server.command(&words).await.unwrap();
    reply.split_whitespace().last().unwrap().parse().unwrap()
}

pub(crate) async fn shared(server: &RedisServer) -> SharedCache {
    SharedCache::new(client(server.url()).await)
}

pub(crate) fn builder(shared: SharedCache) -> CacheBuilder {
    CacheLayer::builder(Scope::shared())
        .status_header(StatusHeader::WithKey)
        .shared(shared)
}

impl Process {
    pub(crate) async fn start(server: &RedisServer) -> Self {
        Self::subscribed(server, builder(shared(server).await)).await
    }

    /// Starts a process, and waits for its subscription, which empties the memory when it connects.
    pub(crate) async fn subscribed(server: &RedisServer, builder: CacheBuilder) -> Self {
        Self::subscribed_to(server, "tower-llm-cache", builder).await
    }

    pub(crate) async fn subscribed_to(
        server: &RedisServer,
        channel: &str,
        builder: CacheBuilder,
    ) -> Self {
        let before = subscribers(server, channel).await;
        let process = Self::of(builder);
        let from = Stopwatch::start();
        while subscribers(server, channel).await <= before {
            assert!(from.elapsed() < PATIENCE, "it does not subscribe");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        process
    }

    pub(crate) fn of(builder: CacheBuilder) -> Self {
        let layer = builder.build().unwrap();
        let calls = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&calls);
        let upstream = service_fn(move |request: Sent| {
            counted.fetch_add(1, Ordering::SeqCst);
            let body = request.body().as_bytes().cloned().unwrap_or_default();
            let path = request.uri().path_and_query().unwrap().as_str().to_owned();
            async move { Ok::<_, BoxError>(answer(&path, &body)) }
        });
        Self {
            cache: layer.layer(BoxCloneService::new(upstream)),
            handle: layer.handle(),
            calls,
        }
    }

    /// Starts a call; it is in flight when this returns.
    pub(crate) fn call(&self, request: Sent) -> <Cache<Inner> as Service<Sent>>::Future {
        self.cache.clone().call(request)
    }

    pub(crate) async fn try_send(&self, request: Sent) -> Result<Got, BoxError> {
        read(timeout(PATIENCE, self.call(request)).await.unwrap()?).await
    }

    pub(crate) async fn send(&self, request: Sent) -> Got {
        self.try_send(request).await.unwrap()
    }

    /// Asks the question.
    pub(crate) async fn ask(&self) -> Got {
        self.send(question().await).await
    }

    /// Asks the question as far as it is cached.
    pub(crate) async fn cached(&self) -> Option<Got> {
        let request = post(CHAT).header("cache-control", "only-if-cached");
        self.try_send(described(request, QUESTION).await).await.ok()
    }

    /// Asks the question, and waits until its answer is in Redis.
    pub(crate) async fn ask_and_store(&self) -> Got {
        let before = self.stats().shared_stored;
        let got = self.ask().await;
        self.until(|stats| stats.shared_stored > before).await;
        got
    }

    /// Asks until the answer is in this process's memory.
    pub(crate) async fn hold(&self) {
        // The subscription empties the memory when it connects.
        let of_memory = |stats: CacheStats| stats.hits - stats.shared_hits;
        let before = of_memory(self.stats());
        while of_memory(self.stats()) == before {
            self.ask().await;
        }
    }

    pub(crate) fn handle(&self) -> &CacheHandle {
        &self.handle
    }

    pub(crate) fn stats(&self) -> CacheStats {
        self.handle.stats()
    }

    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    pub(crate) async fn until(&self, condition: impl Fn(&CacheStats) -> bool) {
        let from = Stopwatch::start();
        while !condition(&self.stats()) {
            assert!(from.elapsed() < PATIENCE, "never: {:?}", self.stats());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Got {
    pub(crate) fn is_hit(&self) -> bool {
        self.status.starts_with("tower-llm-cache; hit; ttl=")
    }

    pub(crate) fn key(&self) -> CacheKey {
        let (_, key) = self.status.split_once("; key=\"").unwrap();
        key.trim_end_matches('"').parse().unwrap()
    }

    pub(crate) fn body(&self) -> Vec<u8> {
        self.frames.concat()
    }
}

pub(crate) async fn read<B>(response: Response<CacheBody<B>>) -> Result<Got, BoxError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let (parts, body) = response.into_parts();
    let header = |name| {
        let value = parts.headers.get(name)?;
        Some(value.to_str().unwrap().to_owned())
    };
    let mut got = Got {
        status: header("cache-status").unwrap_or_default(),
        age: header("age"),
        content_type: header("content-type").unwrap_or_default(),
        served: parts.extensions.get().copied(),
        frames: Vec::new(),
    };
    let mut body = std::pin::pin!(body);
    while let Some(frame) = timeout(PATIENCE, body.frame()).await.unwrap() {
        got.frames.push(frame?.into_data().unwrap());
    }
    Ok(got)
}

/// What the simulated provider answers.
fn answer(path: &str, body: &[u8]) -> Response<Body> {
    let reply = wire::reply(path, body, &Behavior::new().output_tokens(40));
    let frames = reply
        .frames
        .into_iter()
        .map(|frame| Ok(Frame::data(frame.bytes)));
    let body = StreamBody::new(stream::iter(frames)).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap();
    *response.headers_mut() = reply.headers;
    response
}

pub(crate) fn post(path: &str) -> request::Builder {
    Request::builder().method(Method::POST).uri(path)
}

/// The request as the layers inside of the description see it.
pub(crate) async fn described(request: request::Builder, body: &str) -> Sent {
    let keep = service_fn(|request: Sent| async { Ok::<_, BoxError>(request) });
    let request = request.body(Full::new(Bytes::from(body.to_owned())));
    let describing = DescribeLayer::new().layer(keep);
    describing.oneshot(request.unwrap()).await.unwrap()
}

pub(crate) async fn question() -> Sent {
    described(post(CHAT), QUESTION).await
}

/// The same question to another model.
pub(crate) async fn question_to(model: &str) -> Sent {
    described(post(CHAT), &QUESTION.replace("gpt-5.4", model)).await
}

/// How often a server was sent a command.
pub(crate) async fn commands(server: &RedisServer, name: &str) -> u64 {
    let stats = server.command(&["INFO", "commandstats"]).await.unwrap();
    let line = stats.lines().find_map(|line| {
        let rest = line.strip_prefix(&format!("cmdstat_{name}:calls="))?;
        rest.split(',').next()?.parse().ok()
    });
    line.unwrap_or(0)
}
