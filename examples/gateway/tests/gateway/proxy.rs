//! The way to upstreams through a proxy.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use tower_llm_testkit::SimulatedProvider;

use crate::{
    support::{Binary, COMPLETE, Running, post},
    tls::{TrustedFile, with_tls},
};

const CHAT: &str = "/v1/chat/completions";

/// A proxy that tunnels and forwards everything to one address.
struct Proxy {
    addr: SocketAddr,
    /// The headers of each request that it was sent.
    seen: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(Self::serve(client, target, Arc::clone(&noted)));
            }
        });
        Self { addr, seen }
    }

    async fn serve(mut client: TcpStream, target: SocketAddr, seen: Arc<Mutex<Vec<String>>>) {
        let mut read = Vec::new();
        let end = loop {
            if let Some(at) = read.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if client.read_buf(&mut read).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let rest = read.split_off(end);
        let headers = String::from_utf8(read).unwrap();
        let mut upstream = TcpStream::connect(target).await.unwrap();
        if headers.starts_with("CONNECT ") {
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        } else {
            // The simulated provider wants a path alone.
            let (method, rest) = headers.split_once(" http://").unwrap();
            let (_, path) = rest.split_once('/').unwrap();
            let forwarded = format!("{method} /{path}");
            upstream.write_all(forwarded.as_bytes()).await.unwrap();
        }
        seen.lock().unwrap().push(headers);
        upstream.write_all(&rest).await.unwrap();
        let _ = copy_bidirectional(&mut client, &mut upstream).await;
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

#[tokio::test]
async fn an_https_upstream_is_reached_through_a_tunnel_that_sees_no_credential() {
    let provider = SimulatedProvider::start().await.unwrap();
    let (addr, certificate) = with_tls(provider.addr()).await;
    let file = TrustedFile::new("proxy", &certificate);
    let proxy = Proxy::to(addr).await;
    // Only the proxy could find it.
    let url = format!(
        "https://localhost:{}/v1",
        crate::support::closed_port().await.port()
    );
    for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"] {
        let through = format!("http://me:password@{}", proxy.addr);
        let envs = [
            ("OPENAI_BASE_URL", url.as_str()),
            ("SSL_CERT_FILE", file.path()),
            (variable, &through),
        ];
        let mut gateway = Binary::start(&envs, &[]).await;
        let key = "authorization: Bearer secret\r\n";
        let answer = post(gateway.addr, CHAT, key, r#"{"stream":true}"#).await;
        assert_eq!(answer.status, 200, "{variable}");
        let seen = proxy.take();
        assert_eq!(seen.len(), 1, "{variable}");
        let port = url.rsplit(':').next().unwrap().trim_end_matches("/v1");
        assert!(seen[0].starts_with(&format!("CONNECT localhost:{port} HTTP/1.1\r\n")));
        let lower = seen[0].to_lowercase();
        assert!(
            lower.contains("proxy-authorization: basic bwu6cgfzc3dvcmq=\r\n"),
            "{lower}"
        );
        assert!(!lower.contains("secret"), "{lower}");
        let recorded = provider.recorded().pop().unwrap();
        assert_eq!(recorded.headers["authorization"], "Bearer secret");
        assert!(!recorded.headers.contains_key("proxy-authorization"));
        let said = gateway.said().await;
        assert!(
            said.contains(&format!("through http://{}", proxy.addr)),
            "{said}"
        );
        assert!(!said.contains("password"), "{said}");
    }
}

#[tokio::test]
async fn an_http_upstream_is_asked_for_by_its_whole_address() {
    let provider = SimulatedProvider::start().await.unwrap();
    let proxy = Proxy::to(provider.addr()).await;
    let through = format!("http://me:password@{}", proxy.addr);
    let flags = [
        "--openai-base-url",
        "http://models.test/v1",
        "--http-proxy",
        &through,
    ];
    let gateway = Running::start(&flags).await;
    assert_eq!(gateway.post(CHAT, "{}").await.status, 200);
    let seen = proxy.take();
    assert_eq!(seen.len(), 1);
    assert!(seen[0].starts_with("POST http://models.test/v1/chat/completions HTTP/1.1\r\n"));
    let lower = seen[0].to_lowercase();
    assert!(lower.contains("host: models.test\r\n"), "{lower}");
    assert!(
        lower.contains("proxy-authorization: basic bwu6cgfzc3dvcmq=\r\n"),
        "{lower}"
    );
    // What the caller says to its own proxy is not for this one.
    let headers = "proxy-authorization: Basic dGhlaXJz\r\n";
    post(gateway.addr, CHAT, headers, "{}").await;
    let recorded = provider.recorded().pop().unwrap();
    let sent = recorded.headers.get_all("proxy-authorization");
    assert_eq!(sent.iter().collect::<Vec<_>>(), ["Basic bWU6cGFzc3dvcmQ="]);
}

#[tokio::test]
async fn excepted_upstreams_and_the_simulated_one_are_reached_directly() {
    let provider = SimulatedProvider::start().await.unwrap();
    let proxy = Proxy::to(provider.addr()).await;
    let through = format!("http://{}", proxy.addr);
    let url = provider.url();
    let envs = [
        ("OPENAI_BASE_URL", url.as_str()),
        ("HTTP_PROXY", &through),
        ("NO_PROXY", "127.0.0.1,localhost"),
    ];
    let gateway = Binary::start(&envs, &[]).await;
    assert_eq!(post(gateway.addr, CHAT, "", "{}").await.status, 200);
    assert_eq!(provider.counts().requests, 1);

    let gateway = Binary::start(&[("HTTP_PROXY", &through), ("ALL_PROXY", &through)], &[]).await;
    assert_eq!(post(gateway.addr, CHAT, "", COMPLETE).await.status, 200);
    assert_eq!(provider.counts().requests, 1, "it has one of its own");
    assert!(proxy.take().is_empty());
}

#[tokio::test]
async fn a_proxy_that_refuses_is_a_bad_gateway_and_is_logged() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let through = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut read = Vec::new();
            let _ = client.read_buf(&mut read).await;
            let _ = client
                .write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
                .await;
        }
    });
    let envs = [
        ("OPENAI_BASE_URL", "https://models.test/v1"),
        ("HTTPS_PROXY", &through),
    ];
    let mut gateway = Binary::start(&envs, &[]).await;
    assert_eq!(post(gateway.addr, CHAT, "", "{}").await.status, 502);
    let said = gateway.said().await;
    assert!(said.contains("proxy authorization required"), "{said}");
}
