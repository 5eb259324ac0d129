//! A Redis Cluster of three nodes.

use tower_llm_cache::SharedCache;
use tower_llm_testkit::redis::RedisCluster;

use crate::support::*;

async fn process(cluster: &RedisCluster) -> Process {
    Process::of(builder(SharedCache::new(client(cluster.url()).await)))
}

#[tokio::test]
async fn answers_are_spread_over_a_cluster_and_removed_from_all_of_it() {
    let cluster = RedisCluster::start(3).await.unwrap();
    let (one, two) = (process(&cluster).await, process(&cluster).await);
    let models: Vec<_> = (0..60).map(|n| format!("claude-{n}")).collect();
    for model in models.iter().chain([&"gpt".to_owned()]) {
        one.send(question_to(model).await).await;
    }
    one.until(|stats| stats.shared_stored == 61).await;
    for node in 0..3 {
        let keys = cluster.command(node, &["DBSIZE"]).await.unwrap();
        assert!(keys.parse::<u32>().unwrap() > 5, "{keys} on node {node}");
    }
    for model in &models {
        assert!(two.send(question_to(model).await).await.is_hit());
    }
    assert_eq!(two.calls(), 0);
    let removed = two.handle().invalidate_matching("ai:completion:claude*");
    assert_eq!(removed.await.unwrap().shared, 60);
    let three = process(&cluster).await;
    assert!(three.send(question_to("gpt").await).await.is_hit());
    assert!(!three.send(question_to("claude-1").await).await.is_hit());
}

#[tokio::test]
async fn a_dead_node_is_a_miss_for_its_keys_and_removals_say_so() {
    let mut cluster = RedisCluster::start(3).await.unwrap();
    let one = process(&cluster).await;
    for n in 0..30 {
        one.send(question_to(&format!("m{n}")).await).await;
    }
    one.until(|stats| stats.shared_stored == 30).await;
    let two = process(&cluster).await;
    cluster.kill(0).unwrap();
    for n in 0..30 {
        let got = two.send(question_to(&format!("m{n}")).await).await;
        assert!(!got.frames.is_empty());
    }
    let stats = two.stats();
    assert!(
        stats.shared_hits > 0 && stats.shared_failures > 0,
        "{stats:?}"
    );
    assert_eq!(stats.shared_hits + stats.shared_failures, 30);
    two.handle().clear().await.unwrap_err();
    for node in [1, 2] {
        let keys = cluster.command(node, &["DBSIZE"]).await.unwrap();
        assert_eq!(keys, "0", "on node {node}");
    }
}

#[tokio::test]
async fn all_of_a_cluster_is_cleared_of_one_namespace() {
    let cluster = RedisCluster::start(3).await.unwrap();
    let process = async |namespace| {
        let shared = SharedCache::new(client(cluster.url()).await);
        Process::of(builder(shared).namespace(namespace))
    };
    let (a, none) = (process("a").await, process("").await);
    for n in 0..30 {
        a.send(question_to(&format!("m{n}")).await).await;
        none.send(question_to(&format!("m{n}")).await).await;
    }
    for process in [&a, &none] {
        process.until(|stats| stats.shared_stored == 30).await;
    }
    assert_eq!(a.handle().clear().await.unwrap().shared, 30);
    let fresh = process("").await;
    for n in 0..30 {
        let got = fresh.send(question_to(&format!("m{n}")).await).await;
        assert!(got.is_hit(), "m{n}");
    }
    assert_eq!(none.handle().clear().await.unwrap().shared, 30);
}
