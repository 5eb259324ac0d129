//! What becomes of an upstream's connection when a stream is over.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::support::{Running, SOON, within};

const STREAM: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}"#;

const CHUNKS: [&str; 3] = [
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"hi\"},\"finish_reason\":null}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
    "data: [DONE]\n\n",
];

/// Whether the upstream ends its streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    WithTheMarker,
    Never,
}

/// An upstream that streams the same answer to every request, and counts its connections.
async fn upstream(ends: Ends) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(serve(stream, ends));
        }
    });
    (url, connections)
}

/// Answers until the other side closes the connection.
async fn serve(mut stream: TcpStream, ends: Ends) -> Option<()> {
    loop {
        read_request(&mut stream).await?;
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await.ok()?;
        for chunk in CHUNKS {
            let framed = format!("{:x}\r\n{chunk}\r\n", chunk.len());
            stream.write_all(framed.as_bytes()).await.ok()?;
        }
        if ends == Ends::WithTheMarker {
            stream.write_all(b"0\r\n\r\n").await.ok()?;
        }
    }
}

/// Reads a request with its body; `None` when the connection is closed.
async fn read_request(stream: &mut TcpStream) -> Option<()> {
    let mut read = Vec::new();
    while !read.ends_with(STREAM.as_bytes()) {
        read.push(stream.read_u8().await.ok()?);
    }
    Some(())
}

#[tokio::test]
async fn a_hundred_streams_in_turn_use_one_upstream_connection() {
    let (url, connections) = upstream(Ends::WithTheMarker).await;
    let gateway = Running::start(&["--openai-base-url", &url]).await;
    for _ in 0..100 {
        let answer = gateway.post("/v1/chat/completions", STREAM).await;
        assert_eq!((answer.status, answer.complete), (200, true));
        assert_eq!(answer.text(), CHUNKS.concat());
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn an_upstream_that_stays_open_after_its_marker_keeps_no_caller() {
    let (url, connections) = upstream(Ends::Never).await;
    let gateway = Running::start(&["--openai-base-url", &url]).await;
    for _ in 0..3 {
        let answer = within(SOON, gateway.post("/v1/chat/completions", STREAM)).await;
        assert_eq!((answer.status, answer.complete), (200, true));
        assert_eq!(answer.text(), CHUNKS.concat());
        assert_eq!(gateway.held(), 0);
    }
    // One that never says where its answer ends can't be used again.
    assert_eq!(connections.load(Ordering::Relaxed), 3);
    gateway.stop().await;
}
