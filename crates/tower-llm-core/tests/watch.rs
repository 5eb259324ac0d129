//! A guard is told of the end once, on every path, and told right.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod support;

use std::{
    error::Error,
    fmt,
    future::{Future, pending, ready},
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
    HttpBody, Operation, Outcome, Provider, Refusal, RefusalKind, TimedOut, TooLarge, Unary, Usage,
    Watch, Watched,
};

use support::{
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

/// A watched response's body, of which `frames` frames were read.
fn read_frames(response: Response<Script>, log: &Log, frames: usize) -> Watched<Script, Probe> {
    let mut body = HttpBody
        .watch(None, response, log.probe("only"))
        .into_body();
    for _ in 0..frames {
        next_frame(&mut body).unwrap().unwrap();
    }
    body
}

// === ends ===

#[test]
fn a_stream_that_ends_after_its_marker_is_a_success() {
    let body = Script::data([ROLE, CONTENT, STOP, USAGE, DONE]);
    let (told, _) = watch_to_end(None, sse(body));
    assert_eq!(told.outcome, Outcome::Success);
    assert_eq!(told.usage, Some(Usage::new(9, 2)));
    assert_eq!(told.output_seen, 2);
    assert_eq!(told.finish, Some(FinishReason::Stop));
    assert_eq!(told.status, Some(200));
    assert!(told.ended_at.is_some());
}

#[test]
fn a_stream_that_ends_without_its_marker_is_truncated() {
    let (told, _) = watch_to_end(None, sse(Script::data([ROLE, CONTENT, STOP, USAGE])));
    assert_eq!(told.outcome, Outcome::Failed(Failure::Truncated));
    assert_eq!(told.usage, Some(Usage::new(9, 2)));
}

#[test]
fn a_stream_that_ends_before_it_began_is_truncated_where_its_dialect_is_known() {
    for dialect in [
        Dialect::OpenAi,
        Dialect::OpenAiResponses,
        Dialect::Anthropic,
        Dialect::Gemini,
    ] {
        let call = Call::builder(Provider::OTHER, Operation::CHAT)
            .dialect(dialect)
            .streamed(true)
            .build();
        let (told, _) = watch_to_end(Some(&call), sse(Script::data([": hello\n\n"])));
        assert_eq!(
            told.outcome,
            Outcome::Failed(Failure::Truncated),
            "{dialect:?}"
        );
    }
}

#[test]
fn a_chat_stream_does_not_end_with_the_marker_of_another_dialect() {
    let script = Script::data([CONTENT, "data: {\"type\":\"message_stop\"}\n\n"]);
    let (told, _) = watch_to_end(None, sse(script));
    assert_eq!(told.outcome, Outcome::Failed(Failure::Truncated));
}

/// Half a number would be taken for another, smaller one.
#[test]
fn a_number_that_the_end_cuts_does_not_count() {
    let cut = USAGE.split_once("2}").unwrap().0.to_owned() + "12";
    let (told, _) = watch_to_end(None, sse(Script::data([CONTENT.to_owned(), cut])));
    assert_eq!(told.outcome, Outcome::Failed(Failure::Truncated));
    assert_eq!(told.usage, Some(Usage::new(9, 0)));
}

#[test]
fn a_json_body_that_is_cut_is_truncated_wherever_it_is_cut() {
    for at in 1..ANSWER.len() {
        let (told, _) = watch_to_end(None, json(Script::data([&ANSWER[..at]])));
        assert_eq!(
            told.outcome,
            Outcome::Failed(Failure::Truncated),
            "cut at {at}"
        );
    }
}

#[test]
fn a_json_body_that_is_whole_is_a_success() {
    let (told, _) = watch_to_end(None, json(Script::data([ANSWER])));
    assert_eq!(told.outcome, Outcome::Success);
    assert_eq!(told.usage, Some(Usage::new(9, 2)));
    assert_eq!(told.first_token_at, None);
}

#[test]
fn a_body_that_cannot_be_read_here_is_a_success_when_it_ends() {
    let (told, _) = watch_to_end(
        None,
        response(200, "audio/mpeg", Script::data(["\u{0}\u{1}"])),
    );
    assert_eq!((told.outcome, told.usage), (Outcome::Success, None));

    let mut gzip = sse(Script::data([CONTENT]));
    gzip.headers_mut()
        .insert("content-encoding", HeaderValue::from_static("gzip"));
    let (told, _) = watch_to_end(None, gzip);
    assert_eq!((told.outcome, told.output_seen), (Outcome::Success, 0));
}

#[test]
fn an_error_in_mid_stream_is_the_transports_fault() {
    let log = Log::new();
    let script = Script::data([CONTENT]).then(Step::Error("connection reset".into()));
    let mut body = read_frames(sse(script.logged(&log)), &log, 1);
    let error = next_frame(&mut body).unwrap().unwrap_err();
    assert_eq!(error.to_string(), "connection reset");
    assert_eq!(log.outcome(), Outcome::Failed(Failure::Transport));
    assert_eq!(log.completion().output_seen, 2);
    // Nothing more comes, and nobody is told twice.
    assert!(next_frame(&mut body).is_none());
    assert!(body.is_end_stream());
    drop(body);
    assert_eq!(
        log.order(),
        ["only first token", "upstream dropped", "only end"]
    );
}

#[test]
fn an_error_after_the_marker_changes_nothing() {
    let log = Log::new();
    let script = Script::data([CONTENT, DONE]).then(Step::Error("connection reset".into()));
    let mut body = read_frames(sse(script), &log, 2);
    next_frame(&mut body).unwrap().unwrap_err();
    assert_eq!(log.outcome(), Outcome::Success);
}

#[test]
fn a_time_out_anywhere_in_an_errors_chain_is_a_time_out() {
    let timed_out = || TimedOut::new(Deadline::Idle, Duration::from_secs(30));
    let errors: [BoxError; 3] = [
        timed_out().into(),
        Wrapped(timed_out().into()).into(),
        Wrapped(io::Error::other(timed_out()).into()).into(),
    ];
    for error in errors {
        let log = Log::new();
        let mut body = read_frames(
            sse(Script::data([CONTENT]).then(Step::Error(error))),
            &log,
            1,
        );
        next_frame(&mut body).unwrap().unwrap_err();
        assert_eq!(log.outcome(), Outcome::Failed(Failure::Timeout));
    }
}

/// Somebody else's error around another.
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

// === drops ===

#[test]
fn a_body_dropped_before_its_first_poll_is_abandoned() {
    for response in [
        sse(Script::data([CONTENT, DONE])),
        json(Script::data([ANSWER])),
    ] {
        let log = Log::new();
        drop(read_frames(response, &log, 0));
        assert_eq!(log.outcome(), Outcome::Abandoned);
        assert_eq!(log.completion().output_seen, 0);
    }
}

#[test]
fn a_body_dropped_between_frames_is_abandoned_with_what_was_seen() {
    let log = Log::new();
    drop(read_frames(
        sse(Script::data([ROLE, CONTENT, USAGE, DONE])),
        &log,
        3,
    ));
    let told = log.completion();
    assert_eq!(told.outcome, Outcome::Abandoned);
    assert_eq!(told.usage, Some(Usage::new(9, 2)));
    assert_eq!(told.output_seen, 2);
}

#[test]
fn a_body_dropped_while_it_waits_is_abandoned() {
    let log = Log::new();
    let mut body = read_frames(sse(Script::data([CONTENT]).then(Step::Hang)), &log, 1);
    assert!(poll_frame(&mut body).is_pending());
    drop(body);
    assert_eq!(log.outcome(), Outcome::Abandoned);
}

#[test]
fn a_stream_dropped_between_its_marker_and_its_end_is_a_success() {
    let log = Log::new();
    drop(read_frames(
        sse(Script::data([CONTENT, DONE]).then(Step::Hang)),
        &log,
        2,
    ));
    assert_eq!(log.outcome(), Outcome::Success);
}

#[test]
fn a_json_body_dropped_once_the_whole_of_it_came_is_a_success() {
    let log = Log::new();
    drop(read_frames(
        json(Script::data([&ANSWER[..40], &ANSWER[40..]]).then(Step::Hang)),
        &log,
        2,
    ));
    assert_eq!(log.outcome(), Outcome::Success);

    let log = Log::new();
    let all_but_the_last_brace = &ANSWER[..ANSWER.len() - 1];
    drop(read_frames(
        json(Script::data([all_but_the_last_brace])),
        &log,
        1,
    ));
    assert_eq!(log.outcome(), Outcome::Abandoned);
}

#[test]
fn an_error_status_is_the_verdict_even_if_its_body_is_dropped_unread() {
    let retry_after = None;
    for (status, outcome) in [
        (400, Outcome::Refused),
        (402, Outcome::Exhausted),
        (408, Outcome::Failed(Failure::Status)),
        (429, Outcome::Throttled { retry_after }),
        (500, Outcome::Failed(Failure::Status)),
        (503, Outcome::Failed(Failure::Status)),
        (529, Outcome::Overloaded { retry_after }),
    ] {
        let log = Log::new();
        drop(read_frames(
            response(status, "application/json", Script::data(["{"])),
            &log,
            0,
        ));
        assert_eq!(log.outcome(), outcome, "{status}");
        assert_eq!(log.completion().status, Some(status));
    }
}

#[test]
fn an_error_status_is_the_verdict_even_if_its_body_breaks() {
    let log = Log::new();
    let script = Script::new([Step::Error("reset".into())]);
    let mut body = read_frames(response(429, "application/json", script), &log, 0);
    next_frame(&mut body).unwrap().unwrap_err();
    assert_eq!(log.outcome(), Outcome::Throttled { retry_after: None });
}

// === cuts ===

#[test]
fn a_cut_drops_the_upstream_and_then_tells_the_verdict() {
    let log = Log::new();
    let mut body = read_frames(sse(Script::data([CONTENT, DONE]).logged(&log)), &log, 1);
    Pin::new(&mut body).cut(Outcome::Failed(Failure::Stalled));
    assert_eq!(
        log.order(),
        ["only first token", "upstream dropped", "only end"]
    );
    assert_eq!(log.outcome(), Outcome::Failed(Failure::Stalled));
    assert!(next_frame(&mut body).is_none());
    assert!(body.is_end_stream());
    drop(body);
    assert_eq!(log.completions().len(), 1);
}

#[test]
fn a_cut_by_an_outer_layer_is_the_verdict_of_all() {
    let log = Log::new();
    let mut body = nested(sse(Script::data([CONTENT, DONE]).logged(&log)), &log).into_body();
    next_frame(&mut body).unwrap().unwrap();
    Pin::new(&mut body).cut(Outcome::Superseded);
    assert_eq!(
        log.order()[3..],
        ["upstream dropped", "inner end", "middle end", "outer end"]
    );
    assert!(
        log.completions()
            .iter()
            .all(|told| told.outcome == Outcome::Superseded)
    );
}

#[test]
fn a_cut_after_the_end_changes_nothing() {
    let log = Log::new();
    let mut body = read_frames(sse(Script::data([CONTENT, DONE])), &log, 2);
    assert!(next_frame(&mut body).is_none());
    Pin::new(&mut body).cut(Outcome::Failed(Failure::Timeout));
    assert_eq!(log.outcome(), Outcome::Success);
}

// === panics ===

#[test]
fn a_panic_of_the_upstreams_body_is_its_failure() {
    let log = Log::new();
    let mut body = read_frames(sse(Script::data([CONTENT]).then(Step::Panic)), &log, 1);
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        let _ = next_frame(&mut body);
    }));
    assert!(panicked.is_err());
    assert_eq!(log.outcome(), Outcome::Failed(Failure::Panic));
}

