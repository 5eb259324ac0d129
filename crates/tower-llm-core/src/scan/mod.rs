//! Reading a response while it passes.
//!
//! A [`Scanner`] is shown the response's head and then every frame. It copies nothing, holds nothing and changes
//! nothing; when the end comes, or is made, it says how the call has ended.

mod beginning;
mod fields;
mod grpc;
mod head;
mod json;
mod sse;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::Frame;
use tokio::time::Instant;

use self::{
    fields::{ErrorKind, Facts, InBand, Marker, Place, Speaks},
    grpc::Grpc,
    head::Head,
    json::Json,
    sse::Sse,
};
use crate::{Call, Completion, Dialect, Failure, Operation, Outcome};

/// Reads one response from its head to its end.
#[derive(Debug)]
pub(crate) struct Scanner {
    head: Head,
    format: Format,
    facts: Facts,
    /// Content tokens come one after another, so that the first one is worth telling.
    streamed: bool,
    /// The marker that must come before the end, if the dialect is known from the request.
    expects: Option<Speaks>,
    /// What the request was, as far as it bears on the response.
    asked: Asked,
    first_token_at: Option<Instant>,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// Nobody said: the response may be a model's answer.
    Unknown,
    /// A model's answer, in a dialect that is known.
    Answer,
    /// Something else of the same server: files, jobs, lists.
    Other,
}

/// How the body is written.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a response's scanner lies in one allocation"
)]
enum Format {
    Sse(Sse),
    Json(Json<Place>),
    Grpc(Grpc),
    /// Nothing that can be read here: audio, a page, a compressed body.
    Opaque {
        compressed: bool,
    },
}

/// How a body came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The upstream ended it.
    Ended,
    /// The upstream broke it off with an error that stands for this verdict.
    Errored(Outcome),
    /// Whoever reads it dropped it.
    Dropped(Outcome),
    /// A layer ended it with this verdict.
    Cut(Outcome),
}

impl Scanner {
    pub(crate) fn new(call: Option<&Call>, status: StatusCode, headers: &HeaderMap) -> Self {
        let head = Head::new(status, headers);
        let format = Format::of(headers);
        let asked_to_stream = call.is_some_and(Call::streamed);
        let asked = Asked::by(call);
        Self {
            streamed: status.is_success()
                && match &format {
                    Format::Sse(_) | Format::Grpc(_) => true,
                    // Gemini streams a JSON array where SSE was not asked for.
                    Format::Json(_) => asked_to_stream,
                    Format::Opaque { .. } => false,
                },
            expects: call.and_then(|call| marker_of(call, &format)),
            head,
            format,
            facts: Facts::new(asked == Asked::Answer),
            asked,
            first_token_at: None,
        }
    }

    /// Reads a frame; returns whether the first content token was in it.
    pub(crate) fn frame(&mut self, frame: &Frame<Bytes>) -> bool {
        let had_output = self.facts.has_output;
        if let Some(data) = frame.data_ref() {
            match &mut self.format {
                Format::Sse(sse) => sse.feed(data, &mut self.facts),
                Format::Json(json) => json.feed(data, &mut self.facts),
                Format::Grpc(_) => self.facts.has_output |= !data.is_empty(),
                Format::Opaque { .. } => {}
            }
        } else if let (Some(trailers), Format::Grpc(grpc)) =
            (frame.trailers_ref(), &mut self.format)
        {
            grpc.trailers(trailers);
        }
        let first = self.streamed && self.facts.has_output && !had_output;
        if first {
            self.first_token_at = Some(Instant::now());
        }
        first
    }

    pub(crate) fn first_token_at(&self) -> Option<Instant> {
        self.first_token_at
    }

    /// How much content has passed; `None` where it cannot be told from the rest of the body.
    pub(crate) fn content_bytes(&self) -> Option<u64> {
        match self.format {
            Format::Sse(_) | Format::Json(_) => self.facts.content_bytes(),
            Format::Grpc(_) | Format::Opaque { .. } => None,
        }
    }

    /// Whether the body is an event stream.
    pub(crate) fn is_event_stream(&self) -> bool {
        matches!(self.format, Format::Sse(_))
    }

    /// How the call has ended.
    pub(crate) fn finish(&self, end: End) -> Completion {
        let usage = self.facts.usage();
        let mut completion = Completion::new(self.outcome(end));
        completion.usage = usage;
        completion.output_seen = self.facts.output_seen();
        completion.first_token_at = self.first_token_at;
        completion.ended_at = Some(Instant::now());
        completion.finish = self.facts.finish;
        completion.status = Some(self.head.status.as_u16());
        completion
    }

