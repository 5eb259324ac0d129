//! A whole answer: headers, timed frames and its end.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header::CONTENT_TYPE};
use serde_json::Value;

use super::{
    answer::Answer,
    anthropic, chat, completions,
    cut::cut,
    embeddings, errors, gemini, headers, models,
    part::{Kind, Part},
    responses,
    route::{Dialect, Endpoint, Route},
    validate,
};
use crate::{Behavior, Fault, InBand, LineEnding, fixtures::Fixture};

/// An answer as it is sent.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Reply {
    /// The status; without meaning if no headers are sent.
    pub status: u16,
    /// All headers except those of the connection.
    pub headers: HeaderMap,
    /// The delay before the headers.
    pub before_head: Duration,
    /// The body.
    pub frames: Vec<Frame>,
    /// How the answer ends after the last frame.
    pub end: End,
    /// Input tokens that count as processed when the answer starts.
    pub input_tokens: u64,
    /// The body is an event stream or a JSON array that grows.
    pub streamed: bool,
}

/// A piece of the body that is sent in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Frame {
    /// The bytes.
    pub bytes: Bytes,
    /// Its time after the headers.
    pub due: Duration,
    /// Output tokens that end in this frame.
    pub tokens: u64,
}

/// How an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// The body ends as HTTP specifies.
    Clean,
    /// The connection is reset after the last frame.
    Reset,
    /// Nothing more is sent and the connection stays open.
    Silence,
    /// The connection is reset before the headers.
    ResetBeforeHead,
    /// No headers are sent.
    NoHead,
}

/// What an answer depends on.
#[derive(Clone, Debug)]
pub(crate) struct Asked<'a> {
    /// `None` is the right one, whichever it is.
    pub(crate) method: Option<&'a Method>,
    pub(crate) path: &'a str,
    pub(crate) client: Option<Dialect>,
    pub(crate) body: &'a [u8],
}

impl<'a> Asked<'a> {
    pub(crate) fn post(path: &'a str, body: &'a [u8]) -> Self {
        Self {
            method: None,
            path,
            client: None,
            body,
        }
    }
}

impl Asked<'_> {
    /// The body, where the route takes one.
    fn json(&self, route: &Route, is_strict: bool) -> Result<Value, errors::Failure> {
        let Some(expected) = route.endpoint.method() else {
            let method = self.method.unwrap_or(&Method::POST);
            return Err(errors::Failure::unknown_path(
                route.dialect,
                method,
                self.path,
            ));
        };
        if self.method.is_some_and(|method| *method != expected) {
            return Err(errors::Failure::wrong_method(route.dialect));
        }
        if expected == Method::GET {
            return Ok(Value::Null);
        }
        let json = serde_json::from_slice(self.body)
            .map_err(|_| errors::Failure::bad_json(route.dialect))?;
        match validate::problem(route, &json).filter(|_| is_strict) {
            Some(failure) => Err(failure),
            None => Ok(json),
        }
    }
}

impl Reply {
    pub(crate) fn build(asked: &Asked<'_>, behavior: &Behavior) -> Self {
        let mut reply = match &behavior.replay {
            Some(fixture) => Self::replay(fixture, behavior),
            None => Self::simulate(asked, behavior),
        };
        reply.before_head = reply.before_head.saturating_add(behavior.head_delay);
        for (name, value) in &behavior.headers {
            reply.headers.insert(name, value.clone());
        }
        reply
    }

    fn error(dialect: Dialect, failure: &errors::Failure) -> Self {
        let mut headers = headers::of(dialect, "0000000000000000");
        headers.extend(errors::headers(dialect, failure));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Self {
            status: failure.status,
            headers,
            before_head: Duration::ZERO,
            frames: vec![frame(errors::body(dialect, failure), Duration::ZERO, 0)],
            end: End::Clean,
            input_tokens: 0,
            streamed: false,
        }
    }

    fn replay(fixture: &Fixture, behavior: &Behavior) -> Self {
        let streamed = fixture.is_event_stream();
        let events = if streamed {
            split_events(fixture.body)
        } else {
            vec![Bytes::from_static(fixture.body)]
        };
        let frames = events
            .into_iter()
            .map(|bytes| Frame {
                bytes,
                due: Duration::ZERO,
                tokens: 0,
            })
            .collect();
        Self {
            status: fixture.status,
            headers: fixture.header_map(),
            before_head: Duration::ZERO,
            frames: cut(frames, &behavior.cut),
            end: End::Clean,
            input_tokens: 0,
            streamed,
        }
    }

