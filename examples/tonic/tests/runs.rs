//! The example runs by itself, and prints what it promises.

use std::collections::HashMap;

use tower_llm_testkit::example;

async fn run() -> String {
    example::run(env!("CARGO_BIN_EXE_example-tonic"), HashMap::new()).await
}

#[track_caller]
fn assert_complete(printed: &str) {
    for expected in [
        "answer: Serving",
        "part: Some(Serving)",
        "refused: Unavailable; by Some(\"bulkhead\")",
        "in_flight: 1, waiting: 0, refused: 1",
        "in_flight: 0, waiting: 0, refused: 1",
    ] {
        assert!(printed.contains(expected), "no {expected:?} in:\n{printed}");
    }
}

#[tokio::test]
async fn it_needs_nothing_but_itself() {
    assert_complete(&run().await);
}
