//! A guard ends exactly once on every path, with the right outcome.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod cached;
mod drops;
mod ends;
mod errors;
mod follow;
mod futures;
mod grpc;
mod progress;
mod verdicts;

use std::{
    error::Error,
    fmt,
    future::{Future, pending, poll_fn, ready},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex, atomic::Ordering},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use http_body::Body;
use http_body_util::{BodyExt, Empty, Full};
use tokio::time::Instant;
use tower_llm_core::{
    Armed, BoxError, Call, Completion, Deadline, Dialect, Failure, FinishReason, Guard, Guarded,
    HttpBody, Operation, Outcome, Provider, Refusal, RefusalKind, Subject, TimedOut, TooLarge,
    Unary, Unsent, Usage, Watch, Watched, drop_as,
};

use crate::support::{
    Event, Log, Probe, Script, Step, json, next_frame, poll_frame, response, sse, watch_to_end,
};

const CONTENT: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hello\"},\"finish_reason\":null}]}\n\n";
const ROLE: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const STOP: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const USAGE: &str =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2}}\n\n";
const DONE: &str = "data: [DONE]\n\n";
const ANSWER: &str = r#"{"choices":[{"message":{"content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":2}}"#;

/// A watched body, of which `frames` frames were read.
fn read_frames(response: Response<Script>, log: &Log, frames: usize) -> Watched<Script, Probe> {
    let mut body = HttpBody
        .watch(None, response, log.probe("only"))
        .into_body();
    for _ in 0..frames {
        next_frame(&mut body).unwrap().unwrap();
    }
    body
}

type Nested = Response<Watched<Watched<Watched<Script, Probe>, Probe>, Probe>>;

fn nested(response: Response<Script>, log: &Log) -> Nested {
    let response = HttpBody.watch(None, response, log.probe("inner"));
    let response = HttpBody.watch(None, response, log.probe("middle"));
    HttpBody.watch(None, response, log.probe("outer"))
}

/// An error of another crate around another.
#[derive(Debug)]
struct Wrapped(BoxError);

impl fmt::Display for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("wrapped")
    }
}

impl Error for Wrapped {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}
