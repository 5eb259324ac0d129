//! Stores that the tests start, and layers that share limits in them.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

use std::{
    borrow::Cow,
    convert::Infallible,
    fmt,
    future::{Future, pending},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::StreamBody;
use tokio::time::{sleep, timeout};
use tower::{Layer, ServiceExt, service_fn};
use tower_llm_core::{BoxError, Call, Caller, Described, Dialect, Operation, Provider, Unary};
use tower_llm_ratelimit::{
    RateLimitBuilder, RateLimitLayer, RateLimited, SharedLimits, StoreFallback,
};
use tower_llm_redis::{Redis, RedisBuilder};
use tower_llm_testkit::{
    Stopwatch,
    redis::{RedisCluster, RedisServer},
};

/// Far more than any step here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(8);
/// How long a call may wait for the store, unless a test says otherwise.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(100);
/// Additional time for a decision on a busy machine.
pub(crate) const MARGIN: Duration = Duration::from_secs(1);
/// How soon a recovered store must be in use.
pub(crate) const RECOVERY: Duration = Duration::from_secs(2);

/// How long a process may spend a lease.
pub(crate) const LEASE: Duration = Duration::from_secs(1);

/// How limits are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Script,
    Leases,
}

/// One server, or three that are a Cluster.
#[derive(Debug)]
enum Store {
    Server(RedisServer),
    Cluster(RedisCluster),
}

/// The servers of a scenario. The limits of one scenario are on one node.
#[derive(Debug)]
pub(crate) struct Setup {
    store: Store,
    pub(crate) mode: Mode,
    /// The name of its layers.
    pub(crate) name: &'static str,
    node: usize,
}

/// A call of a service that is not HTTP.
#[derive(Clone, Debug)]
pub(crate) struct Prompt(pub Call);

// === impl Mode ===

impl Mode {
    pub(crate) const ALL: [Self; 2] = [Self::Script, Self::Leases];

    /// Shares limits in this mode.
    pub(crate) fn shared(self, redis: &Redis, name: &str, replicas: u32) -> SharedLimits {
        let shared = SharedLimits::new(redis.clone(), name, replicas);
        match self {
            Self::Script => shared,
            Self::Leases => shared.lease_for(LEASE),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Script => "script",
            Self::Leases => "leases",
        })
    }
}

// === impl Setup ===

impl Setup {
    pub(crate) async fn server(mode: Mode, name: &'static str) -> Self {
        Self {
            store: Store::Server(RedisServer::start().await.unwrap()),
            mode,
            name,
            node: 0,
        }
    }

    /// A Cluster, for one scenario after the other.
    pub(crate) async fn cluster() -> Self {
        Self {
            store: Store::Cluster(RedisCluster::start(3).await.unwrap()),
            mode: Mode::Script,
            name: "",
            node: 0,
        }
    }

    /// Continues with another scenario.
    pub(crate) async fn now(&mut self, mode: Mode, name: &'static str) -> &mut Self {
        println!("on a cluster, mode {mode}: {name}");
        (self.mode, self.name) = (mode, name);
        if let Store::Cluster(cluster) = &self.store {
            for node in 0..3 {
                cluster.command(node, &["FLUSHALL"]).await.unwrap();
            }
            let key = format!("{{tower-llm:{name}}}");
            let slot = cluster.command(0, &["CLUSTER", "KEYSLOT", &key]).await;
            self.node = cluster.node_of_slot(slot.unwrap().parse().unwrap());
        }
        self
    }

    pub(crate) fn url(&self) -> String {
        match &self.store {
            Store::Server(server) => server.url(),
            Store::Cluster(cluster) => cluster.url(),
        }
    }

    /// A client, as another process has. Its timeouts are so long that a busy machine does not look like an outage.
    pub(crate) async fn redis(&self) -> Redis {
        connect(Redis::builder(self.url()).command_timeout(PATIENCE)).await
    }

    /// How many scripts the server has run.
    pub(crate) async fn scripts_run(&self) -> u64 {
        let stats = self.command(&["INFO", "commandstats"]).await;
        let line = stats.lines().find(|line| line.contains("cmdstat_evalsha:"));
        let calls = line.and_then(|line| line.split(['=', ',']).nth(1));
        calls.map_or(0, |calls| calls.parse().unwrap())
    }

    /// A client with the default timeout.
    pub(crate) async fn hasty_redis(&self) -> Redis {
        connect(Redis::builder(self.url()).command_timeout(TIMEOUT)).await
    }

    /// Shares limits under the scenario's name.
    pub(crate) fn shared(&self, redis: &Redis, replicas: u32) -> SharedLimits {
        self.mode.shared(redis, self.name, replicas)
    }

