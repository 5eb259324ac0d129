//! A cluster of three nodes: all slots, slots that move, nodes that are unavailable.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

use std::time::Duration;

use crate::support::{
    MARGIN, PATIENCE, RECOVERY, TIMEOUT, connect, connect_patiently, count, most_tries, run, timed,
    until, until_served,
};
use tokio::time::{Instant, sleep};
use tower_llm_redis::{Redis, Script};
use tower_llm_testkit::{Stopwatch, redis::RedisCluster};

/// Keys of the first and the last node, and the first one's slot.
const FIRST: &str = "bar";
const LAST: &str = "foo";
const SLOT_OF_FIRST: u16 = 5_061;

/// Longer than the pauses of any machine, for tests that also have calls that must not time out.
const HASTY: Duration = Duration::from_secs(2);

async fn connect_hastily(cluster: &RedisCluster) -> Redis {
    let redis = Redis::builder(cluster.url()).command_timeout(HASTY);
    redis.connect().await.unwrap()
}

/// Calls for `period`, but at least a hundred times. Returns how many calls succeeded, how many failed, and how long the
/// longest took.
async fn calls(redis: &Redis, key: &str, period: Duration) -> (u32, u32, Duration) {
    let (mut well, mut failed, mut longest) = (0, 0, Duration::ZERO);
    let until = Instant::now() + period;
    while Instant::now() < until || well + failed < 100 {
        let (result, took) = timed(count(redis, key)).await;
        longest = longest.max(took);
        match result {
            Ok(_) => well += 1,
            Err(_) => failed += 1,
        }
        sleep(Duration::from_millis(1)).await;
    }
    (well, failed, longest)
}

#[tokio::test]
async fn a_script_works_on_every_node_even_after_a_flush() {
    let cluster = RedisCluster::start(3).await.unwrap();
    let redis = connect_patiently(cluster.url()).await;
    for round in 1..=3 {
        for n in 0..100 {
            let counted = count(&redis, &format!("key{n}")).await.unwrap();
            assert_eq!(counted, round);
        }
        cluster.flush_scripts().await.unwrap();
    }
    for node in 0..3 {
        let keys = cluster.command(node, &["DBSIZE"]).await.unwrap();
        let keys: u32 = keys.parse().unwrap();
        assert!((10..90).contains(&keys), "{keys} of 100 on node {node}");
    }
    // Without a key, any node will do.
    run(&redis, "return 1").await.unwrap();
    let health = redis.health();
    assert_eq!((health.up, health.failures, health.outages), (true, 0, 0));
}

#[tokio::test]
async fn keys_with_one_tag_work_and_keys_of_several_slots_are_an_error() {
    let cluster = RedisCluster::start(3).await.unwrap();
    let redis = connect_patiently(cluster.url()).await;
    let both = Script::new("return redis.call('INCR', KEYS[1]) + redis.call('INCR', KEYS[2])");
    let keys = |one: &str, two: &str| vec![one.to_owned(), two.to_owned()];
    let reply = redis.run(&both, keys("a{tag}", "b{tag}"), vec![]).await;
    assert_eq!(reply.unwrap().into_integer().unwrap(), 2);
    let error = redis.run(&both, keys(FIRST, LAST), vec![]).await;
    let error = error.unwrap_err();
    assert!(error.is_script() && redis.is_up());
    assert!(error.to_string().contains("CROSSSLOT"), "{error}");
}

#[tokio::test]
async fn a_slot_that_has_moved_is_followed_at_once() {
    let cluster = RedisCluster::start(3).await.unwrap();
    let redis = connect_patiently(cluster.url()).await;
    run(&redis, "return 1").await.unwrap();
    for to in [2, 1, 0] {
        cluster.move_slot(SLOT_OF_FIRST, to).await.unwrap();
        let (result, took) = timed(count(&redis, FIRST)).await;
        assert_eq!(result.unwrap(), 1, "node {to} has seen it before");
        assert!(took < MARGIN, "{took:?}");
        // A node gives away a slot without its keys.
        cluster.command(to, &["DEL", FIRST]).await.unwrap();
    }
    assert_eq!(redis.health().outages, 0);
}

