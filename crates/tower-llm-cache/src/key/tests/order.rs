//! Where the order of members matters.

use super::*;

/// Bodies with a `MARK` where a schema stands, or members of one.
fn schemas() -> Vec<(Case, &'static str)> {
    let chat = Case::chat("{}");
    let responses = Case::new("/v1/responses", Dialect::OpenAiResponses, "{}");
    let messages = Case::new("/v1/messages", Dialect::Anthropic, "{}");
    let gemini = Case::new(
        "/v1beta/models/m:generateContent",
        Dialect::Gemini,
        r#"{"contents":[]}"#,
    );
    let interactions = gemini.uri("/v1beta/interactions");
    vec![
        (
            chat.clone(),
            r#"{"response_format":{"json_schema":{"schema":{"properties":{MARK}}}}}"#,
        ),
        (
            chat.clone(),
            r#"{"tools":[{"function":{"parameters":{"properties":{MARK}}}}]}"#,
        ),
        (
            chat.clone(),
            r#"{"functions":[{"parameters":{"properties":{"x":{"anyOf":[{MARK}]}}}}]}"#,
        ),
        (chat.clone(), r#"{"guided_json":{MARK}}"#),
        (chat.clone(), r#"{"structured_outputs":{"json":{MARK}}}"#),
        (chat, r#"{"format":{MARK}}"#),
        (
            responses.clone(),
            r#"{"store":false,"text":{"format":{"schema":{MARK}}}}"#,
        ),
        (
            responses,
            r#"{"store":false,"tools":[{"type":"function","parameters":{MARK}}]}"#,
        ),
        (
            messages.clone(),
            r#"{"tools":[{"input_schema":{"properties":{MARK}}}]}"#,
        ),
        (
            messages.clone(),
            r#"{"output_config":{"format":{"schema":{MARK}}}}"#,
        ),
        (messages, r#"{"output_format":{"schema":{MARK}}}"#),
        (
            gemini.clone(),
            r#"{"tools":[{"functionDeclarations":[{"parameters":{MARK}}]}]}"#,
        ),
        (
            gemini.clone(),
            r#"{"generationConfig":{"responseSchema":{"properties":{MARK}}}}"#,
        ),
        (
            gemini.clone(),
            r#"{"generation_config":{"response_schema":{MARK}}}"#,
        ),
        (
            gemini,
            r#"{"generationConfig":{"responseJsonSchema":{MARK}}}"#,
        ),
        (
            interactions.clone(),
            r#"{"store":false,"response_format":{MARK}}"#,
        ),
        (
            interactions,
            r#"{"store":false,"tools":[{"type":"function","parameters":{MARK}}]}"#,
        ),
    ]
}

fn marked(case: &Case, body: &str, members: &str) -> Case {
    case.with(|case| case.body = body.replace("MARK", members))
}

#[test]
fn the_order_of_a_schemas_members_matters() {
    for (case, body) in schemas() {
        all_differ(
            &[
                r#""a":{"type":"string"},"b":{"type":"string"},"c":{}"#,
                r#""b":{"type":"string"},"a":{"type":"string"},"c":{}"#,
                r#""a":{"type":"string"},"c":{},"b":{"type":"string"}"#,
                r#""c":{},"a":{"type":"string"},"b":{"type":"string"}"#,
            ]
            .map(|members| marked(&case, body, members)),
        );
    }
}

#[test]
fn a_schema_may_be_spelled_in_any_way() {
    for (case, body) in schemas() {
        all_equal(
            &[
                r#""ab":{"x":1,"y":"é"},"b":[]"#,
                r#" "ab" : {"x":1.0,"y":"\u00e9"} , "b":[ ]"#,
                r#""\u0061b":{"\u0078":10e-1,"y":"é"},"\u0062":[]"#,
            ]
            .map(|members| marked(&case, body, members)),
        );
        let twice = marked(&case, body, r#""a":1,"b":2,"\u0061":3"#);
        assert_eq!(twice.asked().unwrap_err(), Bypass::DuplicateMember);
    }
}

/// Its members are numbered; the number of one could be taken for what ends the object.
#[test]
fn every_member_of_a_large_schema_matters() {
    let names: Vec<_> = (0..300).map(|at| format!(r#""p{at:03}":{{}}"#)).collect();
    let case = |names: &[String]| {
        let members = names.join(",");
        Case::chat(&format!(r#"{{"response_format":{{{members}}}}}"#))
    };
    let mut cases = vec![case(&names)];
    for at in [0, 124, 125, 126, 255, 298] {
        let mut swapped = names.clone();
        swapped.swap(at, at + 1);
        cases.push(case(&swapped));
        cases.push(case(&names[..=at]));
    }
    all_differ(&cases);
}

#[test]
fn the_order_of_all_other_members_does_not_matter() {
    let responses = Case::new("/v1/responses", Dialect::OpenAiResponses, "{}");
    let messages = Case::new("/v1/messages", Dialect::Anthropic, "{}");
    let gemini = Case::new("/v1beta/models/m:generateContent", Dialect::Gemini, "{}");
    for (case, body) in [
        (
            Case::chat("{}"),
            r#"{"messages":[{"role":"user","content":"a"}],"tools":[],MARK}"#,
        ),
        (
            Case::chat("{}"),
            r#"{"messages":[{"role":"tool","content":[{MARK}]}]}"#,
        ),
        (Case::chat("{}"), r#"{"x":{"response_format":{MARK}}}"#),
        (Case::chat("{}"), r#"{"logit_bias":{MARK}}"#),
        (responses.clone(), r#"{"store":false,"text":{MARK}}"#),
        (responses, r#"{"store":false,"format":{MARK}}"#),
        (messages.clone(), r#"{"tools":[{"name":"n",MARK}]}"#),
        (
            messages,
            r#"{"messages":[{"role":"assistant","content":[{"type":"tool_use","input":{MARK}}]}]}"#,
        ),
        (gemini.clone(), r#"{"generationConfig":{MARK}}"#),
        (gemini, r#"{"contents":[{"parts":[{MARK}]}]}"#),
    ] {
        all_equal(&[
            marked(&case, body, r#""a":1,"b":{"c":2,"d":3}"#),
            marked(&case, body, r#""b":{"c":2,"d":3},"a":1"#),
        ]);
        // Below a tool is its schema.
        if !body.contains("\"tools\":[{") {
            all_equal(&[
                marked(&case, body, r#""a":1,"b":{"c":2,"d":3}"#),
                marked(&case, body, r#""a":1,"b":{"d":3,"c":2}"#),
            ]);
        }
    }
}