    /// Sends a command to where the limits are.
    pub(crate) async fn command(&self, words: &[&str]) -> String {
        let answer = match &self.store {
            Store::Server(server) => server.command(words).await,
            Store::Cluster(cluster) => cluster.command(self.node, words).await,
        };
        answer.unwrap()
    }

    /// The keys that contain `text`.
    pub(crate) async fn keys(&self, text: &str) -> Vec<String> {
        let keys = self.command(&["KEYS", &format!("*{text}*")]).await;
        keys.lines().map(ToOwned::to_owned).collect()
    }

    pub(crate) fn kill(&mut self) {
        match &mut self.store {
            Store::Server(server) => server.kill().unwrap(),
            Store::Cluster(cluster) => cluster.kill(self.node).unwrap(),
        }
    }

    pub(crate) fn freeze(&self) {
        match &self.store {
            Store::Server(server) => server.freeze().unwrap(),
            Store::Cluster(cluster) => cluster.freeze(self.node).unwrap(),
        }
    }

    /// Resumes a frozen server and waits until it serves: a node of a Cluster waits for the other nodes first.
    pub(crate) async fn thaw(&self) {
        match &self.store {
            Store::Server(server) => server.thaw().unwrap(),
            Store::Cluster(cluster) => {
                cluster.thaw(self.node).unwrap();
                let key = format!("{{tower-llm:{}}}:nothing", self.name);
                eventually("the node serves", async || {
                    cluster.command(self.node, &["GET", &key]).await.is_ok()
                })
                .await;
            }
        }
    }

    /// Starts the killed server again, empty.
    pub(crate) async fn restart(&mut self) {
        match &mut self.store {
            Store::Server(server) => server.restart().await.unwrap(),
            Store::Cluster(cluster) => cluster.restart(self.node).await.unwrap(),
        }
    }

    pub(crate) async fn flush_scripts(&self) {
        match &self.store {
            Store::Server(server) => server.flush_scripts().await.unwrap(),
            Store::Cluster(cluster) => cluster.flush_scripts().await.unwrap(),
        }
    }
}

pub(crate) async fn connect(builder: RedisBuilder) -> Redis {
    timeout(PATIENCE, builder.connect()).await.unwrap().unwrap()
}

/// The layer, for calls that are not HTTP requests.
pub(crate) fn unary(builder: RateLimitBuilder, shared: SharedLimits) -> RateLimitLayer<Unary> {
    builder.watch(Unary).shared(shared).build().unwrap()
}

// === calls ===

impl Prompt {
    /// A call of `tokens` tokens, all of them input.
    pub(crate) fn of(tokens: u64) -> Self {
        Self::by("somebody", tokens)
    }

    pub(crate) fn by(caller: &str, tokens: u64) -> Self {
        let call = Call::builder(Provider::OPENAI, Operation::CHAT)
            .model("a-model")
            .caller(Caller::named(caller))
            .input_tokens(tokens)
            .max_output_tokens(0);
        Self(call.build())
    }
}

impl Described for Prompt {
    fn call(&self) -> Option<Cow<'_, Call>> {
        Some(Cow::Borrowed(&self.0))
    }
}

/// A call that is answered at once.
pub(crate) async fn call(layer: &RateLimitLayer<Unary>, prompt: Prompt) -> Result<(), BoxError> {
    let service = layer.layer(service_fn(|_: Prompt| async { Ok::<_, Infallible>(()) }));
    service.oneshot(prompt).await
}

/// A call that is admitted and never answered: it holds its charge until it is dropped.
pub(crate) async fn stuck(layer: &RateLimitLayer<Unary>, prompt: Prompt) -> Result<(), BoxError> {
    let service = layer.layer(service_fn(|_: Prompt| pending::<Result<(), Infallible>>()));
    service.oneshot(prompt).await
}

/// Whether a call is admitted; it is charged nothing if not.
pub(crate) async fn admits(layer: &RateLimitLayer<Unary>, prompt: Prompt) -> bool {
    match call(layer, prompt).await {
        Ok(()) => true,
        Err(error) => {
            assert!(error.is::<RateLimited>(), "{error}");
            false
        }
    }
}

/// Asserts that exactly `left` can still be used, now or soon; and uses it.
pub(crate) async fn exactly_left(layer: &RateLimitLayer<Unary>, caller: &str, left: u64) {
    let what = format!("{left} tokens are left");
    if left > 0 {
        eventually(&what, async || {
            admits(layer, Prompt::by(caller, left)).await
        })
        .await;
    }
    let more = admits(layer, Prompt::by(caller, 1)).await;
    assert!(!more, "more than {left} tokens were left for {caller}");
}

