//! Redis behind TLS, and a Redis Cluster.

use tower_llm_testkit::redis::RedisCluster;

use super::{SECRET, admitted, start};
use crate::{
    support::{Binary, Running, eventually, post, sample},
    tls::{TrustedFile, with_tls},
};

const QUESTION: (&str, &str) = (
    "/v1/chat/completions",
    r#"{"model":"m","temperature":0,"messages":[{"role":"user","content":"Why?"}]}"#,
);
const ALICE: &str = "authorization: Bearer alice\r\n";
const STORED: &str = r#"cache_shared_total{result="stored"}"#;
const HIT: &str = r#"cache_shared_total{result="hit"}"#;

#[tokio::test]
async fn gateways_share_through_a_cluster() {
    let (provider, _) = start().await;
    let cluster = RedisCluster::start(3).await.unwrap();
    let url = cluster.url();
    let flags = [
        ["--redis-url", &url],
        ["--redis-timeout", "10"],
        ["--caller-secret", SECRET],
        ["--ratelimit-caller-rpm", "10"],
        ["--admin-token", SECRET],
        ["--admin-listen", "127.0.0.1:0"],
    ]
    .concat();
    let one = Running::over(&provider, &flags).await;
    let other = Running::over(&provider, &flags).await;
    assert_eq!(
        post(one.addr, QUESTION.0, ALICE, QUESTION.1).await.status,
        200
    );
    eventually("it is stored", async || {
        sample(one.addr, STORED).await == Some(1.0)
    })
    .await;
    let answer = post(other.addr, QUESTION.0, ALICE, QUESTION.1).await;
    assert_eq!(answer.status, 200);
    assert_eq!(sample(other.addr, HIT).await, Some(1.0));
    assert_eq!(provider.counts().requests, 1);

    let admitted = admitted([&one, &other], "bob", 20).await;
    assert_eq!(admitted.iter().sum::<u64>(), 10, "{admitted:?}");

    let token = format!("authorization: Bearer {SECRET}\r\n");
    let answer = post(other.admin.unwrap(), "/admin/cache/clear", &token, "").await;
    assert_eq!(answer.json()["removed_from_redis"], 1);
}

#[tokio::test]
async fn redis_is_reached_over_tls_with_a_certificate_that_the_system_trusts() {
    let (provider, redis) = start().await;
    let (addr, certificate) = with_tls(redis.addr()).await;
    let file = TrustedFile::new("redis", &certificate);
    let (url, openai) = (
        format!("rediss://localhost:{}", addr.port()),
        provider.url(),
    );
    let envs = [
        ("OPENAI_BASE_URL", openai.as_str()),
        ("REDIS_URL", &url),
        ("REDIS_TIMEOUT", "10"),
        ("GATEWAY_CALLER_SECRET", SECRET),
        ("SSL_CERT_FILE", file.path()),
    ];
    let secure = Binary::start(&envs, &[]).await;
    assert_eq!(
        post(secure.addr, QUESTION.0, ALICE, QUESTION.1)
            .await
            .status,
        200
    );
    eventually("it is stored", async || {
        sample(secure.addr, STORED).await == Some(1.0)
    })
    .await;
    let plain = super::sharing(&provider, &redis, &[]).await;
    assert_eq!(
        post(plain.addr, QUESTION.0, ALICE, QUESTION.1).await.status,
        200
    );
    assert_eq!(sample(plain.addr, HIT).await, Some(1.0));
    assert_eq!(provider.counts().requests, 1);

    // Another server's.
    let (addr, _) = with_tls(redis.addr()).await;
    let url = format!("rediss://localhost:{}", addr.port());
    let envs = envs.map(|(name, value)| match name {
        "REDIS_URL" => (name, url.as_str()),
        // The client tries again until then.
        "REDIS_TIMEOUT" => (name, "0.2"),
        _ => (name, value),
    });
    let output = Binary::command(&envs, &[]).output().await.unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("localhost"), "{said}");
}
