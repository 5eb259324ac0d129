//! Which of the tools that a request offers is called.

use serde_json::{Value, json};

use super::{
    route::{Dialect, Endpoint},
    schema,
};

/// A tool that a request offers, whatever the dialect.
#[derive(Clone, Copy, Debug)]
struct Tool<'a> {
    name: &'a str,
    takes: Takes<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Takes<'a> {
    /// Arguments by this JSON schema.
    Arguments(&'a Value),
    /// Any text (OpenAI's custom tools).
    Text,
}

/// What a request says about calling tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice<'a> {
    mode: Mode,
    /// Only these may be called, if any is named.
    names: Vec<&'a str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Never,
    /// The model decides: it calls a tool unless it has just been told a tool's result.
    Auto,
    Always,
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ToolCall {
    pub(super) name: String,
    /// A JSON object, or the text of a custom tool.
    pub(super) arguments: String,
    pub(super) is_custom: bool,
}

/// The tool call that answers a request; `None` if the answer is text.
pub(super) fn chosen(endpoint: Endpoint, request: &Value) -> Option<ToolCall> {
    let offered = offered(endpoint, request);
    let choice = Choice::of(endpoint, request);
    let is_called = match choice.mode {
        Mode::Never => false,
        Mode::Auto => !ends_with_a_result(endpoint, request),
        Mode::Always => true,
    };
    let tool = offered
        .into_iter()
        .find(|tool| is_called && choice.allows(tool.name))?;
    let (arguments, is_custom) = match tool.takes {
        Takes::Arguments(schema) => match schema::example(schema) {
            arguments @ Value::Object(_) => (arguments.to_string(), false),
            _ => ("{}".to_owned(), false),
        },
        Takes::Text => ("river".to_owned(), true),
    };
    Some(ToolCall {
        name: tool.name.to_owned(),
        arguments,
        is_custom,
    })
}

/// A tool that the request wants to be called but does not offer.
pub(super) fn unknown_choice(endpoint: Endpoint, request: &Value) -> Option<&str> {
    let offered = offered(endpoint, request);
    let names = Choice::of(endpoint, request).names;
    names
        .into_iter()
        .find(|name| offered.iter().all(|tool| tool.name != *name))
}

/// The JSON schema that the answer's text must follow, if the request asks for structured output.
pub(super) fn output_schema(dialect: Dialect, request: &Value) -> Option<Value> {
    let format = match dialect {
        Dialect::OpenAi | Dialect::Azure => match &request["response_format"] {
            Value::Null => &request["text"]["format"],
            format => format,
        },
        Dialect::Anthropic => &request["output_config"]["format"],
        Dialect::Gemini => {
            let config = &request["generationConfig"];
            let schema = [
                either(config, "responseJsonSchema", "response_json_schema"),
                &config["responseSchema"],
            ];
            return schema
                .into_iter()
                .find(|schema| schema.is_object())
                .cloned()
                .or_else(|| (config["responseMimeType"] == "application/json").then(any_object));
        }
    };
    let schemas = [&format["json_schema"]["schema"], &format["schema"]];
    match format["type"].as_str()? {
        "json_object" => Some(any_object()),
        "json_schema" => schemas
            .into_iter()
            .find(|schema| schema.is_object())
            .cloned(),
        _ => None,
    }
}

fn any_object() -> Value {
    json!({"type": "object", "properties": {"answer": {"type": "string"}}})
}