/// How many calls without tokens are admitted until one is refused.
pub(crate) async fn requests_left(layer: &RateLimitLayer<Unary>) -> u64 {
    let mut count = 0;
    while admits(layer, Prompt::of(0)).await {
        count += 1;
    }
    count
}

/// Pseudo-random numbers, the same in each run.
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: usize) -> Self {
        Self(0x9e37_79b9_7f4a_7c15 ^ (seed as u64 + 1))
    }

    /// A number below `end`: xorshift.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

// === calls whose responses report their usage ===

/// The usage of a response, and the number of its frames.
pub(crate) const USED: u64 = 50;
pub(crate) const FRAMES: usize = 6;

pub(crate) async fn answer(
    _: Request<()>,
) -> Result<Response<impl Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let frames: [&str; FRAMES] = [
        r#"{"id":"1","object":"chat.completion","#,
        r#""choices":[{"index":0,"message":{"role":"assistant","content":"an"#,
        r#"swer"},"finish_reason":"stop"}],"usage":{"prompt_"#,
        r#"tokens":30,"completion_tokens":20,"total_tokens":50},"#,
        r#""service_tier":"default""#,
        "}",
    ];
    let frames = frames.map(|frame| Ok(Frame::data(Bytes::from_static(frame.as_bytes()))));
    let response = Response::builder().header("content-type", "application/json");
    Ok(response
        .body(StreamBody::new(stream::iter(frames)))
        .unwrap())
}

/// A request of `tokens` tokens.
pub(crate) fn request(caller: &str, tokens: u64) -> Request<()> {
    let call = Call::builder(Provider::OPENAI, Operation::CHAT)
        .dialect(Dialect::OpenAi)
        .caller(Caller::named(caller))
        .input_tokens(tokens - USED)
        .max_output_tokens(USED);
    let request = Request::builder().extension(call.build());
    let request = request.body(()).unwrap();
    assert!(Described::call(&request).is_some());
    request
}

// === time ===

pub(crate) async fn timed<F: Future>(future: F) -> (F::Output, Duration) {
    let from = Stopwatch::start();
    let output = future.await;
    (output, from.elapsed())
}

/// Waits until `condition` holds; returns how long that took.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let from = Stopwatch::start();
    while !condition().await {
        assert!(from.elapsed() < PATIENCE, "never: {what}");
        sleep(Duration::from_millis(5)).await;
    }
    from.elapsed()
}

/// Two layers that detect whether calls go through the store, under the scenario's name.
#[derive(Debug)]
pub(crate) struct Probe {
    layers: [RateLimitLayer<Unary>; 2],
    asked: u64,
}

impl Probe {
    pub(crate) fn new(setup: &Setup, clients: [&Redis; 2]) -> Self {
        let layers = clients.map(|redis| {
            let shared = setup
                .shared(redis, 2)
                .store_fallback(StoreFallback::FailOpen);
            let limit = tower_llm_ratelimit::Limit::tokens(10).per_hour();
            unary(RateLimitLayer::for_callers().limit(limit), shared)
        });
        Self { layers, asked: 0 }
    }

    /// Whether one layer sees what the other has charged. Without the store, both calls are admitted.
    pub(crate) async fn sees(&mut self) -> bool {
        self.asked += 1;
        let caller = format!("probe {}", self.asked);
        let [one, other] = &self.layers;
        let first = admits(one, Prompt::by(&caller, 10)).await;
        first && !admits(other, Prompt::by(&caller, 1)).await
    }

    /// Waits until calls go through the store again.
    pub(crate) async fn recovered(&mut self) -> Duration {
        let took = eventually("the store is in use again", async || self.sees().await).await;
        assert!(took < RECOVERY, "in use again after {took:?}");
        took
    }
}

/// Each scenario as a test with its own server, and all of them, one after the other, on one Cluster.
macro_rules! scenarios {
    ($($scenario:ident),* $(,)?) => {
        mod on_one_server {
            use $crate::shared::support::{Mode, Setup};
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $scenario() {
                    let mut setup = Setup::server(Mode::Script, stringify!($scenario)).await;
                    super::$scenario(&mut setup).await;
                }
            )*
        }

        mod on_one_server_by_leases {
            use $crate::shared::support::{Mode, Setup};
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $scenario() {
                    let mut setup = Setup::server(Mode::Leases, stringify!($scenario)).await;
                    super::$scenario(&mut setup).await;
                }
            )*
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn on_a_cluster_of_three_nodes() {
            use $crate::shared::support::{Mode, Setup};
            let mut cluster = Setup::cluster().await;
            for mode in Mode::ALL {
                $($scenario(cluster.now(mode, stringify!($scenario)).await).await;)*
            }
        }
    };
}
