//! The forms of one answer.

use http::Uri;
use tower_llm_core::{Call, Dialect};

/// How an answer is written: the same content for callers that stream and for those that do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    /// One document.
    Object,
    /// Server-sent events.
    Events,
    /// A JSON array that grows: Gemini's streams without `alt=sse`.
    List,
    /// One document, the answer to one item of a batch, cut where those to others are put in. Not asked for.
    Item,
}

impl Form {
    /// The form that a request asks for.
    pub(crate) fn asked(call: &Call, uri: &Uri) -> Self {
        let is_sse = || {
            let query = uri.query().unwrap_or_default();
            query
                .split('&')
                .any(|pair| ["alt=sse", "$alt=sse"].contains(&pair))
        };
        match (call.streamed(), call.dialect()) {
            (false, _) => Self::Object,
            // The method in the path alone makes a list; `stream: true` in the body, events.
            (true, Some(Dialect::Gemini))
                if uri.path().ends_with(":streamGenerateContent") && !is_sse() =>
            {
                Self::List
            }
            (true, _) => Self::Events,
        }
    }

    /// The form of a body, by its first bytes; what a label says of it is no proof.
    pub(crate) fn of_body(is_event_stream: bool, first: &[u8]) -> Self {
        let first = first.iter().find(|byte| !byte.is_ascii_whitespace());
        match first {
            _ if is_event_stream => Self::Events,
            Some(b'[') => Self::List,
            _ => Self::Object,
        }
    }
}
