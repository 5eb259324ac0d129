//! Reading a response while it passes.
//!
//! A [`Scanner`] reads the response headers and then every frame, without copying, holding or changing them. When the body
//! ends or is dropped, it decides how the call ended.

mod choices;
mod counters;
mod error_names;
mod facts;
mod format;
mod grpc;
pub(crate) mod json;
mod place;
mod provider_error;
mod response_headers;
mod retry_hint;
mod shared_prefix;
mod sse;

use bytes::Bytes;
use http::{Extensions, HeaderMap, StatusCode};
use http_body::Frame;
use tokio::time::Instant;

use self::{
    facts::{Facts, Speaks},
    format::{Format, Label},
    provider_error::Verdict,
    response_headers::ResponseHeaders,
};
use crate::{Call, Completion, Dialect, Failure, Operation, Outcome, Served};

/// Reads one response from its headers to its end.
#[derive(Debug)]
pub(crate) struct Scanner {
    headers: ResponseHeaders,
    format: Format,
    facts: Facts,
    /// The request asks for a stream.
    asked_to_stream: bool,
    /// The marker that a stream must have, if the dialect is known from the request.
    expects: Option<Speaks>,
    /// What the request asked for, as far as it matters for the response.
    asked: Asked,
    first_token_at: Option<Instant>,
    served: Option<Served>,
    body_bytes: u64,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// Unknown: the response may be a model's answer.
    Unknown,
    /// A model's answer, in a dialect that is known.
    Answer,
    /// Something else of the same server: images, speech, a batch.
    Other,
    /// Stored data: files, lists, an earlier answer.
    Stored,
}

/// What a frame showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The first content token was in it.
    pub(crate) first_token: bool,
    /// Everything has arrived that shows how the call ended.
    pub(crate) is_over: bool,
}

/// Why a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The upstream ended it.
    Ended,
    /// The upstream broke it off with an error that stands for this outcome.
    Errored(Outcome),
    /// Its reader dropped it.
    Dropped(Outcome),
    /// A layer ended it with this outcome.
    Cut(Outcome),
}

impl Scanner {
    pub(crate) fn new(call: Option<&Call>, status: StatusCode, headers: &HeaderMap) -> Self {
        let asked = Asked::by(call);
        let asked_to_stream = call.is_some_and(Call::streamed);
        Self {
            headers: ResponseHeaders::new(status, headers),
            format: Format::of(headers),
            facts: Facts::new(asked == Asked::Answer),
            asked_to_stream,
            expects: call
                .filter(|_| asked_to_stream)
                .and_then(Call::dialect)
                .map(marker_of),
            asked,
            first_token_at: None,
            served: None,
            body_bytes: 0,
        }
    }

    /// Reads what a cache says of the response.
    pub(crate) fn served(mut self, response: &Extensions) -> Self {
        self.served = response.get().copied();
        self
    }

    /// Reads a frame.
    pub(crate) fn frame(&mut self, frame: &Frame<Bytes>) -> Seen {
        let had_output = self.facts.has_output;
        if let Some(data) = frame.data_ref() {
            self.body_bytes += data.len() as u64;
            self.format.feed(data, &mut self.facts);
            if let Format::Opaque { compressed: false } = self.format
                && self.headers.is_error()
            {
                self.facts.error_text(data);
            }
        } else if let (Some(trailers), Format::Grpc(grpc)) =
            (frame.trailers_ref(), &mut self.format)
        {
            grpc.trailers(trailers);
        }
        let first_token = self.facts.has_output && !had_output && self.is_streamed();
        if first_token {
            self.first_token_at = Some(Instant::now());
        }
        Seen {
            first_token,
            is_over: self.is_over(),
        }
    }

    pub(crate) fn first_token_at(&self) -> Option<Instant> {
        self.first_token_at
    }

    /// How much content has passed; `None` if it cannot be distinguished from the rest of the body.
    pub(crate) fn content_bytes(&self) -> Option<u64> {
        match self.format {
            Format::Sse(_) | Format::Json { .. } => self.facts.content_bytes(),
            Format::Undecided(_) | Format::Grpc(_) | Format::Opaque { .. } => None,
        }
    }

    /// Whether the body is an event stream, or is expected to be one.
    pub(crate) fn is_event_stream(&self) -> bool {
        match &self.format {
            Format::Sse(_) => true,
            Format::Undecided(beginning) => match beginning.label() {
                Label::Events => true,
                Label::Other => self.asked_to_stream,
                Label::Json | Label::Compressed => false,
            },
            _ => false,
        }
    }

