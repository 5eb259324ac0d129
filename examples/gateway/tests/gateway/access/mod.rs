//! Which callers may use it, and what for; a refused request leaves no trace at the provider.

mod credentials;
mod keys;
mod paths;

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::support::{Answer, Running};

const OWNER: &str = "the-owner-s-credential";
const KEY: &str = "a-key-of-the-gateway-1";
const OTHER_KEY: &str = "another-and-longer-key-of-the-gateway-2";
const OWN: &str = "the-caller-s-own-credential";

/// A path of each dialect, where its provider takes credentials, and where an error's type stands.
const DIALECTS: [(&str, &str, &str, &str); 6] = [
    (
        "/v1/chat/completions",
        "authorization",
        "Bearer ",
        "/error/code",
    ),
    ("/v1/responses", "authorization", "Bearer ", "/error/code"),
    ("/v1/embeddings", "authorization", "Bearer ", "/error/code"),
    ("/v1/messages", "x-api-key", "", "/error/type"),
    (
        "/v1beta/models/m:generateContent",
        "x-goog-api-key",
        "",
        "/error/status",
    ),
    (
        "/openai/deployments/d/chat/completions?api-version=1",
        "api-key",
        "",
        "/error/code",
    ),
];

/// A provider that keeps every byte it is sent, and answers each request.
struct Raw {
    url: String,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    connections: usize,
    bytes: Vec<u8>,
}

impl Raw {
    async fn start() -> Self {
        Self::answering(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
        )
        .await
    }

    async fn answering(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let noted = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                noted.lock().unwrap().connections += 1;
                let noted = Arc::clone(&noted);
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while let Ok(1..) = stream.read_buf(&mut request).await {
                        if is_whole(&request) {
                            noted.lock().unwrap().bytes.append(&mut request);
                            stream.write_all(answer.as_bytes()).await.unwrap();
                        }
                    }
                    noted.lock().unwrap().bytes.append(&mut request);
                });
            }
        });
        Self { url, seen }
    }

    /// What has been sent since last time.
    fn take(&self) -> String {
        let mut seen = self.seen.lock().unwrap();
        String::from_utf8(std::mem::take(&mut seen.bytes)).unwrap()
    }

    /// No connection was opened.
    fn assert_untouched(&self, what: &str) {
        let seen = self.seen.lock().unwrap();
        let bytes = String::from_utf8_lossy(&seen.bytes);
        assert_eq!((seen.connections, &*bytes), (0, ""), "{what}");
    }

    /// A gateway with the owner's credential for every provider, all of which are here.
    async fn with_credentials(&self, flags: &[&str]) -> Running {
        let keys = [
            ["--openai-api-key", OWNER],
            ["--anthropic-api-key", OWNER],
            ["--gemini-api-key", OWNER],
            ["--azure-api-key", OWNER],
        ];
        self.without_credentials(&[&keys.concat(), flags].concat())
            .await
    }

    async fn without_credentials(&self, flags: &[&str]) -> Running {
        let urls = [
            ["--openai-base-url", &self.url],
            ["--anthropic-base-url", &self.url],
            ["--gemini-base-url", &self.url],
            ["--azure-endpoint", &self.url],
        ];
        Running::start(&[&urls.concat(), flags].concat()).await
    }
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= length.map_or(0, |length| length.parse().unwrap())
}

fn bearer(key: &str) -> String {
    format!("authorization: Bearer {key}\r\n")
}

fn assert_no_key(text: &str) {
    for key in [OWNER, KEY, OTHER_KEY, OWN] {
        assert!(!text.contains(key), "{key} in {text}");
    }
}

fn assert_unauthorized(answer: &Answer, pointer: &str, what: &str) {
    assert_eq!(answer.status, 401, "{what}");
    let kind = answer.json().pointer(pointer).unwrap().clone();
    let expected = match pointer {
        "/error/code" => "invalid_api_key",
        "/error/type" => "authentication_error",
        _ => "UNAUTHENTICATED",
    };
    assert_eq!(kind, expected, "{what}");
    assert_eq!(answer.headers["www-authenticate"], "Bearer");
    assert_eq!(answer.headers["x-should-retry"], "false");
    assert_no_key(&answer.text());
}
