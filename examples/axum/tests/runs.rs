//! The example runs by itself, and prints what it promises.

use std::{collections::HashMap, time::Duration};

use tower_llm_testkit::{Behavior, SimulatedProvider, example};

async fn run(env: HashMap<&str, String>) -> String {
    example::run(env!("CARGO_BIN_EXE_example-axum"), env).await
}

#[track_caller]
fn assert_complete(printed: &str) {
    for expected in [
        "answer: {",
        "refused: 503 Service Unavailable {",
        "server_is_overloaded",
        "data: [DONE]",
        "in_flight: 0, waiting: 0, refused: 1",
    ] {
        assert!(printed.contains(expected), "no {expected:?} in:\n{printed}");
    }
}

#[tokio::test]
async fn it_needs_nothing_but_itself() {
    assert_complete(&run(HashMap::new()).await);
}

#[tokio::test]
async fn it_calls_the_configured_provider_and_sends_no_refused_call() {
    let provider = SimulatedProvider::start().await.expect("a free port");
    provider.set(Behavior::new().gap(Duration::from_millis(50)));
    let base_url = format!("{}/v1", provider.url());
    let printed = run(HashMap::from([("OPENAI_BASE_URL", base_url)])).await;
    assert_complete(&printed);
    let counts = provider.counts();
    assert_eq!((counts.requests, counts.max_in_flight), (2, 1), "{printed}");
}
