//! What is said in an answer, whatever the dialect.

use std::hash::{DefaultHasher, Hasher};

use serde_json::Value;

use super::route::Route;
use crate::Behavior;

/// All answers carry this date, so that equal requests get equal bytes.
pub(crate) const CREATED: u64 = 1_790_000_000;

const WORDS: [&str; 16] = [
    "The", " river", " runs", " past", " seven", " old", " mills", ",", " and", " each", " wheel",
    " turns", " at", " its", " own", " pace",
];

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
    /// The request's maximum cut the output down.
    pub(crate) limited: bool,
    pub(crate) streamed: bool,
    pub(crate) include_usage: bool,
    pub(crate) role_frame: bool,
    /// Inputs of an embeddings request.
    pub(crate) items: usize,
    seed: usize,
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
        let output = behavior.output_tokens.min(maximum);
        let cached = behavior.cached_tokens.min(behavior.input_tokens);
        Self {
            model: Value::from(model).to_string(),
            id: format!("{hash:016x}"),
            input: behavior.input_tokens,
            cached,
            cache_write: behavior
                .cache_write_tokens
                .min(behavior.input_tokens - cached),
            output,
            reasoning: behavior.reasoning_tokens.min(output),
            limited: output < behavior.output_tokens,
            streamed: json["stream"].as_bool().unwrap_or(false),
            include_usage: json["stream_options"]["include_usage"]
                .as_bool()
                .unwrap_or(false),
            role_frame: behavior.role_frame,
            items: items(json),
            seed: usize::from(hash.to_le_bytes()[0]),
        }
    }

    pub(crate) fn visible(&self) -> u64 {
        self.output - self.reasoning
    }

    /// The visible tokens, one word each.
    pub(crate) fn words(&self) -> impl Iterator<Item = &'static str> {
        let visible = usize::try_from(self.visible()).unwrap_or(usize::MAX);
        (0..visible).map(|i| WORDS[(self.seed + i) % WORDS.len()])
    }

    pub(crate) fn text(&self) -> String {
        self.words().collect()
    }

    /// How many output tokens each word of the stream completes: the reasoning was done before the
    /// first.
    pub(crate) fn words_and_tokens(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let reasoning = self.reasoning;
        self.words()
            .enumerate()
            .map(move |(i, word)| (word, if i == 0 { 1 + reasoning } else { 1 }))
    }
}

fn items(json: &Value) -> usize {
    match (&json["input"], &json["requests"]) {
        // An array of numbers is one input, already in tokens.
        (Value::Array(inputs), _) if !inputs.iter().all(Value::is_number) => inputs.len(),
        (_, Value::Array(requests)) => requests.len(),
        _ => 1,
    }
}
