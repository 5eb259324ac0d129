//! Answers that one gateway caches for all.

use tower_llm_testkit::{Behavior, redis::RedisServer};

use super::{SECRET, sharing, start};
use crate::support::{Answer, Running, eventually, post, sample};

const QUESTION: (&str, &str) = (
    "/v1/chat/completions",
    r#"{"model":"m","temperature":0,"stream":true,"messages":[{"role":"user","content":"Why?"}]}"#,
);
const SEALED: [&str; 2] = ["--cache-secret", SECRET];
const STORED: &str = r#"cache_shared_total{result="stored"}"#;

async fn ask(gateway: &Running, key: &str) -> Answer {
    let authorization = format!("authorization: Bearer {key}\r\n");
    let answer = post(gateway.addr, QUESTION.0, &authorization, QUESTION.1).await;
    assert_eq!(answer.status, 200);
    answer
}

fn is_hit(answer: &Answer) -> bool {
    answer.headers["cache-status"]
        .to_str()
        .unwrap()
        .contains("; hit")
}

async fn is_stored(gateway: &Running, answers: f64) {
    eventually("it is stored in Redis", async || {
        sample(gateway.addr, STORED).await == Some(answers)
    })
    .await;
}

/// The keys of all answers in Redis.
async fn keys(redis: &RedisServer) -> Vec<String> {
    let keys = redis.command(&["KEYS", "ai:*"]).await.unwrap();
    keys.lines()
        .filter(|key| !key.is_empty())
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn an_answer_that_one_gateway_cached_is_a_hit_in_the_other_for_the_same_caller() {
    let (provider, redis) = start().await;
    provider.set(Behavior::new().output_tokens(20));
    let flags = |keys| [&SEALED[..], &["--openai-api-key", "ours", "--keys", keys]].concat();
    let one = sharing(&provider, &redis, &flags("alice,bob")).await;
    let other = sharing(&provider, &redis, &flags("bob,alice")).await;
    let first = ask(&one, "alice").await;
    assert!(!is_hit(&first));
    is_stored(&one, 1.0).await;
    let again = ask(&other, "alice").await;
    assert!(is_hit(&again));
    assert_eq!(again.body(), first.body());
    assert_eq!(provider.counts().requests, 1);
    let hits = sample(other.addr, r#"cache_shared_total{result="hit"}"#).await;
    assert_eq!(hits, Some(1.0));
    // Bob is the first key there.
    assert!(!is_hit(&ask(&other, "bob").await));
    assert_eq!(provider.counts().requests, 2);
    // It outlives its gateway.
    one.stop().await;
    let restarted = sharing(&provider, &redis, &flags("alice,bob")).await;
    assert!(is_hit(&ask(&restarted, "alice").await));
}

#[tokio::test]
async fn an_answer_that_is_invalidated_at_one_gateway_is_gone_in_the_other() {
    let (provider, redis) = start().await;
    let admin = ["--admin-token", SECRET, "--admin-listen", "127.0.0.1:0"];
    let one = sharing(&provider, &redis, &admin).await;
    let other = sharing(&provider, &redis, &[]).await;
    ask(&one, "alice").await;
    is_stored(&one, 1.0).await;
    assert!(is_hit(&ask(&other, "alice").await));
    assert!(is_hit(&ask(&other, "alice").await));

    let authorization = format!("authorization: Bearer {SECRET}\r\n");
    let body = r#"{"pattern":"ai:completion:*"}"#;
    let admin = one.admin.unwrap();
    let answer = post(admin, "/admin/cache/invalidate", &authorization, body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["removed_from_redis"], 1);
    assert_eq!(keys(&redis).await, <[String; 0]>::default());
    eventually("the other has heard of it", async || {
        sample(other.addr, "cache_entries").await == Some(0.0)
    })
    .await;
    assert!(!is_hit(&ask(&other, "alice").await));
}

#[tokio::test]
async fn answers_in_redis_are_sealed_if_there_is_a_secret() {
    for (flags, is_readable) in [(&[][..], true), (&SEALED, false)] {
        let (provider, redis) = start().await;
        let gateway = sharing(&provider, &redis, flags).await;
        ask(&gateway, "alice").await;
        is_stored(&gateway, 1.0).await;
        let keys = keys(&redis).await;
        assert_eq!(keys.len(), 1);
        let find =
            "return string.find(redis.call('GET', KEYS[1]), 'chat.completion', 1, true) and 1 or 0";
        let found = redis.command(&["EVAL", find, "1", &keys[0]]).await.unwrap();
        assert_eq!(found.trim() == "1", is_readable, "{flags:?} {found}");

        // What is sealed otherwise is not used.
        let other = sharing(
            &provider,
            &redis,
            &["--cache-secret", &SECRET.replace('a', "b")],
        )
        .await;
        assert!(!is_hit(&ask(&other, "alice").await));
        let unreadable = r#"cache_shared_total{result="unreadable"}"#;
        assert_eq!(sample(other.addr, unreadable).await, Some(1.0));
    }
}

#[tokio::test]
async fn answers_stay_in_memory_if_they_are_not_to_be_shared() {
    let (provider, redis) = start().await;
    let off = ["--cache-shared", "off"];
    let one = sharing(&provider, &redis, &off).await;
    let other = sharing(&provider, &redis, &off).await;
    assert!(!is_hit(&ask(&one, "alice").await));
    assert!(is_hit(&ask(&one, "alice").await));
    assert!(!is_hit(&ask(&other, "alice").await));
    assert_eq!(keys(&redis).await, <[String; 0]>::default());
}

#[tokio::test]
async fn while_redis_is_down_each_gateway_answers_from_memory() {
    let (provider, mut redis) = start().await;
    let gateway = sharing(&provider, &redis, &[]).await;
    // When it begins to hear of removals, it empties its memory.
    eventually("it listens", async || {
        let listeners = ["PUBSUB", "NUMSUB", "tower-llm-cache"];
        redis
            .command(&listeners)
            .await
            .unwrap()
            .trim_end()
            .ends_with('1')
    })
    .await;
    ask(&gateway, "alice").await;
    is_stored(&gateway, 1.0).await;
    redis.kill().unwrap();
    assert!(is_hit(&ask(&gateway, "alice").await));
    assert!(!is_hit(&ask(&gateway, "bob").await));
    assert!(is_hit(&ask(&gateway, "bob").await));
    assert_eq!(provider.counts().requests, 2);
}

#[tokio::test]
async fn gateways_with_another_namespace_share_no_answers_and_remove_none() {
    let (provider, redis) = start().await;
    let admin = ["--admin-token", SECRET, "--admin-listen", "127.0.0.1:0"];
    let one = sharing(&provider, &redis, &admin).await;
    let flags = [&["--cache-namespace", "test"][..], &admin].concat();
    let other = sharing(&provider, &redis, &flags).await;
    for gateway in [&one, &other] {
        assert!(!is_hit(&ask(gateway, "alice").await));
        is_stored(gateway, 1.0).await;
    }
    let authorization = format!("authorization: Bearer {SECRET}\r\n");
    let clear = async |gateway: &Running| {
        let admin = gateway.admin.unwrap();
        let answer = post(admin, "/admin/cache/clear", &authorization, "").await;
        answer.json()["removed_from_redis"].clone()
    };
    assert_eq!(clear(&one).await, 1);
    assert_eq!(keys(&redis).await, <[String; 0]>::default());
    let left = redis
        .command(&["KEYS", "test:ai:completion:m:*"])
        .await
        .unwrap();
    assert_eq!(left.lines().count(), 1);
    assert_eq!(clear(&other).await, 1);
}
