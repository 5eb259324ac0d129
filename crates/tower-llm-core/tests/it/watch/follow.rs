//! One layer reads, the others follow; and the body passes unchanged.

use super::*;

// === lead and follow ===

#[tokio::test(start_paused = true)]
async fn outer_layers_see_what_the_innermost_one_reads() {
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
    let completions = log.completions();
    assert_eq!(completions[0].outcome, Outcome::Success);
    assert_eq!(completions[0].usage, Some(Usage::new(9, 2)));
    // If all three had read it, the text would count three times.
    assert_eq!(completions[0].output_seen, 10_u64.div_ceil(4));
    assert_eq!(completions[0].first_token_at, Some(at));
    assert_eq!(
        completions[0].ended_at,
        Some(begun + Duration::from_secs(3))
    );
    assert_eq!(completions[1], completions[0]);
    assert_eq!(completions[2], completions[0]);
}

#[test]
fn a_layer_that_follows_reads_nothing_itself() {
    let log = Log::new();
    let inner = HttpBody.watch(None, sse(Script::data([CONTENT, DONE])), log.probe("inner"));
    // A layer in between corrupts the headers, which only a layer that reads by itself would use.
    let (mut parts, body) = inner.into_parts();
    parts.status = http::StatusCode::INTERNAL_SERVER_ERROR;
    parts.headers.clear();
    let mut body = HttpBody
        .watch(None, Response::from_parts(parts, body), log.probe("outer"))
        .into_body();
    while next_frame(&mut body).is_some() {}
    let completions = log.completions();
    assert_eq!(completions.len(), 2);
    assert_eq!(completions[1].status, Some(200));
    assert_eq!(completions[0], completions[1]);
}

#[test]
fn response_headers_that_are_sent_again_mislead_no_layer() {
    let log = Log::new();
    let live = HttpBody.watch(
        None,
        sse(Script::data([CONTENT, USAGE, DONE])),
        log.probe("live"),
    );
    let (head, mut body) = live.into_parts();
    while next_frame(&mut body).is_some() {}
    drop(body);
    // A cache does this; its reader disconnects at once, and is not charged for the first response's tokens.
    let replay = Response::from_parts(head, Script::data([CONTENT, DONE]));
    drop(HttpBody.watch(None, replay, log.probe("replay")));
    let completions = log.completions();
    assert_eq!(completions[0].outcome, Outcome::Success);
    assert_eq!(completions[1].outcome, Outcome::Abandoned);
    assert_eq!(completions[1].usage, None);
}

#[test]
fn nested_bodies_dropped_early_drop_the_upstream_first_and_end_inner_guards_first() {
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
            log.completions()
                .iter()
                .all(|completion| completion.outcome == outcome),
            "{frames} frames"
        );
    }
}

#[test]
fn a_first_token_in_the_last_frame_is_reported_before_the_end() {
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
fn any_event_is_the_first_token_in_an_unknown_dialect() {
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
fn a_body_has_the_size_hint_of_the_upstream() {
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
