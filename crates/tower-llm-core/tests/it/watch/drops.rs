//! Bodies that are dropped or cut.

use super::*;

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
