//! Which bodies are not cached, and what is known of those that are.

use super::*;

fn responses(body: &str) -> Case {
    Case::new("/v1/responses", Dialect::OpenAiResponses, body)
}

fn messages(body: &str) -> Case {
    Case::new("/v1/messages", Dialect::Anthropic, body)
}

fn gemini(body: &str) -> Case {
    let path = "/v1beta/models/gemini-3-pro:generateContent";
    Case::new(path, Dialect::Gemini, body).with(|case| case.operation = Operation::GENERATE_CONTENT)
}

fn interactions(body: &str) -> Case {
    gemini(body).uri("/v1beta/interactions")
}

/// Puts members into a body that is cached without them.
fn body_with(body: &str, members: &str) -> String {
    let body = body.trim_end().strip_suffix('}').unwrap();
    format!("{body},{members}}}")
}

const CHAT: &str = r#"{"model":"gpt-5","messages":[{"role":"user","content":"Hi"}]}"#;
const RESPONSES: &str = r#"{"model":"gpt-5","input":"Hi","store":false}"#;
const MESSAGES: &str = r#"{"model":"claude-sonnet-5","max_tokens":64,
    "messages":[{"role":"user","content":"Hi"}]}"#;
const GEMINI: &str = r#"{"contents":[{"role":"user","parts":[{"text":"Hi"}]}]}"#;
const INTERACTIONS: &str = r#"{"model":"gemini-3-pro","input":"Hi","store":false}"#;

#[track_caller]
fn bypasses(case: fn(&str) -> Case, body: &str, rows: &[(&str, Bypass)]) {
    assert!(case(body).asked().is_ok());
    for (members, bypass) in rows {
        let asked = case(&body_with(body, members)).asked();
        assert_eq!(asked.err(), Some(*bypass), "{members}");
    }
}

#[track_caller]
fn is_cached(case: fn(&str) -> Case, body: &str, rows: &[&str]) {
    for members in rows {
        let asked = case(&body_with(body, members)).asked();
        assert_eq!(asked.err(), None, "{members}");
    }
}

