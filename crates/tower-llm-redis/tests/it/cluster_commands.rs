//! Plain commands on a cluster of three nodes.

use std::{collections::BTreeSet, time::Duration};

use crate::support::{MARGIN, connect_patiently, timed, until, until_served};
use tower_llm_redis::{Redis, StoreError};
use tower_llm_testkit::redis::RedisCluster;

const MINUTE: Duration = Duration::from_secs(60);
/// Keys of the first and the last node, and the first one's slot.
const FIRST: &str = "bar";
const LAST: &str = "foo";
const SLOT_OF_FIRST: u16 = 5_061;

/// What a scan finds, and its errors.
async fn found(redis: &Redis, pattern: &str) -> (BTreeSet<String>, Vec<StoreError>) {
    let (mut scan, mut all, mut errors) = (redis.scan(pattern), BTreeSet::new(), Vec::new());
    while let Some(page) = scan.next().await {
        match page {
            Ok(keys) => all.extend(keys),
            Err(error) => errors.push(error),
        }
    }
    (all, errors)
}

#[tokio::test]
async fn commands_reach_the_node_of_each_key() {
    let cluster = RedisCluster::start(3).await.unwrap();
    let redis = connect_patiently(cluster.url()).await;
    let keys: BTreeSet<_> = (0..600).map(|n| format!("key{n}")).collect();
    for key in &keys {
        redis.set(key.as_str(), key.as_str(), MINUTE).await.unwrap();
    }
    for key in &keys {
        let value = redis.get(key.as_str()).await.unwrap().unwrap();
        assert_eq!(value, key.as_bytes());
    }
    let (all, errors) = found(&redis, "key*").await;
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(all, keys);
    let mut keys: Vec<_> = keys.into_iter().collect();
    keys.extend(["x{tag}", "y{tag}", "z{tag}"].map(ToOwned::to_owned));
    redis.set("y{tag}", "1", MINUTE).await.unwrap();
    assert_eq!(redis.remove(keys).await.unwrap(), 601);
    assert_eq!(found(&redis, "*").await.0, BTreeSet::new());
    let health = redis.health();
    assert_eq!((health.failures, health.outages), (0, 0));
}

#[tokio::test]
async fn commands_follow_a_slot_that_moves() {
    let cluster = RedisCluster::start(3).await.unwrap();
    let redis = connect_patiently(cluster.url()).await;
    redis.set(LAST, "1", MINUTE).await.unwrap();
    for to in [2, 1, 0] {
        cluster.move_slot(SLOT_OF_FIRST, to).await.unwrap();
        assert_eq!(redis.get(FIRST).await.unwrap(), None);
        redis.set(FIRST, "1", MINUTE).await.unwrap();
        let removing = redis.remove(vec![FIRST.into()]);
        assert_eq!(removing.await.unwrap(), 1, "node {to}");
    }
    assert_eq!(redis.health().outages, 0);
}

#[tokio::test]
async fn a_client_that_has_just_been_built_scans_all_nodes() {
    let cluster = RedisCluster::start(3).await.unwrap();
    let redis = connect_patiently(cluster.url()).await;
    for n in 0..100 {
        redis.set(n.to_string(), "1", MINUTE).await.unwrap();
    }
    let url = format!("redis-cluster://{}", cluster.addr(1));
    let fresh = Redis::builder(url).command_timeout(crate::support::PATIENCE);
    let (all, errors) = found(&fresh.build().unwrap(), "*").await;
    assert_eq!((all.len(), errors.len()), (100, 0));
}

#[tokio::test]
async fn a_dead_node_fails_its_own_keys_at_once_and_no_others() {
    let mut cluster = RedisCluster::start(3).await.unwrap();
    let redis = connect_patiently(cluster.url()).await;
    for key in [FIRST, LAST] {
        redis.set(key, "1", MINUTE).await.unwrap();
    }
    cluster.kill(0).unwrap();
    until(|| !redis.is_up()).await;
    let ((), took) = timed(async {
        assert!(redis.get(FIRST).await.unwrap_err().is_down());
        assert!(redis.get(LAST).await.unwrap().is_some());
        let (all, errors) = found(&redis, "*").await;
        assert_eq!(all, BTreeSet::from([LAST.to_owned()]));
        assert!(errors.len() == 1 && errors[0].is_down(), "{errors:?}");
        let removing = redis.remove(vec![FIRST.into(), LAST.into()]);
        assert!(removing.await.unwrap_err().is_down());
        assert_eq!(redis.get(LAST).await.unwrap(), None, "it was removed");
    })
    .await;
    assert!(took < MARGIN, "{took:?}");
    cluster.restart(0).await.unwrap();
    until_served(&redis, FIRST).await;
}
