//! Whose key a provider sees, where it is, and what else it is told.

use http::HeaderMap;
use tower_llm_testkit::{Recorded, SimulatedProvider};

use crate::support::{Binary, COMPLETE, Running, post};

const OURS: &[&str] = &[
    "--keys",
    "none",
    "--openai-api-key",
    "ours",
    "--anthropic-api-key",
    "ours",
    "--gemini-api-key",
    "ours",
    "--azure-api-key",
    "ours",
];

const PATHS: [(&str, &str, &str); 4] = [
    ("/v1/chat/completions", "authorization", "Bearer "),
    ("/v1/messages", "x-api-key", ""),
    (
        "/v1beta/models/m:generateContent?key=theirs&alt=sse",
        "x-goog-api-key",
        "",
    ),
    (
        "/openai/deployments/d/chat/completions?api-version=1",
        "api-key",
        "",
    ),
];

const THEIRS: &str = "authorization: Bearer theirs\r\nx-api-key: theirs\r\nx-goog-api-key: theirs\r\napi-key: theirs\r\n";

const CREDENTIALS: [&str; 4] = ["authorization", "x-api-key", "x-goog-api-key", "api-key"];

fn last(provider: &SimulatedProvider) -> Recorded {
    provider.recorded().pop().unwrap()
}

fn credentials(headers: &HeaderMap) -> Vec<(&str, &str)> {
    let shown = |name| Some((name, headers.get(name)?.to_str().unwrap()));
    CREDENTIALS.into_iter().filter_map(shown).collect()
}

#[tokio::test]
async fn a_configured_key_replaces_all_keys_of_the_caller() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, OURS).await;
    for (path, name, scheme) in PATHS {
        assert_eq!(post(gateway.addr, path, THEIRS, "{}").await.status, 200);
        let recorded = last(&provider);
        let ours = format!("{scheme}ours");
        assert_eq!(
            credentials(&recorded.headers),
            [(name, ours.as_str())],
            "{path}"
        );
        assert_eq!(recorded.path, path.replace("key=theirs&", ""));
    }
}

#[tokio::test]
async fn without_a_key_the_caller_s_own_passes_and_no_other_provider_s() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &[]).await;
    for (path, name, _) in PATHS {
        post(gateway.addr, path, THEIRS, "{}").await;
        let recorded = last(&provider);
        let mut passed = credentials(&recorded.headers);
        passed.retain(|(other, _)| *other != "authorization");
        let own = if name == "authorization" { 0 } else { 1 };
        assert_eq!(passed.len(), own, "{path}: {passed:?}");
        assert!(passed.iter().all(|(passed, _)| *passed == name), "{path}");
        assert!(recorded.headers.contains_key("authorization"), "{path}");
        let is_gemini = name == "x-goog-api-key";
        assert_eq!(
            recorded.path.contains("key=theirs"),
            is_gemini && path.contains("key=")
        );
        post(gateway.addr, path, "", "{}").await;
        assert!(credentials(&last(&provider).headers).is_empty(), "{path}");
    }
}

#[tokio::test]
async fn base_urls_are_joined_so_that_v1_stands_once() {
    let provider = SimulatedProvider::start().await.unwrap();
    let url = provider.url();
    for base in [
        url.clone(),
        format!("{url}/"),
        format!("{url}/v1"),
        format!("{url}/v1/"),
    ] {
        let flags = ["--openai-base-url", &base, "--anthropic-base-url", &base];
        let gateway = Running::start(&flags).await;
        for path in [
            "/v1/chat/completions",
            "/v1/responses",
            "/v1/messages",
            "/v1/models/m-1",
        ] {
            gateway.post(path, "{}").await;
            assert_eq!(last(&provider).path, path, "{base}");
        }
    }
    let base = format!("{url}/openai/v1");
    let gateway = Running::start(&["--openai-base-url", &base]).await;
    for path in ["/v1/chat/completions", "/chat/completions"] {
        gateway.post(path, "{}").await;
        assert_eq!(last(&provider).path, "/openai/v1/chat/completions");
    }
}