#[test]
fn a_panic_of_the_upstreams_body_is_its_failure_for_every_layer() {
    let log = Log::new();
    let mut body = nested(sse(Script::new([Step::Panic]).logged(&log)), &log).into_body();
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        let _ = next_frame(&mut body);
    }));
    assert!(panicked.is_err());
    assert_eq!(
        log.order(),
        ["upstream dropped", "inner end", "middle end", "outer end"]
    );
    let panic = Outcome::Failed(Failure::Panic);
    assert!(log.completions().iter().all(|told| told.outcome == panic));
}

#[test]
fn a_panic_of_the_caller_between_polls_is_its_leaving() {
    let log = Log::new();
    let body = read_frames(sse(Script::data([CONTENT]).then(Step::Hang)), &log, 1);
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        let _body = body;
        panic!("the caller's own");
    }));
    assert!(panicked.is_err());
    assert_eq!(log.outcome(), Outcome::Abandoned);
}

// === futures ===

fn guarded<F>(inner: F, log: &Log) -> Guarded<F, HttpBody, Probe> {
    Guarded::new(inner, HttpBody, None, Armed::new(log.probe("only")))
}

fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

type Answer = Result<Response<Script>, BoxError>;

#[test]
fn a_future_hands_the_guard_on_to_the_body() {
    let log = Log::new();
    let answer: Answer = Ok(json(Script::data([ANSWER])));
    let mut future = Box::pin(guarded(ready(answer), &log));
    let Poll::Ready(Ok(response)) = poll_once(future.as_mut()) else {
        panic!("not ready");
    };
    drop(future);
    assert!(log.events().is_empty());
    let mut body = response.into_body();
    while next_frame(&mut body).is_some() {}
    assert_eq!(log.outcome(), Outcome::Success);
}

