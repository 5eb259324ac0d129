//! Lists of models, and single ones.
//!
//! The provider answers for any model's name; these are the ones it owns up to.

use super::{
    answer::CREATED,
    errors::Failure,
    route::{Dialect, Route},
};

const OPENAI: [&str; 6] = [
    "sim-1",
    "sim-1-mini",
    "gpt-5-mini",
    "gpt-4o-mini",
    "text-embedding-3-small",
    "text-embedding-3-large",
];

const ANTHROPIC: [(&str, &str); 3] = [
    ("claude-sonnet-4-5", "Claude Sonnet 4.5"),
    ("claude-haiku-4-5", "Claude Haiku 4.5"),
    ("sim-1", "Simulated 1"),
];

const GEMINI: [(&str, &str, &str); 3] = [
    (
        "gemini-2.5-flash",
        "Gemini 2.5 Flash",
        r#"["generateContent","countTokens"]"#,
    ),
    (
        "gemini-embedding-001",
        "Gemini Embedding 001",
        r#"["embedContent","countTokens"]"#,
    ),
    (
        "sim-1",
        "Simulated 1",
        r#"["generateContent","countTokens","embedContent"]"#,
    ),
];

pub(super) fn list(dialect: Dialect) -> String {
    match dialect {
        Dialect::OpenAi | Dialect::Azure => {
            let models = OPENAI.map(openai).join(",");
            format!(r#"{{"object":"list","data":[{models}]}}"#)
        }
        Dialect::Anthropic => {
            let models = ANTHROPIC.map(|(id, name)| anthropic(id, name)).join(",");
            let [(first, _), .., (last, _)] = ANTHROPIC;
            format!(
                r#"{{"data":[{models}],"has_more":false,"first_id":"{first}","last_id":"{last}"}}"#
            )
        }
        Dialect::Gemini => {
            let models = GEMINI.map(|(id, name, methods)| gemini(id, name, methods));
            format!(r#"{{"models":[{}]}}"#, models.join(","))
        }
    }
}

/// The model that the route names.
pub(super) fn one(route: &Route) -> Result<String, Failure> {
    let wanted = route.model.as_deref().unwrap_or_default();
    let found = match route.dialect {
        Dialect::OpenAi | Dialect::Azure => OPENAI.into_iter().find(|id| *id == wanted).map(openai),
        Dialect::Anthropic => {
            let found = ANTHROPIC.into_iter().find(|(id, _)| *id == wanted);
            found.map(|(id, name)| anthropic(id, name))
        }
        Dialect::Gemini => {
            let found = GEMINI.into_iter().find(|(id, ..)| *id == wanted);
            found.map(|(id, name, methods)| gemini(id, name, methods))
        }
    };
    found.ok_or_else(|| Failure::unknown_model(route.dialect, wanted))
}

fn openai(id: &str) -> String {
    format!(r#"{{"id":"{id}","object":"model","created":{CREATED},"owned_by":"sim"}}"#)
}

fn anthropic(id: &str, name: &str) -> String {
    format!(
        r#"{{"type":"model","id":"{id}","display_name":"{name}","created_at":"2026-09-21T00:00:00Z","lifecycle":"active","deprecated_at":null,"retires_at":null,"line":null,"max_input_tokens":200000,"max_tokens":64000,"capabilities":null}}"#
    )
}

fn gemini(id: &str, name: &str, methods: &str) -> String {
    format!(
        r#"{{"name":"models/{id}","version":"001","displayName":"{name}","description":"A simulated model.","inputTokenLimit":1048576,"outputTokenLimit":65536,"supportedGenerationMethods":{methods},"temperature":1,"topP":0.95,"topK":64,"maxTemperature":2}}"#
    )
}
