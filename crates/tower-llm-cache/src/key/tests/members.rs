//! Which members of a body change its key, and where.

use super::*;

fn responses(input: &str) -> Case {
    let body = format!(r#"{{"store":false,"input":{input}}}"#);
    Case::new("/v1/responses", Dialect::OpenAiResponses, &body)
}

fn messages(body: &str) -> Case {
    Case::new("/v1/messages", Dialect::Anthropic, body)
}

/// A body of each dialect, and what may be added to its members without another answer.
fn extras() -> Vec<(Case, Vec<&'static str>)> {
    let openai = [
        r#""stream":true"#,
        r#""stream_options":{"include_usage":true}"#,
        r#""user":"u-1""#,
        r#""safety_identifier":"u-1""#,
        r#""metadata":{"a":"b"}"#,
        r#""service_tier":"flex""#,
        r#""prompt_cache_key":"k""#,
        r#""prompt_cache_options":{"mode":"explicit"}"#,
        r#""prompt_cache_retention":"24h""#,
    ];
    let gemini = [
        r#""labels":{"team":"a"}"#,
        r#""service_tier":"flex""#,
        r#""serviceTier":"flex""#,
        r#""store":false"#,
        r#""http_options":{"timeout":1}"#,
        r#""httpOptions":{"timeout":1}"#,
    ];
    let embeddings = Case::new("/v1/embeddings", Dialect::OpenAi, r#"{"input":"a"}"#);
    vec![
        (
            Case::chat(r#"{"messages":[]}"#),
            [&openai[..], &[r#""store":false"#]].concat(),
        ),
        (
            responses(r#""Hi""#),
            [&openai[..], &[r#""background":false"#]].concat(),
        ),
        (
            embeddings.with(|case| case.operation = Operation::EMBEDDINGS),
            vec![r#""user":"u-1""#],
        ),
        (
            messages(r#"{"messages":[]}"#),
            vec![
                r#""stream":true"#,
                r#""metadata":{"user_id":"u-1"}"#,
                r#""service_tier":"auto""#,
                r#""speed":"fast""#,
                r#""diagnostics":{}"#,
                r#""user_profile_id":"p-1""#,
                r#""cache_control":{"type":"ephemeral"}"#,
            ],
        ),
        (
            Case::new(
                "/v1beta/models/m:generateContent",
                Dialect::Gemini,
                r#"{"contents":[]}"#,
            ),
            gemini.to_vec(),
        ),
    ]
}

fn added(case: &Case, members: &str) -> Case {
    case.with(|case| {
        let body = case.body.strip_suffix('}').unwrap();
        case.body = format!("{body},{members}}}");
    })
}

#[test]
fn members_for_other_purposes_leave_the_key() {
    for (case, extras) in extras() {
        for extra in &extras {
            assert_eq!(added(&case, extra).digest(), case.digest(), "{extra}");
        }
        let all = extras.join(",");
        assert_eq!(added(&case, &all).digest(), case.digest(), "{all}");
    }
}

#[test]
fn members_for_other_purposes_matter_where_the_api_does_not_have_them() {
    let (_, unknown) = &extras()[3];
    for (case, extras) in extras() {
        for extra in extras.iter().chain(unknown) {
            // Below another member, it is the caller's data.
            let below = format!(r#""x":{{{extra}}}"#);
            assert_ne!(
                added(&case, &below).digest(),
                added(&case, r#""x":{}"#).digest()
            );
        }
    }
    // One dialect's are nothing to another's.
    let embeddings = &extras()[2].0;
    assert_ne!(
        added(embeddings, r#""metadata":{}"#).digest(),
        embeddings.digest()
    );
    let messages = &extras()[3].0;
    assert_ne!(
        added(messages, r#""user":"u-1""#).digest(),
        messages.digest()
    );
    let none = Case::chat("{}").with(|case| case.dialect = None);
    assert_ne!(
        added(
            &none.with(|case| case.body = r#"{"a":1}"#.into()),
            r#""stream":true"#
        )
        .digest(),
        none.with(|case| case.body = r#"{"a":1}"#.into()).digest()
    );
}

#[test]
fn members_that_look_like_noise_change_the_key() {
    let chat = Case::chat(r#"{"messages":[]}"#);
    let rows = [
        r#""seed":1"#,
        r#""seed":2"#,
        r#""n":2"#,
        r#""max_tokens":9"#,
        r#""max_completion_tokens":9"#,
        r#""logprobs":true"#,
        r#""temperature":1"#,
        r#""temperature":null"#,
        r#""prediction":{"type":"content","content":"a"}"#,
        r#""prediction":{"type":"content","content":"b"}"#,
        r#""a_later_member":true"#,
        r#""Stream":true"#,
    ];
    let mut cases = vec![chat.clone()];
    cases.extend(rows.map(|row| added(&chat, row)));
    all_differ(&cases);
}

#[test]
fn a_text_is_a_list_of_one_part() {
    let chat = |content: &str| {
        Case::chat(&format!(
            r#"{{"messages":[{{"role":"user","content":{content}}}]}}"#
        ))
    };
    all_equal(&[
        chat(r#""Hi""#),
        chat(r#"[{"type":"text","text":"Hi"}]"#),
        chat(r#"[{"type":"text","text":"Hi","prompt_cache_breakpoint":{"mode":"explicit"}}]"#),
    ]);
    all_differ(&[
        chat(r#""Hi""#),
        chat(r#"["Hi"]"#),
        chat(r#"[{"type":"text","text":"H"},{"type":"text","text":"i"}]"#),
        chat(r#"[{"type":"text","text":"Hi","x":1}]"#),
        chat(r#"[{"type":"text","text":"Hi","x":{"prompt_cache_breakpoint":1}}]"#),
        chat(r#"[{"type":"refusal","text":"Hi"}]"#),
        chat("null"),
        chat("[]"),
        chat(r#""""#),
    ]);
    all_equal(&[
        responses(r#""Hi""#),
        responses(r#"[{"role":"user","content":"Hi"}]"#),
        responses(r#"[{"type":"message","role":"user","content":"Hi"}]"#),
        responses(r#"[{"role":"user","content":[{"type":"input_text","text":"Hi"}]}]"#),
        responses(
            r#"[{"role":"user","content":[{"type":"input_text","text":"Hi","prompt_cache_breakpoint":{}}]}]"#,
        ),
    ]);
    all_differ(&[
        responses(r#""Hi""#),
        responses(r#"["Hi"]"#),
        responses(r#"[{"role":"system","content":"Hi"}]"#),
        responses(r#"[{"role":"assistant","content":"Hi"}]"#),
        responses(r#"[{"role":"assistant","content":[{"type":"input_text","text":"Hi"}]}]"#),
        responses(r#"[{"role":"assistant","content":[{"type":"output_text","text":"Hi"}]}]"#),
        responses(r#"[{"type":"a_later_one","role":"user","content":"Hi"}]"#),
    ]);
    let system = |system: &str| messages(&format!(r#"{{"system":{system}}}"#));
    let content = |content: &str| {
        messages(&format!(
            r#"{{"messages":[{{"role":"user","content":{content}}}]}}"#
        ))
    };
    for place in [&system as &dyn Fn(&str) -> Case, &content] {
        all_equal(&[
            place(r#""Hi""#),
            place(r#"[{"type":"text","text":"Hi"}]"#),
            place(r#"[{"type":"text","text":"Hi","cache_control":{"type":"ephemeral"}}]"#),
        ]);
        all_differ(&[
            place(r#""Hi""#),
            place(r#"[{"type":"text","text":"Hi","citations":[]}]"#),
            place(r#"[{"type":"text","text":"Hi"},{"type":"text","text":""}]"#),
        ]);
    }
}

/// Bodies with a `MARK` where `cache_control` is the API's own.
const BREAKPOINTS: [&str; 9] = [
    r#"{"system":[{"type":"text","text":"a"MARK}]}"#,
    r#"{"tools":[{"name":"a","input_schema":{}MARK}]}"#,
    r#"{"messages":[{"role":"user","content":[{"type":"text","text":"a"MARK}]}]}"#,
    r#"{"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"1","input":{}MARK}]}]}"#,
    r#"{"messages":[{"role":"user","content":[{"type":"tool_result","tool_use_id":"1"MARK}]}]}"#,
    r#"{"messages":[{"role":"user","content":[{"type":"tool_result","content":[{"type":"text","text":"a"MARK}]}]}]}"#,
    r#"{"messages":[{"role":"user","content":[{"type":"document","source":{"type":"content","content":[{"type":"text","text":"a"MARK}]}}]}]}"#,
    r#"{"messages":[{"role":"user","content":[{"type":"document","source":{"type":"text","data":"a"}MARK}]}]}"#,
    r#"{"messages":[{"role":"user","content":[{"type":"search_result","content":[{"type":"text","text":"a"MARK}]}]}]}"#,
];

/// Bodies with a `MARK` where `cache_control` is the name of something else.
const DATA: [&str; 9] = [
    r#"{"tools":[{"name":"a","input_schema":{"properties":{"url":{}MARK}}}]}"#,
    r#"{"tools":[{"name":"a","input_schema":{"type":"object"MARK}}]}"#,
    r#"{"tools":[{"name":"a","input_examples":[{"url":"x"MARK}]}]}"#,
    r#"{"messages":[{"role":"assistant","content":[{"type":"tool_use","input":{"url":"x"MARK}}]}]}"#,
    r#"{"messages":[{"role":"assistant","content":[{"type":"tool_use","content":[{"url":"x"MARK}]}]}]}"#,
    r#"{"messages":[{"role":"user","content":[{"type":"tool_result","content":[{"type":"text","text":{"a":1MARK}}]}]}]}"#,
    r#"{"messages":[{"role":"user","content":[{"type":"document","source":{"type":"text","content":[{"a":1MARK}]}}]}]}"#,
    r#"{"messages":[{"role":"user","content":[]MARK}]}"#,
    r#"{"output_config":{"format":{"schema":{"properties":{"a":{}MARK}}}}}"#,
];

#[test]
fn what_the_provider_caches_matters_only_as_data() {
    let marked = |body: &str, control: &str| messages(&body.replace("MARK", control));
    let short = r#","cache_control":{"type":"ephemeral"}"#;
    let long = r#","cache_control":{"type":"ephemeral","ttl":"1h"}"#;
    for body in BREAKPOINTS {
        all_equal(&[marked(body, ""), marked(body, short), marked(body, long)]);
    }
    for body in DATA {
        all_differ(&[marked(body, ""), marked(body, short), marked(body, long)]);
    }
}
