//! What gateways that share say when they start, and when they cannot.

use gateway::{Gateway, Settings, StartError};
use tower_llm_testkit::redis::RedisServer;

use super::{SECRET, admitted, start};
use crate::support::{Binary, Running, closed_port, eventually, get, sample};

#[tokio::test]
async fn it_says_what_it_shares_and_no_secret() {
    let redis = RedisServer::start().await.unwrap();
    let password = ["CONFIG", "SET", "requirepass", "hidden-password"];
    redis.command(&password).await.unwrap();
    let url = redis.url().replace("redis://", "redis://:hidden-password@");
    let secret = format!("hidden-{SECRET}");
    let envs = [
        ("REDIS_URL", url.as_str()),
        ("GATEWAY_CALLER_SECRET", &secret),
        ("GATEWAY_CACHE_SECRET", &secret),
    ];
    let mut gateway = Binary::start(&envs, &[]).await;
    // It serves when it has said everything.
    assert_eq!(get(gateway.addr, "/readyz").await.status, 200);
    let said = gateway.said().await;
    let shared = "shared through Redis: limits (by script), circuits (at most 1s old), cached answers (sealed), as gateway-";
    assert!(
        said.contains(shared) && said.contains("among 2 gateways"),
        "{said}"
    );
    assert!(!said.contains("hidden") && !said.contains(SECRET), "{said}");

    let output = Binary::command(&envs, &["--help"]).output().await.unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(
        help.contains("REDIS_URL") && !help.contains("hidden"),
        "{help}"
    );
    let flags = ["--redis-url", url.as_str(), "--caller-secret", &secret];
    let gateway = Running::start(&flags).await;
    assert!(!gateway.debug.contains("hidden"), "{}", gateway.debug);
}

#[tokio::test]
async fn settings_that_cannot_work_are_named_and_not_shown() {
    let url = format!("redis://user:hidden@{}", closed_port().await);
    let long = SECRET;
    for (flags, names, is_setting) in [
        // A caller would be a different one in each gateway.
        (
            vec!["--redis-url", &url],
            vec!["--caller-secret: ", "--redis-url"],
            true,
        ),
        (
            vec!["--caller-secret", "hidden"],
            vec!["--caller-secret: ", "32"],
            true,
        ),
        (
            vec![
                "--caller-secret",
                long,
                "--redis-url",
                "http://user:hidden@store",
            ],
            vec!["--redis-url: ", "redis://"],
            true,
        ),
        (
            vec!["--caller-secret", long, "--redis-url", &url],
            vec!["could not be reached", "REDIS_REQUIRED"],
            false,
        ),
    ] {
        let error = bind(&flags).await.unwrap_err();
        let text = error.to_string();
        for name in names {
            assert!(text.contains(name), "{flags:?}: {text}");
        }
        assert_eq!(error.is_setting(), is_setting, "{text}");
        assert!(!text.contains("hidden") && !text.contains(SECRET), "{text}");
    }
    let redis = RedisServer::start().await.unwrap();
    let password = ["CONFIG", "SET", "requirepass", "right"];
    redis.command(&password).await.unwrap();
    let url = redis.url().replace("redis://", "redis://:hidden@");
    let error = bind(&["--caller-secret", long, "--redis-url", &url])
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        error.is_setting() && text.contains("refused") && !text.contains("hidden"),
        "{text}"
    );

    let envs = [("REDIS_URL", "redis://store"), ("RUST_LOG", "off")];
    let output = Binary::command(&envs, &[]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    let both = "error: GATEWAY_CALLER_SECRET: must be set, because REDIS_URL is";
    assert!(said.contains(both), "{said}");

    for (flag, value) in [
        ("--replicas", "0"),
        ("--replicas", "10001"),
        ("--ratelimit-shared", "perhaps"),
        ("--redis-required", "perhaps"),
        ("--redis-timeout", "0"),
    ] {
        let error = Settings::from_flags([flag, value]).unwrap_err().to_string();
        assert!(error.contains(flag) && error.contains(value), "{error}");
    }
}

async fn bind(flags: &[&str]) -> Result<Gateway, StartError> {
    let flags = [&["--listen", "127.0.0.1:0"], flags].concat();
    Gateway::bind(Settings::from_flags(flags).unwrap()).await
}

#[tokio::test]
async fn it_can_start_without_redis_and_connect_later() {
    let (provider, mut redis) = start().await;
    redis.kill().unwrap();
    let url = redis.url();
    // The first calls take that long.
    let timeout = ["--redis-timeout", "2", "--redis-required", "off"];
    let flags = ["--redis-url", &url, "--caller-secret", SECRET];
    let limit = ["--ratelimit-caller-rpm", "10"];
    let flags = [&flags[..], &timeout, &limit].concat();
    let notices = bind(&flags).await.unwrap().notices().concat();
    assert!(
        notices.contains("could not be reached") && notices.contains("connects later"),
        "{notices}"
    );
    let gateway = Running::over(&provider, &flags).await;
    assert_eq!(admitted([&gateway], "alice", 20).await, [5]);

    redis.restart().await.unwrap();
    eventually("it has connected", async || {
        sample(gateway.addr, "redis_up").await == Some(1.0)
    })
    .await;
    assert_eq!(admitted([&gateway], "bob", 20).await, [10]);
}
