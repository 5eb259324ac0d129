//! What becomes of what calls have used that the store does not take at once: it is far away, answers with an error, or does
//! not serve for a while.

#![cfg(feature = "redis")]
#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

mod shared_support;

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

use futures_util::FutureExt;
use http_body_util::BodyExt;
use shared_support::{
    LEASE, MARGIN, Mode, PATIENCE, Prompt, Setup, USED, admits, answer, connect, eventually,
    exactly_left, request, unary,
};
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
    what_ends_while_the_server_takes_no_writes_is_settled_when_it_does,
    what_the_server_answers_with_an_error_is_settled_when_it_does_not_and_holds_nobody_up,
    hundreds_of_calls_that_end_while_it_is_frozen_are_settled_once_when_it_is_back,
    what_was_left_of_a_share_comes_back_though_the_next_is_not_granted_to_anybody,
);

const LIMIT: u64 = 100_000;
/// What a call of these reserves; it uses `USED`.
const RESERVED: u64 = 80;

fn tokens() -> RateLimitBuilder {
    RateLimitLayer::for_callers().limit(Limit::tokens(LIMIT).per_hour())
}

/// A layer, which must live on: what ends when it is gone does not wait for the store.
fn layer(shared: SharedLimits) -> RateLimitLayer {
    tokens().shared(shared).build().unwrap()
}

/// A layer that lets nothing through but what the store does: a machine that pauses is no reason to decide here.
fn looking(setup: &Setup, redis: &Redis) -> RateLimitLayer<Unary> {
    let shared = setup
        .shared(redis, 2)
        .store_fallback(StoreFallback::FailClosed);
    unary(tokens(), shared)
}

/// Calls that have been answered, and end when these are run.
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

/// A call that is dropped when the store was asked for it.
async fn asked_and_left(layer: &RateLimitLayer<Unary>, tokens: u64) {
    let mut call = pin!(admits(layer, Prompt::of(tokens)));
    // The first poll sends the script, and cannot have its answer.
    poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_pending())).await;
}

/// Sets how many replicas the server must have to take writes: it has none.
async fn need_replicas(setup: &Setup, number: &str) {
    let words = ["CONFIG", "SET", "min-replicas-to-write", number];
    setup.command(&words).await;
}

async fn what_ends_while_the_server_takes_no_writes_is_settled_when_it_does(setup: &mut Setup) {
    let (redis, others) = (setup.redis().await, setup.redis().await);
    let layer = layer(setup.shared(&redis, 2));
    let calls = held(&layer, "somebody", 20).await;
    need_replicas(setup, "1").await;
    end(calls).await;
    // Longer than shares last.
    sleep(LEASE + Duration::from_millis(300)).await;
    need_replicas(setup, "0").await;
    let other = looking(setup, &others);
    exactly_left(&other, "somebody", LIMIT - 20 * USED).await;
    assert_eq!(layer.handle().unsettled(), 0);
}

async fn what_the_server_answers_with_an_error_is_settled_when_it_does_not_and_holds_nobody_up(
    setup: &mut Setup,
) {
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

/// A limit's key that is of a wrong type.
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
        setup.command(&["RPUSH", &key, "no meter"]).await;
        Self { setup, key, aside }
    }

    async fn mend(self) {
        let rename = ["RENAME", &self.aside, &self.key];
        self.setup.command(&rename).await;
    }
}

async fn hundreds_of_calls_that_end_while_it_is_frozen_are_settled_once_when_it_is_back(
    setup: &mut Setup,
) {
    const CALLS: u64 = 600;
    if setup.mode == Mode::Leases {
        // A refund of unknown outcome is not sent again.
        return;
    }
    // Longer than a machine pauses, so that no call but those that end is decided without the store.
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
    // Of those that a paused machine has decided without it the store knows nothing.
    let told = CALLS - layer.handle().decided_without_store();
    exactly_left(&other, "somebody", LIMIT - told * USED).await;
}