#[tokio::test]
async fn a_slot_on_the_move_is_served_where_its_key_is() {
    let cluster = RedisCluster::start(3).await.unwrap();
    let redis = connect_patiently(cluster.url()).await;
    count(&redis, FIRST).await.unwrap();
    // Only the first node has the script: the other needs its text.
    let moving = Moving::begin(&cluster).await;
    // The key is still here.
    assert_eq!(count(&redis, FIRST).await.unwrap(), 2);
    // Now it has moved.
    moving.key(FIRST).await;
    for n in 3..=5 {
        assert_eq!(count(&redis, FIRST).await.unwrap(), n);
    }
    cluster.move_slot(SLOT_OF_FIRST, 2).await.unwrap();
    assert_eq!(count(&redis, FIRST).await.unwrap(), 6);
}

#[tokio::test]
async fn a_script_whose_keys_are_moved_one_by_one_waits_for_the_last() {
    static BOTH: Script =
        Script::new("return redis.call('INCR', KEYS[1]) + redis.call('INCR', KEYS[2])");
    let cluster = RedisCluster::start(3).await.unwrap();
    let redis = connect_patiently(cluster.url()).await;
    let hasty = connect_hastily(&cluster).await;
    let keys = || vec![FIRST.to_owned(), format!("other{{{FIRST}}}")];
    redis.run(&BOTH, keys(), vec![]).await.unwrap();
    let moving = Moving::begin(&cluster).await;
    moving.key(FIRST).await;

    let (result, took) = timed(hasty.run(&BOTH, keys(), vec![])).await;
    let error = result.unwrap_err();
    assert!(error.is_down() && !error.is_script() && !error.may_have_run());
    assert!(error.to_string().contains("TRYAGAIN"), "{error}");
    assert!(took < HASTY + MARGIN, "{took:?}");
    assert_eq!((hasty.health().failures, hasty.is_up()), (1, true));

    let waiting = tokio::spawn(async move { redis.run(&BOTH, keys(), vec![]).await });
    sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    moving.key(&keys()[1]).await;
    assert_eq!(waiting.await.unwrap().unwrap().into_integer().unwrap(), 4);
}

/// The first slot, while it moves from the first node to the last.
struct Moving<'a>(&'a RedisCluster);

impl<'a> Moving<'a> {
    async fn begin(cluster: &'a RedisCluster) -> Self {
        let slot = SLOT_OF_FIRST.to_string();
        let ids = [
            cluster.command(0, &["CLUSTER", "MYID"]).await.unwrap(),
            cluster.command(2, &["CLUSTER", "MYID"]).await.unwrap(),
        ];
        for (node, state, id) in [(2, "IMPORTING", &ids[0]), (0, "MIGRATING", &ids[1])] {
            let words = ["CLUSTER", "SETSLOT", &slot, state, id];
            cluster.command(node, &words).await.unwrap();
        }
        Self(cluster)
    }

    async fn key(&self, key: &str) {
        let to = self.0.addr(2);
        let (host, port) = (to.ip().to_string(), to.port().to_string());
        let words = ["MIGRATE", &host, &port, key, "0", "1000"];
        self.0.command(0, &words).await.unwrap();
    }
}

#[tokio::test]
async fn a_node_that_dies_fails_its_own_slots_and_no_others() {
    let mut cluster = RedisCluster::start(3).await.unwrap();
    let redis = connect_patiently(cluster.url()).await;
    cluster.kill(0).unwrap();
    until(|| !redis.is_up()).await;
    // For as long as the others need to notice.
    let healthy = calls(&redis, LAST, Duration::from_secs(1));
    let away = calls(&redis, FIRST, Duration::from_secs(1));
    let ((well, failed, longest), (none, refused, slowest)) = tokio::join!(healthy, away);
    assert_eq!(failed, 0, "beside {well}");
    assert!(longest < MARGIN, "{longest:?}");
    assert_eq!(none, 0, "beside {refused}");
    assert!(slowest < MARGIN, "{slowest:?}");

    cluster.restart(0).await.unwrap();
    let took = until_served(&redis, FIRST).await;
    assert!(took < RECOVERY, "{took:?}");
    until(|| redis.is_up()).await;
}