    /// Whether all has come that tells its reader how the call has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.saw_the_end() || self.is_event_stream() && self.facts.error.is_some()
    }

    fn outcome(&self, end: End) -> Outcome {
        // The status is a verdict by itself, however little of the body was read.
        if let Some(outcome) = self.head.error(self.facts.error.as_ref()) {
            return outcome;
        }
        if let Format::Grpc(grpc) = &self.format
            && let Some(outcome) = grpc.outcome()
        {
            return outcome;
        }
        if let Some(error) = &self.facts.error
            && self.asked != Asked::Other
        {
            return in_band(error);
        }
        match end {
            _ if self.saw_the_end() => Outcome::Success,
            End::Ended if self.may_end_here() => Outcome::Success,
            End::Ended => Outcome::Failed(Failure::Truncated),
            End::Errored(outcome) | End::Dropped(outcome) | End::Cut(outcome) => outcome,
        }
    }

    /// Whether what came is a whole response, whatever happens to the rest of the body.
    ///
    /// Many clients stop reading at the terminal marker, and servers where the content length ends.
    fn saw_the_end(&self) -> bool {
        match &self.format {
            Format::Sse(_) => self.has_marker(),
            Format::Json(json) => json.is_complete(),
            Format::Grpc(_) | Format::Opaque { .. } => false,
        }
    }

    /// Whether a clean end is what this body should do next.
    fn may_end_here(&self) -> bool {
        match &self.format {
            Format::Sse(_) => self.facts.speaks.or(self.expects).is_none(),
            Format::Json(json) => !json.is_open() && self.asked != Asked::Answer,
            Format::Grpc(_) => false,
            // A page of some proxy's is no answer of a model. What is compressed cannot be read here.
            Format::Opaque { compressed } => *compressed || self.asked != Asked::Answer,
        }
    }

    fn has_marker(&self) -> bool {
        match self.facts.speaks.or(self.expects) {
            Some(Speaks::Choices) => self.facts.terminal == Some(Marker::Done),
            _ => self.facts.terminal.is_some(),
        }
    }
}

impl Format {
    fn of(headers: &HeaderMap) -> Self {
        let value = |name| headers.get(name).map_or(&b""[..], |value| value.as_bytes());
        let media_type = value(http::header::CONTENT_TYPE);
        let is = |prefix: &[u8]| {
            media_type
                .get(..prefix.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        };
        // Not gRPC-web, whose status comes within the body.
        if is(b"application/grpc") && !is(b"application/grpc-web") {
            return Self::Grpc(Grpc::new(headers));
        }
        if !matches!(value(http::header::CONTENT_ENCODING), b"" | b"identity") {
            return Self::Opaque { compressed: true };
        }
        if is(b"text/event-stream") {
            Self::Sse(Sse::new())
        } else if is(b"application/json") || is(b"application/problem+json") {
            Self::Json(Json::new(Place::Root))
        } else {
            Self::Opaque { compressed: false }
        }
    }
}

impl Asked {
    fn by(call: Option<&Call>) -> Self {
        let Some(call) = call else {
            return Self::Unknown;
        };
        match call.dialect() {
            Some(_) if *call.operation() != Operation::OTHER => Self::Answer,
            None if *call.operation() != Operation::OTHER => Self::Unknown,
            _ => Self::Other,
        }
    }
}

/// The terminal marker that a streamed answer to `call` must have.
fn marker_of(call: &Call, format: &Format) -> Option<Speaks> {
    if !(call.streamed() && matches!(format, Format::Sse(_))) {
        return None;
    }
    match call.dialect()? {
        Dialect::OpenAi => Some(Speaks::Choices),
        Dialect::OpenAiResponses | Dialect::Anthropic | Dialect::Gemini => Some(Speaks::Events),
    }
}

/// What an error inside a response that had begun well means.
fn in_band(error: &InBand) -> Outcome {
    let retry_after = error.retry_after;
    match error.kind {
        ErrorKind::Unknown => Outcome::Failed(Failure::InBand),
        ErrorKind::ClientError => Outcome::ClientError,
        ErrorKind::Throttled => Outcome::Throttled { retry_after },
        ErrorKind::Overloaded => Outcome::Overloaded { retry_after },
        ErrorKind::Exhausted => Outcome::Exhausted,
    }
}
