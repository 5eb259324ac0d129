//! Circuits that processes share through Redis: changes of other processes, and outages.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

mod paused;

use std::{
    borrow::Cow,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_llm_breaker::{
    BreakerBuilder, BreakerHandle, BreakerLayer, CircuitId, CircuitOpen, EventKind, EventReceiver,
    Force, Reason, SharedCircuits, State,
};
use tower_llm_core::{BoxError, Call, ConfigError, Described, Operation, Provider, Unary};
use tower_llm_redis::Redis;
use tower_llm_testkit::{
    Stopwatch,
    redis::{RedisCluster, RedisServer},
};

/// Far more than any step here takes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Maximum age of a copy.
const AGE: Duration = Duration::from_millis(400);
/// Time for a script, and for the pauses of a busy machine.
const MARGIN: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(600);
const NAME: &str = "circuits";

struct Prompt(Call);

impl Described for Prompt {
    fn call(&self) -> Option<Cow<'_, Call>> {
        Some(Cow::Borrowed(&self.0))
    }
}

/// The layer of one process.
struct Process {
    layer: BreakerLayer<Unary>,
    handle: BreakerHandle,
    redis: Redis,
}

impl Process {
    async fn of(url: String) -> Self {
        Self::built(url, BreakerLayer::builder().failure_threshold(3)).await
    }

    async fn built(url: String, builder: BreakerBuilder) -> Self {
        let redis = timeout(PATIENCE, Redis::builder(url).connect());
        let redis = redis.await.unwrap().unwrap();
        let shared = SharedCircuits::new(redis.clone(), NAME).max_age(AGE);
        let layer = builder
            .open_for(LONG)
            .max_open_for(LONG)
            .advanced(|set| set.jitter(0.0))
            .watch(Unary)
            .shared(shared)
            .build()
            .unwrap();
        Self {
            handle: layer.handle(),
            layer,
            redis,
        }
    }

    async fn call(&self, well: bool) -> Result<(), BoxError> {
        self.call_of(Provider::OPENAI, well).await
    }

    async fn call_of(&self, provider: Provider, well: bool) -> Result<(), BoxError> {
        let model = self.layer.layer(service_fn(move |_: Prompt| async move {
            match well {
                true => Ok(()),
                false => Err(std::io::Error::other("the connection is reset")),
            }
        }));
        let call = Call::builder(provider, Operation::CHAT).build();
        model.oneshot(Prompt(call)).await
    }

    async fn fail(&self) {
        for _ in 0..3 {
            self.call(false).await.unwrap_err();
        }
    }

    fn state(&self) -> State {
        self.handle.state(&openai())
    }

    async fn until(&self, state: State) -> Duration {
        eventually(|| self.state() == state).await
    }
}

fn openai() -> CircuitId {
    CircuitId::provider("openai")
}

async fn eventually(mut condition: impl FnMut() -> bool) -> Duration {
    let from = Stopwatch::start();
    while !condition() {
        assert!(from.elapsed() < PATIENCE, "the condition never held");
        sleep(Duration::from_millis(1)).await;
    }
    from.elapsed()
}

// === changes of other processes ===

