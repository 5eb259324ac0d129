//! Targets without a credential of their own: each caller's passes.

use tower_llm_testkit::{Fault, RetryAfter};

use super::{CALL, CHAT, accounts, providers, requests};
use crate::support::{Running, post};

async fn call(gateway: &Running, key: &str, model: &str) -> u16 {
    let headers = format!("authorization: Bearer {key}\r\n");
    let body = CALL.replace("gpt-4", model);
    post(gateway.addr, CHAT, &headers, &body).await.status
}

#[tokio::test]
async fn a_caller_without_money_or_with_a_bad_key_opens_no_circuit_of_others() {
    for (fault, calls, status) in [
        (Fault::QuotaExhausted, 1, 429),
        // A credential may be refused by mistake, so three times.
        (Fault::Status(401), 3, 401),
    ] {
        let one = providers(1).await;
        let file = accounts(&one, "", "retries = 0");
        let gateway = Running::start(&file.flags()).await;
        for _ in 0..calls {
            one[0].push(fault);
            assert_eq!(call(&gateway, "bad", "gpt-4").await, status);
        }
        // The account of that caller is closed, for each model.
        assert_eq!(call(&gateway, "bad", "gpt-4").await, 503, "{fault:?}");
        assert_eq!(call(&gateway, "bad", "o3").await, 503, "{fault:?}");
        assert_eq!(call(&gateway, "good", "gpt-4").await, 200, "{fault:?}");
        assert_eq!(requests(&one), [calls + 1]);
    }
}

#[tokio::test]
async fn a_caller_whom_the_provider_tells_to_wait_keeps_nobody_else_waiting() {
    let one = providers(1).await;
    let file = accounts(&one, "", "retries = 0");
    let mut flags = file.flags().to_vec();
    flags.extend(["--ratelimit-timeout", "1"]);
    let gateway = Running::start(&flags).await;
    one[0].push(Fault::Throttled(RetryAfter::Seconds(20)));
    assert_eq!(call(&gateway, "one", "gpt-4").await, 429);
    assert_eq!(call(&gateway, "one", "gpt-4").await, 429);
    assert_eq!(requests(&one), [1]);
    assert_eq!(call(&gateway, "another", "gpt-4").await, 200);
    assert_eq!(requests(&one), [2]);
}

#[tokio::test]
async fn credentials_that_come_with_one_key_of_the_gateways_are_told_apart() {
    let one = providers(1).await;
    let file = accounts(&one, "", "retries = 0");
    let mut flags = file.flags().to_vec();
    flags.extend(["--keys", "ours"]);
    let gateway = Running::start(&flags).await;
    let call = async |key: &str| {
        let headers = format!("x-api-key: ours\r\nauthorization: Bearer {key}\r\n");
        post(gateway.addr, CHAT, &headers, CALL).await.status
    };
    one[0].push(Fault::QuotaExhausted);
    assert_eq!(call("bad").await, 429);
    assert_eq!(call("bad").await, 503);
    assert_eq!(call("good").await, 200);
    assert_eq!(requests(&one), [2]);
}
