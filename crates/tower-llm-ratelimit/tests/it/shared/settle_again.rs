//! Settlements that the store does not accept at once: it is distant, answers with an error, or does not serve for a
//! while.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use crate::shared::support::{
    LEASE, MARGIN, Mode, PATIENCE, Prompt, Setup, USED, admits, answer, connect, eventually,
    exactly_left, request, unary,
};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_llm_core::Unary;
use tower_llm_ratelimit::{Limit, RateLimitBuilder, RateLimitLayer, SharedLimits, StoreFallback};
use tower_llm_redis::Redis;
use tower_llm_testkit::redis::RedisCluster;

scenarios!(
    calls_that_end_while_the_server_rejects_writes_are_settled_later,
    a_settlement_that_fails_is_retried_and_delays_no_other,
    hundreds_of_calls_that_end_during_a_freeze_are_settled_once_afterwards,
    the_rest_of_a_lease_is_returned_although_the_next_is_not_used,
);

const LIMIT: u64 = 100_000;
/// What each of these calls reserves; it uses `USED`.
const RESERVED: u64 = 80;

fn tokens() -> RateLimitBuilder {
    RateLimitLayer::for_callers().limit(Limit::tokens(LIMIT).per_hour())
}

/// A layer, which must outlive its calls: settlements that remain when it is dropped do not wait for the store.
fn layer(shared: SharedLimits) -> RateLimitLayer {
    tokens().shared(shared).build().unwrap()
}

/// A layer that admits only what the store admits: a pause of the machine must not make it decide locally.
fn looking(setup: &Setup, redis: &Redis) -> RateLimitLayer<Unary> {
    let shared = setup
        .shared(redis, 2)
        .store_fallback(StoreFallback::FailClosed);
    unary(tokens(), shared)
}

/// Calls that have been answered; each ends when its future runs.
async fn held(
    layer: &RateLimitLayer,
    caller: &str,
    calls: u64,
) -> Vec<impl Future<Output = ()> + use<>> {
    let mut asked = JoinSet::new();
    for _ in 0..calls {
        let service = layer.layer(service_fn(answer));
        asked.spawn(service.oneshot(request(caller, RESERVED)));
    }
    let answers = asked.join_all().await.into_iter();
    let ends = answers.map(|answer| {
        let body = answer.unwrap().into_body();
        async {
            body.collect().await.unwrap();
        }
    });
    ends.collect()
}

async fn end(calls: Vec<impl Future<Output = ()>>) {
    for call in calls {
        call.await;
    }
}

/// A call that is dropped after it has asked the store.
async fn asked_and_left(layer: &RateLimitLayer<Unary>, tokens: u64) {
    let mut call = pin!(admits(layer, Prompt::of(tokens)));
    // The first poll sends the script and cannot have its response yet.
    poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_pending())).await;
}

/// Sets how many replicas the server needs to accept writes: it has none.
async fn need_replicas(setup: &Setup, number: &str) {
    let words = ["CONFIG", "SET", "min-replicas-to-write", number];
    setup.command(&words).await;
}

async fn calls_that_end_while_the_server_rejects_writes_are_settled_later(setup: &mut Setup) {
    let (redis, others) = (setup.redis().await, setup.redis().await);
    let layer = layer(setup.shared(&redis, 2));
    let calls = held(&layer, "somebody", 20).await;
    need_replicas(setup, "1").await;
    end(calls).await;
    // Longer than leases last.
    sleep(LEASE + Duration::from_millis(300)).await;
    need_replicas(setup, "0").await;
    let other = looking(setup, &others);
    exactly_left(&other, "somebody", LIMIT - 20 * USED).await;
    assert_eq!(layer.handle().unsettled(), 0);
}

