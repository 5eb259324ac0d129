//! Which callers may use it, and what for; a refused request leaves no trace at the provider.

use std::sync::{Arc, Mutex};

use http::StatusCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::support::{Answer, Binary, Connection, Running, SOON, post, request, within};

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

#[tokio::test]
async fn without_a_key_of_the_gateway_it_is_401_and_nothing_is_sent() {
    let provider = Raw::start().await;
    let keys = format!("{KEY},{OTHER_KEY}");
    let gateway = provider.with_credentials(&["--keys", &keys]).await;
    let wrong = [
        String::new(),
        "authorization: Bearer \r\n".to_owned(),
        bearer(OWN),
        // The owner's own credential is no key either.
        bearer(OWNER),
        bearer(&KEY[1..]),
        bearer(&format!("{KEY}0")),
        bearer(&KEY.to_uppercase()),
        bearer(&keys),
        bearer(&format!("{KEY}, Bearer {OWN}")),
        format!("authorization: Basic {KEY}x\r\n"),
        format!("x-key: {KEY}\r\ncookie: key={KEY}\r\n"),
        format!(
            "x-api-key: {OWN}\r\nx-api-key: {OWN}\r\napi-key: {OWN}\r\nx-goog-api-key: {OWN}\r\n"
        ),
    ];
    for (path, _, _, pointer) in DIALECTS {
        for headers in &wrong {
            let answer = post(gateway.addr, path, headers, r#"{"model":"m"}"#).await;
            assert_unauthorized(&answer, pointer, &format!("{path} {headers}"));
        }
    }
    let in_query = format!("/v1beta/models/m:generateContent?keys={KEY}&key={OWN}");
    let answer = post(gateway.addr, &in_query, "", "{}").await;
    assert_unauthorized(&answer, "/error/status", &in_query);
    // Nor does anybody learn which paths there are.
    for (method, path) in [
        ("GET", "/v1/models"),
        ("DELETE", "/v1/files/f"),
        ("GET", "/"),
        ("GET", "/nowhere"),
    ] {
        let answer = request(gateway.addr, method, path, &bearer(OWN), "").await;
        assert_eq!(answer.status, 401, "{path}");
    }
    provider.assert_untouched("401");
}

#[tokio::test]
async fn a_key_opens_it_wherever_a_client_puts_it_and_no_provider_sees_it() {
    let provider = Raw::start().await;
    let keys = format!("{KEY},{OTHER_KEY}");
    // Each call is to be seen upstream.
    let flags = ["--keys", &keys, "--cache-embeddings", "off"];
    let gateway = provider.with_credentials(&flags).await;
    for (path, name, scheme, _) in DIALECTS {
        for key in [KEY, OTHER_KEY] {
            for headers in [
                bearer(key),
                format!("Authorization: bearer {key}\r\n"),
                format!("x-api-key: {key}\r\n"),
                format!("api-key: {key}\r\n"),
                format!("x-goog-api-key: {key}\r\n"),
                format!("x-api-key: {OWN}\r\nx-api-key: {key}\r\n"),
                format!("authorization: Bearer {OWN}\r\nauthorization: Bearer {key}\r\n"),
                format!("connection: authorization, {name}\r\n{}", bearer(key)),
            ] {
                let answer = post(gateway.addr, path, &headers, "{}").await;
                assert_eq!(answer.status, 200, "{path} {headers}");
                let sent = provider.take();
                let credential = format!("{name}: {scheme}{OWNER}\r\n");
                assert_eq!(sent.matches(OWNER).count(), 1, "{sent}");
                assert!(sent.contains(&credential), "{sent}");
                assert_no_key(&sent.replace(OWNER, ""));
            }
        }
    }
    for query in [
        format!("key={KEY}"),
        format!("alt=sse&%6bey={KEY}"),
        format!("key={OWN}&key={KEY}"),
    ] {
        let path = format!("/v1beta/models/m:generateContent?{query}");
        assert_eq!(
            post(gateway.addr, &path, "", "{}").await.status,
            200,
            "{path}"
        );
        assert_no_key(&provider.take().replace(OWNER, ""));
    }
}

#[tokio::test]
async fn with_the_owner_s_credential_only_inference_and_models_are_reached() {
    let provider = Raw::start().await;
    let key = bearer(KEY);
    let gateway = provider.with_credentials(&["--keys", KEY]).await;
    for (method, path) in [
        ("GET", "/v1/files"),
        ("POST", "/v1/files"),
        ("DELETE", "/v1/files/file-1"),
        ("GET", "/v1/files/file-1/content"),
        ("POST", "/v1/files/x/chat/completions"),
        ("POST", "/v1/organization/x/completions"),
        ("GET", "/v1/organization/admin_api_keys"),
        ("POST", "/v1/batches"),
        ("POST", "/v1/fine_tuning/jobs"),
        ("POST", "/v1/images/generations"),
        ("POST", "/v1/audio/speech"),
        ("GET", "/v1/realtime"),
        ("GET", "/v1/responses/resp_1"),
        ("DELETE", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel"),
        ("GET", "/v1/chat/completions"),
        ("GET", "/v1/chat/completions/c_1/messages"),
        ("DELETE", "/v1/models/ft:mine"),
        ("PUT", "/v1/chat/completions"),
        ("POST", "/v1/messages/batches"),
        ("POST", "/v1beta/files"),
        ("DELETE", "/v1beta/tunedModels/m"),
        ("POST", "/v1beta/models/m:predict"),
        ("POST", "/v1beta/models/a%2f..b:generateContent"),
        ("GET", "/openai/deployments"),
        ("PUT", "/openai/deployments/d"),
        ("POST", "/openai/deployments/d%2fx/chat/completions"),
        ("TRACE", "/v1/models"),
        ("OPTIONS", "/v1/chat/completions"),
    ] {
        for headers in [key.clone(), format!("{key}anthropic-version: 1\r\n")] {
            let answer = request(gateway.addr, method, path, &headers, "{}").await;
            assert_eq!(answer.status, 403, "{method} {path}");
        }
    }
    // In its dialect.
    for (path, headers, pointer, kind) in [
        ("/v1/files", "", "/error/code", "path_not_allowed"),
        (
            "/v1/files",
            "anthropic-version: 1\r\n",
            "/error/type",
            "permission_error",
        ),
        (
            "/v1/messages/batches",
            "anthropic-version: 1\r\n",
            "/error/type",
            "permission_error",
        ),
        ("/v1beta/files", "", "/error/status", "PERMISSION_DENIED"),
    ] {
        let answer = post(gateway.addr, path, &format!("{key}{headers}"), "{}").await;
        assert_eq!(answer.json().pointer(pointer).unwrap(), kind, "{path}");
        assert!(answer.text().contains("GATEWAY_ALLOW_PATHS"));
    }
    let answer = post(gateway.addr, "/nowhere", &key, "{}").await;
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (404, Some("not_found"))
    );
    provider.assert_untouched("403");

    for (method, path) in [
        ("GET", "/v1/models"),
        ("GET", "/v1/models?limit=5"),
        ("GET", "/v1/models/gpt-5"),
        ("GET", "/v1beta/models"),
        ("GET", "/openai/models?api-version=1"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/v1beta/models/m:countTokens"),
        ("POST", "/v1beta/models/m:streamGenerateContent?alt=sse"),
        ("POST", "/v1beta/models/m:batchEmbedContents"),
        ("POST", "/v1beta/openai/chat/completions"),
        ("POST", "/openai/v1/responses"),
    ] {
        let answer = request(gateway.addr, method, path, &key, "{}").await;
        assert_eq!(answer.status, 200, "{method} {path}");
        assert!(
            provider
                .take()
                .starts_with(&format!("{method} {path} HTTP/1.1\r\n"))
        );
    }
}

#[tokio::test]
async fn more_paths_are_reached_once_they_are_allowed() {
    let provider = Raw::start().await;
    let key = bearer(KEY);
    let allow = ["--keys", KEY, "--allow-paths", "/v1/files/*,/v1/batches"];
    let gateway = provider.with_credentials(&allow).await;
    for (method, path, status) in [
        ("POST", "/v1/files", 200),
        ("DELETE", "/v1/files/f", 200),
        ("GET", "/v1/files/f/content?x=1", 200),
        ("POST", "/v1/batches", 200),
        ("POST", "/v1/batches/b/cancel", 403),
        ("GET", "/v1/filesystem", 403),
        ("TRACE", "/v1/files/f", 403),
        ("GET", "/v1/files/..", 400),
        ("GET", "/v1/files/%2e%2e/organization/admin_api_keys", 400),
        ("GET", "/v1/files/..%2forganization/admin_api_keys", 400),
    ] {
        let answer = request(gateway.addr, method, path, &key, "{}").await;
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(
            !provider.take().is_empty(),
            status == 200,
            "{method} {path}"
        );
    }
    // Without a key they are as closed as the others.
    assert_eq!(post(gateway.addr, "/v1/files", "", "{}").await.status, 401);
}

/// Headers by which a request chooses an account at a provider, or what is billed.
const ACCOUNT_HEADERS: [&str; 9] = [
    "OpenAI-Organization",
    "openai-project",
    "anthropic-workspace-id",
    "anthropic-user-profile-id",
    "X-Goog-User-Project",
    "x-goog-quota-user",
    "Ocp-Apim-Subscription-Key",
    "ocp-apim-subscription-region",
    "X-HF-Bill-To",
];

/// The same in a query.
const ACCOUNT_QUERY: [&str; 9] = [
    "key",
    "$key",
    "access_token",
    "oauth_token",
    "userProject",
    "%24userProject",
    "quotaUser",
    "$quota%55ser",
    "subscription-key",
];

#[tokio::test]
async fn a_caller_does_not_choose_who_pays_beside_the_owner_s_credential() {
    let provider = Raw::start().await;
    let flags = ["--keys", KEY, "--allow-paths", "/v1/files/*"];
    let gateway = provider.with_credentials(&flags).await;
    let mut headers = bearer(KEY);
    for name in ACCOUNT_HEADERS {
        headers += &format!("{name}: {OWN}\r\n{name}: {OWN}\r\n");
    }
    headers += "openai-beta: kept=1\r\nanthropic-beta: kept\r\nx-goog-api-client: kept\r\n";
    let query = ACCOUNT_QUERY.map(|name| format!("{name}={OWN}")).join("&");
    for (path, ..) in DIALECTS.into_iter().chain([("/v1/files/f", "", "", "")]) {
        let (path, own_query) = path.split_once('?').unwrap_or((path, "alt=sse"));
        let target = format!("{path}?{own_query}&{query}");
        let answer = post(gateway.addr, &target, &headers, "{}").await;
        assert_eq!(answer.status, 200, "{path}");
        let sent = provider.take();
        assert!(
            sent.starts_with(&format!("POST {path}?{own_query} ")),
            "{sent}"
        );
        let lower = sent.to_lowercase();
        for name in ACCOUNT_HEADERS {
            let line = format!("\n{}:", name.to_lowercase());
            assert!(!lower.contains(&line), "{name} in {sent}");
        }
        assert_no_key(&sent.replace(OWNER, ""));
        assert_eq!(sent.matches("kept").count(), 3, "{sent}");
    }
}

#[tokio::test]
async fn with_its_own_credential_a_caller_chooses_its_account() {
    let provider = Raw::start().await;
    for flags in [&[][..], &["--keys", KEY]] {
        let gateway = provider.without_credentials(flags).await;
        let mut headers = format!("x-goog-api-key: {KEY}\r\n{}", bearer(OWN));
        for name in ACCOUNT_HEADERS {
            headers += &format!("{name}: chosen\r\n");
        }
        for (path, ..) in DIALECTS {
            post(gateway.addr, path, &headers, "{}").await;
            let sent = provider.take().to_lowercase();
            for name in ACCOUNT_HEADERS {
                let line = format!("\n{}: chosen\r\n", name.to_lowercase());
                assert!(sent.contains(&line), "{name} for {path}: {sent}");
            }
        }
        let path = "/v1beta/models/m:generateContent?$userProject=p&quotaUser=u";
        post(gateway.addr, path, &headers, "{}").await;
        assert!(provider.take().starts_with(&format!("POST {path} ")));
    }
}

#[tokio::test]
async fn the_method_that_was_checked_is_the_one_that_is_sent() {
    let provider = Raw::start().await;
    let gateway = provider.with_credentials(&["--keys", KEY]).await;
    let headers = format!(
        "{}x-http-method-override: DELETE\r\nX-HTTP-Method: GET\r\nx-method-override: PUT\r\n",
        bearer(KEY)
    );
    post(gateway.addr, "/v1/responses", &headers, "{}").await;
    let sent = provider.take().to_lowercase();
    assert!(sent.starts_with("post /v1/responses "));
    assert!(
        !sent.contains("override") && !sent.contains("x-http-method"),
        "{sent}"
    );
}

#[tokio::test]
async fn dot_segments_are_400_whatever_is_configured() {
    let provider = Raw::start().await;
    let open = provider.without_credentials(&[]).await;
    let none = provider.with_credentials(&["--keys", "none"]).await;
    let all = ["--keys", KEY, "--allow-paths", "/*"];
    let closed = provider.with_credentials(&all).await;
    for gateway in [&open, &none, &closed] {
        for path in [
            "/v1/../admin",
            "/v1/./models",
            "/v1/models/..",
            "/v1/models/.",
            "/v1/%2e%2e/admin",
            "/v1/.%2E/admin",
            "/v1/%2e/models",
            "/v1/%252e%252e/admin",
            "/v1/models/x%2f..%2f..%2fadmin",
            "/v1/models/..%5c..%5cadmin",
            "/v1/..;/admin",
            "/healthz/../v1/models",
            "/metrics/%2e%2e/v1/models",
        ] {
            for method in ["GET", "POST", "DELETE"] {
                let answer = request(gateway.addr, method, path, &bearer(KEY), "{}").await;
                assert_eq!(answer.status, 400, "{method} {path}");
                assert_eq!(
                    answer.json()["error"]["code"],
                    "invalid_path",
                    "{method} {path}"
                );
            }
        }
        let version = "anthropic-version: 1\r\n";
        let answer = request(gateway.addr, "GET", "/v1/../admin", version, "").await;
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
        let answer = post(gateway.addr, "/v1/../m:generateContent", "", "{}").await;
        assert_eq!(answer.json()["error"]["status"], "INVALID_ARGUMENT");
    }
    provider.assert_untouched("400");
    // A dot in a name is no such thing.
    let answer = request(open.addr, "GET", "/v1/models/meta%2Fllama-3.1", "", "").await;
    assert_eq!(answer.status, 200);
    assert!(
        provider
            .take()
            .starts_with("GET /v1/models/meta%2Fllama-3.1 ")
    );
}

#[tokio::test]
async fn a_request_with_two_lengths_is_400_whatever_is_configured() {
    let provider = Raw::start().await;
    let open = provider.without_credentials(&[]).await;
    let closed = provider.with_credentials(&["--keys", KEY]).await;
    let key = bearer(KEY);
    for gateway in [&open, &closed] {
        for lengths in [
            "content-length: 2\r\ntransfer-encoding: chunked\r\n",
            "transfer-encoding: chunked\r\ncontent-length: 2\r\n",
            "Transfer-Encoding: gzip, chunked\r\nContent-Length: 0\r\n",
        ] {
            for path in ["/v1/chat/completions", "/healthz"] {
                let mut connection = Connection::open(gateway.addr).await;
                let smuggled = "GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n";
                let bytes = format!(
                    "POST {path} HTTP/1.1\r\nhost: x\r\n{key}{lengths}\r\n2\r\n{{}}\r\n0\r\n\r\n{smuggled}"
                );
                connection.write(bytes.as_bytes()).await;
                let answer = within(SOON, connection.answer(false)).await.unwrap();
                assert_eq!(answer.status, 400, "{lengths}");
                assert_eq!(
                    answer.json()["error"]["code"],
                    "invalid_framing",
                    "{lengths}"
                );
                // Nothing after it on the connection is believed.
                within(SOON, async { while connection.more().await > 0 {} }).await;
                assert_eq!(connection.bytes(), b"", "{lengths}");
            }
        }
    }
    provider.assert_untouched("400");
}

#[tokio::test]
async fn with_one_credential_the_other_providers_get_the_caller_s_own() {
    let provider = Raw::start().await;
    let flags = ["--openai-api-key", OWNER, "--keys", KEY];
    let gateway = provider.without_credentials(&flags).await;
    // Its own credential is no key, even where the owner's is not at stake.
    let own = format!("x-api-key: {OWN}\r\n");
    let answer = post(gateway.addr, "/v1/messages", &own, "{}").await;
    assert_unauthorized(&answer, "/error/type", "its own alone");
    provider.assert_untouched("401");

    for (path, headers, sent_header) in [
        (
            "/v1/messages",
            format!("{own}{}", bearer(KEY)),
            format!("x-api-key: {OWN}"),
        ),
        (
            "/v1/messages",
            format!("authorization: Bearer {OWN}\r\nx-api-key: {KEY}\r\n"),
            format!("authorization: Bearer {OWN}"),
        ),
        (
            "/v1/messages",
            format!("{own}x-api-key: {KEY}\r\n"),
            format!("x-api-key: {OWN}"),
        ),
        (
            "/v1beta/models/m:generateContent",
            format!("x-goog-api-key: {OWN}\r\nx-api-key: {KEY}\r\n"),
            format!("x-goog-api-key: {OWN}"),
        ),
        (
            "/openai/deployments/d/embeddings",
            format!("api-key: {OWN}\r\n{}", bearer(KEY)),
            format!("api-key: {OWN}"),
        ),
    ] {
        assert_eq!(
            post(gateway.addr, path, &headers, "{}").await.status,
            200,
            "{headers}"
        );
        let sent = provider.take();
        assert_eq!(sent.matches(OWN).count(), 1, "{sent}");
        assert!(sent.contains(&sent_header), "{sent}");
        assert_no_key(&sent.replace(OWN, ""));
    }
    let path = format!("/v1beta/models/m:generateContent?key={OWN}");
    post(gateway.addr, &path, &bearer(KEY), "{}").await;
    let sent = provider.take();
    assert!(sent.starts_with(&format!("POST {path} ")), "{sent}");
    assert_no_key(&sent.replace(OWN, ""));
    // With its own credential a caller may do what it likes.
    let headers = format!("{own}{}anthropic-version: 1\r\n", bearer(KEY));
    let answer = request(gateway.addr, "DELETE", "/v1/files/f", &headers, "").await;
    assert_eq!(answer.status, 200);
    assert_no_key(&provider.take().replace(OWN, ""));
    // With the owner's it may not.
    let answer = request(gateway.addr, "DELETE", "/v1/files/f", &bearer(KEY), "").await;
    assert_eq!(answer.status, 403);
    assert_eq!(provider.take(), "");
}

#[tokio::test]
async fn without_a_credential_for_its_provider_a_key_gets_a_401_that_names_the_variable() {
    let provider = Raw::start().await;
    let gateway = provider.without_credentials(&["--keys", KEY]).await;
    let variables = [
        "OPENAI_API_KEY",
        "OPENAI_API_KEY",
        "OPENAI_API_KEY",
        "ANTHROPIC_API_KEY",
        "GEMINI_API_KEY",
        "AZURE_OPENAI_API_KEY",
    ];
    for ((path, name, _, pointer), variable) in DIALECTS.into_iter().zip(variables) {
        // Of the others, none is this provider's, and none says anything.
        let others = ["x-api-key", "api-key", "x-goog-api-key"];
        let others = others.into_iter().filter(|other| *other != name);
        let others: String = others.map(|other| format!("{other}: {OWN}\r\n")).collect();
        for headers in [
            bearer(KEY),
            format!("x-api-key: {KEY}\r\napi-key: {KEY}\r\n"),
            format!("{}{others}", bearer(KEY)),
            format!("{}{name}: \r\n", bearer(KEY)),
            format!("x-api-key: {KEY}\r\nauthorization: Bearer \r\n"),
        ] {
            let answer = post(gateway.addr, path, &headers, "{}").await;
            assert_unauthorized(&answer, pointer, &format!("{path} {headers}"));
            assert!(answer.text().contains(variable), "{}", answer.text());
        }
    }
    for path in [
        format!("/v1beta/models/m:generateContent?key={KEY}"),
        "/v1/models".to_owned(),
        "/v1/files".to_owned(),
        format!("/v1/chat/completions?key={OWN}&access_token={OWN}"),
    ] {
        let answer = request(gateway.addr, "GET", &path, &bearer(KEY), "").await;
        assert_eq!(answer.status, 401, "{path}");
        assert_no_key(&answer.text());
    }
    provider.assert_untouched("401");

    // Wherever a provider takes the caller's own.
    for (path, headers) in [
        ("/v1beta/models/m:generateContent?key=own", ""),
        ("/v1beta/models/m:generateContent?access_token=own", ""),
        ("/openai/deployments/d/embeddings?subscription-key=own", ""),
        (
            "/openai/deployments/d/embeddings",
            "ocp-apim-subscription-key: own\r\n",
        ),
    ] {
        let headers = format!("{}{headers}", bearer(KEY));
        let answer = post(gateway.addr, path, &headers, "{}").await;
        assert_eq!(answer.status, 200, "{path} {headers}");
        assert!(provider.take().contains("own"));
    }
}

#[tokio::test]
async fn the_simulated_provider_needs_no_credential_beside_a_key() {
    let gateway = Running::start(&["--keys", KEY]).await;
    for (path, ..) in DIALECTS {
        let answer = post(gateway.addr, path, &bearer(KEY), "{}").await;
        assert_ne!(answer.status, 401, "{path}");
    }
}

#[tokio::test]
async fn keys_are_required_without_any_credential_too() {
    let provider = Raw::start().await;
    let gateway = provider.without_credentials(&["--keys", KEY]).await;
    for (path, _, _, pointer) in DIALECTS {
        let answer = post(gateway.addr, path, &bearer(OWN), "{}").await;
        assert_unauthorized(&answer, pointer, path);
    }
    provider.assert_untouched("401");
    let headers = format!("{}x-api-key: {KEY}\r\n", bearer(OWN));
    assert_eq!(
        post(gateway.addr, "/v1/chat/completions", &headers, "{}")
            .await
            .status,
        200
    );
    assert!(
        provider
            .take()
            .contains(&format!("authorization: Bearer {OWN}\r\n"))
    );
    // A model server that needs no credential: the operator says so by any value.
    let flags = ["--keys", KEY, "--openai-api-key", "unused"];
    let gateway = provider.without_credentials(&flags).await;
    let answer = post(gateway.addr, "/v1/chat/completions", &bearer(KEY), "{}").await;
    assert_eq!(answer.status, 200);
    assert_no_key(&provider.take());
}

#[tokio::test]
async fn without_credentials_it_is_open_and_passes_on_what_callers_send() {
    let provider = Raw::start().await;
    for flags in [
        &[][..],
        &["--keys", ""],
        &["--keys", " ", "--openai-api-key", ""],
    ] {
        let gateway = provider.without_credentials(flags).await;
        for (path, ..) in DIALECTS {
            assert_eq!(
                post(gateway.addr, path, &bearer("k"), "{}").await.status,
                200
            );
            assert!(provider.take().contains("authorization: Bearer k\r\n"));
        }
        let answer = request(gateway.addr, "DELETE", "/v1/files/f", &bearer("k"), "").await;
        assert_eq!(answer.status, 200);
        provider.take();
    }
}

#[tokio::test]
async fn a_throttled_credential_blocks_no_other_caller_with_the_same_key() {
    let throttled =
        "HTTP/1.1 429 Too Many Requests\r\nretry-after: 60\r\ncontent-length: 0\r\n\r\n";
    let provider = Raw::answering(throttled).await;
    let flags = ["--keys", KEY, "--ratelimit-timeout", "1"];
    let gateway = provider.without_credentials(&flags).await;
    let ask = async |own: &str| {
        let headers = format!("x-api-key: {own}\r\n{}", bearer(KEY));
        let answer = post(gateway.addr, "/v1/messages", &headers, r#"{"model":"m"}"#).await;
        assert_eq!(answer.status, 429);
        !provider.take().is_empty()
    };
    assert!(ask("one").await, "sent");
    assert!(!ask("one").await, "the provider has named a time");
    assert!(ask("two").await, "which says nothing of others");
}

#[tokio::test]
async fn callers_are_identified_by_their_gateway_key() {
    let provider = Raw::start().await;
    let keys = format!("{KEY},{OTHER_KEY}");
    let limits = ["--keys", &keys, "--ratelimit-caller-rpm", "2"];
    let gateway = provider.with_credentials(&limits).await;
    let path = "/v1/chat/completions";
    let status = async |headers: &str| post(gateway.addr, path, headers, "{}").await.status;
    // One caller, however it sends its key and whatever else it sends.
    assert_eq!(status(&bearer(KEY)).await, 200);
    assert_eq!(
        status(&format!("x-api-key: {KEY}\r\napi-key: {OWN}\r\n")).await,
        200
    );
    assert_eq!(status(&bearer(KEY)).await, 429);
    assert_eq!(status(&format!("x-goog-api-key: {KEY}\r\n")).await, 429);
    assert_eq!(status(&bearer(OTHER_KEY)).await, 200);
    // A request that is refused is none of any caller's.
    assert_eq!(status(&bearer(OWN)).await, 401);
    assert_eq!(status(&bearer(OTHER_KEY)).await, 200);
    assert_eq!(status(&bearer(OTHER_KEY)).await, 429);
}

#[tokio::test]
async fn tiers_are_of_gateway_keys() {
    let provider = Raw::start().await;
    let keys = format!("{KEY},{OTHER_KEY}");
    let tiers = format!("{OTHER_KEY}:pro");
    let flags = [
        "--keys",
        &keys,
        "--ratelimit-tiers",
        "free:1,pro:3",
        "--ratelimit-caller-tiers",
        &tiers,
    ];
    let gateway = provider.with_credentials(&flags).await;
    for (key, admitted) in [(KEY, 1), (OTHER_KEY, 3)] {
        for sent in 0..4 {
            let answer = post(gateway.addr, "/v1/messages", &bearer(key), "{}").await;
            let expected = if sent < admitted { 200 } else { 429 };
            assert_eq!(answer.status, expected, "{sent} of {key}");
        }
    }
}

#[tokio::test]
async fn a_tier_of_what_is_no_key_is_refused_by_its_number() {
    let flags = [
        "--openai-api-key",
        OWNER,
        "--keys",
        KEY,
        "--ratelimit-tiers",
        "free:1,pro:3",
    ];
    let tiers = format!("{KEY}:pro,{OWN}:pro");
    let all = [&flags[..], &["--ratelimit-caller-tiers", &tiers]].concat();
    let settings = gateway::Settings::from_flags(all).unwrap();
    let error = gateway::Gateway::bind(settings)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("--ratelimit-caller-tiers: entry 2 "),
        "{error}"
    );
    assert_no_key(&error);
}

#[tokio::test]
async fn credentials_without_keys_start_name_the_setting_and_admit_no_call() {
    let provider = Raw::start().await;
    let envs = [
        ("OPENAI_API_KEY", OWNER),
        ("OPENAI_BASE_URL", provider.url.as_str()),
        ("ANTHROPIC_BASE_URL", &provider.url),
        ("GOOGLE_GEMINI_BASE_URL", &provider.url),
        ("AZURE_OPENAI_ENDPOINT", &provider.url),
        ("GATEWAY_KEYS", ""),
    ];
    let mut gateway = Binary::start(&envs, &[]).await;
    for (path, _, _, pointer) in DIALECTS {
        for headers in ["", &bearer(OWN), &bearer(OWNER), "x-api-key: \r\n"] {
            let answer = post(gateway.addr, path, headers, "{}").await;
            assert_unauthorized(&answer, pointer, path);
            assert!(answer.text().contains("GATEWAY_KEYS"));
        }
    }
    let answer = request(gateway.addr, "GET", "/healthz", "", "").await;
    assert_eq!(StatusCode::from_u16(answer.status).unwrap(), StatusCode::OK);
    provider.assert_untouched("401");
    let said = gateway.said().await;
    assert!(
        said.contains("OPENAI_API_KEY is set and GATEWAY_KEYS is not"),
        "{said}"
    );
    assert_no_key(&said);
}

#[tokio::test]
async fn running_open_is_chosen_in_writing_and_warned_of_at_every_start() {
    let provider = Raw::start().await;
    let key = [
        ("OPENAI_API_KEY", OWNER),
        ("OPENAI_BASE_URL", provider.url.as_str()),
    ];
    let none = [key[0], key[1], ("GATEWAY_KEYS", "none")];
    // Whatever the log's level.
    for level in ["info", "error", "off"] {
        let envs = [&none[..], &[("RUST_LOG", level)]].concat();
        let mut gateway = Binary::start(&envs, &[]).await;
        let answer = post(gateway.addr, "/v1/chat/completions", &bearer(OWN), "{}").await;
        assert_eq!(answer.status, 200);
        assert!(
            provider
                .take()
                .contains(&format!("authorization: Bearer {OWNER}\r\n"))
        );
        // Open for inference, that is.
        let answer = request(gateway.addr, "DELETE", "/v1/files/f", "", "").await;
        assert_eq!(answer.status, 403);
        assert_eq!(provider.take(), "");
        let said = gateway.said().await;
        assert!(said.contains("warning: GATEWAY_KEYS=none"), "{said}");
        assert_no_key(&said);
    }
}

#[tokio::test]
async fn no_key_appears_in_any_output() {
    let provider = Raw::start().await;
    let keys = format!("{KEY},{OTHER_KEY}");
    let tiers = format!("{KEY}:pro");
    let envs = [
        ("OPENAI_API_KEY", OWNER),
        ("OPENAI_BASE_URL", provider.url.as_str()),
        // Nothing listens there, so that there is an error to tell.
        ("ANTHROPIC_BASE_URL", "http://127.0.0.1:1"),
        ("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:1"),
        ("GATEWAY_KEYS", &keys),
        ("RATELIMIT_TIERS", "free:2,pro:100"),
        ("RATELIMIT_CALLER_TIERS", &tiers),
        ("RUST_LOG", "trace"),
    ];
    let mut gateway = Binary::start(&envs, &[]).await;
    let mut answers = Vec::new();
    for key in [KEY, OTHER_KEY, OWN, OWNER] {
        for path in [
            "/v1/chat/completions",
            "/v1/messages",
            "/v1beta/models/m:generateContent",
            "/v1/files",
            "/v1/../x",
            "/nowhere",
        ] {
            let path = format!("{path}?key={key}");
            for headers in [
                bearer(key),
                format!("x-api-key: {key}\r\n{}", bearer(OWN)),
                String::new(),
            ] {
                let answer = post(gateway.addr, &path, &headers, r#"{"model":"m"}"#).await;
                answers.push(format!("{:?} {}", answer.headers, answer.text()));
            }
        }
    }
    answers.push(
        request(gateway.addr, "GET", "/metrics", "", "")
            .await
            .text(),
    );
    assert_no_key(&answers.concat());
    let said = gateway.said().await;
    assert!(
        said.contains("/v1/messages") && said.contains("WARN"),
        "{said}"
    );
    assert_no_key(&said);

    let output = Binary::command(&envs, &["--help"]).output().await.unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(help.contains("GATEWAY_KEYS"));
    assert_no_key(&help);
    let flags = ["--keys", KEY, "--openai-api-key", OWNER];
    assert_no_key(&format!(
        "{:?}",
        gateway::Settings::from_flags(flags).unwrap()
    ));
    let running = provider.with_credentials(&["--keys", KEY]).await;
    assert_no_key(&running.debug);
}
