//! Answers in the other form: an event stream as one object, an object as an event stream.
//!
//! A recorded answer serves callers who stream and callers who do not. What providers send to the two differs only in
//! form, so each form can be made from the other:
//!
//! - [`whole`] joins the events of a stream to the object that the same request would have got without streaming.
//! - [`events`] cuts an object into the events of a stream. Each text comes in one piece; nothing is paced.
//! - [`with_usage`] takes the chunk with the usage out of a stream for a caller that did not ask for it.
//!
//! All of them are exact or return `None`, which the caller takes for a miss. `None` is what becomes of an error, of a
//! stream that did not reach its end, and of anything whose parts cannot be joined with certainty: an event, a delta or a
//! string in a delta that is not known here. Members that are not known are kept.
//!
//! Whether an answer is good is for core to judge: a finish reason such as `error` goes from one form to the other like
//! any other.
//!
//! Two things are not kept. Members that exist only in streams (`obfuscation`, `sequence_number`) and comments have no
//! place in an object. Numbers with a fraction go through an `f64`, and may differ in their last digit.
//!
//! OpenAI sends usage in every object, and in a stream only if the request asks for it. A stream without usage gives no object:
//! callers that do not stream count on `usage`.

mod anthropic;
mod gemini;
mod merge;
mod openai;
mod openai_events;
mod responses;
mod sse;
#[cfg(test)]
mod tests;
mod usage;

use bytes::Bytes;
use serde_json::Value;
use tower_llm_core::{Dialect, Operation};

pub(crate) use usage::with_usage;

type Map = serde_json::Map<String, Value>;

/// How a caller wants its stream.
///
/// Complete: providers stream in no other form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamForm {
    /// Server-sent events.
    Events {
        /// Whether the request sets `stream_options.include_usage`; it matters in [`Dialect::OpenAi`] only.
        include_usage: bool,
    },
    /// A JSON array of chunks, which Gemini sends without `alt=sse`.
    JsonArray,
}

/// Returns the object that the provider would have answered with if the request had not asked for a stream.
///
/// `events` is the complete body of the stream. `None` if the object cannot be told for certain; see the
/// [module](self).
pub(crate) fn whole(dialect: Dialect, operation: &Operation, events: &[u8]) -> Option<Bytes> {
    let object = join(dialect, operation, events)?;
    if dialect == Dialect::OpenAi && !object["usage"].is_object() {
        return None;
    }
    serde_json::to_vec(&object).ok().map(Bytes::from)
}

/// Joins the events of a stream, whether or not they have all that an object needs.
fn join(dialect: Dialect, operation: &Operation, events: &[u8]) -> Option<Value> {
    match dialect {
        Dialect::OpenAi if *operation == Operation::CHAT => openai::chat(events),
        Dialect::OpenAi if *operation == Operation::TEXT_COMPLETION => openai::text(events),
        Dialect::OpenAiResponses if *operation == Operation::CHAT => responses::whole(events),
        Dialect::Anthropic if *operation == Operation::CHAT => anthropic::whole(events),
        Dialect::Gemini if *operation == Operation::GENERATE_CONTENT => gemini::whole(events),
        _ => None,
    }
}

/// Returns the stream that the provider would have answered with if the request had asked for one.
///
/// Each frame is one event with its blank line. `None` if the object is no finished answer of the dialect, or if the
/// caller asks for usage that it does not hold.
pub(crate) fn events(
    dialect: Dialect,
    operation: &Operation,
    whole: &[u8],
    form: StreamForm,
) -> Option<Vec<Bytes>> {
    let object = merge::parse(whole)?;
    match (dialect, form) {
        (Dialect::OpenAi, StreamForm::Events { include_usage })
            if *operation == Operation::CHAT =>
        {
            openai_events::chat(object, include_usage)
        }
        (Dialect::OpenAi, StreamForm::Events { include_usage })
            if *operation == Operation::TEXT_COMPLETION =>
        {
            openai_events::text(object, include_usage)
        }
        (Dialect::OpenAiResponses, StreamForm::Events { .. }) if *operation == Operation::CHAT => {
            responses::events(object)
        }
        (Dialect::Anthropic, StreamForm::Events { .. }) if *operation == Operation::CHAT => {
            anthropic::events(object)
        }
        (Dialect::Gemini, form) if *operation == Operation::GENERATE_CONTENT => {
            gemini::events(&object, whole, form)
        }
        _ => None,
    }
}
