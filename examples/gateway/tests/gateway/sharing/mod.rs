//! Several gateways that share limits, circuits and answers through Redis.

mod answers;
mod circuits;
mod limits;
mod outages;
mod servers;
mod start;

use futures_util::future::join_all;
use tower_llm_testkit::{SimulatedProvider, redis::RedisServer};

use crate::support::{Running, post};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const CHAT: (&str, &str) = (
    "/v1/chat/completions",
    r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"Why?"}]}"#,
);

/// Longer than a busy machine makes Redis wait.
const PATIENT: [&str; 2] = ["--redis-timeout", "10"];

/// Starts a gateway that shares through `redis`.
async fn sharing(provider: &SimulatedProvider, redis: &RedisServer, flags: &[&str]) -> Running {
    let url = redis.url();
    let mut all = vec!["--redis-url", url.as_str(), "--caller-secret", SECRET];
    all.extend(PATIENT);
    all.extend(flags);
    Running::over(provider, &all).await
}

/// Makes `calls` at once at each gateway as the same caller; returns how many of each were admitted, the others being
/// refused with 429.
async fn admitted<const N: usize>(gateways: [&Running; N], key: &str, calls: usize) -> [u64; N] {
    let authorization = format!("authorization: Bearer {key}\r\n");
    let of = async |gateway: &Running| {
        let calls = (0..calls).map(|_| post(gateway.addr, CHAT.0, &authorization, CHAT.1));
        let statuses = join_all(calls)
            .await
            .into_iter()
            .map(|answer| answer.status);
        let statuses: Vec<_> = statuses.collect();
        assert!(
            statuses.iter().all(|status| [200, 429].contains(status)),
            "{statuses:?}"
        );
        statuses
            .iter()
            .map(|status| u64::from(*status == 200))
            .sum()
    };
    let admitted = join_all(gateways.map(of)).await;
    admitted.try_into().unwrap()
}

async fn start() -> (SimulatedProvider, RedisServer) {
    let provider = SimulatedProvider::start().await.unwrap();
    (provider, RedisServer::start().await.unwrap())
}
