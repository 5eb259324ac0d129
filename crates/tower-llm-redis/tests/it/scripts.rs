//! Arguments and results of scripts.

use crate::support::{connect_patiently, count, run};
use tower_llm_redis::{Reply, Script};
use tower_llm_testkit::redis::RedisServer;

#[tokio::test]
async fn replies_come_as_the_script_returned_them() {
    let server = RedisServer::start().await.unwrap();
    let redis = connect_patiently(server.url()).await;
    let text = |text: &'static str| Reply::Bytes(text.into());
    for (lua, reply) in [
        ("return 7", Reply::Integer(7)),
        ("return 3.99", Reply::Integer(3)),
        (
            "return 9007199254740991",
            Reply::Integer(9_007_199_254_740_991),
        ),
        ("return 'a\\0b'", text("a\0b")),
        ("return ''", text("")),
        ("return redis.status_reply('OK')", text("OK")),
        ("return nil", Reply::Nil),
        ("return false", Reply::Nil),
        ("return true", Reply::Integer(1)),
        ("local x = 1", Reply::Nil),
        ("return {}", Reply::Array(vec![])),
        (
            "return {1, 'a', {2, false}}",
            Reply::Array(vec![
                Reply::Integer(1),
                text("a"),
                Reply::Array(vec![Reply::Integer(2), Reply::Nil]),
            ]),
        ),
        ("return {1, nil, 3}", Reply::Array(vec![Reply::Integer(1)])),
        ("redis.setresp(3); return {double = 1.5}", text("1.5")),
        (
            "redis.setresp(3); return {map = {a = 1}}",
            Reply::Array(vec![text("a"), Reply::Integer(1)]),
        ),
        (
            "redis.setresp(3); return {set = {a = true}}",
            Reply::Array(vec![text("a")]),
        ),
    ] {
        assert_eq!(run(&redis, lua).await.unwrap(), reply, "{lua}");
    }
}

#[tokio::test]
async fn keys_and_arguments_arrive_as_they_were_given() {
    let server = RedisServer::start().await.unwrap();
    let redis = connect_patiently(server.url()).await;
    let echo = Script::new("return {#KEYS, KEYS[1], KEYS[2], #ARGV, unpack(ARGV)}");
    let reply = redis.run(
        &echo,
        vec!["{k}ä".into(), String::new()],
        vec![
            i64::MIN.into(),
            u64::MAX.into(),
            1_i32.into(),
            2_u32.into(),
            "text\r\n".into(),
            String::from("owned").into(),
            vec![0_u8, 255].into(),
        ],
    );
    let bytes = |bytes: &'static [u8]| Reply::Bytes(bytes.into());
    let expected = vec![
        Reply::Integer(2),
        bytes("{k}ä".as_bytes()),
        bytes(b""),
        Reply::Integer(7),
        bytes(b"-9223372036854775808"),
        bytes(b"18446744073709551615"),
        bytes(b"1"),
        bytes(b"2"),
        bytes(b"text\r\n"),
        bytes(b"owned"),
        bytes(&[0, 255]),
    ];
    assert_eq!(reply.await.unwrap(), Reply::Array(expected));
}

#[tokio::test]
async fn a_script_is_sent_by_name_and_its_text_only_when_it_is_not_known() {
    let server = RedisServer::start().await.unwrap();
    let redis = connect_patiently(server.url()).await;
    for n in 1..=10 {
        assert_eq!(count(&redis, "a").await.unwrap(), n);
    }
    server.flush_scripts().await.unwrap();
    for n in 11..=20 {
        assert_eq!(count(&redis, "a").await.unwrap(), n);
    }
    let stats = server.command(&["INFO", "commandstats"]).await.unwrap();
    let calls = |command: &str| {
        let line = stats.lines().find_map(|line| {
            let rest = line.strip_prefix(&format!("cmdstat_{command}:calls="))?;
            rest.split(',').next()?.parse::<u32>().ok()
        });
        line.unwrap_or(0)
    };
    // Once at the start and once after the flush.
    assert_eq!(
        (calls("evalsha"), calls("eval"), calls("incr")),
        (20, 2, 20)
    );
}

#[tokio::test]
async fn errors_of_the_server_are_returned_and_do_not_shut_the_gate() {
    let server = RedisServer::start_with(&["--maxmemory", "1"])
        .await
        .unwrap();
    let redis = connect_patiently(server.url()).await;
    for (lua, words) in [
        ("error('my own')", "my own"),
        ("return redis.error_reply('MINE of my own')", "MINE"),
        ("this is no lua", "compiling"),
        ("return redis.call('NOSUCH')", "Unknown"),
        ("redis.call('SET', 'a', 1)", "OOM"),
        ("return redis.call('EVALSHA', 'a', 0)", "not allowed"),
    ] {
        let error = run(&redis, lua).await.unwrap_err();
        assert!(error.is_script(), "{lua}: {error:?}");
        assert!(!error.is_down() && !error.is_timeout() && !error.may_have_run());
        assert!(error.to_string().contains(words), "{lua}: {error}");
        assert!(redis.is_up());
    }
    let health = redis.health();
    assert_eq!((health.failures, health.outages), (0, 0));
}

#[tokio::test]
async fn an_error_inside_a_reply_is_an_error() {
    let server = RedisServer::start().await.unwrap();
    let redis = connect_patiently(server.url()).await;
    let error = run(&redis, "return {1, redis.error_reply('MINE')}")
        .await
        .unwrap_err();
    assert!(!error.is_script() && !error.is_down() && !error.may_have_run());
    assert!(redis.is_up());
}
