//! Whose credential and whose account a provider sees.

use super::{DIALECTS, KEY, OWN, OWNER, Raw, assert_no_key, assert_unauthorized, bearer};
use crate::support::{Running, post, request};

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