    fn simulate(asked: &Asked<'_>, behavior: &Behavior) -> Self {
        let route = &Route::of(asked.path, asked.client);
        let dialect = route.dialect;
        if let Some(failure) = behavior
            .fault
            .and_then(|fault| errors::Failure::of(fault, dialect))
        {
            let reply = Self::error(dialect, &failure);
            return Self {
                frames: cut(reply.frames, &behavior.cut),
                ..reply
            };
        }
        let json = match asked.json(route, behavior.is_strict) {
            Ok(json) => json,
            Err(failure) => return Self::error(dialect, &failure),
        };
        let answer = Answer::new(route, asked.body, &json, behavior);
        let mut reply = Self {
            status: 200,
            headers: headers::of(route.dialect, &answer.id),
            before_head: Duration::ZERO,
            frames: Vec::new(),
            end: End::Clean,
            input_tokens: answer.input,
            streamed: false,
        };
        match stream_of(route, &answer) {
            Some(parts) => reply.stream(route, &answer, parts, behavior),
            None => return reply.unary(route, &answer, &json, behavior),
        }
        reply
    }

    fn stream(
        &mut self,
        route: &Route,
        answer: &Answer,
        mut parts: Vec<Part>,
        behavior: &Behavior,
    ) {
        let sse = route.endpoint != Endpoint::StreamGenerate { sse: false };
        self.streamed = true;
        self.headers
            .insert(CONTENT_TYPE, headers::content_type(route.dialect, sse));
        if let Some((after, end)) = self.interruption(behavior.fault) {
            let last = parts
                .iter()
                .position(|part| part.kind == Kind::Terminal)
                .unwrap_or(parts.len());
            parts.truncate(after.min(last));
            self.end = end;
            if let Some(error) = stream_error(route, answer, parts.len(), behavior.fault) {
                parts.push(Part::closing(error));
            }
        }
        let events = timed(parts, route, sse, behavior);
        self.frames = cut(events, &behavior.cut);
    }

    fn unary(mut self, route: &Route, answer: &Answer, json: &Value, behavior: &Behavior) -> Self {
        self.headers
            .insert(CONTENT_TYPE, headers::content_type(route.dialect, false));
        let (text, output) = match route.endpoint {
            Endpoint::Chat => (chat::unary(answer), answer.output),
            Endpoint::Completions => (completions::unary(answer), answer.output),
            Endpoint::Responses => (responses::unary(answer), answer.output),
            Endpoint::Messages => (anthropic::unary(answer), answer.output),
            Endpoint::Generate => (gemini::unary(answer), answer.output),
            Endpoint::CountTokens if route.dialect == Dialect::Gemini => {
                (gemini::count_tokens(answer), 0)
            }
            Endpoint::CountTokens => (anthropic::count_tokens(answer), 0),
            Endpoint::Embeddings => (embeddings::openai(answer, json), 0),
            Endpoint::EmbedContent => (embeddings::gemini(answer, json), 0),
            Endpoint::BatchEmbedContents => (embeddings::gemini_batch(answer, json), 0),
            Endpoint::Model => match models::one(route) {
                Ok(model) => (model, 0),
                Err(failure) => return Self::error(route.dialect, &failure),
            },
            Endpoint::Models | Endpoint::StreamGenerate { .. } | Endpoint::Unknown => {
                (models::list(route.dialect), 0)
            }
        };
        if matches!(
            route.endpoint,
            Endpoint::CountTokens | Endpoint::Models | Endpoint::Model
        ) {
            self.input_tokens = 0;
        }
        let gaps = u32::try_from(if output > 0 {
            answer.visible().saturating_sub(1)
        } else {
            0
        });
        self.before_head = behavior
            .first_token
            .saturating_add(behavior.gap.saturating_mul(gaps.unwrap_or(u32::MAX)));
        let mut body = frame(text, Duration::ZERO, output);
        if let Some((after, end)) = self.interruption(behavior.fault) {
            self.end = end;
            body = match in_band(behavior.fault) {
                Some(kind) => {
                    let failure = errors::Failure::in_band(kind, route.dialect);
                    frame(errors::body(route.dialect, &failure), Duration::ZERO, 0)
                }
                None => {
                    body.bytes
                        .truncate(if after == 0 { 0 } else { body.bytes.len() / 2 });
                    Frame { tokens: 0, ..body }
                }
            };
            // Its length is not promised.
            self.streamed = true;
        }
        self.frames = cut(vec![body], &behavior.cut);
        self
    }