#[test]
fn chat_bypasses_for_live_data_hosted_tools_and_stored_answers() {
    bypasses(
        Case::chat,
        CHAT,
        &[
            (r#""store":true"#, Bypass::Stored),
            (r#""store":"yes""#, Bypass::Stored),
            (r#""web_search_options":{}"#, Bypass::LiveData),
            (r#""search_parameters":{"mode":"auto"}"#, Bypass::LiveData),
            (
                r#""data_sources":[{"type":"azure_search"}]"#,
                Bypass::LiveData,
            ),
            (r#""enable_search":true"#, Bypass::LiveData),
            (r#""plugins":[{"id":"web"}]"#, Bypass::LiveData),
            (r#""tools":[{"type":"browser_search"}]"#, Bypass::HostedTool),
        ],
    );
    is_cached(
        Case::chat,
        CHAT,
        &[
            r#""store":false"#,
            r#""store":null"#,
            r#""web_search_options":null"#,
            r#""data_sources":[]"#,
            r#""enable_search":false"#,
            r#""plugins":[{"id":"file-parser"}]"#,
            r#""tools":[]"#,
            r#""tools":null"#,
            r#""tools":[{"type":"function","function":{"name":"web_search"}},{"type":"custom"}]"#,
            r#""n":3"#,
            r#""prompt":"kept""#,
        ],
    );
}

#[test]
fn responses_bypass_for_state_background_hosted_tools_and_stored_answers() {
    let bypass = |tool| (tool, Bypass::HostedTool);
    bypasses(
        responses,
        RESPONSES,
        &[
            (r#""previous_response_id":"resp_1""#, Bypass::Stateful),
            (r#""conversation":"conv_1""#, Bypass::Stateful),
            (r#""conversation":{"id":"conv_1"}"#, Bypass::Stateful),
            (
                r#""prompt":{"id":"pmpt_1","version":"2"}"#,
                Bypass::Stateful,
            ),
            (r#""background":true"#, Bypass::Background),
            bypass(r#""tools":[{"type":"web_search"}]"#),
            bypass(r#""tools":[{"type":"web_search_preview_2025_03_11"}]"#),
            bypass(r#""tools":[{"type":"function"},{"type":"file_search"}]"#),
            bypass(r#""tools":[{"type":"code_interpreter","container":{"type":"auto"}}]"#),
            bypass(r#""tools":[{"type":"mcp","server_url":"https://mcp.example"}]"#),
            bypass(r#""tools":[{"type":"computer_use_preview"}]"#),
            bypass(r#""tools":[{"type":"image_generation"}]"#),
            bypass(r#""tools":[{"type":"local_shell"}]"#),
            bypass(r#""tools":[{"type":"a_later_one"}]"#),
        ],
    );
    is_cached(
        responses,
        RESPONSES,
        &[
            r#""previous_response_id":null"#,
            r#""conversation":null"#,
            r#""prompt":null"#,
            r#""background":false"#,
            r#""background":null"#,
            r#""tools":[]"#,
            r#""tools":[{"type":"function","name":"web_search"},{"type":"custom","name":"sql"}]"#,
        ],
    );
}

#[test]
fn responses_are_stored_unless_the_request_says_no() {
    let allowed = |body: &str| responses(body).with(|case| case.settings.allow_stored = true);
    for body in [
        r#"{"input":"Hi"}"#,
        r#"{"input":"Hi","store":null}"#,
        r#"{"input":"Hi","store":true}"#,
    ] {
        assert_eq!(responses(body).asked().unwrap_err(), Bypass::Stored);
        assert_eq!(allowed(body).asked().err(), None);
    }
}

#[test]
fn an_item_that_names_a_stored_one_is_state() {
    for (item, bypass) in [
        (
            r#"{"type":"item_reference","id":"msg_1"}"#,
            Some(Bypass::Stateful),
        ),
        (r#"{"id":"msg_1"}"#, Some(Bypass::Stateful)),
        (r#"{"id":"msg_1","role":"user","content":"Hi"}"#, None),
        (
            r#"{"type":"function_call_output","id":"fc_1","call_id":"c","output":"4"}"#,
            None,
        ),
    ] {
        let body = format!(r#"{{"input":[{item}],"store":false}}"#);
        assert_eq!(responses(&body).asked().err(), bypass, "{item}");
    }
}

#[test]
fn messages_bypass_for_containers_and_server_tools() {
    let bypass = |tool| (tool, Bypass::HostedTool);
    bypasses(
        messages,
        MESSAGES,
        &[
            (r#""container":"container_1""#, Bypass::Stateful),
            (r#""container":{"skills":[]}"#, Bypass::Stateful),
            bypass(r#""tools":[{"type":"web_search_20250305","name":"web_search"}]"#),
            bypass(r#""tools":[{"type":"web_fetch_20250910","name":"web_fetch"}]"#),
            bypass(r#""tools":[{"type":"code_execution_20250825","name":"code_execution"}]"#),
            bypass(r#""tools":[{"type":"mcp_toolset","mcp_server_name":"a"}]"#),
            bypass(r#""mcp_servers":[{"type":"url","url":"https://mcp.example","name":"a"}]"#),
        ],
    );
    is_cached(
        messages,
        MESSAGES,
        &[
            r#""container":null"#,
            r#""mcp_servers":[]"#,
            r#""tools":[]"#,
            r#""tools":[{"name":"web_search_20250305","input_schema":{"type":"object"}}]"#,
            r#""tools":[{"type":"custom","name":"a"},{"type":"bash_20250124","name":"bash"}]"#,
            r#""tools":[{"type":"text_editor_20250728","name":"str_replace_based_edit_tool"}]"#,
            r#""tools":[{"type":"computer_20250124","name":"computer"}]"#,
        ],
    );
}

#[test]
fn gemini_bypasses_for_its_own_tools() {
    let bypass = |tool| (tool, Bypass::HostedTool);
    bypasses(
        gemini,
        GEMINI,
        &[
            bypass(r#""tools":[{"google_search":{}}]"#),
            bypass(r#""tools":[{"functionDeclarations":[]},{"googleSearch":{}}]"#),
            bypass(r#""tools":[{"googleSearchRetrieval":{}}]"#),
            bypass(r#""tools":[{"url_context":{}}]"#),
            bypass(r#""tools":[{"urlContext":{}}]"#),
            bypass(r#""tools":[{"code_execution":{}}]"#),
            bypass(r#""tools":[{"google_maps":{}}]"#),
            bypass(r#""tools":[{"retrieval":{"vertex_ai_search":{}}}]"#),
        ],
    );
    is_cached(
        gemini,
        GEMINI,
        &[
            r#""tools":[]"#,
            r#""tools":[{"functionDeclarations":[{"name":"google_search"}]}]"#,
            r#""tools":[{"function_declarations":[],"google_search":null}]"#,
            r#""cachedContent":"cachedContents/1""#,
            r#""store":true"#,
        ],
    );
}

#[test]
fn interactions_bypass_as_responses_do() {
    bypasses(
        interactions,
        INTERACTIONS,
        &[
            (r#""previous_interaction_id":"v1_1""#, Bypass::Stateful),
            (r#""background":true"#, Bypass::Background),
            (r#""agent":"deep-research""#, Bypass::HostedTool),
            (r#""tools":[{"type":"google_search"}]"#, Bypass::HostedTool),
        ],
    );
    let stored = interactions(r#"{"model":"gemini-3-pro","input":"Hi"}"#);
    assert_eq!(stored.asked().unwrap_err(), Bypass::Stored);
}

#[test]
fn a_body_that_parsers_read_differently_bypasses() {
    for (body, bypass) in [
        ("", Bypass::NotJson),
        ("[]", Bypass::NotJson),
        ("\"text\"", Bypass::NotJson),
        ("{} {}", Bypass::NotJson),
        ("\u{feff}{}", Bypass::NotJson),
        (r#"{"a":"\ud83d"}"#, Bypass::NotJson),
        (r#"{"a":1,"a":1}"#, Bypass::DuplicateMember),
        (r#"{"a":1,"\u0061":2}"#, Bypass::DuplicateMember),
        (r#"{"stream":true,"stream":false}"#, Bypass::DuplicateMember),
        (
            r#"{"x":[{"y":{"a":1,"b":2,"a":3}}]}"#,
            Bypass::DuplicateMember,
        ),
    ] {
        assert_eq!(Case::chat(body).asked().err(), Some(bypass), "{body}");
    }
    let nested = |depth| format!(r#"{{"a":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
    assert!(Case::chat(&nested(126)).asked().is_ok());
    let too_deep = Case::chat(&nested(127)).asked();
    assert_eq!(too_deep.unwrap_err(), Bypass::TooDeep);
    assert_eq!(
        Case::chat(&nested(1_000_000)).asked().unwrap_err(),
        Bypass::TooDeep
    );
}

#[test]
fn an_answer_that_is_meant_to_repeat_is_known() {
    for (members, deterministic) in [
        (r#""temperature":0"#, true),
        (r#""temperature":-0.0"#, true),
        (r#""temperature":0.01"#, false),
        (r#""temperature":"0""#, false),
        (r#""seed":7"#, true),
        (r#""seed":0"#, true),
        (r#""seed":null"#, false),
        (r#""n":1"#, false),
    ] {
        let chat = Case::chat(&body_with(CHAT, members));
        assert_eq!(chat.is_deterministic(), deterministic, "{members}");
        for name in ["generationConfig", "generation_config"] {
            let config = format!(r#""{name}":{{{members}}}"#);
            let gemini = gemini(&body_with(GEMINI, &config));
            assert_eq!(gemini.is_deterministic(), deterministic, "{config}");
        }
    }
    let embedding = Case::chat(r#"{"input":"a"}"#);
    let embedding = embedding.with(|case| case.operation = Operation::EMBEDDINGS);
    assert!(embedding.is_deterministic());
}

#[test]
fn a_stream_that_ends_with_the_usage_is_known() {
    for (options, include_usage) in [
        (r#"{"include_usage":true}"#, true),
        (r#"{"include_usage":false}"#, false),
        ("{}", false),
        ("null", false),
    ] {
        let members = format!(r#""stream":true,"stream_options":{options}"#);
        let asked = Case::chat(&body_with(CHAT, &members)).asked().unwrap();
        assert_eq!(asked.include_usage, include_usage, "{options}");
    }
}

#[test]
fn the_number_of_choices_that_a_request_asks_for_is_known() {
    for (n, choices) in [("2", 2), ("2.0", 2), ("2e0", 2), ("null", 1), (r#""2""#, 1)] {
        let chat = Case::chat(&body_with(CHAT, &format!(r#""n":{n}"#)));
        assert_eq!(chat.asked().unwrap().choices, choices, "{n}");
    }
    for config in [
        r#""generationConfig":{"candidateCount":3}"#,
        r#""generation_config":{"candidate_count":3}"#,
    ] {
        let asked = gemini(&body_with(GEMINI, config)).asked().unwrap();
        assert_eq!(asked.choices, 3, "{config}");
    }
    assert_eq!(Case::chat(CHAT).asked().unwrap().choices, 1);
}

#[test]
fn models_that_search_by_themselves_bypass() {
    let asked = |model: &'static str| Case::chat("{}").with(|case| case.model = model).asked();
    for model in [
        "sonar",
        "sonar-pro",
        "Sonar-Reasoning-Pro",
        "perplexity/sonar-deep-research",
        "llama-3.1-sonar-large-128k-online",
        "gpt-4o-search-preview",
        "gpt-4o-mini-search-preview-2025-03-11",
        "openai/gpt-4o-search-preview",
        "gpt-5-search-api-2025-10-14",
        "o4-mini-deep-research",
        "deep-research-pro-preview-12-2025",
        "anthropic/claude-sonnet-5:online",
        "openai/gpt-5:ONLINE",
        "openai/gpt-5:free:online",
        "ft:gpt-4o-search-preview:org::1",
        "groq/compound",
        "compound-beta-mini",
        "exa-research-pro",
        "brave-pro",
        "jina-deepsearch-v1",
    ] {
        assert_eq!(asked(model).err(), Some(Bypass::LiveData), "{model}");
    }
    for model in [
        "gpt-5.4",
        "perplexity/r1-1776",
        "sonar2",
        "sonara/claude-sonnet-5",
        "online",
        "gpt-5-onliner",
        "research-api",
        "search-preview",
        "deepseek/deepseek-r1:free",
        "research",
        "compounds",
        "exaone-4.0-32b",
        "gpt-oss-safeguard-search",
        "",
    ] {
        assert_eq!(asked(model).err(), None, "{model}");
    }
    let fallback = r#"{"models":["openai/gpt-5","perplexity/sonar"]}"#;
    assert_eq!(
        Case::chat(fallback).asked().unwrap_err(),
        Bypass::LiveData,
        "one that may be taken instead"
    );
    let embedding = Case::chat("{}").with(|case| {
        case.model = "sonar";
        case.operation = Operation::EMBEDDINGS;
    });
    assert!(embedding.asked().is_ok());
}

#[test]
fn counting_stores_nothing() {
    let count = responses(r#"{"input":"Hi"}"#);
    assert_eq!(count.asked().unwrap_err(), Bypass::Stored);
    let count = count.with(|case| case.operation = Operation::COUNT_TOKENS);
    assert!(count.asked().is_ok());
}
