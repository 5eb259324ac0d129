//! Runs the workspace's examples as programs.

use std::{collections::HashMap, time::Duration};

use tokio::{process::Command, time::timeout};

/// Runs the program `binary` with `env` added to this process's environment, and returns what it printed.
///
/// `OPENAI_BASE_URL` is removed first: it could send the example to a paid provider.
///
/// # Panics
///
/// If it cannot be started, runs longer than a minute, or fails.
pub async fn run(binary: &str, env: HashMap<&str, String>) -> String {
    let run = Command::new(binary)
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
