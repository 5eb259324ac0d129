//! The gateway's own keys: which callers need one, where clients send it, and that no output shows it.

use http::StatusCode;

use super::{
    DIALECTS, KEY, OTHER_KEY, OWN, OWNER, Raw, assert_no_key, assert_unauthorized, bearer,
};
use crate::support::{Binary, post, request};

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
