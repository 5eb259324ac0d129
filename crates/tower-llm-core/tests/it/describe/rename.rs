use super::*;
use tower_llm_core::rename_model;

fn request(path: &str, body: &str) -> Request<RequestBody> {
    let body = RequestBody::held(body.to_owned());
    Request::post(path).body(body).unwrap()
}

fn to_new(model: &str) -> Option<&'static str> {
    (model == "old").then_some("new/\"1\"")
}

/// The path and body of what is sent.
fn renamed(path: &str, body: &str) -> Option<(String, String)> {
    let mut request = request(path, body);
    let is_renamed = rename_model(&mut request, to_new);
    let sent = std::str::from_utf8(request.body().as_bytes().unwrap()).unwrap();
    let sent = (request.uri().to_string(), sent.to_owned());
    if !is_renamed {
        assert_eq!(sent, (path.to_owned(), body.to_owned()));
    }
    is_renamed.then_some(sent)
}

#[test]
fn a_model_is_renamed_where_its_dialect_names_it() {
    for (path, body, expected_path, expected_body) in [
        (
            "/v1/chat/completions",
            r#"{"model":"old","messages":[{"role":"user","content":"model: old"}]}"#,
            "/v1/chat/completions",
            r#"{"model":"new/\"1\"","messages":[{"role":"user","content":"model: old"}]}"#,
        ),
        (
            "/v1/messages",
            "{ \"max_tokens\": 5 ,\r\n\t\"model\" :\"old\" }",
            "/v1/messages",
            "{ \"max_tokens\": 5 ,\r\n\t\"model\" :\"new/\\\"1\\\"\" }",
        ),
        // An object that does not name the request's model.
        (
            "/v1/responses",
            r#"{"text":{"model":"old"},"metadata":{"model":"old"},"model":"old"}"#,
            "/v1/responses",
            r#"{"text":{"model":"old"},"metadata":{"model":"old"},"model":"new/\"1\""}"#,
        ),
        // A provider may take either of two.
        (
            "/v1/completions",
            r#"{"model":"old","model":"old"}"#,
            "/v1/completions",
            r#"{"model":"new/\"1\"","model":"new/\"1\""}"#,
        ),
        (
            "/v1/chat/completions",
            "\u{feff}{\"mod\\u0065l\":\"\\u006fld\"}",
            "/v1/chat/completions",
            "\u{feff}{\"mod\\u0065l\":\"new/\\\"1\\\"\"}",
        ),
        (
            "/v1beta/models/old:generateContent?alt=sse",
            r#"{"contents":[{"parts":[{"text":"old"}]}]}"#,
            "/v1beta/models/new%2F%221%22:generateContent?alt=sse",
            r#"{"contents":[{"parts":[{"text":"old"}]}]}"#,
        ),
        (
            "/v1beta/models/old:batchEmbedContents",
            r#"{"requests":[{"model":"models/old","content":{}},{"model":"models/else"}]}"#,
            "/v1beta/models/new%2F%221%22:batchEmbedContents",
            r#"{"requests":[{"model":"models/new/\"1\"","content":{}},{"model":"models/else"}]}"#,
        ),
        (
            "/v1beta/models/old:countTokens",
            r#"{"generateContentRequest":{"model":"models/old"}}"#,
            "/v1beta/models/new%2F%221%22:countTokens",
            r#"{"generateContentRequest":{"model":"models/new/\"1\""}}"#,
        ),
        (
            "/openai/deployments/%6fld/chat/completions?api-version=2024-10-21",
            r#"{"messages":[]}"#,
            "/openai/deployments/new%2F%221%22/chat/completions?api-version=2024-10-21",
            r#"{"messages":[]}"#,
        ),
        // Azure ignores the body's; a server that does not must not get the old one.
        (
            "/openai/deployments/old/embeddings",
            r#"{"model":"old"}"#,
            "/openai/deployments/new%2F%221%22/embeddings",
            r#"{"model":"new/\"1\""}"#,
        ),
    ] {
        let expected = (expected_path.to_owned(), expected_body.to_owned());
        assert_eq!(renamed(path, body), Some(expected), "{path} {body}");
    }
}

