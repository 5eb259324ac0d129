//! What is said in an answer, whatever the dialect.

use std::{
    borrow::Cow,
    hash::{DefaultHasher, Hasher},
};

use serde_json::Value;

use super::{
    count, escaped,
    route::{Dialect, Endpoint, Route},
    schema, speech,
    tools::{self, ToolCall},
};
use crate::{Behavior, behavior::InputTokens};

/// All answers carry this date, so that equal requests get equal bytes.
pub(crate) const CREATED: u64 = 1_790_000_000;

/// The content of one answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The model as a JSON string, with its quotes.
    pub(crate) model: String,
    /// Sixteen hex digits that depend on the request alone.
    pub(crate) id: String,
    pub(crate) input: u64,
    pub(crate) cached: u64,
    pub(crate) cache_write: u64,
    pub(crate) output: u64,
    pub(crate) reasoning: u64,
    /// The request's maximum cut the output off.
    pub(crate) limited: bool,
    pub(crate) streamed: bool,
    pub(crate) include_usage: bool,
    pub(crate) role_frame: bool,
    /// The pieces are the arguments of this call; without it they are the text.
    pub(super) call: Option<ToolCall>,
    pieces: Vec<Piece>,
}

/// What one event of a stream carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Fit to stand between the quotes of a JSON string.
    pub(crate) text: Cow<'static, str>,
    pub(crate) tokens: u64,
}

impl Answer {
    pub(crate) fn new(route: &Route, request: &[u8], json: &Value, behavior: &Behavior) -> Self {
        let model = route
            .model
            .as_deref()
            .or_else(|| json["model"].as_str())
            .unwrap_or("sim-1");
        let mut hasher = DefaultHasher::new();
        hasher.write(request);
        let hash = hasher.finish();
        let maximum = [
            &json["max_completion_tokens"],
            &json["max_tokens"],
            &json["max_output_tokens"],
            &json["generationConfig"]["maxOutputTokens"],
        ]
        .into_iter()
        .find_map(Value::as_u64)
        .unwrap_or(u64::MAX);
        let input = match behavior.input_tokens {
            InputTokens::Fixed(tokens) => tokens,
            InputTokens::Counted => count::input_tokens(json),
        };
        let output = behavior.output_tokens.min(maximum);
        let reasoning = behavior.reasoning_tokens.min(output);
        let cached = behavior.cached_tokens.min(input);
        let call = tools::chosen(route.endpoint, json);
        let whole = behavior.output_tokens - behavior.reasoning_tokens.min(behavior.output_tokens);
        let visible = output - reasoning;
        let seed = usize::from(hash.to_le_bytes()[0]);
        let pieces = match &call {
            Some(call) => {
                // The name is the first token.
                pieces_of(
                    &call.arguments,
                    whole.saturating_sub(1),
                    visible.saturating_sub(1),
                )
            }
            None => match structured(route, json) {
                Some(text) => pieces_of(&text, whole, visible),
                None => said(seed, whole, visible),
            },
        };
        Self {
            model: Value::from(model).to_string(),
            id: format!("{hash:016x}"),
            input,
            cached,
            cache_write: behavior.cache_write_tokens.min(input - cached),
            output,
            reasoning,
            limited: output < behavior.output_tokens,
            streamed: json["stream"].as_bool().unwrap_or(false),
            include_usage: json["stream_options"]["include_usage"]
                .as_bool()
                .unwrap_or(false),
            role_frame: behavior.role_frame,
            call,
            pieces,
        }
    }

    pub(crate) fn visible(&self) -> u64 {
        self.output - self.reasoning
    }

    /// The visible output, in the pieces that a stream sends.
    pub(crate) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The text, or a call's arguments, fit to stand between the quotes of a JSON string.
    pub(crate) fn text(&self) -> String {
        self.pieces.iter().map(|piece| &*piece.text).collect()
    }

