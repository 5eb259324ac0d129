//! Futures that succeed, fail, are dropped or panic.

use super::*;

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
    assert!(
        log.completions()
            .iter()
            .all(|completion| completion.outcome == panic)
    );
}

#[test]
fn a_panic_of_the_caller_between_polls_is_a_disconnect() {
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

pub(super) fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

pub(super) type Answer = Result<Response<Script>, BoxError>;

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

/// Records which stages of a response were reported.
struct Stages(Arc<Mutex<Vec<&'static str>>>);

impl Guard for Stages {
    fn response_headers(&mut self, _: Option<&mut http::response::Parts>) {
        self.0.lock().unwrap().push("headers");
    }

    fn first_token(&mut self, _: Instant) {
        self.0.lock().unwrap().push("first token");
    }

    fn end(&mut self, _: &Completion) {
        self.0.lock().unwrap().push("end");
    }
}

#[test]
fn response_headers_are_reported_once_and_first() {
    let stages = Arc::default();
    let answer: Answer = Ok(sse(Script::data([ROLE, CONTENT, DONE])));
    let armed = Armed::new(Stages(Arc::clone(&stages)));
    let mut future = Box::pin(Guarded::new(ready(answer), HttpBody, None, armed));
    assert!(stages.lock().unwrap().is_empty());
    let Poll::Ready(Ok(response)) = poll_once(future.as_mut()) else {
        panic!("not ready");
    };
    assert_eq!(*stages.lock().unwrap(), ["headers"]);
    let mut body = response.into_body();
    while next_frame(&mut body).is_some() {}
    assert_eq!(*stages.lock().unwrap(), ["headers", "first token", "end"]);
}

#[test]
fn no_response_headers_are_reported_if_none_arrived() {
    let stages = Arc::default();
    let armed = Armed::new(Stages(Arc::clone(&stages)));
    let mut future = Box::pin(Guarded::new(
        ready(Answer::Err("reset".into())),
        HttpBody,
        None,
        armed,
    ));
    assert!(matches!(poll_once(future.as_mut()), Poll::Ready(Err(_))));
    assert_eq!(*stages.lock().unwrap(), ["end"]);
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

/// A layer's future whose call waits in its queue.
async fn waiting() -> Answer {
    let _unsent = Unsent::new();
    pending().await
}

#[test]
fn a_call_dropped_while_it_waits_is_refused_for_every_outer_layer() {
    let log = Log::new();
    let inner = Guarded::new(waiting(), HttpBody, None, Armed::new(log.probe("inner")));
    let outer = Guarded::new(inner, HttpBody, None, Armed::new(log.probe("outer")));
    let mut outer = Box::pin(outer);
    assert!(poll_once(outer.as_mut()).is_pending());
    drop(outer);
    assert_eq!(log.order(), ["inner end", "outer end"]);
    let refused = |completion: &Completion| completion.outcome == Outcome::Refused;
    assert!(log.completions().iter().all(refused));
}

#[test]
fn an_unsent_call_dropped_earlier_does_not_affect_the_next() {
    drop(Unsent::new());
    let log = Log::new();
    drop(guarded(pending::<Answer>(), &log));
    assert_eq!(log.outcome(), Outcome::Abandoned);
}

#[test]
fn one_sent_branch_of_two_counts_for_both() {
    for sent_first in [true, false] {
        let log = Log::new();
        let sent = async { guarded(pending::<Answer>(), &log).await.map(drop) };
        let unsent = async { waiting().await.map(drop) };
        let branches = async {
            // Dropped in the order of their declaration.
            let mut branches: [Pin<Box<dyn Future<Output = _>>>; 2] =
                [Box::pin(sent), Box::pin(unsent)];
            if !sent_first {
                branches.reverse();
            }
            poll_fn(|cx| {
                for branch in &mut branches {
                    assert!(branch.as_mut().poll(cx).is_pending());
                }
                Poll::<Answer>::Pending
            })
            .await
        };
        let around = Log::new();
        let mut outer = Box::pin(guarded(branches, &around));
        assert!(poll_once(outer.as_mut()).is_pending());
        drop(outer);
        assert_eq!(log.outcome(), Outcome::Abandoned);
        assert_eq!(around.outcome(), Outcome::Abandoned, "{sent_first}");
    }
}

#[test]
fn a_dropped_future_drops_the_upstream_before_its_guard_ends() {
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
fn the_error_of_a_future_decides_the_outcome() {
    let refusal = || Refusal::new(RefusalKind::Unavailable, "bulkhead");
    let timed_out = || TimedOut::new(Deadline::Total, Duration::from_secs(1));
    let errors: [(BoxError, Outcome); 7] = [
        (
            "connection refused".into(),
            Outcome::Failed(Failure::Transport),
        ),
        (refusal().into(), Outcome::Refused),
        (TooLarge::new(1).into(), Outcome::Refused),
        (
            Wrapped(Wrapped(TooLarge::new(1).into()).into()).into(),
            Outcome::Refused,
        ),
        (io::Error::other(refusal()).into(), Outcome::Refused),
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
fn an_armed_guard_ends_once() {
    let log = Log::new();
    let mut armed = Armed::new(log.probe("only"));
    assert!(!armed.has_ended());
    armed.end(&Completion::new(Outcome::Refused));
    assert!(armed.has_ended());
    armed.end(&Completion::new(Outcome::Success));
    drop(armed);
    assert_eq!(log.outcome(), Outcome::Refused);
}

/// Panics at the end.
struct PanicsAtEnd(Arc<Mutex<Vec<Outcome>>>);

impl Guard for PanicsAtEnd {
    fn end(&mut self, completion: &Completion) {
        self.0.lock().unwrap().push(completion.outcome);
        panic!("panics at the end");
    }
}

#[test]
fn a_guard_that_panics_at_the_end_does_not_end_again() {
    let outcomes = Arc::default();
    let mut armed = Armed::new(PanicsAtEnd(Arc::clone(&outcomes)));
    let end = AssertUnwindSafe(|| armed.end(&Completion::new(Outcome::Refused)));
    assert!(catch_unwind(end).is_err());
    assert!(armed.has_ended());
    drop(armed);
    assert_eq!(*outcomes.lock().unwrap(), [Outcome::Refused]);
}

#[test]
fn a_disarmed_guard_does_not_end() {
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