/// Remembers how much of a response had come, by what it was told.
struct Stages(Arc<Mutex<Vec<&'static str>>>);

impl Guard for Stages {
    fn head(&mut self, _: Option<&mut http::response::Parts>) {
        self.0.lock().unwrap().push("head");
    }

    fn first_token(&mut self, _: Instant) {
        self.0.lock().unwrap().push("first token");
    }

    fn end(self, _: &Completion) {
        self.0.lock().unwrap().push("end");
    }
}

#[test]
fn the_head_is_told_once_and_first() {
    let told = Arc::default();
    let answer: Answer = Ok(sse(Script::data([ROLE, CONTENT, DONE])));
    let armed = Armed::new(Stages(Arc::clone(&told)));
    let mut future = Box::pin(Guarded::new(ready(answer), HttpBody, None, armed));
    assert!(told.lock().unwrap().is_empty());
    let Poll::Ready(Ok(response)) = poll_once(future.as_mut()) else {
        panic!("not ready");
    };
    assert_eq!(*told.lock().unwrap(), ["head"]);
    let mut body = response.into_body();
    while next_frame(&mut body).is_some() {}
    assert_eq!(*told.lock().unwrap(), ["head", "first token", "end"]);
}

#[test]
fn no_head_is_told_where_none_came() {
    let told = Arc::default();
    let armed = Armed::new(Stages(Arc::clone(&told)));
    let mut future = Box::pin(Guarded::new(
        ready(Answer::Err("reset".into())),
        HttpBody,
        None,
        armed,
    ));
    assert!(matches!(poll_once(future.as_mut()), Poll::Ready(Err(_))));
    assert_eq!(*told.lock().unwrap(), ["end"]);
}

#[test]
fn a_dropped_future_is_abandoned_polled_or_not() {
    for polls in 0..2 {
        let log = Log::new();
        let mut future = Box::pin(guarded(pending::<Answer>(), &log));
        for _ in 0..polls {
            assert!(poll_once(future.as_mut()).is_pending());
        }
        drop(future);
        assert_eq!(log.outcome(), Outcome::Abandoned);
        assert_eq!(log.completion().status, None);
    }
}

#[test]
fn a_dropped_future_lets_go_of_the_upstream_before_its_guard_is_told() {
    let log = Log::new();
    let upstream = Script::data([CONTENT]).logged(&log);
    let inner = async move {
        let _upstream = upstream;
        pending::<Answer>().await
    };
    let mut future = Box::pin(guarded(inner, &log));
    assert!(poll_once(future.as_mut()).is_pending());
    drop(future);
    assert_eq!(log.order(), ["upstream dropped", "only end"]);
}

#[test]
fn a_futures_error_says_who_failed() {
    let refusal = || Refusal::new(RefusalKind::Unavailable, "bulkhead");
    let timed_out = || TimedOut::new(Deadline::Total, Duration::from_secs(1));
    let errors: [(BoxError, Outcome); 7] = [
        (
            "connection refused".into(),
            Outcome::Failed(Failure::Transport),
        ),
        (refusal().into(), Outcome::Shed),
        (TooLarge::new(1).into(), Outcome::Shed),
        (
            Wrapped(Wrapped(TooLarge::new(1).into()).into()).into(),
            Outcome::Shed,
        ),
        (io::Error::other(refusal()).into(), Outcome::Shed),
        (timed_out().into(), Outcome::Failed(Failure::Timeout)),
        (
            Wrapped(timed_out().into()).into(),
            Outcome::Failed(Failure::Timeout),
        ),
    ];
    for (error, outcome) in errors {
        let log = Log::new();
        let text = error.to_string();
        let mut future = Box::pin(guarded(ready(Answer::Err(error)), &log));
        let Poll::Ready(Err(passed)) = poll_once(future.as_mut()) else {
            panic!("no error");
        };
        assert_eq!(passed.to_string(), text);
        assert_eq!(log.outcome(), outcome, "{text}");
        drop(future);
        assert_eq!(log.completions().len(), 1);
    }
}

#[test]
fn a_panic_of_the_inner_future_is_its_failure() {
    let log = Log::new();
    let inner = std::future::poll_fn(|_| -> Poll<Answer> { panic!("the inner future panics") });
    let mut future = Box::pin(guarded(inner, &log));
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        let _ = poll_once(future.as_mut());
    }));
    assert!(panicked.is_err());
    assert_eq!(log.outcome(), Outcome::Failed(Failure::Panic));
}