    /// After how many events the body breaks off, and how.
    fn interruption(&mut self, fault: Option<Fault>) -> Option<(usize, End)> {
        Some(match fault? {
            Fault::ResetAfter(after) => (after, End::Reset),
            Fault::CutAfter(after) | Fault::ErrorAfter(after, _) | Fault::FailedAfter(after, _) => {
                (after, End::Clean)
            }
            Fault::StallAfter(after) => (after, End::Silence),
            Fault::ResetBeforeHead => {
                self.input_tokens = 0;
                (0, End::ResetBeforeHead)
            }
            Fault::NoAnswer => {
                self.input_tokens = 0;
                (0, End::NoHead)
            }
            _ => return None,
        })
    }
}

fn stream_of(route: &Route, answer: &Answer) -> Option<Vec<Part>> {
    match route.endpoint {
        Endpoint::StreamGenerate { sse } => Some(gemini::stream(answer, sse)),
        _ if !answer.streamed => None,
        Endpoint::Chat => Some(chat::stream(answer, route.dialect)),
        Endpoint::Completions => Some(completions::stream(answer)),
        Endpoint::Responses => Some(responses::stream(answer)),
        Endpoint::Messages => Some(anthropic::stream(answer)),
        _ => None,
    }
}

fn in_band(fault: Option<Fault>) -> Option<InBand> {
    match fault? {
        Fault::ErrorAfter(_, kind) | Fault::FailedAfter(_, kind) => Some(kind),
        _ => None,
    }
}

fn stream_error(
    route: &Route,
    answer: &Answer,
    after: usize,
    fault: Option<Fault>,
) -> Option<String> {
    let failure = errors::Failure::in_band(in_band(fault)?, route.dialect);
    Some(match route.endpoint {
        Endpoint::Responses if matches!(fault, Some(Fault::FailedAfter(..))) => {
            responses::failed(answer, after, failure.code_or_kind(), &failure.message)
        }
        Endpoint::Responses => errors::responses_event(after, &failure),
        Endpoint::StreamGenerate { sse: false } => {
            gemini::element(&errors::body(route.dialect, &failure), after) + "]"
        }
        _ => errors::event(route.dialect, &failure),
    })
}

/// Gives each event its time, puts the keep-alives between and ends the lines as asked.
fn timed(parts: Vec<Part>, route: &Route, sse: bool, behavior: &Behavior) -> Vec<Frame> {
    let mut events = Vec::with_capacity(parts.len());
    let mut next = behavior.first_token;
    let mut last = behavior.first_token;
    let mut opened = false;
    let keep_alive = if route.dialect == Dialect::Anthropic {
        anthropic::PING
    } else {
        ": ping\n\n"
    };
    let ended = |text: String| match behavior.line_ending {
        LineEnding::CrLf if sse => text.replace('\n', "\r\n"),
        _ => text,
    };
    for part in parts {
        if part.kind != Kind::Opening && !opened {
            opened = true;
            let period = behavior.keep_alive.filter(|_| sse).unwrap_or(Duration::MAX);
            let mut due = period;
            while due < behavior.first_token {
                events.push(frame(ended(keep_alive.to_owned()), due, 0));
                due = due.saturating_add(period);
            }
        }
        let due = match part.kind {
            Kind::Opening => Duration::ZERO,
            Kind::Content => {
                last = next;
                next = next.saturating_add(behavior.gap);
                last
            }
            Kind::Closing | Kind::Terminal => last,
        };
        events.push(frame(ended(part.text), due, part.tokens));
    }
    events
}

fn frame(text: String, due: Duration, tokens: u64) -> Frame {
    Frame {
        bytes: Bytes::from(text),
        due,
        tokens,
    }
}

/// Cuts a recorded stream behind each blank line.
fn split_events(body: &'static [u8]) -> Vec<Bytes> {
    let mut events = Vec::new();
    let mut start = 0;
    let mut blank = true;
    for (i, &byte) in body.iter().enumerate() {
        match byte {
            b'\n' if blank => {
                events.push(Bytes::from_static(&body[start..=i]));
                start = i + 1;
            }
            b'\n' => blank = true,
            b'\r' => {}
            _ => blank = false,
        }
    }
    events.push(Bytes::from_static(&body[start..]));
    events
}