    /// The tokens of a call's name: it is sent before the arguments.
    pub(crate) fn name_tokens(&self) -> u64 {
        u64::from(self.call.is_some() && self.visible() > 0)
    }

    /// The visible output with the reasoning counted to what is sent first: it was done before.
    pub(crate) fn pieces_after_reasoning(&self) -> impl Iterator<Item = (&str, u64)> {
        let before = match self.name_tokens() {
            0 => self.reasoning,
            _ => 0,
        };
        self.pieces.iter().enumerate().map(move |(i, piece)| {
            let reasoning = if i == 0 { before } else { 0 };
            (&*piece.text, piece.tokens + reasoning)
        })
    }

    /// Visible tokens that no piece carries, because the maximum cut within one.
    pub(crate) fn unsaid(&self) -> u64 {
        let said: u64 = self.pieces.iter().map(|piece| piece.tokens).sum();
        self.visible() - self.name_tokens() - said
    }

    /// The same where the reasoning is not sent either, if nothing follows it.
    pub(crate) fn unsent(&self) -> u64 {
        let nothing_follows = self.pieces.is_empty() && self.name_tokens() == 0;
        self.unsaid() + if nothing_follows { self.reasoning } else { 0 }
    }
}

/// An answer that follows the schema which the request asks for.
fn structured(route: &Route, json: &Value) -> Option<String> {
    let dialect = match route.endpoint {
        Endpoint::Messages => Dialect::Anthropic,
        Endpoint::Chat | Endpoint::Responses => Dialect::OpenAi,
        Endpoint::Generate | Endpoint::StreamGenerate { .. } => Dialect::Gemini,
        _ => return None,
    };
    let schema = tools::output_schema(dialect, json)?;
    Some(schema::example(&schema).to_string())
}

/// The first `visible` words of a text of `whole`.
fn said(seed: usize, whole: u64, visible: u64) -> Vec<Piece> {
    let visible = usize::try_from(visible).unwrap_or(usize::MAX);
    let words = speech::words(seed, whole).take(visible);
    words
        .map(|word| Piece {
            text: Cow::Borrowed(word),
            tokens: 1,
        })
        .collect()
}

/// Cuts `text` into pieces of `whole` tokens together, and keeps those that end within the first `visible`.
fn pieces_of(text: &str, whole: u64, visible: u64) -> Vec<Piece> {
    let chars: Vec<char> = text.chars().collect();
    let count = whole.clamp(1, chars.len().max(1) as u64);
    // Wide enough for any two numbers.
    let part = |of: u64, i: u64| (u128::from(of) * u128::from(i) / u128::from(count)) as u64;
    let ends = (0..count).take_while(|i| part(whole, i + 1) <= visible);
    ends.map(|i| {
        let from = part(chars.len() as u64, i) as usize;
        let to = part(chars.len() as u64, i + 1) as usize;
        let text: String = chars[from..to].iter().collect();
        Piece {
            text: Cow::Owned(escaped(&text)),
            tokens: part(whole, i + 1) - part(whole, i),
        }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_into_as_many_pieces_as_tokens() {
        for whole in [1, 2, 5, 16, 100, u64::MAX] {
            let pieces = pieces_of(r#"{"place":"river"}"#, whole, whole);
            let text: String = pieces.iter().map(|piece| &*piece.text).collect();
            assert_eq!(text, r#"{\"place\":\"river\"}"#, "{whole}");
            let tokens: u64 = pieces.iter().map(|piece| piece.tokens).sum();
            assert_eq!(tokens, whole);
        }
    }

    #[test]
    fn a_maximum_keeps_the_pieces_that_end_within_it() {
        let pieces = pieces_of("abcdef", 3, 2);
        let texts: Vec<&str> = pieces.iter().map(|piece| &*piece.text).collect();
        assert_eq!(texts, ["ab", "cd"]);
        assert!(pieces_of("abcdef", 60, 9).is_empty());
        assert_eq!(pieces_of("{}", 0, 0)[0].text, "{}");
    }
}
