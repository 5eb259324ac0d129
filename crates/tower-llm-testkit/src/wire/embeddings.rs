//! Embeddings of OpenAI, Azure and Gemini.

use std::hash::{DefaultHasher, Hasher};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;

use super::answer::Answer;

/// What an embedding of an unknown model has: short enough to be read.
const DIMENSIONS: usize = 8;

/// More than any model has.
const MOST_DIMENSIONS: u64 = 16_384;

pub(crate) fn openai(answer: &Answer, request: &Value) -> String {
    let is_base64 = request["encoding_format"] == "base64";
    let dimensions = dimensions(answer, &request["dimensions"]);
    let data: Vec<String> = inputs(&request["input"])
        .iter()
        .enumerate()
        .map(|(i, input)| {
            let vector = vector(input, dimensions);
            let embedding = match is_base64 {
                true => format!(r#""{}""#, encoded(&vector)),
                false => numbers(&vector),
            };
            format!(r#"{{"object":"embedding","index":{i},"embedding":{embedding}}}"#)
        })
        .collect();
    format!(
        r#"{{"object":"list","data":[{}],"model":{},"usage":{{"prompt_tokens":{},"total_tokens":{}}}}}"#,
        data.join(","),
        answer.model,
        answer.input,
        answer.input,
    )
}

pub(crate) fn gemini(answer: &Answer, request: &Value) -> String {
    format!(r#"{{"embedding":{}}}"#, values(answer, request))
}

pub(crate) fn gemini_batch(answer: &Answer, request: &Value) -> String {
    let requests = request["requests"].as_array().into_iter().flatten();
    let all: Vec<String> = requests.map(|request| values(answer, request)).collect();
    format!(r#"{{"embeddings":[{}]}}"#, all.join(","))
}

fn values(answer: &Answer, request: &Value) -> String {
    let wanted = match &request["outputDimensionality"] {
        Value::Null => &request["output_dimensionality"],
        wanted => wanted,
    };
    let vector = vector(&request["content"], dimensions(answer, wanted));
    format!(r#"{{"values":{}}}"#, numbers(&vector))
}

/// An array of numbers is one input, already in tokens.
fn inputs(input: &Value) -> Vec<&Value> {
    match input {
        Value::Array(inputs) if !inputs.iter().all(Value::is_number) => inputs.iter().collect(),
        input => vec![input],
    }
}

fn dimensions(answer: &Answer, wanted: &Value) -> usize {
    let known = match answer.model.trim_matches('"').trim_start_matches("models/") {
        "text-embedding-3-small" | "text-embedding-ada-002" => 1_536,
        "text-embedding-3-large" | "gemini-embedding-001" => 3_072,
        _ => DIMENSIONS,
    };
    let wanted = wanted
        .as_u64()
        .map(|wanted| wanted.clamp(1, MOST_DIMENSIONS));
    wanted
        .and_then(|wanted| usize::try_from(wanted).ok())
        .unwrap_or(known)
}

/// A vector of length one that depends on the input alone: the same text has the same embedding in every form.
fn vector(input: &Value, dimensions: usize) -> Vec<f32> {
    let mut hasher = DefaultHasher::new();
    hasher.write(input.to_string().as_bytes());
    let mut state = hasher.finish();
    let numbers: Vec<f64> = (0..dimensions)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            centred(mixed(state))
        })
        .collect();
    let length = numbers.iter().map(|n| n * n).sum::<f64>().sqrt();
    numbers.iter().map(|n| (n / length) as f32).collect()
}

/// The mixing step of SplitMix64.
fn mixed(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// From -1 to 1, and never zero.
fn centred(random: u64) -> f64 {
    let odd = (random >> 32) | 1;
    odd as f64 / f64::from(1_u32 << 31) - 1.0
}

fn numbers(vector: &[f32]) -> String {
    // A number's shortest form reads back as the same `f32`.
    let numbers: Vec<String> = vector.iter().map(f32::to_string).collect();
    format!("[{}]", numbers.join(","))
}

/// Little-endian `f32`s, as OpenAI sends them.
fn encoded(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|n| n.to_le_bytes()).collect();
    BASE64_STANDARD.encode(bytes)
}
