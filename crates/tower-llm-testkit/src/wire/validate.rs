//! What a provider misses in a request, and says with a 400.

use serde_json::Value;

use super::{
    errors::Failure,
    route::{Dialect, Endpoint, Route},
    tools,
};

/// The provider's answer to a request that is JSON, but not one that it takes.
pub(super) fn problem(route: &Route, request: &Value) -> Option<Failure> {
    let invalid = |message: &str, param, code| {
        Some(Failure::invalid(
            route.dialect,
            message.to_owned(),
            param,
            code,
        ))
    };
    if !request.is_object() {
        return invalid("The body of the request is not a JSON object.", None, None);
    }
    if let Some(problem) = model(route, request).or_else(|| prompt(route, request)) {
        return Some(problem);
    }
    if route.endpoint == Endpoint::Messages && request["max_tokens"].as_u64().unwrap_or(0) == 0 {
        return invalid("max_tokens: Field required", None, None);
    }
    let name = tools::unknown_choice(route.endpoint, request)?;
    let message = format!("Tool choice '{name}' is not among the tools of the request.");
    invalid(&message, Some("tool_choice"), None)
}

fn model(route: &Route, request: &Value) -> Option<Failure> {
    let is_named = request["model"]
        .as_str()
        .is_some_and(|name| !name.is_empty());
    if route.model.is_some() || is_named {
        return None;
    }
    let (message, param, code) = match route.endpoint {
        Endpoint::Messages | Endpoint::CountTokens => ("model: Field required", None, None),
        Endpoint::Responses => missing("model"),
        _ => ("you must provide a model parameter", None, None),
    };
    Some(Failure::invalid(
        route.dialect,
        message.to_owned(),
        param,
        code,
    ))
}

fn prompt(route: &Route, request: &Value) -> Option<Failure> {
    let (message, param, code) = match (route.dialect, route.endpoint) {
        (_, Endpoint::Chat) => match &request["messages"] {
            Value::Array(messages) if messages.is_empty() => (
                "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.",
                Some("messages"),
                Some("empty_array"),
            ),
            Value::Array(_) => return None,
            _ => missing("messages"),
        },
        (_, Endpoint::Responses) => {
            let goes_on = ["previous_response_id", "conversation", "prompt"];
            if !is_empty(&request["input"]) || goes_on.iter().any(|name| !request[name].is_null()) {
                return None;
            }
            missing("input")
        }
        (_, Endpoint::Embeddings) => {
            let input = &request["input"];
            let items = input.as_array().into_iter().flatten();
            if !is_empty(input) && !items.clone().any(is_empty) {
                return None;
            }
            if input.is_null() {
                missing("input")
            } else {
                ("'$.input' is invalid: it is empty.", Some("input"), None)
            }
        }
        (Dialect::Anthropic, Endpoint::Messages | Endpoint::CountTokens) => {
            match &request["messages"] {
                Value::Array(messages) if messages.is_empty() => {
                    ("messages: at least one message is required", None, None)
                }
                Value::Array(_) => return None,
                _ => ("messages: Field required", None, None),
            }
        }
        (Dialect::Gemini, _) => return gemini(route, request),
        _ => return None,
    };
    Some(Failure::invalid(
        route.dialect,
        message.to_owned(),
        param,
        code,
    ))
}

fn gemini(route: &Route, request: &Value) -> Option<Failure> {
    let nothing = "* GenerateContentRequest.contents: contents is not specified\n";
    let no_data = "* GenerateContentRequest.contents[0].parts[0].data: required oneof field 'data' must have one initialized field\n";
    let contents = match &request["contents"] {
        Value::Null => &request["generateContentRequest"]["contents"],
        contents => contents,
    };
    let of_contents = || {
        let mut turns = contents.as_array().into_iter().flatten();
        match turns.next() {
            None => Some(nothing),
            Some(first) => has_no_data(first).then_some(no_data),
        }
    };
    let message = match route.endpoint {
        Endpoint::Generate | Endpoint::StreamGenerate { .. } | Endpoint::CountTokens => {
            of_contents()
        }
        Endpoint::EmbedContent => has_no_data(&request["content"]).then_some("content is empty"),
        Endpoint::BatchEmbedContents => {
            let mut requests = request["requests"].as_array().into_iter().flatten();
            let is_empty = is_empty(&request["requests"])
                || requests.any(|request| has_no_data(&request["content"]));
            is_empty.then_some("content is empty")
        }
        _ => None,
    };
    let message = message?.to_owned();
    Some(Failure::invalid(route.dialect, message, None, None))
}

/// Whether none of a content's parts has anything in it.
fn has_no_data(content: &Value) -> bool {
    let mut parts = content["parts"].as_array().into_iter().flatten();
    parts.all(|part| match part.as_object() {
        Some(fields) => fields.values().all(is_empty),
        None => true,
    })
}

type Problem = (&'static str, Option<&'static str>, Option<&'static str>);

/// OpenAI's words for a field that is not there.
fn missing(name: &'static str) -> Problem {
    let message = match name {
        "model" => "Missing required parameter: 'model'.",
        "input" => "Missing required parameter: 'input'.",
        _ => "Missing required parameter: 'messages'.",
    };
    (message, Some(name), Some("missing_required_parameter"))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        _ => false,
    }
}
