//! Targets that say what a test has them say.

use serde_json::{Value, json};

use super::File;
use crate::raw::{Raw, Reply, response};

pub(super) const ASKED: &str =
    r#"{"model":"gpt-4","messages":[{"role":"user","content":"What is the capital of Peru?"}]}"#;

/// A chat's whole answer.
pub(super) fn says(text: &str) -> Reply {
    let message = json!({"role": "assistant", "content": text});
    let body = json!({
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    });
    let json = "content-type: application/json\r\n";
    response("200 OK", json, body.to_string().as_bytes())
}

pub(super) fn fails() -> Reply {
    response("500 Internal Server Error", "", b"{}")
}

/// A file with a target for each upstream, and one model over all but the judge.
pub(super) fn file(upstreams: &[(&str, &Raw)], strategy: &str, rules: &str) -> File {
    let mut text = String::new();
    for (name, upstream) in upstreams {
        let addr = upstream.addr;
        text +=
            &format!("[targets.{name}]\nprovider = \"openai\"\nbase_url = \"http://{addr}/v1\"\n");
    }
    let targets = upstreams.iter().map(|(name, _)| format!("\"{name}\""));
    let targets: Vec<_> = targets.filter(|name| name != "\"judge\"").collect();
    let targets = targets.join(", ");
    File::new(&format!(
        "{text}[models.\"gpt-4\"]\nstrategy = \"{strategy}\"\ntargets = [{targets}]\n\
         [models.\"gpt-4\".{strategy}]\n{rules}\n"
    ))
}

pub(super) fn text(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}
