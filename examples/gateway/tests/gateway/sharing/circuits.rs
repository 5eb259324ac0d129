//! Circuits that one gateway opens for all.

use std::time::Duration;

use tower_llm_testkit::{Behavior, Fault, InBand, Stopwatch};

use super::{CHAT, sharing, start};
use crate::support::{eventually, sample};

#[tokio::test]
async fn a_circuit_that_one_gateway_opens_is_open_in_the_other_within_a_second() {
    let (provider, redis) = start().await;
    let one = sharing(&provider, &redis, &[]).await;
    let other = sharing(&provider, &redis, &[]).await;
    provider.set(Fault::ErrorAfter(2, InBand::Overloaded));
    for _ in 0..5 {
        assert_eq!(one.post(CHAT.0, CHAT.1).await.status, 200);
    }
    assert_eq!(one.post(CHAT.0, CHAT.1).await.status, 503);

    let watch = Stopwatch::start();
    let open = r#"breaker_circuits{provider="openai",of="model",state="open"}"#;
    eventually("the other gateway has it", async || {
        sample(other.addr, open).await == Some(1.0)
    })
    .await;
    let took = watch.elapsed();
    // The maximum age of a copy, and the time of a script.
    assert!(took < Duration::from_millis(1_200), "{took:?}");

    assert_eq!(other.post(CHAT.0, CHAT.1).await.status, 503);
    assert_eq!(provider.counts().requests, 5);
}

#[tokio::test]
async fn a_credential_of_the_owner_s_is_an_account_of_its_own_in_shared_circuits() {
    let (provider, redis) = start().await;
    let flags = |key| ["--keys", "none", "--openai-api-key", key];
    let one = sharing(&provider, &redis, &flags("revoked")).await;
    provider.set(Fault::Status(401));
    for _ in 0..3 {
        assert_eq!(one.post(CHAT.0, CHAT.1).await.status, 401);
    }
    assert_eq!(one.post(CHAT.0, CHAT.1).await.status, 503);
    provider.set(Behavior::new());
    let accounts = r#"breaker_circuits{provider="openai",of="account",state="open"}"#;

    let same = sharing(&provider, &redis, &flags("revoked")).await;
    eventually("it is shared", async || {
        sample(same.addr, accounts).await == Some(1.0)
    })
    .await;
    assert_eq!(same.post(CHAT.0, CHAT.1).await.status, 503);
    // A gateway with the credential that replaces it.
    let replaced = sharing(&provider, &redis, &flags("new")).await;
    eventually("it is shared", async || {
        sample(replaced.addr, accounts).await == Some(1.0)
    })
    .await;
    assert_eq!(replaced.post(CHAT.0, CHAT.1).await.status, 200);
}
