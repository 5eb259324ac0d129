//! Upstreams that do exactly what a test says, byte for byte.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::support::Running;

/// What an upstream does with a request, once it has read all of it.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// Sends these bytes and keeps the connection.
    Bytes(Vec<u8>),
    /// Closes the connection without a byte.
    Close,
}

/// An upstream that answers one request after another from a list, the last again and again.
pub(crate) struct Raw {
    pub(crate) addr: SocketAddr,
    requests: Arc<Mutex<Vec<(String, String)>>>,
    connections: Arc<AtomicUsize>,
}

impl Raw {
    pub(crate) async fn start(replies: impl Into<Vec<Reply>>) -> Self {
        let replies: Arc<[Reply]> = replies.into().into();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let raw = Self {
            addr: listener.local_addr().unwrap(),
            requests: Arc::default(),
            connections: Arc::default(),
        };
        let (requests, connections) = (Arc::clone(&raw.requests), Arc::clone(&raw.connections));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream, Arc::clone(&replies), Arc::clone(&requests)));
            }
        });
        raw
    }

    /// A gateway whose upstreams are all this one.
    pub(crate) async fn gateway(&self, flags: &[&str]) -> Running {
        let url = format!("http://{}", self.addr);
        let v1 = format!("{url}/v1");
        let mut all = vec!["--openai-base-url", &v1];
        all.extend(["--anthropic-base-url", &url, "--gemini-base-url", &url]);
        all.extend(flags);
        Running::start(&all).await
    }

    /// The first lines of the requests that have arrived.
    pub(crate) fn requests(&self) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        requests.iter().map(|(line, _)| line.clone()).collect()
    }

    /// Their bodies.
    pub(crate) fn bodies(&self) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        requests.iter().map(|(_, body)| body.clone()).collect()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn serve(
    mut stream: TcpStream,
    replies: Arc<[Reply]>,
    requests: Arc<Mutex<Vec<(String, String)>>>,
) {
    let mut read = Vec::new();
    loop {
        let Some(received) = request(&mut stream, &mut read).await else {
            return;
        };
        let number = {
            let mut requests = requests.lock().unwrap();
            requests.push(received);
            requests.len()
        };
        match &replies[number.min(replies.len()) - 1] {
            Reply::Bytes(bytes) => stream.write_all(bytes).await.unwrap(),
            Reply::Close => return,
        }
    }
}

/// Reads one request with a content-length or without a body, and gives its first line and its body.
async fn request(stream: &mut TcpStream, read: &mut Vec<u8>) -> Option<(String, String)> {
    loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(read[..end].to_vec()).unwrap();
            let length = head.lines().find_map(|line| {
                line.to_ascii_lowercase()
                    .strip_prefix("content-length: ")?
                    .parse()
                    .ok()
            });
            let length: usize = length.unwrap_or(0);
            if read.len() >= end + 4 + length {
                let all: Vec<u8> = read.drain(..end + 4 + length).collect();
                let body = String::from_utf8_lossy(&all[end + 4..]).into_owned();
                return Some((head.lines().next().unwrap().to_owned(), body));
            }
        }
        if stream.read_buf(read).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}

/// A response with a content-length; `headers` are lines that end in CRLF.
pub(crate) fn response(status: &str, headers: &str, body: &[u8]) -> Reply {
    let head = format!(
        "HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n",
        body.len()
    );
    Reply::Bytes([head.as_bytes(), body].concat())
}