#[test]
fn an_armed_guard_is_told_once() {
    let log = Log::new();
    let mut armed = Armed::new(log.probe("only"));
    assert!(!armed.has_ended());
    armed.end(&Completion::new(Outcome::Shed));
    assert!(armed.has_ended());
    armed.end(&Completion::new(Outcome::Success));
    drop(armed);
    assert_eq!(log.outcome(), Outcome::Shed);
}

#[test]
fn a_disarmed_guard_is_not_told() {
    let log = Log::new();
    let mut armed = Armed::new(log.probe("only"));
    let guard = armed.disarm();
    assert!(guard.is_some());
    drop(armed);
    assert!(log.events().is_empty());
}

#[test]
fn a_unary_response_is_the_end_of_its_call() {
    let log = Log::new();
    assert_eq!(Unary.watch(None, 7, log.probe("only")), 7);
    assert_eq!(log.completion(), Completion::new(Outcome::Success));
}

// === lead and follow ===

type Nested = Response<Watched<Watched<Watched<Script, Probe>, Probe>, Probe>>;

fn nested(response: Response<Script>, log: &Log) -> Nested {
    let response = HttpBody.watch(None, response, log.probe("inner"));
    let response = HttpBody.watch(None, response, log.probe("middle"));
    HttpBody.watch(None, response, log.probe("outer"))
}

