//! What a request says outside its body.

use http::HeaderName;

use super::*;

#[test]
fn everything_beside_the_body_that_matters_tells_requests_apart() {
    let chat = Case::chat(r#"{"model":"m"}"#);
    let header = HeaderName::from_static("x-tenant");
    let by_caller = chat.with(|case| case.settings.scope = Scope::caller());
    let by_header = chat.with(|case| case.settings.scope = Scope::header(header));
    all_differ(&[
        chat.clone(),
        chat.with(|case| case.settings.namespace = "b".into()),
        chat.with(|case| case.settings.secret = Some([1; 32])),
        chat.with(|case| case.settings.secret = Some([2; 32])),
        by_caller.with(|case| case.caller = Some("a")),
        by_caller.with(|case| case.caller = Some("b")),
        by_header.header("x-tenant", "a"),
        by_header.header("x-tenant", "b"),
        chat.with(|case| case.provider = Provider::new("groq")),
        chat.with(|case| case.operation = Operation::TEXT_COMPLETION),
        chat.with(|case| case.operation = Operation::new("translate")),
        chat.with(|case| case.dialect = None),
        chat.with(|case| case.model = "n"),
        chat.header("anthropic-version", "2023-06-01"),
        chat.header("anthropic-beta", "a"),
        chat.header("anthropic-beta", "a,b"),
        chat.header("openai-beta", "a"),
        chat.header("extra-parameters", "drop"),
        chat.header("x-policy-id", "lax"),
        chat.header("x-amzn-bedrock-guardrailidentifier", "a"),
        chat.header("x-amzn-bedrock-guardrailversion", "1"),
        chat.uri("/openai/v1/chat/completions"),
        chat.uri("/v1/chat/completions?api-version=2025-01-01"),
        chat.uri("/v1/chat/completions?api-version=2025-03-01"),
        chat.uri("https://api.groq.com/v1/chat/completions"),
    ]);
}

#[test]
fn what_does_not_matter_beside_the_body_leaves_the_key() {
    let chat = Case::chat(r#"{"model":"m"}"#);
    all_equal(&[
        chat.clone(),
        chat.header("authorization", "Bearer sk-1"),
        chat.header("accept", "text/event-stream"),
        chat.header("x-request-id", "1"),
        chat.uri("/v1/chat/completions/"),
        chat.with(|case| case.caller = Some("a")),
        chat.with(|case| case.account = Some("a")),
    ]);
    let betas = chat.header("anthropic-beta", "a, b");
    all_equal(&[
        betas.clone(),
        chat.header("anthropic-beta", "b,a,"),
        chat.header("anthropic-beta", "b")
            .header("anthropic-beta", "a"),
    ]);
    all_equal(&[
        chat.uri("https://api.openai.com/v1/chat/completions"),
        chat.uri("https://user:secret@API.openai.com/v1/chat/completions"),
        chat.header("host", "api.openai.com"),
    ]);
}

#[test]
fn a_deployment_is_an_accounts_own() {
    let azure = Case::chat("{}").with(|case| case.provider = Provider::AZURE_OPENAI);
    all_differ(&[
        azure.clone(),
        azure.with(|case| case.account = Some("east")),
        azure.with(|case| case.account = Some("west")),
    ]);
}

#[test]
fn headers_of_the_services_own_can_matter() {
    let chat = Case::chat("{}").with(|case| {
        case.settings
            .add_header(HeaderName::from_static("x-upstream"));
    });
    let other = HeaderName::from_static("x-other");
    all_differ(&[
        chat.clone(),
        chat.header("x-upstream", "a"),
        chat.header("x-upstream", "b"),
        chat.header("x-upstream", "a").header("x-upstream", "b"),
        Case::chat("{}"),
        Case::chat("{}").with(|case| case.settings.add_header(other.clone())),
        chat.with(|case| case.settings.add_header(other.clone())),
    ]);
}

#[test]
fn the_order_in_which_headers_are_set_does_not_matter() {
    let case = |names: &[&'static str]| {
        let case = Case::chat("{}").header("x-a", "1").header("x-b", "2");
        case.with(|case| {
            for name in names {
                case.settings.add_header(HeaderName::from_static(name));
            }
        })
    };
    all_equal(&[
        case(&["x-a", "x-b"]),
        case(&["x-b", "x-a"]),
        case(&["x-b", "x-a", "x-b"]),
    ]);
}

#[test]
fn gemini_streams_by_another_method_of_the_same_answer() {
    let models = "/v1beta/models/gemini-3-pro";
    let gemini = Case::new(
        &format!("{models}:generateContent"),
        Dialect::Gemini,
        r#"{"contents":[]}"#,
    );
    all_equal(&[
        gemini.clone(),
        gemini.uri(&format!("{models}:streamGenerateContent")),
        gemini.uri(&format!("{models}:streamGenerateContent?alt=sse&key=AIza")),
    ]);
    all_differ(&[
        gemini.clone(),
        gemini.uri(&format!("{models}:embedContent")),
        gemini.uri(&format!("{models}:generateContent?alt=proto")),
        gemini.uri("/v1/models/gemini-3-pro:generateContent"),
        gemini.uri("/v1beta/models/gemini-3-flash:generateContent"),
    ]);
}

#[test]
fn a_scope_without_its_caller_bypasses() {
    let caller = Case::chat("{}").with(|case| case.settings.scope = Scope::caller());
    let name = HeaderName::from_static("x-tenant");
    let header = Case::chat("{}").with(|case| case.settings.scope = Scope::header(name));
    for case in [
        caller.clone(),
        caller.with(|case| case.caller = Some("")),
        header.clone(),
        header.header("x-tenant", ""),
        header.header("x-tenant", "a").header("x-tenant", "a"),
    ] {
        assert_eq!(case.asked().unwrap_err(), Bypass::NoCaller);
    }
    assert!(header.header("x-tenant", "a").asked().is_ok());
}

#[test]
fn only_what_is_posted_is_cached() {
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        let case = Case::chat("{}").with(|case| *case.request.method_mut() = method.clone());
        assert_eq!(case.asked().unwrap_err(), Bypass::Operation, "{method}");
    }
}

#[test]
fn each_operation_has_keys_of_its_own() {
    let operations = [
        Operation::CHAT,
        Operation::COUNT_TOKENS,
        Operation::OTHER,
        Operation::new("rerank"),
    ];
    let case = |operation| Case::chat("{}").with(|case| case.operation = operation);
    all_differ(&operations.map(case));
}

#[test]
fn seeds_that_differ_by_one_differ() {
    all_differ(
        &[
            9_007_199_254_740_992,
            9_007_199_254_740_993,
            u64::MAX as u128,
            u64::MAX as u128 + 1,
        ]
        .map(|seed| Case::chat(&format!(r#"{{"seed":{seed}}}"#))),
    );
}
