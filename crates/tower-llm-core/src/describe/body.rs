//! What a request body asks for.
//!
//! One pass over the JSON by the reader of responses. The JSON need not be valid: a member of an unexpected type is skipped.

use http::request::Parts;
use percent_encoding::percent_decode_str;
use tokio::time::Instant;

use super::{
    layer::Settings,
    tokens::{Input, Of, decoded},
};
use crate::{
    Call, Operation,
    dialect::Route,
    scan::json::{Json, Sink, StringMode, Text},
};

/// Longest model name; a longer one counts as no model.
const MAX_MODEL_BYTES: usize = 256;

/// Describes a request by its body, or by the size of one that is encoded, and not read.
pub(super) fn describe(
    parts: &Parts,
    body: &[u8],
    unread: u64,
    settings: &Settings,
    received_at: Instant,
) -> Call {
    let route = Route::of(&parts.method, &parts.uri, &parts.headers);
    let mut facts = Facts::read(body, settings.exact);
    if route.dialect.is_some() {
        facts.input = facts.input.with_unreadable(unread);
    }
    // In a chat, a list of inputs is one input.
    let takes_lists = [Operation::EMBEDDINGS, Operation::TEXT_COMPLETION];
    let items = match takes_lists.contains(&route.operation) {
        true => facts.input.items.max(1),
        false => 1,
    };
    let (caller, account) = settings.identity(parts, &route);
    let provider = settings.provider.provider(parts).unwrap_or(route.provider);
    let mut call = Call::builder(provider, route.operation)
        .streamed(route.streamed || facts.stream)
        .stored(facts.stored)
        .input_tokens(facts.input.tokens())
        .items(items)
        .received_at(received_at);
    if let Some(dialect) = route.dialect {
        call = call.dialect(dialect);
    }
    let most_output = facts.most_output(items);
    match (route.model, facts.model) {
        (Some(model), _) => call = call.model(percent_decode_str(model).decode_utf8_lossy()),
        (None, Some(model)) => call = call.model(model),
        (None, None) => {}
    }
    if let Some(tokens) = most_output {
        call = call.max_output_tokens(tokens);
    }
    if !body.is_empty() {
        call = call.body_bytes(body.len() as u64);
    }
    if let Some(account) = account {
        call = call.account(account);
    }
    if let Some(caller) = caller {
        call = call.caller(caller);
    }
    call.build()
}

/// What was read from a body.
#[derive(Debug, Default)]
struct Facts {
    model: Option<Box<str>>,
    stream: bool,
    stored: bool,
    /// For each answer.
    max_output_tokens: Option<u64>,
    /// Number of answers requested; zero if the body names none.
    answers: u64,
    input: Input,
}

/// A place in a body that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Body,
    GenerationConfig,
    Model,
    Stream,
    /// Whether the provider keeps something of the call.
    Stored,
    /// A conversation at the provider, which the call becomes a part of.
    Conversation,
    /// A maximum of the output's tokens.
    Output,
    /// A number of answers.
    Answers,
    Input(Of),
}

/// Deepest nesting that is read, as of most JSON parsers.
const MAX_DEPTH: usize = 128;

/// Longest key that is read, as written. Every character of the longest name may be an escape of six bytes.
const MAX_KEY_BYTES: usize = 256;

impl Facts {
    /// Returns the maximum output of the call, if it names one: the maximum applies to each of the answers to each of
    /// `items`.
    fn most_output(&self, items: u64) -> Option<u64> {
        let answers = self.answers.max(1).saturating_mul(items);
        Some(self.max_output_tokens?.saturating_mul(answers))
    }

    fn read(body: &[u8], exact: bool) -> Self {
        let body = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body);
        let mut facts = Self {
            input: Input::new(exact),
            ..Self::default()
        };
        let begin = body.trim_ascii_start().first();
        if begin.is_some_and(|byte| !matches!(byte, b'{' | b'[')) {
            // Compressed, or of another encoding.
            facts.input = facts.input.with_unreadable(body.len() as u64);
            return facts;
        }
        let mut json = Json::<Place, MAX_DEPTH, MAX_KEY_BYTES>::with_room(Place::Body);
        json.feed(body, &mut facts);
        if json.was_too_deep() {
            // Text may lie deeper. An overestimate is better than none.
            facts.input = facts.input.of_bytes(body.len());
        }
        facts
    }
}

