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
use tower_llm_testkit::redis::RedisServer;

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
