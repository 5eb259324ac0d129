//! Which paths and methods are reached, and which requests are refused for their form.

use super::{KEY, Raw, bearer};
use crate::support::{Connection, SOON, post, request, within};

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
