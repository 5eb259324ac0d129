//! One limit over several gateways.

use super::{CHAT, SECRET, admitted, sharing, start};
use crate::support::Running;

#[tokio::test]
async fn a_caller_has_one_limit_over_two_gateways() {
    let (provider, redis) = start().await;
    let limit = ["--ratelimit-caller-rpm", "10"];
    let one = sharing(&provider, &redis, &limit).await;
    let other = sharing(&provider, &redis, &limit).await;
    for caller in ["alice", "bob"] {
        let admitted = admitted([&one, &other], caller, 20).await;
        assert_eq!(admitted.iter().sum::<u64>(), 10, "{admitted:?}");
    }
    assert_eq!(provider.counts().requests, 20);
}

#[tokio::test]
async fn a_gateway_key_is_one_caller_wherever_it_stands_in_the_list() {
    let (provider, redis) = start().await;
    let flags = |keys| {
        let flags = [
            "--ratelimit-caller-rpm",
            "10",
            "--openai-api-key",
            "ours",
            "--keys",
        ];
        [&flags[..], &[keys]].concat()
    };
    let one = sharing(&provider, &redis, &flags("alice,bob")).await;
    let other = sharing(&provider, &redis, &flags("bob,alice")).await;
    assert_eq!(admitted([&one], "alice", 7).await, [7]);
    assert_eq!(admitted([&other], "alice", 7).await, [3]);
    assert_eq!(admitted([&other], "bob", 7).await, [7]);
}

#[tokio::test]
async fn a_provider_has_one_limit_over_two_gateways() {
    let (provider, redis) = start().await;
    let flags = ["--ratelimit-openai-rpm", "10", "--ratelimit-queue", "0"];
    let one = sharing(&provider, &redis, &flags).await;
    let other = sharing(&provider, &redis, &flags).await;
    let admitted = admitted([&one, &other], "alice", 20).await;
    assert_eq!(admitted.iter().sum::<u64>(), 10, "{admitted:?}");
    assert_eq!(provider.counts().requests, 10);
    // Other providers have limits of their own.
    assert_eq!(one.post("/v1/messages", CHAT.1).await.status, 200);
}

#[tokio::test]
async fn with_leases_two_gateways_never_exceed_a_limit_and_use_most_of_it() {
    let (provider, redis) = start().await;
    let flags = [
        "--ratelimit-caller-rpm",
        "160",
        "--ratelimit-shared",
        "lease",
    ];
    let one = sharing(&provider, &redis, &flags).await;
    let other = sharing(&provider, &redis, &flags).await;
    let mut sum = 0;
    for _ in 0..10 {
        sum += admitted([&one, &other], "alice", 20)
            .await
            .iter()
            .sum::<u64>();
    }
    // A lease is an eighth of a gateway's half; each of them may hold one.
    assert!((140..=160).contains(&sum), "{sum}");
    assert_eq!(provider.counts().requests, sum);
}

#[tokio::test]
async fn gateways_with_other_secrets_do_not_share() {
    let (provider, redis) = start().await;
    let url = redis.url();
    let flags = |secret| {
        [
            "--redis-url",
            &url,
            "--ratelimit-caller-rpm",
            "10",
            "--caller-secret",
            secret,
            "--redis-timeout",
            "10",
        ]
    };
    let one = Running::over(&provider, &flags(SECRET)).await;
    let other = Running::over(&provider, &flags(&SECRET.replace('a', "b"))).await;
    assert_eq!(admitted([&one, &other], "alice", 20).await, [10, 10]);
}
