//! Checks of targets.

use tower_llm_testkit::{Behavior, Fault, SimulatedProvider};

use super::{CALL, CHAT, File, providers};
use crate::support::{Running, eventually, sample};

/// How many of a provider's requests were chats, and how many checks.
fn chats_and_checks(provider: &SimulatedProvider) -> (usize, usize) {
    let recorded = provider.recorded();
    let chats = recorded.iter().filter(|request| request.path == CHAT);
    let chats = chats.count();
    (chats, recorded.len() - chats)
}

#[tokio::test]
async fn a_check_takes_a_target_out_and_brings_it_back_without_a_callers_call() {
    let two = providers(2).await;
    let (one, other) = (two[0].url(), two[1].url());
    let file = File::new(&format!(
        r#"
        [targets.a]
        provider = "openai"
        base_url = "{one}/v1"
        health = {{ path = "/models", interval = "200ms" }}

        [targets.b]
        provider = "openai"
        base_url = "{other}/v1"

        [models."gpt-4"]
        targets = ["a", "b"]
        retries = 0
        "#
    ));
    let gateway = Running::start(&file.flags()).await;
    let up = r#"target_up{provider="a"}"#;
    let is_up = async |wanted| sample(gateway.addr, up).await == Some(wanted);
    eventually("it is checked", async || chats_and_checks(&two[0]).1 > 0).await;
    assert!(is_up(1.0).await);
    assert_eq!(gateway.post(CHAT, CALL).await.status, 200);
    assert_eq!(chats_and_checks(&two[0]).0, 1);

    two[0].set(Fault::Status(503));
    eventually("it is out", async || is_up(0.0).await).await;
    for _ in 0..5 {
        assert_eq!(gateway.post(CHAT, CALL).await.status, 200);
    }
    // Not one call was spent on it.
    assert_eq!(chats_and_checks(&two[0]).0, 1);
    assert_eq!(chats_and_checks(&two[1]).0, 5);

    two[0].set(Behavior::new());
    eventually("it is back", async || is_up(1.0).await).await;
    assert_eq!(gateway.post(CHAT, CALL).await.status, 200);
    assert_eq!(chats_and_checks(&two[0]).0, 2);
    // The target that is not checked got calls alone.
    assert_eq!(chats_and_checks(&two[1]), (5, 0));
}

#[tokio::test]
async fn a_check_may_be_a_call_of_one_token_and_ends_with_the_gateway() {
    let one = providers(1).await;
    let url = one[0].url();
    let file = File::new(&format!(
        "[targets.a]\nprovider = \"openai\"\nbase_url = \"{url}/v1\"\n\
         health = {{ model = \"small\", interval = \"200ms\" }}\n"
    ));
    let gateway = Running::start(&file.flags()).await;
    eventually("it is checked", async || !one[0].recorded().is_empty()).await;
    let body: serde_json::Value = serde_json::from_slice(&one[0].recorded()[0].body).unwrap();
    assert_eq!(
        (&body["model"], &body["max_tokens"]),
        (&"small".into(), &1.into())
    );
    gateway.stop().await;
}
