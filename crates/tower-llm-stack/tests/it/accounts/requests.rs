use http::{HeaderName, Request};
use proptest::prelude::*;
use tower::{Layer, ServiceExt};
use tower_llm_stack::{
    Call, ClassifiedError, Dialect, Operation, Outcome, Provider, RequestBody, Secret,
    accounts::{Account, AccountLayer, ClientCredentials, Credential, Tokens},
};

use super::{Received, Sent, account, chat, sent};

fn key(provider: Provider, dialect: Dialect) -> Credential {
    Credential::key(&provider, dialect, &Secret::new("sk-hidden")).unwrap()
}

/// A request with each credential that a client may send, and each choice of an account.
fn with_everything(path: &str) -> Sent {
    let headers = [
        ("authorization", "Bearer callers"),
        ("x-api-key", "callers"),
        ("api-key", "callers"),
        ("x-goog-api-key", "callers"),
        ("openai-organization", "callers"),
        ("openai-project", "callers"),
        ("x-goog-user-project", "callers"),
        ("ocp-apim-subscription-key", "callers"),
        ("cookie", "session=callers"),
        ("x-http-method-override", "DELETE"),
        ("connection", "close, x-mine"),
        ("keep-alive", "timeout=5"),
        ("proxy-authorization", "Basic callers"),
        ("te", "trailers"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("expect", "100-continue"),
        ("x-mine", "1"),
        ("anthropic-version", "2023-06-01"),
        ("x-request-id", "7"),
    ];
    let body = RequestBody::held(r#"{"model":"m"}"#);
    let mut request = Request::post(path).body(body).unwrap();
    for (name, value) in headers {
        let name: HeaderName = name.parse().unwrap();
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    request
}

fn names(request: &Sent) -> Vec<&str> {
    let mut names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn a_key_goes_in_the_providers_header_and_nothing_of_the_callers_beside_it() {
    for (provider, dialect, header, value) in [
        (
            Provider::OPENAI,
            Dialect::OpenAi,
            "authorization",
            "Bearer sk-hidden",
        ),
        (
            Provider::ANTHROPIC,
            Dialect::Anthropic,
            "x-api-key",
            "sk-hidden",
        ),
        (
            Provider::GEMINI,
            Dialect::Gemini,
            "x-goog-api-key",
            "sk-hidden",
        ),
        (
            Provider::GEMINI,
            Dialect::OpenAi,
            "authorization",
            "Bearer sk-hidden",
        ),
        (
            Provider::AZURE_OPENAI,
            Dialect::OpenAi,
            "api-key",
            "sk-hidden",
        ),
        (
            Provider::new("groq"),
            Dialect::OpenAi,
            "authorization",
            "Bearer sk-hidden",
        ),
        (
            Provider::new("proxy"),
            Dialect::Anthropic,
            "x-api-key",
            "sk-hidden",
        ),
    ] {
        let account = account(provider.clone(), "https://api.test")
            .dialect(dialect)
            .credential(key(provider, dialect));
        let path = "/v1/x?key=callers&%24key=callers&a=1&access_token=callers&userProject=callers";
        let sent = sent(account, with_everything(path)).await;
        assert_eq!(sent.headers()[header], value);
        assert!(sent.headers()[header].is_sensitive());
        let mut expected = ["anthropic-version", "host", "x-request-id", header];
        expected.sort_unstable();
        assert_eq!(names(&sent), expected);
        assert_eq!(sent.uri(), "https://api.test/v1/x?a=1");
        assert_eq!(sent.headers()["host"], "api.test");
    }
}

#[tokio::test]
async fn the_callers_own_credential_passes_where_its_provider_reads_it() {
    for (provider, header, query) in [
        (Provider::OPENAI, None, "a=1"),
        (Provider::ANTHROPIC, Some("x-api-key"), "a=1"),
        (Provider::GEMINI, Some("x-goog-api-key"), "key=callers&a=1"),
        (Provider::AZURE_OPENAI, Some("api-key"), "a=1"),
    ] {
        let account = account(provider, "https://api.test");
        let sent = sent(account, with_everything("/v1/x?key=callers&a=1")).await;
        assert_eq!(sent.headers()["authorization"], "Bearer callers");
        let credentials = ["x-api-key", "api-key", "x-goog-api-key"];
        let passed = credentials
            .into_iter()
            .find(|name| sent.headers().contains_key(*name));
        assert_eq!(passed, header);
        assert!(!sent.headers().contains_key("cookie"));
        // It is the caller's account that is chosen.
        assert_eq!(sent.headers()["openai-organization"], "callers");
        assert!(!sent.headers().contains_key("x-mine") && !sent.headers().contains_key("upgrade"));
        assert_eq!(sent.uri().query(), Some(query));
    }
}

#[tokio::test]
async fn a_model_is_sent_by_the_accounts_name_for_it() {
    for (path, body, sent_to, sent_body) in [
        (
            "/v1/chat/completions",
            r#"{"messages":[], "model" : "gpt-4","stream":true}"#,
            "https://api.test/v1/chat/completions",
            r#"{"messages":[], "model" : "gpt-4-0613","stream":true}"#,
        ),
        (
            "/v1/messages",
            r#"{"model":"gpt-4","max_tokens":5}"#,
            "https://api.test/v1/messages",
            r#"{"model":"gpt-4-0613","max_tokens":5}"#,
        ),
        (
            "/v1beta/models/gpt-4:streamGenerateContent?alt=sse",
            r#"{"contents":[]}"#,
            "https://api.test/v1beta/models/gpt-4-0613:streamGenerateContent?alt=sse",
            r#"{"contents":[]}"#,
        ),
        (
            "/openai/deployments/gpt-4/chat/completions?api-version=1",
            r#"{"messages":[]}"#,
            "https://api.test/openai/deployments/gpt-4-0613/chat/completions?api-version=1",
            r#"{"messages":[]}"#,
        ),
        // Not listed; and the target's own name, which is mapped on to nothing else.
        (
            "/v1/messages",
            r#"{"model":"else"}"#,
            "https://api.test/v1/messages",
            r#"{"model":"else"}"#,
        ),
    ] {
        let account = account(Provider::OPENAI, "https://api.test")
            .model("gpt-4", "gpt-4-0613")
            .model("gpt-4-0613", "never");
        let body = RequestBody::held(body);
        let sent = sent(account, Request::post(path).body(body).unwrap()).await;
        assert_eq!(sent.uri(), sent_to);
        assert_eq!(sent.body().as_bytes().unwrap(), sent_body);
    }
}

#[tokio::test]
async fn a_call_is_described_for_the_account_once() {
    let account = account(Provider::new("groq"), "https://api.test")
        .model("a", "b")
        .model("b", "c");
    let call = Call::builder(Provider::OPENAI, Operation::CHAT)
        .model("a")
        .input_tokens(7)
        .build();
    let described = account.describe(&call);
    assert_eq!(described.provider(), &Provider::new("groq"));
    assert_eq!(described.account(), Some("account-a"));
    assert_eq!(
        (described.model(), described.input_tokens()),
        (Some("b"), 7)
    );
    assert_eq!(described.received_at(), call.received_at());
    assert_eq!(account.describe(&described).model(), Some("b"));
    assert_eq!((account.model_of("a"), account.model_of("x")), ("b", "x"));

    // A pool describes the call before the layers of its target, which the account is inside of.
    for call in [call, described] {
        let mut request = chat("a");
        request.extensions_mut().insert(call);
        let sent = sent(account.clone(), request).await;
        let call = sent.extensions().get::<Call>().unwrap();
        assert_eq!(
            (call.model(), call.account()),
            (Some("b"), Some("account-a"))
        );
        assert_eq!(
            sent.body().as_bytes().unwrap(),
            r#"{"model":"b","messages":[]}"#
        );
    }
    let undescribed = sent(account, chat("a")).await;
    assert!(undescribed.extensions().get::<Call>().is_none());
}

#[tokio::test]
async fn a_request_without_a_path_is_the_callers_fault() {
    let received = Received::default();
    let account = account(Provider::OPENAI, "https://api.test");
    let service = AccountLayer::new(account).layer(received.answering(200));
    let request = Request::options("*").body(RequestBody::default()).unwrap();
    let error = service.oneshot(request).await.unwrap_err();
    let classified = ClassifiedError::find(&*error).unwrap();
    assert_eq!(classified.outcome(), Outcome::ClientError);
    assert_eq!(received.len(), 0);
}

#[test]
fn a_credential_that_no_header_can_have_is_refused_and_not_shown() {
    let secret = Secret::new("hidden\nhidden");
    for error in [
        Credential::bearer(&secret).unwrap_err(),
        Credential::key(&Provider::ANTHROPIC, Dialect::Anthropic, &secret).unwrap_err(),
    ] {
        let shown = format!("{error} {error:?}");
        assert!(
            shown.contains("characters that a header must not have"),
            "{shown}"
        );
        assert!(!shown.contains("hidden"), "{shown}");
    }
}

#[tokio::test]
async fn nothing_that_is_shown_holds_a_credential() {
    let openai = key(Provider::OPENAI, Dialect::OpenAi);
    let credentials =
        ClientCredentials::new("https://login.test/token", "me", Secret::new("sk-hidden")).unwrap();
    let received = Received::default();
    let tokens = Tokens::client_credentials(received.answering(500), credentials.clone());
    let keyed = account(Provider::OPENAI, "https://api.test").credential(openai.clone());
    let with_tokens: Account = keyed.clone().credential(Credential::tokens(tokens.clone()));
    let service = AccountLayer::new(with_tokens.clone()).layer(received.answering(200));
    let error = service.clone().oneshot(chat("m")).await.unwrap_err();
    let sent = sent(keyed.clone(), chat("m")).await;
    let asked = received.0.lock().unwrap().pop().unwrap();
    assert!(asked.headers().contains_key("authorization"));
    let basic = "bWU6c2staGlkZGVu";
    let shown = format!(
        "{openai:?} {credentials:?} {tokens:?} {keyed:?} {with_tokens:?} {service:?} {error} {error:?} {:?} {:?} {:?} {sent:?}",
        error.source(),
        sent.headers(),
        asked.headers(),
    );
    assert!(
        !shown.contains("hidden") && !shown.contains(basic),
        "{shown}"
    );
    for url in [
        "https://me:hidden@login.test",
        "ftp://hidden.test",
        "hidden",
        "/hidden",
    ] {
        let error = ClientCredentials::new(url, "me", Secret::new("hidden")).unwrap_err();
        assert!(
            !format!("{error} {error:?}").contains("hidden"),
            "{error:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a caller's request has in it, the key is the account's.
    #[test]
    fn no_header_of_the_callers_takes_the_place_of_the_key(
        headers in proptest::collection::vec((
            prop_oneof![
                Just("authorization".to_owned()),
                Just("connection".to_owned()),
                Just("x-api-key".to_owned()),
                "[a-z-]{1,12}",
            ],
            "(authorization|x-api-key|[ -~]{0,20})",
        ), 0..8),
    ) {
        let mut request = chat("m");
        for (name, value) in headers {
            let name: Result<HeaderName, _> = name.parse();
            if let (Ok(name), Ok(value)) = (name, value.parse()) {
                request.headers_mut().append(name, value);
            }
        }
        let account = account(Provider::OPENAI, "https://api.test")
            .credential(key(Provider::OPENAI, Dialect::OpenAi));
        let sent = futures_util::FutureExt::now_or_never(sent(account, request)).unwrap();
        let values: Vec<_> = sent.headers().get_all("authorization").iter().collect();
        prop_assert_eq!(values, ["Bearer sk-hidden"]);
        prop_assert!(!sent.headers().contains_key("x-api-key"));
        prop_assert!(!sent.headers().contains_key("connection"));
    }
}
