//! The example runs by itself, and prints what it promises.

use std::{collections::HashMap, time::Duration};

use tokio::{process::Command, time::timeout};
use tower_llm_testkit::{Behavior, SimulatedProvider};

async fn run(env: HashMap<&str, String>) -> String {
    let run = Command::new(env!("CARGO_BIN_EXE_example-reqwest-middleware"))
        .env_remove("OPENAI_BASE_URL")
        .env("NO_PROXY", "127.0.0.1")
        .envs(env)
        .kill_on_drop(true)
        .output();
    let output = timeout(Duration::from_secs(60), run)
        .await
        .expect("it ends")
        .expect("it starts");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}{complained}");
    printed
}

#[track_caller]
fn assert_complete(printed: &str) {
    for expected in [
        "answer: \"",
        "usage: {",
        "refused: all 1 places are taken",
        "by Some(\"bulkhead\")",
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
async fn it_calls_the_provider_it_is_told_and_not_for_what_was_refused() {
    let provider = SimulatedProvider::start().await.expect("a free port");
    provider.set(Behavior::new().gap(Duration::from_millis(50)));
    let base_url = format!("{}/v1", provider.url());
    let printed = run(HashMap::from([("OPENAI_BASE_URL", base_url)])).await;
    assert_complete(&printed);
    let counts = provider.counts();
    assert_eq!((counts.requests, counts.max_in_flight), (2, 1), "{printed}");
}