    /// Whether content tokens arrive one after another, so that the first one is worth reporting.
    fn is_streamed(&self) -> bool {
        self.headers.is_success()
            && match &self.format {
                Format::Sse(_) | Format::Grpc(_) => true,
                Format::Json { is_list, .. } => *is_list && self.asked_to_stream,
                Format::Undecided(_) | Format::Opaque { .. } => false,
            }
    }

    /// How the call has ended.
    pub(crate) fn finish(&self, end: End) -> Completion {
        let Verdict { outcome, subject } = self.verdict(end);
        let mut completion = Completion::new(outcome);
        // Stored data was charged when it was produced.
        if self.asked != Asked::Stored {
            completion.usage = self.facts.usage();
            completion.output_seen = self.facts.output_seen();
        }
        completion.first_token_at = self.first_token_at;
        completion.ended_at = Some(Instant::now());
        completion.finish = self.facts.finish();
        completion.finished_choices = self.facts.finished_choices();
        completion.status = Some(self.headers.status.as_u16());
        completion.subject = subject;
        completion.served = self.served;
        completion.body_bytes = self.body_bytes;
        completion
    }

    /// Whether everything has arrived that shows how the call ended.
    ///
    /// An event that says so counts once its data is whole: what shows the end is rarely the last of its members.
    pub(crate) fn is_over(&self) -> bool {
        match &self.format {
            Format::Sse(sse) => !sse.is_in_data() && (self.saw_the_end() || self.facts.has_error()),
            _ => self.saw_the_end(),
        }
    }

    fn verdict(&self, end: End) -> Verdict {
        let error = self.facts.error();
        // An error status decides, however little of the body was read.
        if let Some(verdict) = self.headers.verdict(error, self.facts.hint()) {
            return verdict;
        }
        if let Format::Grpc(grpc) = &self.format
            && let Some(verdict) = grpc.verdict()
        {
            return verdict;
        }
        if self.asked == Asked::Answer && !self.headers.is_success() {
            // A redirect or a protocol switch instead of a model's answer.
            return Outcome::Failed(Failure::Status).into();
        }
        let in_band = match self.asked {
            Asked::Answer | Asked::Unknown => error,
            Asked::Other => self.facts.certain_error(),
            // What went wrong with it did so when it was made.
            Asked::Stored => None,
        };
        if let Some(error) = in_band {
            return error.in_band(self.facts.hint());
        }
        let outcome = match end {
            _ if self.saw_the_end() => Outcome::Success,
            End::Ended if self.may_end_here() => Outcome::Success,
            End::Ended => Outcome::Failed(Failure::Truncated),
            End::Errored(outcome) | End::Dropped(outcome) | End::Cut(outcome) => outcome,
        };
        outcome.into()
    }

    /// Whether a whole response has arrived, whatever happens to the rest of the body.
    ///
    /// Many clients stop reading at the terminal marker, and servers at the content length.
    fn saw_the_end(&self) -> bool {
        match &self.format {
            Format::Sse(_) => self.facts.has_marker(self.expects),
            Format::Json { json, .. } => json.is_complete(),
            Format::Undecided(_) | Format::Grpc(_) | Format::Opaque { .. } => false,
        }
    }

    /// Whether the body may end cleanly now.
    fn may_end_here(&self) -> bool {
        let needs_answer = self.asked == Asked::Answer;
        match &self.format {
            // Many providers send no marker: a finish reason for every choice is enough.
            Format::Sse(_) => {
                self.facts.has_finished() || self.facts.speaks.or(self.expects).is_none()
            }
            Format::Json { json, .. } => !json.is_open() && !needs_answer,
            Format::Grpc(_) => false,
            // A proxy's web page is not a model's answer. A compressed body cannot be read here.
            Format::Opaque { compressed } => *compressed || !needs_answer,
            Format::Undecided(beginning) => !needs_answer || beginning.label() == Label::Compressed,
        }
    }
}

impl Asked {
    fn by(call: Option<&Call>) -> Self {
        let Some(call) = call else {
            return Self::Unknown;
        };
        let operation = call.operation();
        if *operation == Operation::RETRIEVE {
            Self::Stored
        } else if *operation == Operation::OTHER {
            Self::Other
        } else if call.dialect().is_some() {
            Self::Answer
        } else {
            Self::Unknown
        }
    }
}

/// The terminal marker that a streamed answer must have.
fn marker_of(dialect: Dialect) -> Speaks {
    match dialect {
        Dialect::OpenAi => Speaks::Choices,
        Dialect::OpenAiResponses | Dialect::Anthropic | Dialect::Gemini => Speaks::Events,
    }
}
