//! The example runs by itself, and prints what it promises.

use std::time::Duration;

use tokio::{process::Command, time::timeout};

async fn run() -> String {
    let run = Command::new(env!("CARGO_BIN_EXE_example-tonic"))
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