#[tokio::test(start_paused = true)]
async fn layers_around_the_innermost_are_told_the_same_by_it() {
    let log = Log::new();
    let begun = Instant::now();
    let script = Script::data([ROLE, CONTENT, CONTENT, USAGE, DONE]).logged(&log);
    let mut body = nested(sse(script), &log).into_body();
    body.frame().await.unwrap().unwrap();
    assert_eq!(body.first_token_at(), None);
    tokio::time::advance(Duration::from_secs(2)).await;
    body.frame().await.unwrap().unwrap();
    let at = begun + Duration::from_secs(2);
    assert_eq!(body.first_token_at(), Some(at));
    assert_eq!(
        log.events(),
        ["inner", "middle", "outer"].map(|name| Event::FirstToken(name, at))
    );
    tokio::time::advance(Duration::from_secs(1)).await;
    while body.frame().await.is_some() {}

    assert_eq!(
        log.order()[3..],
        ["upstream dropped", "inner end", "middle end", "outer end"]
    );
    let told = log.completions();
    assert_eq!(told[0].outcome, Outcome::Success);
    assert_eq!(told[0].usage, Some(Usage::new(9, 2)));
    // Read by all three, the text would be three times as long.
    assert_eq!(told[0].output_seen, 10_u64.div_ceil(4));
    assert_eq!(told[0].first_token_at, Some(at));
    assert_eq!(told[0].ended_at, Some(begun + Duration::from_secs(3)));
    assert_eq!(told[1], told[0]);
    assert_eq!(told[2], told[0]);
}

#[test]
fn a_layer_that_follows_reads_nothing_itself() {
    let log = Log::new();
    let inner = HttpBody.watch(None, sse(Script::data([CONTENT, DONE])), log.probe("inner"));
    // Something in between spoils the head, which only a reader of its own would go by.
    let (mut parts, body) = inner.into_parts();
    parts.status = http::StatusCode::INTERNAL_SERVER_ERROR;
    parts.headers.clear();
    let mut body = HttpBody
        .watch(None, Response::from_parts(parts, body), log.probe("outer"))
        .into_body();
    while next_frame(&mut body).is_some() {}
    let told = log.completions();
    assert_eq!(told.len(), 2);
    assert_eq!(told[1].status, Some(200));
    assert_eq!(told[0], told[1]);
}

#[test]
fn a_head_that_is_answered_with_again_leads_nobody_astray() {
    let log = Log::new();
    let live = HttpBody.watch(
        None,
        sse(Script::data([CONTENT, USAGE, DONE])),
        log.probe("live"),
    );
    let (head, mut body) = live.into_parts();
    while next_frame(&mut body).is_some() {}
    drop(body);
    // A cache would do so; its reader leaves at once, and owes nothing for the first one's tokens.
    let replay = Response::from_parts(head, Script::data([CONTENT, DONE]));
    drop(HttpBody.watch(None, replay, log.probe("replay")));
    let told = log.completions();
    assert_eq!(told[0].outcome, Outcome::Success);
    assert_eq!(told[1].outcome, Outcome::Abandoned);
    assert_eq!(told[1].usage, None);
}

#[test]
fn nested_bodies_dropped_early_let_go_of_the_upstream_first_and_tell_the_inner_ones_first() {
    for (frames, outcome) in [
        (0, Outcome::Abandoned),
        (1, Outcome::Abandoned),
        (2, Outcome::Success),
    ] {
        let log = Log::new();
        let script = Script::data([ROLE, DONE]).then(Step::Hang).logged(&log);
        let mut body = nested(sse(script), &log).into_body();
        for _ in 0..frames {
            next_frame(&mut body).unwrap().unwrap();
        }
        drop(body);
        assert_eq!(
            log.order(),
            ["upstream dropped", "inner end", "middle end", "outer end"]
        );
        assert!(
            log.completions().iter().all(|told| told.outcome == outcome),
            "{frames} frames"
        );
    }
}

#[test]
fn the_first_token_in_the_last_frame_is_told_before_the_end() {
    let log = Log::new();
    let whole = [ROLE, CONTENT, DONE].concat();
    let script = Script::data([whole]).with_known_length();
    let mut body = nested(sse(script), &log).into_body();
    next_frame(&mut body).unwrap().unwrap();
    assert_eq!(
        log.order(),
        [
            "inner first token",
            "inner end",
            "middle first token",
            "middle end",
            "outer first token",
            "outer end",
        ]
    );
}

#[test]
fn any_event_is_the_first_token_of_a_stream_in_a_dialect_that_nobody_knows() {
    let log = Log::new();
    let script = Script::data([": hello\n\n", "data: {\"tick\":1}\n\n", "data: 2\n\n"]);
    let mut body = read_frames(sse(script), &log, 1);
    assert_eq!(log.first_tokens().len(), 0);
    while next_frame(&mut body).is_some() {}
    assert_eq!(log.first_tokens().len(), 1);
    assert_eq!(log.outcome(), Outcome::Success);
}

#[test]
fn roles_and_comments_are_no_first_token() {
    let log = Log::new();
    let tool_call = "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"call_1\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"\"}}]}}]}\n\n";
    let script = Script::data([": keep-alive\n\n", ROLE, STOP, tool_call]);
    let mut body = read_frames(sse(script), &log, 3);
    assert!(log.events().is_empty());
    next_frame(&mut body).unwrap().unwrap();
    assert_eq!(log.order(), ["only first token"]);
}

// === what readers of the body see ===

