//! Embeddings of OpenAI, Azure and Gemini.

use super::answer::Answer;

/// Eight numbers that depend on the request and the input's place in it.
fn vector(answer: &Answer, item: usize) -> String {
    let numbers: Vec<String> = answer
        .id
        .bytes()
        .take(8)
        .enumerate()
        .map(|(i, byte)| {
            format!(
                "0.{:04}",
                (usize::from(byte) * 31 + item * 17 + i * 7) % 10_000
            )
        })
        .collect();
    format!("[{}]", numbers.join(","))
}

pub(crate) fn openai(answer: &Answer) -> String {
    let data: Vec<String> = (0..answer.items)
        .map(|i| {
            format!(
                r#"{{"object":"embedding","index":{i},"embedding":{}}}"#,
                vector(answer, i)
            )
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

pub(crate) fn gemini(answer: &Answer) -> String {
    format!(r#"{{"embedding":{{"values":{}}}}}"#, vector(answer, 0))
}

pub(crate) fn gemini_batch(answer: &Answer) -> String {
    let all: Vec<String> = (0..answer.items)
        .map(|i| format!(r#"{{"values":{}}}"#, vector(answer, i)))
        .collect();
    format!(r#"{{"embeddings":[{}]}}"#, all.join(","))
}
