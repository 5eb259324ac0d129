//! Calls over HTTP, their expected costs, and a provider on paused time.

pub(crate) mod timeline;

use std::{fmt, time::Duration};

use bytes::Bytes;
use http_body::Body;
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::time::timeout;
use tower::{Service, ServiceBuilder, ServiceExt, util::BoxCloneSyncService};
use tower_llm_core::{BoxError, DescribeLayer, KeyBy, RequestBody};
use tower_llm_ratelimit::{Limit, RateLimitBuilder, RateLimitHandle, RateLimitLayer};
use tower_llm_testkit::SimulatedProvider;

pub(crate) type Request = http::Request<Full<Bytes>>;

/// More than any wait in these tests on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

// Our estimate of the requests' input, the input that the provider reports, and the maximum that the requests name.
pub(crate) const ESTIMATED: u64 = 20;
pub(crate) const INPUT: u64 = 33;
pub(crate) const OUTPUT: u64 = 7;
pub(crate) const MAXIMUM: u64 = 100;

/// Requests, input, output and all tokens.
pub(crate) type Cost = [u64; 4];

pub(crate) const NOTHING: Cost = [0; 4];
/// The request is charged, and its tokens are refunded.
pub(crate) const REQUEST: Cost = [1, 0, 0, 0];
pub(crate) const RESERVED: Cost = tokens(ESTIMATED, MAXIMUM);

/// A request with so many tokens.
pub(crate) const fn tokens(input: u64, output: u64) -> Cost {
    [1, input, output, input + output]
}

// === requests ===

/// An API that streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    Chat,
    /// The same, with `include_usage`.
    ChatUsage,
    Responses,
    Messages,
    Gemini,
}

pub(crate) const APIS: [Api; 5] = [
    Api::Chat,
    Api::ChatUsage,
    Api::Responses,
    Api::Messages,
    Api::Gemini,
];