#[tokio::test]
async fn a_node_that_freezes_costs_one_timeout_and_the_others_nothing() {
    let cluster = RedisCluster::start(3).await.unwrap();
    let redis = connect_hastily(&cluster).await;
    cluster.freeze(0).unwrap();
    let (result, took) = timed(count(&redis, FIRST)).await;
    assert!(result.unwrap_err().is_timeout());
    assert!(took < HASTY + MARGIN, "{took:?}");
    assert!(count(&redis, FIRST).await.unwrap_err().is_down());
    let (well, failed, longest) = calls(&redis, LAST, Duration::from_millis(500)).await;
    assert_eq!(failed, 0, "beside {well}");
    assert!(longest < MARGIN, "{longest:?}");

    cluster.thaw(0).unwrap();
    let took = until_served(&redis, FIRST).await;
    assert!(took < RECOVERY, "{took:?}");
    assert_eq!(redis.health().outages, 1);
}

#[tokio::test]
async fn a_node_that_takes_over_the_slots_of_a_dead_one_is_found() {
    let mut cluster = RedisCluster::start(3).await.unwrap();
    let redis = connect(cluster.url()).await;
    cluster.kill(0).unwrap();
    until(|| !redis.is_up()).await;
    // As a replica would, but at once.
    let taken = ["CLUSTER", "DELSLOTS", &SLOT_OF_FIRST.to_string()].map(ToOwned::to_owned);
    for node in [1, 2] {
        let words = taken.each_ref().map(String::as_str);
        cluster.command(node, &words).await.unwrap();
    }
    let words = ["CLUSTER", "ADDSLOTS", &taken[2]];
    cluster.command(1, &words).await.unwrap();
    let took = until_served(&redis, FIRST).await;
    assert!(took < RECOVERY, "{took:?}");
}

#[tokio::test]
async fn a_cluster_that_reports_that_it_is_down_is_unavailable_until_it_recovers() {
    let cluster = RedisCluster::start(3).await.unwrap();
    let redis = connect(cluster.url()).await;
    for node in 0..3 {
        let words = ["CONFIG", "SET", "cluster-require-full-coverage", "yes"];
        cluster.command(node, &words).await.unwrap();
    }
    cluster.freeze(0).unwrap();
    let from = Instant::now();
    let error = loop {
        match count(&redis, LAST).await {
            Err(error) if !error.is_timeout() && !error.is_down() => break error,
            _ => assert!(from.elapsed() < PATIENCE, "it never says so"),
        }
        sleep(Duration::from_millis(1)).await;
    };
    assert!(error.to_string().contains("CLUSTERDOWN"), "{error}");
    // It is not known whether the error was for this call or for another on the same connection.
    assert!(error.may_have_run() && !error.is_script() && !error.is_down());
    // One node after the other reports it, and each is tried again occasionally.
    let (before, from) = (redis.health().outages, Instant::now());
    let (well, failed, longest) = calls(&redis, LAST, Duration::from_millis(500)).await;
    let tried = redis.health().outages - before;
    assert_eq!(well, 0, "beside {failed}");
    assert!(tried <= most_tries(from.elapsed()), "{tried}");
    assert!(longest < TIMEOUT + MARGIN, "{longest:?}");

    cluster.thaw(0).unwrap();
    // The nodes take a while to agree that the cluster is up.
    let took = until_served(&redis, LAST).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    until_served(&redis, FIRST).await;
}

#[tokio::test]
async fn a_slot_without_owner_fails_and_takes_no_node_down() {
    let cluster = RedisCluster::start(3).await.unwrap();
    let redis = connect_patiently(cluster.url()).await;
    let slot = SLOT_OF_FIRST.to_string();
    for node in 0..3 {
        let words = ["CLUSTER", "DELSLOTS", &slot];
        cluster.command(node, &words).await.unwrap();
    }
    // The client has not noticed, so the first call is sent.
    let error = count(&redis, FIRST).await.unwrap_err();
    assert!(error.to_string().contains("CLUSTERDOWN"), "{error}");
    let from = Stopwatch::start();
    while !count(&redis, FIRST).await.unwrap_err().is_down() || !redis.is_up() {
        assert!(from.elapsed() < RECOVERY, "it is asked again and again");
        sleep(Duration::from_millis(10)).await;
    }
    let before = redis.health().outages;
    for _ in 0..100 {
        let error = count(&redis, FIRST).await.unwrap_err();
        assert!(error.is_down(), "{error:?}");
        count(&redis, LAST).await.unwrap();
    }
    assert_eq!(redis.health().outages, before);

    let words = ["CLUSTER", "ADDSLOTS", &slot];
    cluster.command(1, &words).await.unwrap();
    let took = until_served(&redis, FIRST).await;
    assert!(took < RECOVERY, "{took:?}");
}
