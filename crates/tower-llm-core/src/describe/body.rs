//! What a request body asks for.
//!
//! One pass over the JSON, its strings borrowed. It need not be valid: a member of an unexpected type is skipped, and what
//! was read before a syntax error is kept.

use std::{borrow::Cow, fmt};

use http::request::Parts;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use tokio::time::Instant;

use super::{layer::Settings, tokens::Input};
use crate::{Call, Operation, dialect::Route};

/// Longest model name; a longer one counts as no model.
const MAX_MODEL_BYTES: usize = 256;

/// Describes a request by its body.
pub(super) fn describe(
    parts: &Parts,
    body: &[u8],
    settings: &Settings,
    received_at: Instant,
) -> Call {
    let route = Route::of(&parts.method, &parts.uri, &parts.headers);
    let facts = Facts::read(body, settings.exact);
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
        .input_tokens(facts.input.tokens())
        .items(items)
        .received_at(received_at);
    if let Some(dialect) = route.dialect {
        call = call.dialect(dialect);
    }
    if let Some(model) = route.model.or(facts.model.as_deref()) {
        call = call.model(model);
    }
    if let Some(tokens) = facts.most_output(items) {
        call = call.max_output_tokens(tokens);
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
struct Facts<'a> {
    model: Option<Cow<'a, str>>,
    stream: bool,
    /// For each answer.
    max_output_tokens: Option<u64>,
    /// Number of answers requested; zero if the body names none.
    answers: u64,
    input: Input,
    skips_texts: bool,
}

/// The object whose members are read.
#[derive(Clone, Copy, Debug)]
enum Level {
    Body,
    GenerationConfig,
}

impl<'a> Facts<'a> {
    /// Returns the maximum output of the call, if it names one: the maximum applies to each of the answers to each of
    /// `items`.
    fn most_output(&self, items: u64) -> Option<u64> {
        let answers = self.answers.max(1).saturating_mul(items);
        Some(self.max_output_tokens?.saturating_mul(answers))
    }

    fn read(body: &'a [u8], exact: bool) -> Self {
        let body = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body);
        let mut facts = Self {
            input: Input::new(exact),
            ..Self::default()
        };
        if facts.parse(body).is_ok() {
            return facts;
        }
        // A text with half of a surrogate pair, or with bytes that are not UTF-8, fails to parse. It must not hide what
        // follows it, so texts are skipped and the whole body counts as text.
        let mut facts = Self {
            skips_texts: true,
            input: Input::of_bytes(body.len()),
            ..Self::default()
        };
        // A syntax error ends the reading; what was read before it is kept.
        let _ = facts.parse(body);
        facts
    }

    fn parse(&mut self, body: &'a [u8]) -> serde_json::Result<()> {
        let members = self.members(Level::Body);
        // UTF-8 is checked once for the whole body if it is valid, otherwise for each string that is read.
        match std::str::from_utf8(body) {
            Ok(body) => members.deserialize(&mut serde_json::Deserializer::from_str(body)),
            Err(_) => members.deserialize(&mut serde_json::Deserializer::from_slice(body)),
        }
    }

    fn members(&mut self, level: Level) -> Members<'_, 'a> {
        Members { facts: self, level }
    }

    /// Reads the value of the member `key`.
    fn member<M: MapAccess<'a>>(
        &mut self,
        level: Level,
        key: &str,
        map: &mut M,
    ) -> Result<(), M::Error> {
        match (level, key) {
            (Level::Body, "model") => {
                if let Scalar::Text(model) = map.next_value_seed(Scalars)?
                    && model.len() <= MAX_MODEL_BYTES
                {
                    self.model = Some(model);
                }
            }
            (Level::Body, "stream") => {
                self.stream = map.next_value_seed(Scalars)? == Scalar::Bool(true);
            }
            (Level::Body, "max_tokens" | "max_completion_tokens")
            | (_, "max_output_tokens")
            | (Level::GenerationConfig, "maxOutputTokens") => {
                // Which of several maxima applies depends on the provider: use the largest.
                if let Scalar::Number(tokens) = map.next_value_seed(Scalars)? {
                    self.max_output_tokens = self.max_output_tokens.max(Some(tokens));
                }
            }
            (Level::Body, "n" | "best_of") | (Level::GenerationConfig, "candidateCount") => {
                if let Scalar::Number(answers) = map.next_value_seed(Scalars)? {
                    self.answers = self.answers.max(answers);
                }
            }
            (Level::Body, "generationConfig" | "generation_config") => {
                map.next_value_seed(self.members(Level::GenerationConfig))?;
            }
            (Level::Body, key) if self.skips_texts && is_input(key) => {
                map.next_value::<IgnoredAny>()?;
            }
            (Level::Body, "input" | "prompt" | "requests") => {
                map.next_value_seed(self.input.list())?;
            }
            (Level::Body, key) if is_texts(key) => {
                map.next_value_seed(self.input.texts())?;
            }
            // The model reads schemas as they are written, names included.
            (Level::Body, key) if is_schema(key) => {
                map.next_value_seed(self.input.schema())?;
            }
            _ => {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

fn is_input(key: &str) -> bool {
    matches!(key, "input" | "prompt" | "requests") || is_texts(key) || is_schema(key)
}

fn is_texts(key: &str) -> bool {
    matches!(
        key,
        "messages"
            | "system"
            | "instructions"
            | "contents"
            | "content"
            | "systemInstruction"
            | "system_instruction"
    )
}

fn is_schema(key: &str) -> bool {
    matches!(
        key,
        "tools" | "functions" | "response_format" | "text" | "output_config"
    )
}

/// Reads an object, member by member; skips anything else.
struct Members<'f, 'a> {
    facts: &'f mut Facts<'a>,
    level: Level,
}

impl<'a> DeserializeSeed<'a> for Members<'_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Members<'_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(key) = map.next_key_seed(Scalars)? {
            if let Scalar::Text(key) = key {
                self.facts.member(self.level, &key, &mut map)?;
            }
        }
        Ok(())
    }

    fn visit_seq<S: SeqAccess<'a>>(self, mut seq: S) -> Result<(), S::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// A scalar value, or [`Other`](Scalar::Other).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scalar<'a> {
    Text(Cow<'a, str>),
    Number(u64),
    Bool(bool),
    Other,
}

/// Reads a [`Scalar`]; borrows a string without escapes.
#[derive(Clone, Copy)]
pub(super) struct Scalars;

impl<'a> DeserializeSeed<'a> for Scalars {
    type Value = Scalar<'a>;

    fn deserialize<D: Deserializer<'a>>(self, json: D) -> Result<Scalar<'a>, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Scalars {
    type Value = Scalar<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Scalar<'a>, E> {
        Ok(Scalar::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Scalar<'a>, E> {
        Ok(Scalar::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Scalar<'a>, E> {
        Ok(Scalar::Number(number))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Scalar<'a>, E> {
        Ok(Scalar::Bool(value))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Scalar<'a>, E> {
        Ok(Scalar::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Scalar<'a>, E> {
        Ok(Scalar::Other)
    }

    fn visit_unit<E>(self) -> Result<Scalar<'a>, E> {
        Ok(Scalar::Other)
    }

    fn visit_seq<S: SeqAccess<'a>>(self, mut seq: S) -> Result<Scalar<'a>, S::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<Scalar<'a>, M::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Facts<'_> {
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
            // An overestimate is better than none.
            assert!(facts.input.tokens() >= body.len() as u64 / 4);
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
            (r#"{"max_tokens":100,"n":"10"}"#, 100),
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
    fn items_are_the_inputs_of_a_batch() {
        let items = |body| read(body).input.items;
        assert_eq!(items(r#"{"input":"one"}"#), 1);
        assert_eq!(items(r#"{"input":["one","two","three"]}"#), 3);
        assert_eq!(items(r#"{"input":[1,2,3]}"#), 1);
        assert_eq!(items(r#"{"input":[[1,2],[3]]}"#), 2);
        assert_eq!(items(r#"{"requests":[{"content":{}},{"content":{}}]}"#), 2);
        assert_eq!(read(r#"{"input":[[1,2],[3]]}"#).input.tokens(), 3);
    }
}