#[test]
fn a_body_of_known_length_ends_its_call_with_its_last_frame() {
    let log = Log::new();
    let body = json(Full::new(Bytes::from(ANSWER)));
    let mut body = HttpBody.watch(None, body, log.probe("only")).into_body();
    assert_eq!(body.size_hint().exact(), Some(ANSWER.len() as u64));
    assert!(!body.is_end_stream());
    assert!(log.events().is_empty());
    assert_eq!(
        next_frame(&mut body).unwrap().unwrap().into_data().unwrap(),
        ANSWER
    );
    assert!(body.is_end_stream());
    assert_eq!(body.size_hint().exact(), Some(0));
    assert_eq!(log.outcome(), Outcome::Success);
    drop(body);
    assert_eq!(log.completions().len(), 1);
}

#[test]
fn an_empty_body_ends_its_call_at_once() {
    let log = Log::new();
    let response = response(200, "application/json", Empty::<Bytes>::new());
    let response = HttpBody.watch(None, response, log.probe("only"));
    assert!(response.body().is_end_stream());
    assert_eq!(log.outcome(), Outcome::Success);
    drop(response);
    assert_eq!(log.completions().len(), 1);
}

#[test]
fn a_body_says_of_its_length_what_the_upstreams_says() {
    let log = Log::new();
    let mut body = nested(sse(Script::data([ROLE, DONE]).with_known_length()), &log).into_body();
    let whole = (ROLE.len() + DONE.len()) as u64;
    assert_eq!(body.size_hint().exact(), Some(whole));
    next_frame(&mut body).unwrap().unwrap();
    assert_eq!(body.size_hint().exact(), Some(DONE.len() as u64));
    assert!(!body.is_end_stream());
    next_frame(&mut body).unwrap().unwrap();
    assert!(body.is_end_stream());

    let body = nested(sse(Script::data([ROLE])), &log).into_body();
    assert_eq!(body.size_hint().exact(), None);
    assert_eq!(
        (body.size_hint().lower(), body.size_hint().upper()),
        (0, None)
    );
}

#[test]
fn a_body_is_polled_once_for_each_frame() {
    let log = Log::new();
    let script = Script::data([ROLE, CONTENT, DONE]);
    let polls = script.polls();
    let mut body = nested(sse(script), &log).into_body();
    for polled in 1..=3 {
        next_frame(&mut body).unwrap().unwrap();
        assert_eq!(polls.load(Ordering::Relaxed), polled);
    }
    assert!(next_frame(&mut body).is_none());
    assert!(next_frame(&mut body).is_none());
    assert_eq!(polls.load(Ordering::Relaxed), 4);
}

#[test]
fn trailers_pass() {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("7"));
    let log = Log::new();
    let script = Script::data([CONTENT, DONE]).then(Step::Trailers(trailers.clone()));
    let mut body = read_frames(sse(script), &log, 2);
    assert_eq!(
        next_frame(&mut body)
            .unwrap()
            .unwrap()
            .into_trailers()
            .unwrap(),
        trailers
    );
    assert!(next_frame(&mut body).is_none());
    assert_eq!(log.outcome(), Outcome::Success);
}

// === gRPC ===

fn grpc(headers: &[(&'static str, &'static str)], body: Script) -> Response<Script> {
    let mut response = response(200, "application/grpc+proto", body);
    response.headers_mut().extend(map(headers));
    response
}

fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let pair = |&(name, value)| {
        let name = http::HeaderName::from_static(name);
        (name, HeaderValue::from_static(value))
    };
    pairs.iter().map(pair).collect()
}

#[test]
fn a_grpc_call_ends_as_its_trailers_say() {
    let wait = Some(Duration::from_millis(1_500));
    for (trailers, outcome) in [
        (&[("grpc-status", "0")][..], Outcome::Success),
        (
            &[("grpc-status", "8")],
            Outcome::Throttled { retry_after: None },
        ),
        (
            &[("grpc-status", "8"), ("grpc-retry-pushback-ms", "1500")],
            Outcome::Throttled { retry_after: wait },
        ),
        (
            &[("grpc-status", "14")],
            Outcome::Overloaded { retry_after: None },
        ),
        (&[("grpc-status", "4")], Outcome::Failed(Failure::Timeout)),
        (&[("grpc-status", "13")], Outcome::Failed(Failure::Status)),
        (&[("grpc-status", "3")], Outcome::Refused),
        (&[("grpc-status", "1")], Outcome::Abandoned),
        (
            &[("grpc-message", "no status")],
            Outcome::Failed(Failure::Truncated),
        ),
    ] {
        let script = Script::data(["\0\0\0\0\0"]).then(Step::Trailers(map(trailers)));
        let (told, _) = watch_to_end(None, grpc(&[], script));
        assert_eq!(told.outcome, outcome, "{trailers:?}");
        assert!(told.first_token_at.is_some());
    }
}

