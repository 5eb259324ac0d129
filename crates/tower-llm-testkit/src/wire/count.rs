//! Input tokens as a provider would count them, without its tokenizer: four bytes of text each.

use serde_json::Value;

/// What is part of the prompt; the rest of a request are its settings.
const PROMPT: [&str; 12] = [
    "content",
    "contents",
    "generateContentRequest",
    "input",
    "instructions",
    "messages",
    "prompt",
    "requests",
    "system",
    "systemInstruction",
    "system_instruction",
    "tools",
];

/// Names and media, which are no text.
const NOT_TEXT: [&str; 8] = [
    "data",
    "file_data",
    "id",
    "image_url",
    "mimeType",
    "model",
    "role",
    "type",
];

/// What the form of one turn costs.
const TURN: u64 = 3;

/// The tokens of a request's prompt; the same whether it is to be answered or only counted.
pub(super) fn input_tokens(request: &Value) -> u64 {
    let fields = request.as_object().into_iter().flatten();
    let prompt = fields.filter(|(name, _)| PROMPT.contains(&name.as_str()));
    let mut tokens = 0;
    for (name, value) in prompt {
        tokens += match name.as_str() {
            "generateContentRequest" => input_tokens(value),
            // With the names in it: a model reads a schema as it stands.
            "tools" => (value.to_string().len() as u64).div_ceil(4),
            _ => text_bytes(value).div_ceil(4) + TURN * turns(value),
        };
    }
    tokens
}

fn turns(value: &Value) -> u64 {
    let turns = value.as_array().into_iter().flatten();
    let turns = turns.filter(|turn| turn.is_object()).count() as u64;
    turns.max(1)
}

fn text_bytes(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64,
        // A token that is given as its number counts as one.
        Value::Number(_) => 4,
        Value::Array(values) => values.iter().map(text_bytes).sum(),
        Value::Object(fields) => fields
            .iter()
            .filter(|(name, _)| !NOT_TEXT.contains(&name.as_str()))
            .map(|(_, value)| text_bytes(value))
            .sum(),
        Value::Null | Value::Bool(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn four_bytes_of_text_are_a_token_and_a_turn_costs_three() {
        let plain =
            json!({"messages": [{"role": "user", "content": "twelve bytes"}], "max_tokens": 9});
        assert_eq!(input_tokens(&plain), 3 + 3);
        let parts = json!({"messages": [
            {"role": "user", "content": [{"type": "text", "text": "twelve bytes"}]},
        ]});
        assert_eq!(input_tokens(&parts), 3 + 3);
        let media = json!({"contents": [
            {"role": "user", "parts": [{"text": "twelve bytes"}, {"inlineData": {"mimeType": "image/png", "data": "AAAAAAAA"}}]},
        ]});
        assert_eq!(input_tokens(&media), 3 + 3);
    }

    #[test]
    fn settings_cost_nothing_and_tools_cost_what_they_say() {
        let bare =
            json!({"model": "sim-1", "input": "four", "temperature": 1.0, "metadata": {"a": "b"}});
        assert_eq!(input_tokens(&bare), 1 + 3);
        let tools = json!({"input": "four", "tools": [{"name": "x"}]});
        assert_eq!(input_tokens(&tools), 1 + 3 + 4);
    }

    #[test]
    fn a_wrapped_request_counts_as_the_request() {
        let contents = json!([{"role": "user", "parts": [{"text": "some words of a question"}]}]);
        let plain = json!({"contents": contents});
        let wrapped =
            json!({"generateContentRequest": {"model": "models/m", "contents": contents}});
        assert_eq!(input_tokens(&plain), input_tokens(&wrapped));
        assert_eq!(input_tokens(&json!({"input": [1, 2, 3]})), 3 + 3);
    }
}
