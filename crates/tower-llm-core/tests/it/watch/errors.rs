//! Errors that state how the call ended: an adapter's verdict, and tower's own errors.

use tower::{load_shed::error::Overloaded, timeout::error::Elapsed};
use tower_llm_core::{Bill, Billed, ClassifiedError};

use super::*;

fn classified(outcome: Outcome) -> BoxError {
    ClassifiedError::new(outcome, "the client's error").into()
}

/// The outcome of a call that ended with `error` instead of a response.
fn before_the_response(error: BoxError) -> Outcome {
    let log = Log::new();
    let inner = ready(Err::<Response<Script>, _>(error));
    let armed = Armed::new(log.probe("only"));
    let mut future = Box::pin(Guarded::new(inner, HttpBody, None, armed));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(future.as_mut().poll(&mut cx), Poll::Ready(Err(_))));
    log.outcome()
}

/// The outcome of a call whose response broke off with `error`.
fn within_the_body(error: BoxError) -> Outcome {
    let log = Log::new();
    let script = Script::data([CONTENT]).then(Step::Error(error));
    let mut body = read_frames(sse(script), &log, 1);
    next_frame(&mut body).unwrap().unwrap_err();
    log.outcome()
}

#[test]
fn a_verdict_of_the_client_counts_wherever_it_is_in_the_chain() {
    let outcomes = [
        Outcome::Failed(Failure::Timeout),
        Outcome::Throttled {
            retry_after: Some(Duration::from_secs(2)),
        },
        Outcome::Exhausted,
        Outcome::Overloaded { retry_after: None },
    ];
    for outcome in outcomes {
        let errors: [fn(Outcome) -> BoxError; 3] = [
            classified,
            |outcome| Wrapped(classified(outcome)).into(),
            |outcome| io::Error::other(classified(outcome)).into(),
        ];
        for error in errors {
            assert_eq!(before_the_response(error(outcome)), outcome);
            assert_eq!(within_the_body(error(outcome)), outcome);
        }
    }
}

/// The error counted as a connection failure, which opened circuits for other callers.
#[test]
fn a_request_body_that_fails_is_neutral_and_charged_for_what_was_seen() {
    let error = || classified(Outcome::ClientError);
    assert_eq!(before_the_response(error()), Outcome::ClientError);
    assert_eq!(within_the_body(error()), Outcome::Abandoned);
}

#[test]
fn the_outermost_verdict_decides() {
    let error = ClassifiedError::new(
        Outcome::Exhausted,
        classified(Outcome::Failed(Failure::Timeout)),
    );
    assert_eq!(before_the_response(error.into()), Outcome::Exhausted);
}

/// The timeout counted as a connection failure.
#[test]
fn towers_timeout_is_a_timeout() {
    for error in [Elapsed::new().into(), Wrapped(Elapsed::new().into()).into()] {
        let outcome = before_the_response(error);
        assert_eq!(outcome, Outcome::Failed(Failure::Timeout));
    }
    let outcome = within_the_body(Elapsed::new().into());
    assert_eq!(outcome, Outcome::Failed(Failure::Timeout));
}

/// The refusal counted as a connection failure: a service that sheds load opened the circuit around it.
#[test]
fn a_call_refused_by_towers_load_shed_counts_as_unsent() {
    let error = Overloaded::new().into();
    assert_eq!(before_the_response(error), Outcome::Refused);
}

#[test]
fn a_refusal_in_the_middle_of_a_body_does_not_unsend_the_call() {
    let outcome = within_the_body(TooLarge::new(1).into());
    assert_eq!(outcome, Outcome::Failed(Failure::Transport));
}

#[test]
fn a_refusal_names_the_layer_wherever_it_is_in_the_chain() {
    let refusal = || Refusal::new(RefusalKind::Unavailable, "bulkhead");
    let errors: [(BoxError, Option<&str>); 6] = [
        (refusal().into(), Some("bulkhead")),
        (Wrapped(refusal().into()).into(), Some("bulkhead")),
        (Overloaded::new().into(), Some("load_shed")),
        (classified(Outcome::Refused), None),
        (classified(Outcome::Exhausted), None),
        ("reset".into(), None),
    ];
    for (error, refused_by) in errors {
        assert_eq!(
            Completion::of_error(&*error).refused_by,
            refused_by,
            "{error}"
        );
    }
}

#[test]
fn a_shared_call_that_was_refused_names_the_layer_to_each_of_its_callers() {
    let refusal: BoxError = Refusal::new(RefusalKind::RateLimited, "ratelimit").into();
    let call = Completion::of_error(&*refusal);
    let (left, failed) = (Bill::new(), Bill::new());
    left.charge(&call);
    let error = Billed::new(left, Arc::new("its caller has left".into()));
    assert_eq!(Completion::of_error(&error).refused_by, Some("ratelimit"));
    // One that was sent was refused by no layer.
    failed.charge(&Completion::new(Outcome::Failed(Failure::Status)));
    let error = Billed::new(failed, Arc::new(refusal));
    assert_eq!(Completion::of_error(&error).refused_by, None);
}