#[test]
fn a_grpc_body_that_ends_without_trailers_is_truncated() {
    let (told, _) = watch_to_end(None, grpc(&[], Script::data(["\0\0\0\0\0"])));
    assert_eq!(told.outcome, Outcome::Failed(Failure::Truncated));
}

#[test]
fn a_grpc_head_without_a_body_says_how_the_call_ended() {
    let log = Log::new();
    let head = grpc(
        &[("grpc-status", "8")],
        Script::data::<Bytes>([]).with_known_length(),
    );
    drop(HttpBody.watch(None, head, log.probe("only")));
    assert_eq!(log.outcome(), Outcome::Throttled { retry_after: None });
}

#[test]
fn a_grpc_body_dropped_before_its_trailers_is_abandoned() {
    let log = Log::new();
    drop(read_frames(
        grpc(&[], Script::data(["\0\0\0\0\0"]).then(Step::Hang)),
        &log,
        1,
    ));
    assert_eq!(log.outcome(), Outcome::Abandoned);
}

/// gRPC-web has no trailers: its status comes in the last frame of data.
#[test]
fn a_grpc_web_body_is_not_truncated_for_want_of_trailers() {
    for content_type in ["application/grpc-web", "application/grpc-web-text+proto"] {
        let script = Script::data(["\u{0}\0\0\0\0", "grpc-status: 0\r\n"]);
        let (told, _) = watch_to_end(None, response(200, content_type, script));
        assert_eq!(told.outcome, Outcome::Success, "{content_type}");
    }
}

// === verdicts that stand, and answers that are none ===

fn cut(response: Response<Script>, frames: usize) -> Completion {
    let log = Log::new();
    let mut body = HttpBody
        .watch(None, response, log.probe("only"))
        .into_body();
    for _ in 0..frames {
        next_frame(&mut body).unwrap().unwrap();
    }
    Pin::new(&mut body).cut(Outcome::Failed(Failure::Stalled));
    log.completion()
}

