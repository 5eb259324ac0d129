//! Bodies that end or break off.

use super::*;

#[test]
fn a_stream_that_ends_after_its_marker_is_a_success() {
    let body = Script::data([ROLE, CONTENT, STOP, USAGE, DONE]);
    let (completion, _) = watch_to_end(None, sse(body));
    assert_eq!(completion.outcome, Outcome::Success);
    assert_eq!(completion.usage, Some(Usage::new(9, 2)));
    assert_eq!(completion.output_seen, 2);
    assert_eq!(completion.finish, Some(FinishReason::Stop));
    assert_eq!(completion.status, Some(200));
    assert!(completion.ended_at.is_some());
}

#[test]
fn a_body_is_as_large_as_what_has_passed_of_it() {
    let frames = [ROLE, CONTENT, STOP, USAGE, DONE];
    let bytes = |frames: &[&str]| frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
    let (completion, _) = watch_to_end(None, sse(Script::data(frames)));
    assert_eq!(completion.body_bytes, bytes(&frames));

    let log = Log::new();
    drop(read_frames(sse(Script::data(frames)), &log, 2));
    assert_eq!(log.completion().body_bytes, bytes(&frames[..2]));
}

#[test]
fn a_stream_without_its_marker_is_complete_if_the_model_has_finished() {
    let (completion, _) = watch_to_end(None, sse(Script::data([ROLE, CONTENT, STOP, USAGE])));
    assert_eq!(completion.outcome, Outcome::Success);
    assert_eq!(completion.usage, Some(Usage::new(9, 2)));

    let (completion, _) = watch_to_end(None, sse(Script::data([ROLE, CONTENT, USAGE])));
    assert_eq!(completion.outcome, Outcome::Failed(Failure::Truncated));
    assert_eq!(completion.usage, Some(Usage::new(9, 2)));
}

/// Then it is unknown whether usage was still to come.
#[test]
fn a_finish_reason_without_a_clean_end_is_no_success() {
    let frames = [ROLE, CONTENT, STOP];
    let broken = Script::data(frames).then(Step::Error("reset".into()));
    let log = Log::new();
    let mut body = read_frames(sse(broken), &log, frames.len());
    assert!(next_frame(&mut body).unwrap().is_err());
    assert_eq!(log.outcome(), Outcome::Failed(Failure::Transport));

    let log = Log::new();
    let open = Script::data(frames).then(Step::Hang);
    drop(read_frames(sse(open), &log, frames.len()));
    assert_eq!(log.outcome(), Outcome::Abandoned);
}

#[test]
fn a_stream_that_ends_before_it_began_is_truncated_if_its_dialect_is_known() {
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
        let (completion, _) = watch_to_end(Some(&call), sse(Script::data([": hello\n\n"])));
        assert_eq!(
            completion.outcome,
            Outcome::Failed(Failure::Truncated),
            "{dialect:?}"
        );
    }
}

#[test]
fn a_chat_stream_does_not_end_with_the_marker_of_another_dialect() {
    let script = Script::data([CONTENT, "data: {\"type\":\"message_stop\"}\n\n"]);
    let (completion, _) = watch_to_end(None, sse(script));
    assert_eq!(completion.outcome, Outcome::Failed(Failure::Truncated));
}

/// Half a number would read as another, smaller one.
#[test]
fn a_number_that_the_end_cuts_does_not_count() {
    let cut = USAGE.split_once("2}").unwrap().0.to_owned() + "12";
    let (completion, _) = watch_to_end(None, sse(Script::data([CONTENT.to_owned(), cut])));
    assert_eq!(completion.outcome, Outcome::Failed(Failure::Truncated));
    // The estimate of the seen output is not the half number either.
    assert_eq!(completion.usage, Some(Usage::new(9, 2)));
}

#[test]
fn a_json_body_that_is_cut_is_truncated_wherever_it_is_cut() {
    for at in 1..ANSWER.len() {
        let (completion, _) = watch_to_end(None, json(Script::data([&ANSWER[..at]])));
        assert_eq!(
            completion.outcome,
            Outcome::Failed(Failure::Truncated),
            "cut at {at}"
        );
    }
}

#[test]
fn a_complete_json_body_is_a_success() {
    let (completion, _) = watch_to_end(None, json(Script::data([ANSWER])));
    assert_eq!(completion.outcome, Outcome::Success);
    assert_eq!(completion.usage, Some(Usage::new(9, 2)));
    assert_eq!(completion.first_token_at, None);
}

#[test]
fn a_body_that_cannot_be_read_here_is_a_success_when_it_ends() {
    let (completion, _) = watch_to_end(
        None,
        response(200, "audio/mpeg", Script::data(["\u{0}\u{1}"])),
    );
    assert_eq!(
        (completion.outcome, completion.usage),
        (Outcome::Success, None)
    );

    let mut gzip = sse(Script::data([&b"\x1f\x8b\x08"[..]]));
    gzip.headers_mut()
        .insert("content-encoding", HeaderValue::from_static("gzip"));
    let (completion, _) = watch_to_end(None, gzip);
    assert_eq!(
        (completion.outcome, completion.output_seen),
        (Outcome::Success, 0)
    );

    // A named coding is ignored if the body is text.
    let mut named = sse(Script::data([CONTENT, DONE]));
    named
        .headers_mut()
        .insert("content-encoding", HeaderValue::from_static("gzip"));
    let (completion, _) = watch_to_end(None, named);
    assert_eq!(
        (completion.outcome, completion.output_seen),
        (Outcome::Success, 2)
    );
}

#[test]
fn an_error_in_mid_stream_is_a_transport_failure() {
    let log = Log::new();
    let script = Script::data([CONTENT]).then(Step::Error("connection reset".into()));
    let mut body = read_frames(sse(script.logged(&log)), &log, 1);
    let error = next_frame(&mut body).unwrap().unwrap_err();
    assert_eq!(error.to_string(), "connection reset");
    assert_eq!(log.outcome(), Outcome::Failed(Failure::Transport));
    assert_eq!(log.completion().output_seen, 2);
    // No more frames arrive, and no guard ends twice.
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
