//! Shared by the tests.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

use std::{future::Future, time::Duration};

use tokio::time::{sleep, timeout};
use tower_llm_redis::{Redis, Reply, Script, StoreError};
use tower_llm_testkit::Stopwatch;

/// Adds one to a key.
pub(crate) static COUNT: Script = Script::new("return redis.call('INCR', KEYS[1])");

/// Far more than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// How much longer than its timeout a call may take: busy machines have paused for 700 ms, and a call that waits for an
/// unavailable server takes far longer.
pub(crate) const MARGIN: Duration = Duration::from_secs(1);
/// The command timeout unless set.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(100);
/// How soon a recovered server must be in use: within a second, plus a pause of the machine.
pub(crate) const RECOVERY: Duration = Duration::from_secs(2);

/// With a timeout far longer than any pause of a busy machine, for tests in which nothing must time out.
pub(crate) async fn connect_patiently(url: impl Into<String>) -> Redis {
    let redis = Redis::builder(url).command_timeout(PATIENCE).connect();
    timeout(PATIENCE, redis).await.unwrap().unwrap()
}

/// With all defaults.
pub(crate) async fn connect(url: impl Into<String>) -> Redis {
    let redis = Redis::builder(url).connect();
    timeout(PATIENCE, redis).await.unwrap().unwrap()
}

pub(crate) async fn count(redis: &Redis, key: &str) -> Result<i64, StoreError> {
    let reply = redis.run(&COUNT, vec![key.to_owned()], vec![]).await?;
    reply.into_integer()
}

pub(crate) async fn run(redis: &Redis, lua: &'static str) -> Result<Reply, StoreError> {
    redis.run(&Script::new(lua), vec![], vec![]).await
}

pub(crate) async fn timed<F: Future>(future: F) -> (F::Output, Duration) {
    let from = Stopwatch::start();
    let output = future.await;
    (output, from.elapsed())
}

/// Maximum number of attempts on an unavailable server in that time: every 100 ms, at the beginning, and at the end.
pub(crate) fn most_tries(within: Duration) -> u64 {
    let tries = within.as_millis() / 100;
    2 + u64::try_from(tries).unwrap()
}

/// Waits until `condition` holds; returns how long that took.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) -> Duration {
    let from = Stopwatch::start();
    while !condition() {
        assert!(from.elapsed() < PATIENCE, "it never came to be");
        sleep(Duration::from_millis(1)).await;
    }
    from.elapsed()
}

/// Waits until a call succeeds; returns how long that took.
pub(crate) async fn until_served(redis: &Redis, key: &str) -> Duration {
    let from = Stopwatch::start();
    while let Err(error) = count(redis, key).await {
        assert!(from.elapsed() < PATIENCE, "never served: {error}");
        sleep(Duration::from_millis(1)).await;
    }
    from.elapsed()
}