#[test]
fn a_cut_does_not_change_what_the_upstream_had_said() {
    let pending = |pieces: &[&'static str]| Script::data(pieces.iter().copied()).then(Step::Hang);
    let done = cut(sse(pending(&[CONTENT, USAGE, DONE])), 3);
    assert_eq!(
        (done.outcome, done.usage),
        (Outcome::Success, Some(Usage::new(9, 2)))
    );

    let whole = cut(json(pending(&[r#"{"usage":{"input_tokens":1}}"#])), 1);
    assert_eq!(whole.outcome, Outcome::Success);

    let mut throttled = response(429, "application/json", pending(&[r#"{"error":"#]));
    let seven = HeaderValue::from_static("7");
    throttled.headers_mut().insert("retry-after", seven);
    let retry_after = Some(Duration::from_secs(7));
    assert_eq!(
        cut(throttled, 1).outcome,
        Outcome::Throttled { retry_after }
    );

    let error = r#"data: {"type":"error","error":{"type":"overloaded_error","message":"no"}}"#;
    let overloaded = cut(sse(pending(&[error, "\n\n"])), 2);
    assert_eq!(
        overloaded.outcome,
        Outcome::Overloaded { retry_after: None }
    );

    let silent = cut(sse(pending(&[CONTENT])), 1);
    assert_eq!(silent.outcome, Outcome::Failed(Failure::Stalled));
}

fn answered(streamed: bool, response: Response<Script>) -> Outcome {
    let call = Call::builder(Provider::OPENAI, Operation::CHAT)
        .dialect(Dialect::OpenAi)
        .streamed(streamed)
        .build();
    watch_to_end(Some(&call), response).0.outcome
}

#[test]
fn what_is_no_answer_of_a_model_is_no_success() {
    let truncated = Outcome::Failed(Failure::Truncated);
    let html = || response(200, "text/html", Script::data(["<p>Are you human?"]));
    assert_eq!(answered(true, html()), truncated);
    assert_eq!(answered(false, html()), truncated);
    for nothing in ["", "  \n \n"] {
        assert_eq!(answered(false, json(Script::data([nothing]))), truncated);
    }
    let moved = response(302, "application/json", Script::data(["{}"]));
    assert_eq!(answered(false, moved), Outcome::Refused);
    // What is compressed cannot be read, and is taken at its word.
    let mut gzip = json(Script::data([&b"\x1f\x8b"[..]]));
    let encoding = HeaderValue::from_static("gzip");
    gzip.headers_mut().insert("content-encoding", encoding);
    assert_eq!(answered(false, gzip), Outcome::Success);
}

#[test]
fn a_job_that_has_failed_is_no_failure_of_the_server() {
    let call = Call::builder(Provider::OPENAI, Operation::OTHER).build();
    let body = r#"{"object":"batch","status":"failed","error":{"code":"x","message":"bad file"}}"#;
    let (told, _) = watch_to_end(Some(&call), json(Script::data([body])));
    assert_eq!(told.outcome, Outcome::Success);
}

#[test]
fn an_error_that_says_nothing_is_none() {
    for error in [
        "null",
        "{}",
        "[]",
        "\"\"",
        r#"{"code":null,"message":null}"#,
    ] {
        let body = format!(r#"{{"choices":[],"error":{error}}}"#);
        let (told, _) = watch_to_end(None, json(Script::data([body])));
        assert_eq!(told.outcome, Outcome::Success, "{error}");
    }
}

#[test]
fn what_the_total_counts_is_not_counted_twice() {
    // As proxies write Anthropic's usage in OpenAI's form.
    let body = r#"{"usage":{"prompt_tokens":1000,"completion_tokens":5,
        "prompt_tokens_details":{"cached_tokens":900},"completion_tokens_details":{"reasoning_tokens":100},
        "cache_read_input_tokens":900,"cache_creation_input_tokens":50}}"#;
    let (told, _) = watch_to_end(None, json(Script::data([body])));
    let usage = told.usage.unwrap();
    assert_eq!((usage.input, usage.output), (1_000, 5));
    assert_eq!(
        (usage.cached_input, usage.cache_write, usage.reasoning),
        (900, 50, 5)
    );
}

#[test]
fn a_byte_order_mark_hides_no_event() {
    let first = format!("\u{feff}{USAGE}");
    let alone: Vec<_> = first.bytes().map(|byte| Bytes::from(vec![byte])).collect();
    for pieces in [vec![Bytes::from(first)], alone] {
        let (told, _) = watch_to_end(None, sse(Script::data(pieces)));
        assert_eq!(told.usage, Some(Usage::new(9, 2)));
    }
}

#[test]
fn no_wait_is_longer_than_a_month() {
    let mut throttled = response(429, "application/json", Script::data(["{}"]));
    let long = HeaderValue::from_static("1000000000000000000");
    throttled.headers_mut().insert("retry-after", long);
    let (told, _) = watch_to_end(None, throttled);
    let retry_after = Some(Duration::from_secs(31 * 86_400));
    assert_eq!(told.outcome, Outcome::Throttled { retry_after });
}

// === while it runs ===

/// A guard that notes how often nothing had come, and how much content had.
#[derive(Debug, Default)]
struct Pace {
    pending: Arc<Mutex<Vec<&'static str>>>,
    content: Arc<Mutex<Vec<u64>>>,
    has_head: bool,
    is_deaf: bool,
}

impl Guard for Pace {
    fn head(&mut self, _: Option<&mut http::response::Parts>) {
        self.has_head = true;
    }

    fn follows_content(&self) -> bool {
        !self.is_deaf
    }

    fn content(&mut self, seen: u64) {
        self.content.lock().unwrap().push(seen);
    }

    fn pending(&mut self, cx: &mut Context<'_>) {
        let of = if self.has_head { "body" } else { "head" };
        self.pending.lock().unwrap().push(of);
        cx.waker().wake_by_ref();
    }

    fn end(self, _: &Completion) {}
}

#[test]
fn a_guard_is_told_how_much_content_has_passed_if_it_asks() {
    for is_deaf in [false, true] {
        let pace = Pace {
            is_deaf,
            ..Pace::default()
        };
        let content = Arc::clone(&pace.content);
        let frames = [ROLE, CONTENT, CONTENT, STOP, USAGE, DONE];
        let mut body = HttpBody
            .watch(None, sse(Script::data(frames)), pace)
            .into_body();
        while next_frame(&mut body).is_some() {}
        // The fourth and what follows is none: only a change is content.
        let seen: &[u64] = if is_deaf {
            &[]
        } else {
            &[0, 5, 10, 10, 10, 10]
        };
        assert_eq!(*content.lock().unwrap(), seen);
    }
}

#[test]
fn where_content_cannot_be_told_all_of_it_counts() {
    let pace = Pace::default();
    let content = Arc::clone(&pace.content);
    let frames = Script::data(["12345", "678"]);
    let mut body = HttpBody
        .watch(None, Response::new(frames), pace)
        .into_body();
    while next_frame(&mut body).is_some() {}
    assert_eq!(*content.lock().unwrap(), [5, 8]);
}

#[test]
fn a_guard_is_told_each_time_that_nothing_has_come() {
    let pace = Pace::default();
    let pending = Arc::clone(&pace.pending);
    let mut left = 2;
    let inner = std::future::poll_fn(move |_| {
        left -= 1;
        if left > 0 {
            return Poll::Pending;
        }
        let body = Script::new([Step::Hang]);
        Poll::Ready(Ok::<_, BoxError>(sse(body)))
    });
    let mut future = Box::pin(Guarded::new(inner, HttpBody, None, Armed::new(pace)));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(future.as_mut().poll(&mut cx).is_pending());
    let Poll::Ready(Ok(response)) = future.as_mut().poll(&mut cx) else {
        panic!("it was to answer");
    };
    let mut body = response.into_body();
    assert!(poll_frame(&mut body).is_pending());
    assert!(poll_frame(&mut body).is_pending());
    assert_eq!(*pending.lock().unwrap(), ["head", "body", "body"]);
}