async fn what_was_left_of_a_share_comes_back_though_the_next_is_not_granted_to_anybody(
    setup: &mut Setup,
) {
    let (redis, others) = (setup.redis().await, setup.redis().await);
    let layer = unary(tokens(), setup.shared(&redis, 2));
    assert!(admits(&layer, Prompt::of(10)).await);
    need_replicas(setup, "1").await;
    // More than is left of the share.
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
    let way = Way {
        delay: Duration::from_millis(10),
        ..Way::default()
    };
    let url = by_way_of(setup.url(), way).await;
    let redis = connect(Redis::builder(url).command_timeout(PATIENCE)).await;
    let layer = layer(setup.shared(&redis, 2));
    let calls = held(&layer, "somebody", CALLS).await;
    end(calls).await;
    // One after the other, it would be twenty seconds.
    let near = setup.redis().await;
    let other = looking(&setup, &near);
    exactly_left(&other, "somebody", LIMIT - CALLS * USED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_answers_with_an_error_to_the_last_is_counted() {
    let setup = Setup::server(Mode::Script, "counted").await;
    let redis = setup.redis().await;
    let layer = layer(setup.shared(&redis, 2));
    let calls = held(&layer, "somebody", 10).await;
    let _spoiled = Spoiled::spoil(&setup, "somebody").await;
    end(calls).await;
    assert_eq!(layer.handle().unsettled(), 0, "it is tried again");
    eventually("all are counted", async || layer.handle().unsettled() == 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ends_while_its_slot_is_moved_is_settled_when_it_has() {
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
    // A window has two keys of the three that a script names: to a server that moves them, the third may have gone before.
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
async fn what_a_call_has_used_is_charged_after_an_outage_or_counted_as_unsettled() {
    const CALLS: u64 = 200;
    let setup = Setup::server(Mode::Script, "cut").await;
    let way = Way::default();
    let url = by_way_of(setup.url(), way.clone()).await;
    let redis = connect(Redis::builder(url).command_timeout(MARGIN)).await;
    let hold_for = Duration::from_secs(2);
    let layer = layer(setup.shared(&redis, 2).hold_for(hold_for));
    let near = setup.redis().await;
    let shared = setup.shared(&near, 2).hold_for(hold_for);
    let other = unary(tokens(), shared.store_fallback(StoreFallback::FailClosed));

    let calls = held(&layer, "somebody", CALLS).await;
    let told = CALLS - layer.handle().decided_without_store();
    // They end while nothing arrives, and when it does again, what they held has run out.
    way.is_cut.store(true, Ordering::SeqCst);
    end(calls).await;
    sleep(hold_for).await;
    // Each claim gives back some of the expired reservations.
    for _ in 0..CALLS / 10 {
        assert!(admits(&other, Prompt::by("somebody", 0)).await);
    }
    way.is_cut.store(false, Ordering::SeqCst);
    let handle = layer.handle();
    eventually("it is tried again", async || handle.unsettled() > 0).await;
    let mut unsettled = 0;
    while unsettled < handle.unsettled() {
        unsettled = handle.unsettled();
        sleep(MARGIN).await;
    }
    // The first that is let through has all that is left.
    let mut charged = 0;
    while !admits(&other, Prompt::by("somebody", LIMIT - charged * USED)).await {
        charged += 1;
    }
    println!("of {told} calls {charged} are charged, and {unsettled} unsettled");
    assert_eq!(charged + unsettled, told);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_cannot_have_expired_was_settled_by_the_attempt_without_a_response() {
    const CALLS: u64 = 100;
    let setup = Setup::server(Mode::Script, "lost answer").await;
    let way = Way::default();
    let url = by_way_of(setup.url(), way.clone()).await;
    let redis = connect(Redis::builder(url).command_timeout(MARGIN)).await;
    let layer = layer(setup.shared(&redis, 2));
    let calls = held(&layer, "somebody", CALLS).await;
    let told = CALLS - layer.handle().decided_without_store();
    way.answers_are_cut.store(true, Ordering::SeqCst);
    end(calls).await;
    eventually("it is seen", async || !redis.is_up()).await;
    way.answers_are_cut.store(false, Ordering::SeqCst);
    let near = setup.redis().await;
    let other = looking(&setup, &near);
    exactly_left(&other, "somebody", LIMIT - told * USED).await;
    // What has been tried before is tried again, and found settled.
    sleep(MARGIN).await;
    assert_eq!(layer.handle().unsettled(), 0);
}

// === callers that leave ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_leave_while_the_server_takes_no_writes_keep_no_place_of_those_who_wait_for_it()
 {
    const PENDING: usize = 4;
    let setup = Setup::server(Mode::Leases, "wedged").await;
    let redis = Redis::builder(setup.url()).command_timeout(PATIENCE);
    let redis = connect(redis.max_pending(PENDING)).await;
    let layer = looking(&setup, &redis);
    assert!(admits(&layer, Prompt::of(10)).await);
    need_replicas(&setup, "1").await;
    // What was left of the share cannot go back, and is tried again and again.
    for _ in 0..4 * PENDING {
        asked_and_left(&layer, 10_000).await;
        sleep(Duration::from_millis(20)).await;
    }
    need_replicas(&setup, "0").await;
    eventually("it is asked again", async || {
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
        // More than is left of the share, so that the store is asked.
        let call = admits(&outside, Prompt::of(10_000));
        call.now_or_never()
    });
    assert!(polled.join().is_err());
    sleep(Duration::from_millis(100)).await;
    // The task still gives back grants of dropped requests.
    asked_and_left(&layer, 10_000).await;
    assert_eq!(layer.handle().unsettled(), 0);
}

/// The way to a server.
#[derive(Clone, Debug, Default)]
struct Way {
    /// How long it takes, either way.
    delay: Duration,
    /// Nothing arrives, and a connection that has lost something is of no use any more.
    is_cut: Arc<AtomicBool>,
    answers_are_cut: Arc<AtomicBool>,
}

async fn by_way_of(url: String, way: Way) -> String {
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
            let (there, back) = (way.is_cut.clone(), way.clone());
            let is_lost = move || there.load(Ordering::SeqCst);
            tokio::spawn(pass_on(near_read, far_write, way.delay, is_lost));
            let is_lost = move || {
                back.is_cut.load(Ordering::SeqCst) || back.answers_are_cut.load(Ordering::SeqCst)
            };
            tokio::spawn(pass_on(far_read, near_write, way.delay, is_lost));
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