impl Api {
    pub(crate) fn request(self, provider: &SimulatedProvider, streamed: bool) -> Request {
        let text = "abcd".repeat(20);
        let messages = format!(r#""messages":[{{"role":"user","content":"{text}"}}]"#);
        let (path, body) = match self {
            Self::Chat | Self::ChatUsage => {
                let usage = self == Self::ChatUsage;
                let body = format!(
                    r#"{{"model":"m","stream":{streamed},"max_tokens":100,"stream_options":{{"include_usage":{usage}}},{messages}}}"#
                );
                ("/v1/chat/completions", body)
            }
            Self::Responses => {
                let body = format!(
                    r#"{{"model":"m","stream":{streamed},"max_output_tokens":100,"input":"{text}"}}"#
                );
                ("/v1/responses", body)
            }
            Self::Messages => {
                let body =
                    format!(r#"{{"model":"m","stream":{streamed},"max_tokens":100,{messages}}}"#);
                ("/v1/messages", body)
            }
            Self::Gemini => {
                let path = match streamed {
                    true => "/v1beta/models/m:streamGenerateContent?alt=sse",
                    false => "/v1beta/models/m:generateContent",
                };
                let body = format!(
                    r#"{{"contents":[{{"role":"user","parts":[{{"text":"{text}"}}]}}],"generationConfig":{{"maxOutputTokens":100}}}}"#
                );
                (path, body)
            }
        };
        post(provider, path, body)
    }

    /// What precedes the text in a response.
    fn text(self, streamed: bool) -> &'static str {
        match (self, streamed) {
            (Self::Chat | Self::ChatUsage, true) => r#""delta":{"content":""#,
            (Self::Chat | Self::ChatUsage, false) => r#""role":"assistant","content":""#,
            (Self::Responses, true) => r#""delta":""#,
            (Self::Responses, false) => r#""logprobs":[],"text":""#,
            (Self::Messages, true) => r#""type":"text_delta","text":""#,
            (Self::Messages, false) => r#""type":"text","text":""#,
            (Self::Gemini, _) => r#""parts":[{"text":""#,
        }
    }

    /// What precedes the input and the output in a usage.
    fn usage(self) -> [&'static str; 2] {
        match self {
            Self::Chat | Self::ChatUsage => [r#""prompt_tokens":"#, r#""completion_tokens":"#],
            Self::Responses | Self::Messages => [r#""input_tokens":"#, r#""output_tokens":"#],
            Self::Gemini => [r#""promptTokenCount":"#, r#""candidatesTokenCount":"#],
        }
    }

    /// What the response contains once its usage is complete.
    fn finishes(self) -> &'static [&'static str] {
        match self {
            Self::Chat | Self::ChatUsage => &[r#""finish_reason":""#],
            Self::Responses => &[
                r#""type":"response.completed""#,
                r#""type":"response.incomplete""#,
            ],
            Self::Messages => &[
                r#""stop_reason":"end_turn""#,
                r#""stop_reason":"max_tokens""#,
            ],
            Self::Gemini => &[r#""finishReason":"STOP""#, r#""finishReason":"MAX_TOKENS""#],
        }
    }
}

pub(crate) fn post(
    provider: &SimulatedProvider,
    path: &str,
    body: impl Into<Full<Bytes>>,
) -> Request {
    http::Request::post(format!("{}{path}", provider.url()))
        .body(body.into())
        .expect("a legal request")
}

// === the service ===

/// A limit of each unit, shared by all calls and exceeded by none.
pub(crate) fn every_limit() -> [Limit; 4] {
    [
        Limit::requests(1_000_000).per_minute(),
        Limit::input_tokens(1_000_000).per_minute(),
        Limit::output_tokens(1_000_000).per_minute(),
        Limit::tokens(1_000_000).per_minute(),
    ]
}

/// A layer with every limit, for all calls together.
pub(crate) fn counting() -> RateLimitBuilder {
    RateLimitLayer::for_callers()
        .limits(every_limit())
        .key_by(KeyBy::shared())
}

pub(crate) fn client<B>() -> Client<HttpConnector, B>
where
    B: Body<Data = Bytes> + Send,
{
    Client::builder(TokioExecutor::new()).build_http()
}

pub(crate) type Answer = http::Response<BoxBody>;
pub(crate) type BoxBody = http_body_util::combinators::BoxBody<Bytes, BoxError>;
pub(crate) type Stack = BoxCloneSyncService<Request, Answer, BoxError>;

/// The stack: describe, the limits, and the client.
pub(crate) fn stack(layer: &RateLimitLayer) -> Stack {
    stack_over(layer, client())
}

pub(crate) fn stack_over<S, B>(layer: &RateLimitLayer, inner: S) -> Stack
where
    S: Service<http::Request<RequestBody>, Response = http::Response<B>>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + Sync + 'static,
    B::Error: Into<BoxError>,
{
    let service = ServiceBuilder::new()
        .layer(DescribeLayer::new())
        .layer(layer.clone())
        .service(inner);
    let boxed = |response: http::Response<_>| response.map(BoxBody::new);
    BoxCloneSyncService::new(ServiceExt::<Request>::map_response(service, boxed))
}

// === statistics ===

/// What was reserved in each limit.
#[track_caller]
pub(crate) fn consumed(handle: &RateLimitHandle) -> Cost {
    each(handle, |stats| stats.consumed)
}

/// What was refunded to each limit, and what was charged on top.
#[track_caller]
pub(crate) fn settled(handle: &RateLimitHandle) -> (Cost, Cost) {
    let down = each(handle, |stats| stats.refunded);
    (down, each(handle, |stats| stats.overrun))
}

/// What is left of each limit.
#[track_caller]
pub(crate) fn taken(handle: &RateLimitHandle) -> Cost {
    each(handle, |stats| stats.limit.amount() - stats.remaining)
}

#[track_caller]
fn each(handle: &RateLimitHandle, of: impl Fn(&tower_llm_ratelimit::LimitStats) -> u64) -> Cost {
    let stats: Vec<_> = handle.stats().iter().map(of).collect();
    stats.try_into().expect("there is one limit of each kind")
}

/// Asserts that one call of `RESERVED` tokens was made and settled as `cost`, in every statistic.
#[track_caller]
pub(crate) fn assert_settled(handle: &RateLimitHandle, cost: Cost, what: &dyn fmt::Debug) {
    assert_eq!(consumed(handle), cost, "{what:?}");
    assert_eq!(taken(handle), cost, "{what:?}");
    assert_eq!(settled(handle), changes(cost), "{what:?}");
}

/// The refund and the extra charge of a call that reserved `RESERVED` and cost `cost`.
pub(crate) fn changes(cost: Cost) -> (Cost, Cost) {
    let pair = |limit: usize| {
        let (reserved, used) = (RESERVED[limit], cost[limit]);
        (reserved.saturating_sub(used), used.saturating_sub(reserved))
    };
    let pairs = [0, 1, 2, 3].map(pair);
    (pairs.map(|pair| pair.0), pairs.map(|pair| pair.1))
}

// === expected costs ===

/// What a caller has seen of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// `None` if no response headers arrived.
    pub(crate) status: Option<u16>,
    pub(crate) body: String,
    /// The connection failed.
    pub(crate) failed: bool,
}

impl Seen {
    /// The cost by the table of `Outcome` and the docs of `CutShort::ChargeSeen`, computed from the text
    /// that arrived.
    pub(crate) fn cost(&self, api: Api, streamed: bool) -> Cost {
        let says = |texts: &[&str]| texts.iter().any(|text| self.body.contains(text));
        match self.status {
            None if self.failed => return REQUEST,
            // Dropped before the response headers: the provider may be at work.
            None => return tokens(ESTIMATED, 0),
            Some(200) => {}
            Some(429) if says(EXHAUSTED) => return NOTHING,
            // A 503 may be a proxy's.
            Some(503) if says(OVERLOADED) => return NOTHING,
            Some(529) => return NOTHING,
            Some(_) => return REQUEST,
        }
        if says(OVERLOADED) {
            return NOTHING;
        }
        if says(THROTTLED) {
            return REQUEST;
        }
        let seen = (self.text(api.text(streamed)) as u64).div_ceil(4);
        let [input, output] = api.usage().map(|name| last_number(&self.body, name));
        let is_over = says(api.finishes()) || !streamed && is_whole_json(&self.body);
        match (input, output) {
            (Some(input), Some(output)) if is_over => tokens(input, output),
            (Some(input), output) => tokens(input, output.unwrap_or(0).max(seen)),
            // A success without a reported usage.
            (None, _) if seen == 0 && says(&["[DONE]"]) => RESERVED,
            (None, _) => tokens(ESTIMATED, seen),
        }
    }

    /// The number of bytes of the texts that follow `before`.
    fn text(&self, before: &str) -> usize {
        let mut pieces = self.body.split(before);
        pieces.next();
        pieces
            .map(|piece| piece.split('"').next().map_or(0, str::len))
            .sum()
    }
}

const EXHAUSTED: &[&str] = &[
    r#""insufficient_quota""#,
    r#""enforced_spend_limit_reached""#,
    r#"PerDayPerProjectPerModel""#,
];
const OVERLOADED: &[&str] = &[
    r#""service_unavailable_error""#,
    r#""server_is_overloaded""#,
    r#""overloaded_error""#,
    r#""UNAVAILABLE""#,
    r#""MODEL_CAPACITY_EXHAUSTED""#,
];
const THROTTLED: &[&str] = &[
    r#""rate_limit_exceeded""#,
    r#""rate_limit_error""#,
    r#""RESOURCE_EXHAUSTED""#,
];

/// Whether all that was opened is closed; the texts of these tests have no braces.
fn is_whole_json(body: &str) -> bool {
    let count = |brace| body.matches(brace).count();
    count('{') > 0 && count('{') == count('}')
}

/// The number after the last `name`.
fn last_number(body: &str, name: &str) -> Option<u64> {
    let number = |rest: &str| {
        let end = rest.find(|byte: char| !byte.is_ascii_digit())?;
        rest[..end].parse().ok()
    };
    body.split(name).skip(1).filter_map(number).last()
}

// === reading ===

/// Reads `events` events and drops the body; reads all of it if there are no more.
pub(crate) async fn read_events(response: Answer, events: usize) -> Seen {
    let mut seen = Seen {
        status: Some(response.status().as_u16()),
        ..Seen::default()
    };
    let mut body = response.into_body();
    while seen.body.matches("\n\n").count() < events {
        let next = timeout(PATIENCE, body.frame()).await;
        match next.expect("another frame, or the end") {
            Some(Ok(frame)) => {
                let data = frame.into_data().unwrap_or_default();
                seen.body += std::str::from_utf8(&data).expect("text");
            }
            Some(Err(_)) => {
                seen.failed = true;
                break;
            }
            None => break,
        }
    }
    seen
}

/// Calls and reads to the end.
pub(crate) async fn call(service: &Stack, request: Request) -> Seen {
    call_events(service, request, usize::MAX).await
}

/// Calls and reads `events` events.
pub(crate) async fn call_events(service: &Stack, request: Request, events: usize) -> Seen {
    let response = timeout(PATIENCE, service.clone().oneshot(request)).await;
    match response.expect("an answer") {
        Ok(response) => read_events(response, events).await,
        Err(_) => Seen {
            failed: true,
            ..Seen::default()
        },
    }
}

/// All events of a response.
pub(crate) async fn whole(service: &Stack, request: Request) -> (Seen, usize) {
    let seen = call(service, request).await;
    let events = seen.body.matches("\n\n").count();
    (seen, events)
}