async fn a_settlement_that_fails_is_retried_and_delays_no_other(setup: &mut Setup) {
    let (redis, others) = (setup.redis().await, setup.redis().await);
    let layer = layer(setup.shared(&redis, 2));
    let other = looking(setup, &others);
    let (spoiled, well) = (
        held(&layer, "spoiled", 300).await,
        held(&layer, "well", 1).await,
    );
    let spoiled_key = Spoiled::spoil(setup, "spoiled").await;
    end(spoiled).await;
    end(well).await;
    exactly_left(&other, "well", LIMIT - USED).await;
    spoiled_key.mend().await;
    exactly_left(&other, "spoiled", LIMIT - 300 * USED).await;
    assert_eq!(layer.handle().unsettled(), 0);
}

/// A limit's key with a value of the wrong type.
struct Spoiled<'a> {
    setup: &'a Setup,
    key: String,
    aside: String,
}

impl<'a> Spoiled<'a> {
    async fn spoil(setup: &'a Setup, caller: &str) -> Self {
        let keys = setup.keys(caller).await;
        let is_meter = |key: &&String| !key.contains(":holds:") && !key.contains(":marks:");
        let key = keys.iter().find(is_meter).unwrap().clone();
        let aside = format!("{key}:aside");
        setup.command(&["RENAME", &key, &aside]).await;
        setup.command(&["RPUSH", &key, "not a meter"]).await;
        Self { setup, key, aside }
    }

    async fn mend(self) {
        let rename = ["RENAME", &self.aside, &self.key];
        self.setup.command(&rename).await;
    }
}

async fn hundreds_of_calls_that_end_during_a_freeze_are_settled_once_afterwards(setup: &mut Setup) {
    const CALLS: u64 = 600;
    if setup.mode == Mode::Leases {
        // A refund with an unknown outcome is not sent again.
        return;
    }
    // Longer than a machine pauses, so that only the ending calls are decided without the store.
    let timeout = MARGIN + Duration::from_millis(200);
    let redis = connect(Redis::builder(setup.url()).command_timeout(timeout)).await;
    let others = setup.redis().await;
    let layer = layer(setup.shared(&redis, 2));
    let calls = held(&layer, "somebody", CALLS).await;
    setup.freeze();
    end(calls).await;
    sleep(timeout).await;
    setup.thaw().await;
    let other = looking(setup, &others);
    // The store does not know of calls that a paused machine has decided locally.
    let decided = CALLS - layer.handle().decided_without_store();
    exactly_left(&other, "somebody", LIMIT - decided * USED).await;
}

async fn the_rest_of_a_lease_is_returned_although_the_next_is_not_used(setup: &mut Setup) {
    let (redis, others) = (setup.redis().await, setup.redis().await);
    let layer = unary(tokens(), setup.shared(&redis, 2));
    assert!(admits(&layer, Prompt::of(10)).await);
    need_replicas(setup, "1").await;
    // More than is left of the lease.
    asked_and_left(&layer, 10_000).await;
    sleep(Duration::from_millis(300)).await;
    need_replicas(setup, "0").await;
    let other = looking(setup, &others);
    exactly_left(&other, "somebody", LIMIT - 10).await;
}