async fn a_process_receives_the_changes_of_another(url: String) {
    let one = Process::of(url.clone()).await;
    let other = Process::of(url.clone()).await;
    let mut events = other.handle.subscribe();
    one.fail().await;
    assert_eq!(one.state(), State::Open);
    let took = other.until(State::Open).await;
    println!("a trip is seen after {took:?}");
    assert!(took < AGE + MARGIN, "{took:?}");
    let stats = other.handle.stats_of(&openai()).unwrap();
    let duration = stats.remaining.unwrap();
    assert!(
        duration < LONG && duration > LONG - PATIENCE,
        "{duration:?}"
    );
    let refused = other.call(true).await.unwrap_err();
    let refused = refused.downcast_ref::<CircuitOpen>().unwrap();
    assert_eq!(refused.state(), State::Open);
    let event = timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
    let EventKind::Transition { to, reason, .. } = event.kind else {
        panic!("{event:?}");
    };
    assert_eq!((to, reason), (State::Open, Reason::Shared));

    // A process that starts later receives earlier changes.
    let late = Process::of(url).await;
    let took = late.until(State::Open).await;
    assert!(took < AGE + MARGIN, "{took:?}");

    // The later of two times counts, whichever process published it.
    late.handle.trip(&openai(), 2 * LONG);
    let is_longer = || {
        let duration = one.handle.stats_of(&openai()).unwrap().remaining;
        duration.is_some_and(|duration| duration > LONG)
    };
    assert!(eventually(is_longer).await < AGE + MARGIN);

    // A close in one process closes everywhere.
    other.handle.reset(&openai());
    assert!(one.until(State::Closed).await < AGE + MARGIN);
    assert!(late.until(State::Closed).await < AGE + MARGIN);
    one.call(true).await.unwrap();
    for process in [one, other, late] {
        assert_eq!(process.state(), State::Closed);
    }
}

#[tokio::test]
async fn on_a_server_changes_reach_other_processes() {
    let server = RedisServer::start().await.unwrap();
    a_process_receives_the_changes_of_another(server.url()).await;
}

#[tokio::test]
async fn on_a_cluster_changes_reach_other_processes() {
    let cluster = RedisCluster::start(3).await.unwrap();
    a_process_receives_the_changes_of_another(cluster.url()).await;
}

#[tokio::test]
async fn a_forced_state_is_local_and_no_remote_change_ends_it() {
    let server = RedisServer::start().await.unwrap();
    let one = Process::of(server.url()).await;
    let other = Process::of(server.url()).await;
    one.handle.force(&openai(), Force::Disabled);
    other.fail().await;
    let third = Process::of(server.url()).await;
    third.until(State::Open).await;
    sleep(2 * AGE).await;
    assert_eq!(one.state(), State::Disabled);
    assert_eq!(other.state(), State::Open);
}

/// Waits until a circuit opens elsewhere that stays closed here.
async fn kept_closed(events: &mut EventReceiver) {
    let kept = EventKind::KeptClosed {
        reason: Reason::Shared,
    };
    while timeout(PATIENCE, events.recv())
        .await
        .unwrap()
        .unwrap()
        .kind
        != kept
    {}
}

/// Each process kept other circuits closed; because each followed the other, both opened all of them.
#[tokio::test]
async fn if_all_circuits_fail_each_process_keeps_its_ratio_closed() {
    let server = RedisServer::start().await.unwrap();
    let pooled = || {
        let builder = BreakerLayer::builder().failure_threshold(1);
        Process::built(
            server.url(),
            builder.advanced(|set| set.max_open_ratio(0.5)),
        )
    };
    let (one, other) = (pooled().await, pooled().await);
    let mut of_one = one.handle.subscribe();
    let mut of_other = other.handle.subscribe();
    let providers = ["w", "x", "y", "z"].map(Provider::new);
    for provider in &providers {
        for process in [&one, &other] {
            process.call_of(provider.clone(), true).await.unwrap();
        }
    }
    for (first, second) in providers.iter().zip(providers.iter().rev()).take(2) {
        one.call_of(first.clone(), false).await.unwrap_err();
        other.call_of(second.clone(), false).await.unwrap_err();
    }
    for _ in 0..2 {
        kept_closed(&mut of_one).await;
        kept_closed(&mut of_other).await;
    }
    let states = |process: &Process| {
        let state = |name| process.handle.state(&CircuitId::provider(name));
        ["w", "x", "y", "z"].map(state)
    };
    let (open, closed) = (State::Open, State::Closed);
    assert_eq!(states(&one), [open, open, closed, closed]);
    assert_eq!(states(&other), [closed, closed, open, open]);
}

