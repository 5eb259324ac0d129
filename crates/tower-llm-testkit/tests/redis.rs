//! A real server process through its life.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tower_llm_testkit::redis::{RedisCluster, RedisServer};

const PATIENCE: Duration = Duration::from_secs(10);

async fn ask(stream: &mut TcpStream, command: &str, answer: &str) -> io::Result<()> {
    stream.write_all(command.as_bytes()).await?;
    let mut read = vec![0; answer.len()];
    stream.read_exact(&mut read).await?;
    assert_eq!(String::from_utf8_lossy(&read), answer);
    Ok(())
}

async fn connect(addr: SocketAddr) -> TcpStream {
    timeout(PATIENCE, TcpStream::connect(addr))
        .await
        .unwrap()
        .unwrap()
}

#[tokio::test]
async fn a_server_can_be_frozen_killed_and_restarted() {
    let mut server = RedisServer::start().await.unwrap();
    assert_eq!(server.url(), format!("redis://{}", server.addr()));
    let mut stream = connect(server.addr()).await;
    ask(&mut stream, "SET a 1\r\n", "+OK\r\n").await.unwrap();

    server.freeze().unwrap();
    let mut answer = Box::pin(ask(&mut stream, "GET a\r\n", "$1\r\n1\r\n"));
    timeout(Duration::from_millis(50), &mut answer)
        .await
        .expect_err("a frozen server answers nothing");
    server.thaw().unwrap();
    timeout(PATIENCE, answer).await.unwrap().unwrap();

    server.kill().unwrap();
    timeout(PATIENCE, ask(&mut stream, "PING\r\n", "+PONG\r\n"))
        .await
        .unwrap()
        .unwrap_err();
    TcpStream::connect(server.addr()).await.unwrap_err();

    server.restart().await.unwrap();
    let mut stream = connect(server.addr()).await;
    ask(&mut stream, "GET a\r\n", "$-1\r\n").await.unwrap();
}

#[tokio::test]
async fn dropping_a_frozen_server_ends_it() {
    let server = RedisServer::start().await.unwrap();
    let addr = server.addr();
    server.freeze().unwrap();
    drop(server);
    TcpStream::connect(addr).await.unwrap_err();
}

#[tokio::test]
async fn a_server_can_be_asked_past_any_client() {
    let server = RedisServer::start_with(&["--maxmemory", "100mb"])
        .await
        .unwrap();
    let text = server.command(&["SET", "a b", "c\r\nd"]).await.unwrap();
    assert_eq!(text, "OK");
    assert_eq!(server.command(&["GET", "a b"]).await.unwrap(), "c\r\nd");
    assert_eq!(server.command(&["GET", "none"]).await.unwrap(), "");
    let set = server.command(&["CONFIG", "GET", "maxmemory"]).await;
    assert_eq!(set.unwrap(), "maxmemory\n104857600");
    let error = server.command(&["INCR", "a b"]).await.unwrap_err();
    assert!(error.to_string().starts_with("ERR value"), "{error}");

    server
        .command(&["SCRIPT", "LOAD", "return 1"])
        .await
        .unwrap();
    server.flush_scripts().await.unwrap();
    let known = server.command(&[
        "SCRIPT",
        "EXISTS",
        "e0e1f9fabfc9d4800c877a703b823ac0578ff8db",
    ]);
    assert_eq!(known.await.unwrap(), "0");
}

#[tokio::test]
async fn a_cluster_shares_its_slots_and_takes_a_node_back() {
    let mut cluster = RedisCluster::start(3).await.unwrap();
    // Of `foo`, which the last node has, and of `bar`, which the first has.
    for (key, slot, owner) in [("foo", 12_182, 2), ("bar", 5_061, 0)] {
        assert_eq!(cluster.node_of_slot(slot), owner);
        for node in 0..3 {
            let said = cluster.command(node, &["GET", key]).await;
            let moved = said.map_err(|error| error.to_string());
            let expected = format!("MOVED {slot} {}", cluster.addr(owner));
            assert_eq!(
                moved,
                if node == owner {
                    Ok(String::new())
                } else {
                    Err(expected)
                }
            );
        }
    }

    cluster.move_slot(5_061, 1).await.unwrap();
    cluster.command(1, &["SET", "bar", "1"]).await.unwrap();

    cluster.kill(2).unwrap();
    TcpStream::connect(cluster.addr(2)).await.unwrap_err();
    cluster.command(1, &["SET", "bar", "2"]).await.unwrap();
    cluster.restart(2).await.unwrap();
    cluster.command(2, &["SET", "foo", "1"]).await.unwrap();
}

#[tokio::test]
async fn a_cluster_leaves_neither_process_nor_folder() {
    let cluster = RedisCluster::start(1).await.unwrap();
    let addr = cluster.addr(0);
    let folder = cluster.command(0, &["CONFIG", "GET", "dir"]).await.unwrap();
    let folder = folder.trim_start_matches("dir\n").to_owned();
    assert!(std::path::Path::new(&folder).join("nodes.conf").exists());
    drop(cluster);
    TcpStream::connect(addr).await.unwrap_err();
    assert!(!std::path::Path::new(&folder).exists());
}