fn offered<'a>(endpoint: Endpoint, request: &'a Value) -> Vec<Tool<'a>> {
    let tools = request["tools"].as_array().into_iter().flatten();
    match endpoint {
        Endpoint::Chat => tools
            .filter_map(|tool| match tool["type"].as_str()? {
                "function" => function(&tool["function"]["name"], &tool["function"]["parameters"]),
                "custom" => custom(&tool["custom"]["name"]),
                _ => None,
            })
            .collect(),
        Endpoint::Responses => tools
            .filter_map(|tool| match tool["type"].as_str()? {
                "function" => function(&tool["name"], &tool["parameters"]),
                "custom" => custom(&tool["name"]),
                _ => None,
            })
            .collect(),
        // The provider's own tools have other types, and are run by the provider.
        Endpoint::Messages => tools
            .filter(|tool| tool["type"].is_null() || tool["type"] == "custom")
            .filter_map(|tool| function(&tool["name"], &tool["input_schema"]))
            .collect(),
        Endpoint::Generate | Endpoint::StreamGenerate { .. } => tools
            .flat_map(|tool| {
                either(tool, "functionDeclarations", "function_declarations").as_array()
            })
            .flatten()
            .filter_map(|declared| {
                let schema =
                    match either(declared, "parametersJsonSchema", "parameters_json_schema") {
                        Value::Null => &declared["parameters"],
                        schema => schema,
                    };
                function(&declared["name"], schema)
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn function<'a>(name: &'a Value, schema: &'a Value) -> Option<Tool<'a>> {
    Some(Tool {
        name: name.as_str()?,
        takes: Takes::Arguments(schema),
    })
}

fn custom(name: &Value) -> Option<Tool<'_>> {
    Some(Tool {
        name: name.as_str()?,
        takes: Takes::Text,
    })
}

// === impl Choice ===

impl<'a> Choice<'a> {
    fn of(endpoint: Endpoint, request: &'a Value) -> Self {
        match endpoint {
            Endpoint::Generate | Endpoint::StreamGenerate { .. } => Self::gemini(request),
            _ => Self::of_tool_choice(&request["tool_choice"]),
        }
    }

    /// OpenAI's and Anthropic's forms have no word in common that means two things.
    fn of_tool_choice(choice: &'a Value) -> Self {
        let named = [
            &choice["name"],
            &choice["function"]["name"],
            &choice["custom"]["name"],
        ];
        let named: Vec<&str> = named.into_iter().filter_map(Value::as_str).collect();
        let (mode, names) = match choice.as_str().or(choice["type"].as_str()) {
            Some("none") => (Mode::Never, named),
            Some("required" | "any") => (Mode::Always, named),
            Some("function" | "custom" | "tool") => (Mode::Always, named),
            Some("allowed_tools") => {
                let allowed = match &choice["allowed_tools"] {
                    Value::Null => choice,
                    inner => inner,
                };
                let is_required = allowed["mode"] == "required";
                let tools = allowed["tools"].as_array().into_iter().flatten();
                let names = tools.filter_map(|tool| {
                    let name = [
                        &tool["name"],
                        &tool["function"]["name"],
                        &tool["custom"]["name"],
                    ];
                    name.into_iter().find_map(Value::as_str)
                });
                let mode = if is_required {
                    Mode::Always
                } else {
                    Mode::Auto
                };
                (mode, names.collect())
            }
            _ => (Mode::Auto, Vec::new()),
        };
        Self { mode, names }
    }

    fn gemini(request: &'a Value) -> Self {
        let config = either(request, "toolConfig", "tool_config");
        let config = either(config, "functionCallingConfig", "function_calling_config");
        let mode = match config["mode"].as_str() {
            Some("NONE") => Mode::Never,
            Some("ANY") => Mode::Always,
            _ => Mode::Auto,
        };
        let names = either(config, "allowedFunctionNames", "allowed_function_names");
        let names = names.as_array().into_iter().flatten();
        Self {
            mode,
            names: names.filter_map(Value::as_str).collect(),
        }
    }

    fn allows(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.contains(&name)
    }
}

/// Whether the model is told the result of a tool it called, and has the word.
fn ends_with_a_result(endpoint: Endpoint, request: &Value) -> bool {
    let last = |turns: &Value| turns.as_array().and_then(|turns| turns.last().cloned());
    let holds = |parts: &Value, is_result: fn(&Value) -> bool| {
        parts
            .as_array()
            .is_some_and(|parts| parts.iter().any(is_result))
    };
    match endpoint {
        Endpoint::Responses => last(&request["input"]).is_some_and(|item| {
            item["type"]
                .as_str()
                .is_some_and(|kind| kind.ends_with("_output"))
        }),
        Endpoint::Generate | Endpoint::StreamGenerate { .. } => last(&request["contents"])
            .is_some_and(|turn| {
                holds(&turn["parts"], |part| {
                    !either(part, "functionResponse", "function_response").is_null()
                })
            }),
        _ => last(&request["messages"]).is_some_and(|message| {
            message["role"] == "tool"
                || holds(&message["content"], |part| part["type"] == "tool_result")
        }),
    }
}

/// A field that Gemini takes in both spellings.
fn either<'a>(value: &'a Value, one: &str, other: &str) -> &'a Value {
    match &value[one] {
        Value::Null => &value[other],
        found => found,
    }
}