#[tokio::test]
async fn the_environment_of_the_official_clients_is_read() {
    let provider = SimulatedProvider::start().await.unwrap();
    let url = provider.url();
    let v1 = format!("{url}/v1");
    let envs = [
        ("OPENAI_BASE_URL", v1.as_str()),
        ("OPENAI_API_KEY", "ours"),
        ("ANTHROPIC_BASE_URL", &url),
        ("ANTHROPIC_API_KEY", "ours"),
        ("GOOGLE_GEMINI_BASE_URL", &url),
        ("GEMINI_API_KEY", "ours"),
        ("AZURE_OPENAI_ENDPOINT", &url),
        ("AZURE_OPENAI_API_KEY", "ours"),
        ("GATEWAY_KEYS", "none"),
    ];
    let gateway = Binary::start(&envs, &[]).await;
    for (path, name, scheme) in PATHS {
        assert_eq!(post(gateway.addr, path, THEIRS, "{}").await.status, 200);
        let ours = format!("{scheme}ours");
        assert_eq!(
            credentials(&last(&provider).headers),
            [(name, ours.as_str())]
        );
    }
    // Set to simulate, it calls no upstream.
    let seen = provider.counts().requests;
    let gateway = Binary::start(&envs, &["--simulate"]).await;
    assert_eq!(
        post(gateway.addr, "/v1/messages", "", COMPLETE)
            .await
            .status,
        200
    );
    assert_eq!(provider.counts().requests, seen);
}

#[tokio::test]
async fn what_belongs_to_a_connection_stays_on_it() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(
        tower_llm_testkit::Behavior::new()
            .header("keep-alive", "timeout=5")
            .header("x-kept", "1"),
    );
    let gateway = Running::over(&provider, &[]).await;
    let headers = "connection: keep-alive, x-mine\r\nx-mine: 1\r\nkeep-alive: timeout=9\r\nte: trailers\r\n\
                   upgrade: websocket\r\nproxy-authorization: Basic eDp5\r\naccept-encoding: gzip, br\r\n\
                   x-kept: 1\r\nx-kept: 2\r\nuser-agent: test/1\r\n";
    let answer = post(gateway.addr, "/v1/chat/completions", headers, "{}").await;

    let seen = last(&provider).headers;
    for name in [
        "connection",
        "x-mine",
        "keep-alive",
        "te",
        "upgrade",
        "proxy-authorization",
    ] {
        assert!(!seen.contains_key(name), "{name}");
    }
    assert_eq!(seen["accept-encoding"], "identity");
    assert_eq!(seen["host"], provider.addr().to_string());
    assert_eq!(seen["content-length"], "2");
    assert_eq!(seen["user-agent"], "test/1");
    assert_eq!(seen.get_all("x-kept").iter().count(), 2);
    assert!(!answer.headers.contains_key("keep-alive"));
    assert_eq!(answer.headers["x-kept"], "1");
}

#[tokio::test]
async fn a_chunked_request_arrives_whole() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &[]).await;
    let mut connection = crate::support::Connection::open(gateway.addr).await;
    let head = "POST /v1/messages HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n";
    connection.write(head.as_bytes()).await;
    // The gateway asks for the body; the upstream is not asked to.
    assert_eq!(connection.head(true).await.unwrap().0, 100);
    for chunk in [
        "1\r\n{\r\n",
        "e\r\n\"stream\":false\r\n",
        "1\r\n}\r\n",
        "0\r\n\r\n",
    ] {
        connection.write(chunk.as_bytes()).await;
    }
    assert_eq!(connection.answer(false).await.unwrap().status, 200);
    let seen = last(&provider);
    assert_eq!(seen.body, r#"{"stream":false}"#);
    assert_eq!(seen.headers["content-length"], "16");
    assert!(!seen.headers.contains_key("transfer-encoding"));
    assert!(!seen.headers.contains_key("expect"));
}
