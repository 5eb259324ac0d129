//! Bodies that are dropped or cut.

use super::{
    futures::{Answer, poll_once},
    *,
};

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
    let completion = log.completion();
    assert_eq!(completion.outcome, Outcome::Abandoned);
    assert_eq!(completion.usage, Some(Usage::new(9, 2)));
    assert_eq!(completion.output_seen, 2);
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
fn a_json_body_dropped_after_its_last_byte_is_a_success() {
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
        (400, Outcome::ClientError),
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
fn a_cut_drops_the_upstream_and_then_ends_the_guard() {
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
            .all(|completion| completion.outcome == Outcome::Superseded)
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

// === calls that a layer gives up itself ===

#[test]
fn a_call_that_lost_a_race_is_superseded_before_its_response_and_within() {
    let log = Log::new();
    let inner = Guarded::new(
        pending::<Answer>(),
        HttpBody,
        None,
        Armed::new(log.probe("inner")),
    );
    let outer = Guarded::new(inner, HttpBody, None, Armed::new(log.probe("outer")));
    let is_unsent = drop_as(Outcome::Superseded, || drop(outer));
    assert!(!is_unsent);
    let body = read_frames(sse(Script::data([CONTENT]).then(Step::Hang)), &log, 1);
    drop_as(Outcome::Superseded, || drop(body));
    let ends = log.completions();
    assert_eq!(ends.len(), 3);
    assert!(ends.iter().all(|end| end.outcome == Outcome::Superseded));
    assert_eq!(ends[2].output_seen, 2);
}

#[test]
fn what_has_arrived_decides_how_a_given_up_call_ended() {
    let log = Log::new();
    let body = read_frames(sse(Script::data([CONTENT, DONE]).then(Step::Hang)), &log, 2);
    drop_as(Outcome::Superseded, || drop(body));
    assert_eq!(log.outcome(), Outcome::Success);
}

#[test]
fn a_given_up_call_that_was_never_sent_is_refused() {
    let log = Log::new();
    let waiting = async {
        let _unsent = Unsent::new();
        pending::<Answer>().await
    };
    let mut call = Box::pin(Guarded::new(
        waiting,
        HttpBody,
        None,
        Armed::new(log.probe("gate")),
    ));
    assert!(poll_once(call.as_mut()).is_pending());
    assert!(drop_as(Outcome::Superseded, || drop(call)));
    assert_eq!(log.outcome(), Outcome::Refused);
}

#[test]
fn calls_dropped_after_a_given_up_one_are_abandoned_even_if_its_drop_panics() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in a drop");
        }
    }
    let log = Log::new();
    let call = || {
        Guarded::new(
            pending::<Answer>(),
            HttpBody,
            None,
            Armed::new(log.probe("call")),
        )
    };
    drop_as(Outcome::Superseded, || {
        let around = call();
        drop_as(Outcome::Failed(Failure::Timeout), || drop(call()));
        drop(around);
    });
    catch_unwind(|| drop_as(Outcome::Superseded, || drop(Bomb))).unwrap_err();
    drop(call());
    let ends: Vec<_> = log.completions().iter().map(|end| end.outcome).collect();
    assert_eq!(
        ends,
        [
            Outcome::Failed(Failure::Timeout),
            Outcome::Superseded,
            Outcome::Abandoned
        ]
    );
}