impl Sink for Facts {
    type Place = Place;

    fn member(&mut self, parent: Place, key: &[u8]) -> Option<Place> {
        let key = &*decoded(key);
        match parent {
            Place::Body => member_of_body(key),
            Place::GenerationConfig => member_of_generation_config(key),
            Place::Input(of) => self.input.member(of, key).map(Place::Input),
            _ => None,
        }
    }

    fn long_key(&mut self, parent: Place, more: usize) {
        if let Place::Input(of) = parent {
            self.input.long_key(of, more);
        }
    }

    fn item(&mut self, parent: Place) -> Option<Place> {
        match parent {
            Place::Input(of) => Some(Place::Input(of.item())),
            _ => None,
        }
    }

    fn string_mode(&self, place: Place) -> StringMode {
        match place {
            // A number may be written as a string, too: servers that are lenient take it.
            Place::Model | Place::Output | Place::Answers | Place::Conversation => StringMode::Pass,
            Place::Input(_) => StringMode::Count,
            _ => StringMode::Skip,
        }
    }

    fn open(&mut self, place: Place) {
        match place {
            Place::Input(of) => self.input.open(of),
            Place::Conversation => self.stored = true,
            _ => {}
        }
    }

    fn close(&mut self, _: Place) {}

    fn string(&mut self, _: Place, _: &[u8]) {}

    /// A string, whole: a body is one piece.
    fn pass(&mut self, place: Place, piece: &[u8]) {
        let text = decoded(piece);
        let Ok(text) = std::str::from_utf8(&text) else {
            return;
        };
        if place == Place::Conversation {
            self.stored = true;
        } else if place != Place::Model {
            let number: Option<f64> = text.trim().parse().ok();
            let number = number.filter(|number| *number >= 0.0);
            number
                .into_iter()
                .for_each(|number| self.number(place, number as u64));
        } else if text.len() <= MAX_MODEL_BYTES {
            self.model = Some(text.into());
        }
    }

    fn passed(&mut self, _: Place) {}

    fn text(&mut self, place: Place, text: Text<'_>) {
        if let Place::Input(of) = place {
            self.input.text(of, text);
        }
    }

    fn number(&mut self, place: Place, value: u64) {
        match place {
            // Which of several maxima applies depends on the provider: use the largest.
            Place::Output => self.max_output_tokens = self.max_output_tokens.max(Some(value)),
            Place::Answers => self.answers = self.answers.max(value),
            Place::Input(of) => self.input.number(of),
            _ => {}
        }
    }

    fn word(&mut self, place: Place, word: &[u8]) {
        match place {
            Place::Stream => self.stream = word == b"true",
            Place::Stored => self.stored |= word == b"true",
            Place::Input(of) => self.input.word(of),
            _ => {}
        }
    }
}

fn member_of_body(key: &[u8]) -> Option<Place> {
    Some(match key {
        b"model" => Place::Model,
        b"stream" => Place::Stream,
        b"store" | b"background" => Place::Stored,
        b"conversation" => Place::Conversation,
        b"max_tokens" | b"max_completion_tokens" | b"max_output_tokens" => Place::Output,
        b"n" | b"best_of" => Place::Answers,
        b"generationConfig" | b"generation_config" => Place::GenerationConfig,
        b"input" | b"prompt" | b"requests" => Place::Input(Of::List),
        b"messages"
        | b"suffix"
        | b"title"
        | b"system"
        | b"instructions"
        | b"contents"
        | b"content"
        | b"systemInstruction"
        | b"system_instruction" => Place::Input(Of::Texts),
        // The model reads schemas as they are written, names included.
        b"tools" | b"functions" | b"response_format" | b"text" | b"output_config"
        // Cohere's, which the model reads with the names of their fields.
        | b"documents" => Place::Input(Of::Schema),
        // Gemini's, of requests whose tokens are counted or that are embedded.
        b"generateContentRequest" | b"embedContentRequest" => Place::Body,
        _ => return None,
    })
}

fn member_of_generation_config(key: &[u8]) -> Option<Place> {
    match key {
        b"maxOutputTokens" | b"max_output_tokens" => Some(Place::Output),
        b"candidateCount" | b"candidate_count" => Some(Place::Answers),
        b"responseSchema"
        | b"response_schema"
        | b"responseJsonSchema"
        | b"response_json_schema" => Some(Place::Input(Of::Schema)),
        _ => None,
    }
}