/// No call here has used these circuits, but they form the group.
#[tokio::test]
async fn only_the_allowed_ratio_of_circuits_opened_elsewhere_opens() {
    let server = RedisServer::start().await.unwrap();
    let builder = BreakerLayer::builder().advanced(|set| set.max_open_ratio(0.5));
    let process = Process::built(server.url(), builder).await;
    let mut events = process.handle.subscribe();
    process.call_of(Provider::OPENAI, true).await.unwrap();
    let other = Process::of(server.url()).await;
    for name in ["x", "y"] {
        other.handle.trip(&CircuitId::provider(name), LONG);
        // A spent account opens in any case.
        other.handle.trip(&CircuitId::account(name, "a"), LONG);
    }
    kept_closed(&mut events).await;
    let is_open = |circuit: &CircuitId| process.handle.state(circuit) == State::Open;
    let accounts = ["x", "y"].map(|name| CircuitId::account(name, "a"));
    eventually(|| accounts.iter().all(is_open)).await;
    let providers = ["x", "y"].map(|name| is_open(&CircuitId::provider(name)));
    assert_eq!(providers.iter().filter(|&&is_open| is_open).count(), 1);
}

/// A script publishes 100 changes. Each further 100 waited for half the age of a copy, and beyond 1,000 no change was
/// published at all.
#[tokio::test]
async fn a_burst_of_trips_is_published_completely() {
    const TRIPS: usize = 2_000;
    let server = RedisServer::start().await.unwrap();
    let one = Process::of(server.url()).await;
    let other = Process::of(server.url()).await;
    let named = |number| CircuitId::model("openai", format!("m-{number}"));
    for number in 0..TRIPS {
        one.handle.trip(&named(number), LONG);
    }
    let is_open = |number| other.handle.state(&named(number)) == State::Open;
    let mut next = 0;
    let took = eventually(|| {
        while next < TRIPS && is_open(next) {
            next += 1;
        }
        next == TRIPS
    });
    let took = took.await;
    println!("{TRIPS} trips are seen after {took:?}");
    assert!(took < AGE + 3 * MARGIN, "{took:?}");
}

// === outages ===

#[tokio::test]
async fn a_frozen_or_killed_server_only_stops_the_sharing() {
    let mut server = RedisServer::start().await.unwrap();
    let one = Process::of(server.url()).await;
    let other = Process::of(server.url()).await;
    for kill in [false, true] {
        match kill {
            true => server.kill().unwrap(),
            false => server.freeze().unwrap(),
        }
        // No call waits for Redis: 1,000 calls take less than one timeout would.
        let from = Stopwatch::start();
        for _ in 0..1_000 {
            one.call(true).await.unwrap();
        }
        assert!(from.elapsed() < MARGIN, "{:?}", from.elapsed());
        one.fail().await;
        assert_eq!(one.state(), State::Open);
        sleep(2 * AGE).await;
        assert_eq!(other.state(), State::Closed);
        assert!(!one.redis.is_up());

        // Changes made during the outage are published once the server is back.
        match kill {
            true => server.restart().await.unwrap(),
            false => server.thaw().unwrap(),
        }
        let took = other.until(State::Open).await;
        println!("after the outage, a trip is seen after {took:?}");
        assert!(took < AGE + 2 * MARGIN, "{took:?}");
        one.handle.reset(&openai());
        assert!(other.until(State::Closed).await < AGE + MARGIN);
    }
}

/// The opening was over before it could be published, and the earlier close was dropped with it.
#[tokio::test]
async fn a_close_is_published_although_the_circuit_opened_briefly_since() {
    let server = RedisServer::start().await.unwrap();
    let one = Process::of(server.url()).await;
    let other = Process::of(server.url()).await;
    one.handle.trip(&openai(), LONG);
    other.until(State::Open).await;
    server.freeze().unwrap();
    eventually(|| !one.redis.is_up()).await;
    one.handle.close(&openai());
    one.handle.trip(&openai(), Duration::from_millis(10));
    one.until(State::HalfOpen).await;
    server.thaw().unwrap();
    other.until(State::Closed).await;
    sleep(AGE).await;
    assert_eq!(
        one.state(),
        State::HalfOpen,
        "the circuit waits for a probe"
    );
}