#[test]
fn other_models_and_what_is_no_model_stay() {
    for (path, body) in [
        ("/v1/chat/completions", r#"{"model":"else"}"#),
        ("/v1/chat/completions", r#"{"model":{"model":"old"}}"#),
        ("/v1/chat/completions", r#"{"model":["old"]}"#),
        ("/v1/chat/completions", r#"["model","old"]"#),
        ("/v1/chat/completions", r#"{"messages":[]}"#),
        ("/v1/chat/completions", "old"),
        ("/v1/chat/completions", ""),
        // The path names the model; the body's is something else.
        ("/v1beta/models/else:generateContent", r#"{"model":"old"}"#),
        ("/openai/deployments/else/embeddings", r#"{"model":"old"}"#),
    ] {
        assert_eq!(renamed(path, body), None, "{path} {body}");
    }
    // The same name.
    let mut request = request("/v1/messages", r#"{"model":"old"}"#);
    assert!(!rename_model(&mut request, |_| Some("old")));
}

#[test]
fn a_stated_length_stays_true_and_a_stream_is_left() {
    let mut request = request("/v1/messages", r#"{"model":"old"}"#);
    request.headers_mut().insert("content-length", 15.into());
    assert!(rename_model(&mut request, |_| Some("newer")));
    assert_eq!(request.headers()["content-length"], "17");

    let body = RequestBody::streamed(Full::new(Bytes::from(r#"{"model":"old"}"#)));
    let mut request = Request::post("/v1/messages").body(body).unwrap();
    assert!(!rename_model(&mut request, |_| Some("new")));
}

proptest! {
    /// The text around a model's name, whatever it is, comes out as it went in.
    #[test]
    fn no_byte_but_the_models_changes(
        before in member(),
        after in member(),
        spaces in "[ \n\t\r]{0,3}",
        old in any::<String>(),
        new in any::<String>(),
        body_is_ascii: bool,
    ) {
        let quoted = |text: &str| {
            let quoted = serde_json::to_string(text).unwrap();
            if !body_is_ascii {
                return quoted;
            }
            // As Python writes it.
            let mut ascii = String::new();
            for character in quoted.chars() {
                if character.is_ascii() {
                    ascii.push(character);
                } else {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        ascii.push_str(&format!("\\u{unit:04x}"));
                    }
                }
            }
            ascii
        };
        let with = |model: &str| format!(
            "{spaces}{{{before},{spaces}\"model\"{spaces}:{spaces}{model}{spaces},{after}}}{spaces}"
        );
        let mut request = request("/v1/chat/completions", &with(&quoted(&old)));
        let is_renamed = rename_model(&mut request, |model| (model == old).then_some(&*new));
        let expected = match old == new {
            true => with(&quoted(&old)),
            false => with(&serde_json::to_string(&new).unwrap()),
        };
        prop_assert_eq!(is_renamed, old != new);
        prop_assert_eq!(request.body().as_bytes().unwrap(), &expected);
    }

    #[test]
    fn no_body_makes_it_panic(body in proptest::collection::vec(any::<u8>(), 0..200), json in "[\\[\\]{}\":,model\\\\ ]{0,60}") {
        for path in ["/v1/messages", "/v1beta/models/m:countTokens"] {
            for body in [body.clone(), json.clone().into_bytes()] {
                let body = <RequestBody>::held(body);
                let mut request = Request::post(path).body(body).unwrap();
                rename_model(&mut request, |_| Some("new"));
            }
        }
    }
}

/// A member of an object that is not its model, as text.
fn member() -> impl Strategy<Value = String> {
    let key = any::<String>().prop_filter("not the model", |key| key != "model");
    let value = prop_oneof![
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        Just(r#"{"model":"old","x":[{"model":"old"}]}"#.to_owned()),
        Just("[[[\"model\"]]]".to_owned()),
        any::<f64>()
            .prop_filter("JSON has no other", |number| number.is_finite())
            .prop_map(|number| number.to_string()),
        Just("null".to_owned()),
    ];
    (key, value)
        .prop_map(|(key, value)| format!("{}:{value}", serde_json::to_string(&key).unwrap()))
}