#[cfg(test)]
pub(super) fn input_tokens(body: &str) -> u64 {
    Facts::read(body.as_bytes(), false).input.tokens()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;

    /// What a parser finds that keeps the whole document.
    fn parsed(input: &mut Input, of: Of, value: &Value) {
        let string = |input: &mut Input, text: &str| {
            let quoted = serde_json::to_string(text).unwrap();
            let written = &quoted.as_bytes()[1..quoted.len() - 1];
            let text = Text {
                written,
                bytes: text.len().try_into().unwrap(),
                has_numbers: false,
            };
            input.text(of, text);
        };
        match value {
            Value::String(text) => string(input, text),
            Value::Number(_) => input.number(of),
            Value::Bool(_) | Value::Null => input.word(of),
            Value::Array(items) => {
                input.open(of);
                items
                    .iter()
                    .for_each(|value| parsed(input, of.item(), value));
            }
            Value::Object(members) => {
                input.open(of);
                for (key, value) in members {
                    if let Some(of) = input.member(of, key.as_bytes()) {
                        parsed(input, of, value);
                    }
                }
            }
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let text = prop_oneof![
            any::<String>().prop_map(Value::from),
            "[A-Za-z0-9+/]{4,40}".prop_map(Value::from),
            "[a-z \n\t\"\\\\/é你😀]{0,40}".prop_map(Value::from),
            "[A-Za-z0-9]{4,8}".prop_map(|data| json!(format!("data:image/png;base64,{data}"))),
        ];
        let leaf = prop_oneof![
            4 => text,
            1 => any::<u32>().prop_map(Value::from),
            1 => Just(Value::Bool(true)),
            1 => Just(Value::Null),
        ];
        let key = prop::sample::select(vec![
            "role",
            "content",
            "text",
            "type",
            "input",
            "data",
            "arguments",
            "signature",
            "url",
            "parts",
            "na\"me",
            "größe",
        ]);
        leaf.prop_recursive(6, 40, 6, move |inner| {
            let members = prop::collection::btree_map(key.clone(), inner.clone(), 0..5);
            prop_oneof![
                prop::collection::vec(inner, 0..5).prop_map(Value::from),
                members.prop_map(|members| {
                    let members = members
                        .into_iter()
                        .map(|(key, value)| (key.to_owned(), value));
                    Value::Object(members.collect::<Map<_, _>>())
                }),
            ]
        })
    }

    /// The same document with each character that is not ASCII written as an escape, as Python does.
    fn in_ascii(document: &str) -> String {
        let mut ascii = String::new();
        for character in document.chars() {
            if character.is_ascii() {
                ascii.push(character);
                continue;
            }
            for unit in character.encode_utf16(&mut [0; 2]) {
                ascii.push_str(&format!("\\u{unit:04x}"));
            }
        }
        ascii
    }

    proptest! {
        #[test]
        fn a_body_is_read_as_a_parser_reads_it(value in values()) {
            for (key, of) in [
                ("messages", Of::Texts),
                ("tools", Of::Schema),
                ("input", Of::List),
            ] {
                let mut expected = Input::new(false);
                parsed(&mut expected, of, &value);
                let body = json!({"model": "m", key: value, "max_tokens": 7, "stream": true});
                for text in [
                    body.to_string(),
                    serde_json::to_string_pretty(&body).unwrap(),
                    in_ascii(&body.to_string()),
                ] {
                    let facts = read(&text);
                    prop_assert_eq!(facts.input.tokens(), expected.tokens(), "{}", text);
                    prop_assert_eq!(facts.input.items, expected.items, "{}", text);
                    prop_assert_eq!(facts.model.as_deref(), Some("m"));
                    prop_assert_eq!((facts.max_output_tokens, facts.stream), (Some(7), true));
                }
            }
        }
    }

    #[test]
    fn names_written_with_escapes_are_read() {
        let escaped = |name: &str| {
            let escapes = name.bytes().map(|byte| format!("\\u{byte:04x}"));
            escapes.collect::<String>()
        };
        let body = format!(
            r#"{{"{}":"gpt\u002d5","{}":50,"{}":[{{"{}":"four"}}]}}"#,
            escaped("model"),
            escaped("max_completion_tokens"),
            escaped("messages"),
            escaped("content"),
        );
        let facts = read(&body);
        assert_eq!(facts.model.as_deref(), Some("gpt-5"));
        assert_eq!(facts.max_output_tokens, Some(50));
        assert_eq!(facts.input.tokens(), 1);
    }

    #[test]
    fn text_that_lies_too_deep_is_not_free() {
        let nested = |depth: usize| {
            let (open, close) = ("[".repeat(depth), "]".repeat(depth));
            format!(r#"{{"messages":{open}"four"{close},"model":"m"}}"#)
        };
        assert_eq!(read(&nested(127)).input.tokens(), 1);
        let deeper = nested(128);
        let facts = read(&deeper);
        assert_eq!(facts.input.tokens(), (deeper.len() as u64).div_ceil(4));
        assert_eq!(facts.model.as_deref(), Some("m"));
    }

    fn read(body: &str) -> Facts {
        Facts::read(body.as_bytes(), false)
    }

    #[test]
    fn reads_a_chat_request_in_one_pass() {
        let facts = read(
            r#"{"model":"openai\/gpt-5","messages":[{"role":"user","content":"eight by"},
                {"role":"user","content":[{"type":"text","text":"four"}]}],
                "stream":true,"max_completion_tokens":300,"n":2}"#,
        );
        assert_eq!(facts.model.as_deref(), Some("openai/gpt-5"));
        assert!(facts.stream);
        assert_eq!(facts.max_output_tokens, Some(300));
        assert_eq!(facts.input.tokens(), 3);
    }

    #[test]
    fn a_member_of_another_type_is_skipped() {
        let facts = read(
            r#"{"model":["x"],"stream":"yes","max_tokens":-1,"messages":7,"generationConfig":[],
                "max_output_tokens":{"a":1}}"#,
        );
        assert_eq!(facts.model, None);
        assert!(!facts.stream);
        assert_eq!(facts.max_output_tokens, None);
        assert_eq!(facts.input.tokens(), 0);
    }

    #[test]
    fn members_before_a_syntax_error_are_kept() {
        let facts = read(r#"{"model":"gpt-5","stream":true,"messages":[{"content":"four"#);
        assert_eq!(facts.model.as_deref(), Some("gpt-5"));
        assert!(facts.stream);
    }

    #[test]
    fn half_a_surrogate_pair_hides_nothing() {
        let text = r#"{"messages":[{"role":"user","content":"cut \ud83d"}],"model":"gpt-5","stream":true}"#;
        let with_bytes = b"\xef\xbb\xbf{\"messages\":[{\"content\":\"\xff\"}],\"model\":\"gpt-5\",\"stream\":true}";
        for body in [text.as_bytes(), with_bytes] {
            let facts = Facts::read(body, false);
            assert_eq!(facts.model.as_deref(), Some("gpt-5"));
            assert!(facts.stream);
            assert!(facts.input.tokens() > 0);
        }
    }

    #[test]
    fn gemini_names_its_maximum_in_the_generation_config() {
        let facts =
            read(r#"{"contents":[],"generationConfig":{"maxOutputTokens":64,"candidateCount":3}}"#);
        assert_eq!((facts.max_output_tokens, facts.answers), (Some(64), 3));
    }

    #[test]
    fn the_largest_maximum_counts_for_each_of_the_answers() {
        for (body, most) in [
            (r#"{"max_tokens":100,"n":10}"#, 1_000),
            (r#"{"n":2,"best_of":5,"max_tokens":10}"#, 50),
            (r#"{"max_completion_tokens":4000,"max_tokens":1}"#, 4_000),
            (r#"{"max_tokens":1,"max_completion_tokens":4000}"#, 4_000),
            (r#"{"max_tokens":100,"n":0}"#, 100),
            (r#"{"max_tokens":"100","n":"10"}"#, 1_000),
            (r#"{"max_tokens":" 1e2 ","n":"-1"}"#, 100),
            (r#"{"max_tokens":"NaN","max_output_tokens":1e3}"#, 1_000),
            (r#"{"max_tokens":4e3}"#, 4_000),
            (r#"{"max_tokens":0.5E+4,"n":20e-1}"#, 10_000),
            (r#"{"max_tokens":4000.9}"#, 4_000),
            (r#"{"max_tokens":1e999}"#, u64::MAX),
            (r#"{"max_tokens":7,"n":1e-999}"#, 7),
            (r#"{"max_tokens":100,"n":18446744073709551615}"#, u64::MAX),
        ] {
            assert_eq!(read(body).most_output(1), Some(most), "{body}");
        }
        assert_eq!(
            read(r#"{"max_tokens":100,"n":2}"#).most_output(3),
            Some(600)
        );
        assert_eq!(read(r#"{"n":2}"#).most_output(3), None);
    }

    #[test]
    fn no_text_is_free_because_of_the_member_that_it_stands_in() {
        let text = "word ".repeat(1_000);
        for body in [
            json!({"prompt": "x", "suffix": text}),
            json!({"messages": [], "documents": [{"text": text}]}),
            json!({"messages": [], "documents": [text]}),
            json!({"messages": [{"role": text, "content": ""}]}),
            json!({"messages": [{"role": "user", "content": [{"type": text}]}]}),
            json!({"prompt": {"id": "p", "variables": {"url": text, "type": "a"}}}),
            json!({"tools": [{"input_schema": {"properties": {text.as_str(): {}}}}]}),
            json!({"content": {"parts": []}, "title": text}),
            json!({"embedContentRequest": {"content": {"parts": [{"text": text}]}}}),
            json!({"generateContentRequest": {"contents": [{"parts": [{"text": text}]}]}}),
        ] {
            let body = body.to_string();
            assert!(read(&body).input.tokens() >= 1_250, "{}", &body[..60]);
        }
        // A common name is no text.
        let body = r#"{"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"toolu_01A09q90qw90lq917835lq9"}]}]}"#;
        assert_eq!(read(body).input.tokens(), 0);
    }

    #[test]
    fn a_body_that_cannot_be_read_is_not_free() {
        let body = r#"{"messages":[{"content":"four"}],"model":"m"}"#;
        let utf_16: Vec<u8> = body.encode_utf16().flat_map(u16::to_be_bytes).collect();
        let with_mark: Vec<u8> = "\u{feff}"
            .encode_utf16()
            .chain(body.encode_utf16())
            .flat_map(u16::to_le_bytes)
            .collect();
        let gzip = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xabV\xcaM-.NLOU\xb2";
        for body in [&utf_16[..], &with_mark, gzip] {
            let facts = Facts::read(body, false);
            assert_eq!(facts.input.tokens(), body.len() as u64);
        }
        for empty in [&b""[..], b" \n", b"\xef\xbb\xbf"] {
            assert_eq!(Facts::read(empty, false).input.tokens(), 0);
        }
    }

    #[cfg(feature = "tokenizer")]
    #[test]
    fn what_is_counted_exactly_is_bounded_and_the_rest_is_estimated() {
        let counted = |text: String| {
            let body = json!({ "messages": text }).to_string();
            Facts::read(body.as_bytes(), true).input.tokens()
        };
        let words = |kilobytes: usize| "word ".repeat(kilobytes * 1_024 / 5);
        // A token a word, and a quarter of a token a byte.
        assert_eq!(counted(words(16)), 16 * 1_024 / 5 + 1);
        assert_eq!(counted(words(64)), (64 * 1_024 / 5 * 5_u64).div_ceil(4));
    }

    #[test]
    fn items_are_the_inputs_of_a_batch() {
        let items = |body| read(body).input.items;
        assert_eq!(items(r#"{"input":"one"}"#), 1);
        assert_eq!(items(r#"{"input":["one","two","three"]}"#), 3);
        assert_eq!(items(r#"{"input":[1,2,3]}"#), 1);
        assert_eq!(items(r#"{"input":[[1,2],[3]]}"#), 2);
        assert_eq!(items(r#"{"requests":[{"content":{}},{"content":{}}]}"#), 2);
        assert_eq!(items(r#"{"prompt":["a","b","c"],"input":"x"}"#), 3);
        let deep = format!(
            r#"{{"prompt":["a","b"],"x":1,"messages":{}}}"#,
            "[".repeat(200)
        );
        assert_eq!(items(&deep), 2);
        assert_eq!(read(r#"{"input":[[1,2],[3]]}"#).input.tokens(), 3);
    }
}
