//! Settings that are refused before connecting, and what must not be shown.

use std::time::Duration;

use crate::support::PATIENCE;
use tokio::{net::TcpListener, time::timeout};
use tower_llm_redis::{Redis, RedisBuilder};
use tower_llm_testkit::redis::RedisServer;

const DAY: Duration = Duration::from_secs(86_400);

fn local() -> RedisBuilder {
    Redis::builder("redis://127.0.0.1:1")
}

#[tokio::test]
async fn invalid_settings_are_named() {
    let zero = Duration::ZERO;
    let over = DAY + Duration::from_nanos(1);
    for (builder, field) in [
        (Redis::builder("http://127.0.0.1"), "url"),
        (local().command_timeout(zero), "command_timeout"),
        (local().command_timeout(over), "command_timeout"),
        (local().connect_timeout(zero), "connect_timeout"),
        (local().connect_timeout(over), "connect_timeout"),
        (local().max_pending(0), "max_pending"),
    ] {
        assert_eq!(builder.clone().build().unwrap_err().field(), field);
        let error = builder.connect().await.unwrap_err();
        assert_eq!(error.config().unwrap().field(), field);
        assert!(!error.is_refused() && !error.is_unreachable());
    }
    for max_pending in [1, usize::MAX] {
        local()
            .command_timeout(DAY)
            .connect_timeout(DAY)
            .max_pending(max_pending)
            .build()
            .unwrap();
    }
}

#[test]
fn without_a_runtime_it_is_an_error_and_no_panic() {
    let error = local().build().unwrap_err();
    assert_eq!(error.field(), "runtime");
    assert!(error.to_string().contains("tokio runtime"), "{error}");
}

#[tokio::test]
async fn a_password_is_shown_nowhere() {
    let server = RedisServer::start().await.unwrap();
    let set = ["CONFIG", "SET", "requirepass", "hunter2"];
    server.command(&set).await.unwrap();
    let addr = server.addr();
    let url = |password: &str| format!("redis://default:{password}@{addr}/0");

    let builder = Redis::builder(url("hunter2"));
    let mut shown = format!("{builder:?}");
    let redis = timeout(PATIENCE, builder.connect()).await.unwrap().unwrap();
    shown += &format!("{redis:?} {:?}", redis.health());
    let error = crate::support::run(&redis, "error('no')")
        .await
        .unwrap_err();
    shown += &format!("{error} {error:?}");

    // Refused because of a wrong password.
    let wrong = Redis::builder(url("hunter22")).connect();
    let error = timeout(PATIENCE, wrong).await.unwrap().unwrap_err();
    shown += &format!("{error} {error:?}");
    // No server at that address.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr();
    let nobody = format!("redis://:hunter2@{}", free.unwrap());
    let error = Redis::builder(nobody).connect().await.unwrap_err();
    shown += &format!("{error} {error:?}");

    assert!(!shown.contains("hunter"), "{shown}");
    assert!(shown.contains(&addr.to_string()), "{shown}");
}

#[test]
fn it_can_be_shared_among_threads() {
    fn shared<T: Clone + Send + Sync + 'static>(_: fn() -> T) {}
    fn sent<T: Send>(_: &T) {}
    shared::<Redis>(|| unreachable!("it is never called"));
    let call = async |redis: Redis| crate::support::count(&redis, "a").await;
    let _: &dyn Fn(Redis) = &|redis| sent(&call(redis));
}