// === one server, or one Cluster ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_calls_that_end_together_are_settled_together_by_a_distant_store() {
    const CALLS: u64 = 1_000;
    let setup = Setup::server(Mode::Script, "far").await;
    let link = Link {
        delay: Duration::from_millis(10),
        ..Link::default()
    };
    let url = through_link(setup.url(), link).await;
    let redis = connect(Redis::builder(url).command_timeout(PATIENCE)).await;
    let layer = layer(setup.shared(&redis, 2));
    let calls = held(&layer, "somebody", CALLS).await;
    end(calls).await;
    // One after the other, it would take twenty seconds.
    let near = setup.redis().await;
    let other = looking(&setup, &near);
    exactly_left(&other, "somebody", LIMIT - CALLS * USED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settlement_that_always_fails_is_counted() {
    let setup = Setup::server(Mode::Script, "counted").await;
    let redis = setup.redis().await;
    let layer = layer(setup.shared(&redis, 2));
    let calls = held(&layer, "somebody", 10).await;
    let _spoiled = Spoiled::spoil(&setup, "somebody").await;
    end(calls).await;
    assert_eq!(
        layer.handle().unsettled(),
        0,
        "a settlement was tried again"
    );
    eventually("all unsettled calls are counted", async || {
        layer.handle().unsettled() == 10
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_end_during_a_slot_migration_are_settled_afterwards() {
    let cluster = RedisCluster::start(3).await.unwrap();
    let redis = connect(Redis::builder(cluster.url()).command_timeout(MARGIN)).await;
    let shared = || SharedLimits::new(redis.clone(), "moved", 2);
    let layer = layer(shared());
    let calls = held(&layer, "somebody", 20).await;
    let slot = ["CLUSTER", "KEYSLOT", "{tower-llm:moved}"];
    let slot = cluster.command(0, &slot).await.unwrap();
    let from = cluster.node_of_slot(slot.parse().unwrap());
    let to = (from + 1) % 3;
    for (node, state, other) in [(to, "IMPORTING", from), (from, "MIGRATING", to)] {
        let id = cluster.command(other, &["CLUSTER", "MYID"]).await.unwrap();
        let words = ["CLUSTER", "SETSLOT", &slot, state, &id];
        cluster.command(node, &words).await.unwrap();
    }
    // A window has two of the three keys that a script names: the third may have moved to the other server before them.
    end(calls).await;
    sleep(MARGIN).await;
    for node in [from, to] {
        let words = ["CLUSTER", "SETSLOT", &slot, "STABLE"];
        cluster.command(node, &words).await.unwrap();
    }
    let other = unary(tokens(), shared());
    exactly_left(&other, "somebody", LIMIT - 20 * USED).await;
    assert_eq!(layer.handle().unsettled(), 0);
}

// === unknown outcomes ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_charged_after_an_outage_or_counted_as_unsettled() {
    const CALLS: u64 = 200;
    let setup = Setup::server(Mode::Script, "cut").await;
    let link = Link::default();
    let url = through_link(setup.url(), link.clone()).await;
    let redis = connect(Redis::builder(url).command_timeout(MARGIN)).await;
    let hold_for = Duration::from_secs(2);
    let layer = layer(setup.shared(&redis, 2).hold_for(hold_for));
    let near = setup.redis().await;
    let shared = setup.shared(&near, 2).hold_for(hold_for);
    let other = unary(tokens(), shared.store_fallback(StoreFallback::FailClosed));

    let calls = held(&layer, "somebody", CALLS).await;
    let decided = CALLS - layer.handle().decided_without_store();
    // The calls end while nothing arrives; when the connection works again, their holds have expired.
    link.is_cut.store(true, Ordering::SeqCst);
    end(calls).await;
    sleep(hold_for).await;
    // Each claim refunds some of the expired reservations.
    for _ in 0..CALLS / 10 {
        assert!(admits(&other, Prompt::by("somebody", 0)).await);
    }
    link.is_cut.store(false, Ordering::SeqCst);
    let handle = layer.handle();
    eventually("a settlement was tried again", async || {
        handle.unsettled() > 0
    })
    .await;
    let mut unsettled = 0;
    while unsettled < handle.unsettled() {
        unsettled = handle.unsettled();
        sleep(MARGIN).await;
    }
    // The first admitted call takes all that is left.
    let mut charged = 0;
    while !admits(&other, Prompt::by("somebody", LIMIT - charged * USED)).await {
        charged += 1;
    }
    println!("of {decided} calls {charged} are charged, and {unsettled} unsettled");
    assert_eq!(charged + unsettled, decided);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_cannot_have_expired_was_settled_by_the_attempt_without_a_response() {
    const CALLS: u64 = 100;
    let setup = Setup::server(Mode::Script, "lost answer").await;
    let link = Link::default();
    let url = through_link(setup.url(), link.clone()).await;
    let redis = connect(Redis::builder(url).command_timeout(MARGIN)).await;
    let layer = layer(setup.shared(&redis, 2));
    let calls = held(&layer, "somebody", CALLS).await;
    let decided = CALLS - layer.handle().decided_without_store();
    link.answers_are_cut.store(true, Ordering::SeqCst);
    end(calls).await;
    eventually("the outage is noticed", async || !redis.is_up()).await;
    link.answers_are_cut.store(false, Ordering::SeqCst);
    let near = setup.redis().await;
    let other = looking(&setup, &near);
    exactly_left(&other, "somebody", LIMIT - decided * USED).await;
    // The earlier attempt is repeated, and the call is found settled.
    sleep(MARGIN).await;
    assert_eq!(layer.handle().unsettled(), 0);
}

// === dropped calls ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_calls_free_their_slots_while_the_server_rejects_writes() {
    const PENDING: usize = 4;
    let setup = Setup::server(Mode::Leases, "wedged").await;
    let redis = Redis::builder(setup.url()).command_timeout(PATIENCE);
    let redis = connect(redis.max_pending(PENDING)).await;
    let layer = looking(&setup, &redis);
    assert!(admits(&layer, Prompt::of(10)).await);
    need_replicas(&setup, "1").await;
    // The rest of the lease cannot be returned, and is tried again and again.
    for _ in 0..4 * PENDING {
        asked_and_left(&layer, 10_000).await;
        sleep(Duration::from_millis(20)).await;
    }
    need_replicas(&setup, "0").await;
    eventually("the store is asked again", async || {
        admits(&layer, Prompt::of(10_000)).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_outside_a_runtime_panics_alone() {
    let setup = Setup::server(Mode::Leases, "outside").await;
    let redis = setup.redis().await;
    let layer = unary(tokens(), setup.shared(&redis, 2));
    assert!(admits(&layer, Prompt::of(10)).await);
    let outside = layer.clone();
    let polled = std::thread::spawn(move || {
        // More than is left of the lease, so that the store is asked.
        let call = admits(&outside, Prompt::of(10_000));
        call.now_or_never()
    });
    assert!(polled.join().is_err());
    sleep(Duration::from_millis(100)).await;
    // The task still refunds the grants of dropped requests.
    asked_and_left(&layer, 10_000).await;
    assert_eq!(layer.handle().unsettled(), 0);
}

/// A connection to a server.
#[derive(Clone, Debug, Default)]
struct Link {
    /// The delay in each direction.
    delay: Duration,
    /// Nothing arrives, and a connection that has lost data is never used again.
    is_cut: Arc<AtomicBool>,
    answers_are_cut: Arc<AtomicBool>,
}

async fn through_link(url: String, link: Link) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = url.trim_start_matches("redis://").to_owned();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(&*server).await else {
                return;
            };
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = far.into_split();
            let (there, back) = (link.is_cut.clone(), link.clone());
            let is_lost = move || there.load(Ordering::SeqCst);
            tokio::spawn(pass_on(near_read, far_write, link.delay, is_lost));
            let is_lost = move || {
                back.is_cut.load(Ordering::SeqCst) || back.answers_are_cut.load(Ordering::SeqCst)
            };
            tokio::spawn(pass_on(far_read, near_write, link.delay, is_lost));
        }
    });
    format!("redis://{address}")
}

async fn pass_on(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin + Send + 'static,
    delay: Duration,
    is_lost: impl Fn() -> bool,
) {
    let (sender, mut receiver) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    tokio::spawn(async move {
        while let Some((at, bytes)) = receiver.recv().await {
            sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let (mut buffer, mut has_lost) = (vec![0; 1 << 16], false);
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        has_lost |= is_lost();
        if !has_lost {
            let _ = sender.send((Instant::now() + delay, buffer[..read].to_vec()));
        }
    }
}