#[tokio::test]
async fn open_circuits_are_published_again_to_an_emptied_server() {
    let mut server = RedisServer::start().await.unwrap();
    let one = Process::of(server.url()).await;
    let other = Process::of(server.url()).await;
    one.fail().await;
    other.until(State::Open).await;
    server.kill().unwrap();
    server.restart().await.unwrap();
    let late = Process::of(server.url()).await;
    assert!(late.until(State::Open).await < AGE + 2 * MARGIN);
}

#[tokio::test]
async fn the_task_ends_with_the_layer() {
    let server = RedisServer::start().await.unwrap();
    let process = Process::of(server.url()).await;
    process.fail().await;
    sleep(AGE).await;
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let Process {
        layer,
        handle,
        redis,
    } = process;
    drop((layer, handle));
    eventually(|| tasks() < before).await;
    drop(redis);
}

// === processes ===

const JOB: &str = "TOWER_LLM_BREAKER_TEST_URL";
const SAYS: &str = "process says: ";

struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn two_processes_see_each_others_trips() {
    let server = RedisServer::start().await.unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["shared::child_process", "--exact", "--nocapture"])
        .env(JOB, server.url())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    let mut other = Other(child.unwrap());
    let output = BufReader::new(other.0.stdout.take().unwrap());
    let (sender, mut said) = tokio::sync::mpsc::unbounded_channel();
    let reader = spawn_blocking(move || {
        for line in output.lines().map_while(Result::ok) {
            if let Some((_, what)) = line.split_once(SAYS) {
                sender.send(what.to_owned()).unwrap();
            }
        }
    });
    let mut line = async || timeout(PATIENCE, said.recv()).await.unwrap().unwrap();
    let process = Process::of(server.url()).await;
    assert_eq!(line().await, "tripped");
    let took = process.until(State::Open).await;
    assert!(took < AGE + MARGIN, "{took:?}");
    process.handle.reset(&openai());
    let from = Stopwatch::start();
    assert_eq!(line().await, "closed");
    assert!(from.elapsed() < AGE + MARGIN, "{:?}", from.elapsed());
    drop(other);
    reader.await.unwrap();
}

#[tokio::test]
async fn child_process() {
    // A no-op unless it runs in the child process.
    let Ok(url) = std::env::var(JOB) else {
        return;
    };
    let process = Process::of(url).await;
    process.fail().await;
    println!("{SAYS}tripped");
    process.until(State::Closed).await;
    println!("{SAYS}closed");
}

// === settings ===

fn refused(shared: SharedCircuits) -> ConfigError {
    BreakerLayer::builder().shared(shared).build().unwrap_err()
}

#[tokio::test]
async fn invalid_settings_are_named() {
    let redis = Redis::builder("redis://127.0.0.1:1").build().unwrap();
    for name in ["", "a{b", "a}"] {
        let error = refused(SharedCircuits::new(redis.clone(), name));
        let value = format!("{name:?}");
        assert_eq!((error.field(), error.value()), ("name", &*value));
    }
    for millis in [0, 9, 86_400_001] {
        let age = Duration::from_millis(millis);
        let error = refused(SharedCircuits::new(redis.clone(), "a").max_age(age));
        let value = format!("{age:?}");
        assert_eq!((error.field(), error.value()), ("max_age", &*value));
    }
}

#[test]
fn without_a_runtime_building_fails_without_a_panic() {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    let redis = runtime.block_on(async { Redis::builder("redis://127.0.0.1:1").build().unwrap() });
    assert_eq!(refused(SharedCircuits::new(redis, "a")).field(), "shared");
}
