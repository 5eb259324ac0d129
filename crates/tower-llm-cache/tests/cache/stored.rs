//! What is stored, and what is not.

use http::{Response, StatusCode};
use tower_llm_cache::Policy;
use tower_llm_testkit::{
    fixtures::{self, Fixture, Verdict},
    mock::{self, Upstream},
};

use crate::support::*;

const LENGTH: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}]}\n\n";
const FILTERED: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"content_filter\"}]}\n\n";
const TOOLS: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"tool_calls\"}]}\n\n";
const ERROR: &str = "data: {\"error\":{\"message\":\"no\",\"type\":\"server_error\"}}\n\n";

const USAGE: &str =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\n";

/// The question of a caller that does not stream.
fn unstreamed() -> Sent {
    described(post(CHAT), &QUESTION.replace("true", "false"))
}

/// The question of a caller that wants to be told of the usage.
fn with_usage() -> Sent {
    let option = r#"{"stream_options":{"include_usage":true},"#;
    described(post(CHAT), &QUESTION.replacen('{', option, 1))
}

/// Whether a stream of these frames is found again.
fn is_stored(frames: &[&'static str]) -> bool {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    ask(&cache, &mut provider, question(), frames);
    found(&cache, question()).is_some()
}

#[test]
fn only_a_whole_answer_that_ended_well_is_stored() {
    assert!(is_stored(&WHOLE));
    // A finish and a clean end do without `[DONE]`.
    assert!(is_stored(&WHOLE[..3]));
    for cut in 0..3 {
        assert!(!is_stored(&WHOLE[..cut]), "after {cut} frames");
    }
    for last in [LENGTH, FILTERED, TOOLS, ERROR] {
        assert!(!is_stored(&[ROLE, TOKEN, last, DONE]), "{last}");
    }
}

/// Of two choices, the first is there.
#[test]
fn a_stream_without_all_of_its_choices_is_not_stored() {
    const SECOND: &str = "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"Half\"}}]}\n\n";
    const SECOND_STOP: &str =
        "data: {\"choices\":[{\"index\":1,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    const SECOND_LENGTH: &str =
        "data: {\"choices\":[{\"index\":1,\"delta\":{},\"finish_reason\":\"length\"}]}\n\n";
    let asks = |n: &str| {
        described(
            post(CHAT),
            &QUESTION.replacen('{', &format!("{{\"n\":{n},"), 1),
        )
    };
    for (n, ends, is_stored) in [
        ("2", &[SECOND, FINISH, SECOND_STOP, DONE][..], true),
        ("2", &[SECOND, FINISH, SECOND_STOP], true),
        // It never ends, never comes, or does not end well.
        ("2", &[SECOND, FINISH, DONE], false),
        ("1", &[SECOND, FINISH, DONE], false),
        ("2", &[SECOND, FINISH], false),
        ("2", &[FINISH, DONE], false),
        ("2", &[FINISH], false),
        ("2", &[SECOND, FINISH, SECOND_LENGTH, DONE], false),
        ("2", &[SECOND, LENGTH, SECOND_STOP, DONE], false),
    ] {
        let layer = shared();
        let (cache, mut provider) = upstream(&layer);
        let frames = [&[ROLE, TOKEN], ends].concat();
        ask(&cache, &mut provider, asks(n), &frames);
        let found = found(&cache, asks(n));
        assert_eq!(found.is_some(), is_stored, "{n} {ends:?}");
    }
}

#[test]
fn an_object_without_all_of_its_choices_is_not_stored() {
    const STOP: &str = r#"{"index":0,"message":{"content":"x"},"finish_reason":"stop"}"#;
    const SECOND: &str = r#"{"index":1,"message":{"content":"x"},"finish_reason":"stop"}"#;
    const UNFINISHED: &str = r#"{"index":1,"message":{"content":"x"},"finish_reason":null}"#;
    for (choices, is_stored) in [
        (vec![STOP, SECOND], true),
        (vec![STOP, UNFINISHED], false),
        (vec![STOP], false),
        (vec![], false),
    ] {
        let layer = shared();
        let (cache, mut provider) = upstream(&layer);
        let asks = || {
            let two = QUESTION.replacen('{', "{\"n\":2,", 1);
            described(post(CHAT), &two.replace("true", "false"))
        };
        let mut calling = start(&cache, asks());
        let (_, send) = mock::arrived(&mut provider);
        let body = format!(r#"{{"choices":[{}]}}"#, choices.join(","));
        object(send, &[body.leak()]);
        frames(answered(&mut calling));
        assert_eq!(found(&cache, asks()).is_some(), is_stored, "{choices:?}");
    }
}

#[test]
fn calls_of_tools_are_stored_if_the_policy_says_so() {
    let layer = caching(Policy::completions().tool_calls());
    let (cache, mut provider) = upstream(&layer);
    ask(&cache, &mut provider, question(), &[ROLE, TOOLS, DONE]);
    assert!(found(&cache, question()).is_some());
}

#[test]
fn an_answer_that_is_dropped_or_fails_at_any_frame_is_not_stored() {
    for cut in 0..WHOLE.len() {
        let layer = shared();
        let (cache, mut provider) = upstream(&layer);
        let mut calling = start(&cache, question());
        let (_, send) = mock::arrived(&mut provider);
        let sender = stream(send);
        let mut answer = answered(&mut calling);
        for frame in &WHOLE[..cut] {
            sender.send(frame);
            next(answer.body_mut()).unwrap().unwrap();
        }
        if cut % 2 == 0 {
            sender.fail("reset");
            next(answer.body_mut()).unwrap().unwrap_err();
        }
        drop(answer);
        assert!(found(&cache, question()).is_none(), "after {cut} frames");
        assert_eq!(layer.handle().stats().in_flight, 0);
    }
}

/// hyper reads no further than the content length, and many clients no further than the terminal marker.
#[test]
fn an_answer_is_whole_when_its_reader_stops_at_its_end() {
    for is_of_known_length in [true, false] {
        let layer = shared();
        let (cache, mut provider) = upstream(&layer);
        let mut calling = start(&cache, question());
        let (_, send) = mock::arrived(&mut provider);
        let (sender, body) = Upstream::new();
        send.send_response(mock::stream(match is_of_known_length {
            true => body.of_known_length(WHOLE.len()),
            false => body,
        }));
        let mut answer = answered(&mut calling);
        for frame in WHOLE {
            sender.send(frame);
            next(answer.body_mut()).unwrap().unwrap();
        }
        drop(answer);
        let again = found(&cache, question()).expect("it was stored");
        assert_eq!(frames(again), WHOLE);
    }
}

#[test]
fn an_answer_over_the_size_limit_is_passed_on_and_not_stored() {
    let whole = WHOLE.concat().len();
    for (limit, is_cached) in [(whole, true), (whole - 1, false)] {
        let layer = caching(Policy::completions().max_answer_bytes(limit));
        let (cache, mut provider) = upstream(&layer);
        assert_eq!(ask(&cache, &mut provider, question(), &WHOLE), WHOLE);
        assert_eq!(found(&cache, question()).is_some(), is_cached, "{limit}");
    }
}

#[test]
fn an_error_status_reaches_all_that_wait_and_is_not_stored() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let mut leader = start(&cache, question());
    let mut follower = start(&cache, question());
    let (_, send) = mock::arrived(&mut provider);
    let (sender, body) = Upstream::new();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    send.send_response(response);
    sender.send("{\"error\":{}}");
    drop(sender);
    for calling in [&mut leader, &mut follower] {
        let answer = answered(calling);
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        // A new caller starts afresh.
        assert_eq!(layer.handle().stats().in_flight, 0);
        assert_eq!(frames(answer), ["{\"error\":{}}"]);
    }
    assert!(found(&cache, question()).is_none());
}

#[test]
fn what_the_headers_say_of_one_call_is_not_stored() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let mut calling = start(&cache, question());
    let (_, send) = mock::arrived(&mut provider);
    let (sender, body) = Upstream::new();
    let mut response = mock::stream(body);
    for (name, value) in [
        ("set-cookie", "a=b"),
        ("x-ratelimit-remaining-tokens", "7"),
        ("openai-processing-ms", "412"),
        ("x-request-id", "req_1"),
    ] {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    send.send_response(response);
    for frame in WHOLE {
        sender.send(frame);
    }
    drop(sender);
    let first = answered(&mut calling);
    assert_eq!(first.headers()["set-cookie"], "a=b");
    frames(first);
    let again = found(&cache, question()).unwrap();
    let mut names: Vec<_> = again
        .headers()
        .keys()
        .map(http::HeaderName::as_str)
        .collect();
    names.sort_unstable();
    let expected = [
        "age",
        "cache-status",
        "content-type",
        "openai-processing-ms",
        "x-request-id",
    ];
    assert_eq!(names, expected);
}

/// A request of the dialect of `fixture`, in the form that it answers.
fn request_for(fixture: &Fixture) -> Sent {
    let body = format!(
        r#"{{"model":"m","store":false,"messages":[],"stream":{}}}"#,
        fixture.is_event_stream()
    );
    described(post(fixture.path), &body)
}

/// Every recorded body of every provider: what ended well is served again byte for byte, and nothing else is.
#[test]
fn recorded_answers_of_all_providers_are_stored_only_if_they_ended_well() {
    let (mut stored, mut not_stored) = (0, 0);
    for fixture in fixtures::all() {
        let layer = caching(Policy::completions().tool_calls());
        let (cache, mut provider) = upstream(&layer);
        let mut calling = start(&cache, request_for(fixture));
        let (_, send) = mock::arrived(&mut provider);
        let (sender, body) = Upstream::new();
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(fixture.status).unwrap();
        *response.headers_mut() = fixture.header_map();
        send.send_response(response);
        // Cut where no event ends.
        for part in fixture.body.chunks(fixture.body.len().div_ceil(3).max(1)) {
            sender.send(std::str::from_utf8(part).unwrap_or("\u{fffd}"));
        }
        drop(sender);
        let first = frames(answered(&mut calling));
        match found(&cache, request_for(fixture)) {
            Some(again) => {
                assert_eq!(fixture.expect.verdict, Verdict::Success, "{}", fixture.name);
                assert_eq!(frames(again).concat(), first.concat(), "{}", fixture.name);
                stored += 1;
            }
            None => not_stored += 1,
        }
    }
    assert!(stored > 30 && not_stored > 100, "{stored} and {not_stored}");
}

/// A recorded stream serves a caller that does not stream, and the other way round; neither is sent.
#[tokio::test]
async fn either_recording_serves_both_kinds_of_callers() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let told = [ROLE, TOKEN, FINISH, USAGE, DONE];
    ask(&cache, &mut provider, with_usage(), &told);
    let object = found(&cache, unstreamed()).expect("it was stored");
    assert_eq!(object.headers()["content-type"], "application/json");
    let length: usize = object.headers()["content-length"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let object = frames(object).concat();
    assert_eq!(object.len(), length);
    let object: serde_json::Value = serde_json::from_slice(&object).unwrap();
    assert_eq!(object["choices"][0]["message"]["content"], "Because.");
    assert_eq!(object["usage"]["completion_tokens"], 2);

    layer.handle().clear().await.unwrap();
    let mut calling = start(&cache, unstreamed());
    let (_, send) = mock::arrived(&mut provider);
    let (sender, body) = Upstream::new();
    send.send_response(Response::new(body));
    sender.send(
        r#"{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"#,
    );
    sender.send(r#""message":{"role":"assistant","content":"So."},"finish_reason":"stop"}]}"#);
    drop(sender);
    frames(answered(&mut calling));
    let stream = found(&cache, question()).expect("it was stored");
    assert!(
        stream.headers()["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/event-stream")
    );
    let stream = String::from_utf8(frames(stream).concat()).unwrap();
    assert!(stream.contains("So.") && stream.ends_with(DONE), "{stream}");
    mock::nothing_arrived(&mut provider);
}

/// Clients count on `usage` in an object; a stream has it only if its request asked for it.
#[test]
fn a_stream_without_usage_does_not_serve_a_caller_that_does_not_stream() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    ask(&cache, &mut provider, question(), &WHOLE);
    let mut calling = start(&cache, unstreamed());
    let (_, send) = mock::arrived(&mut provider);
    object(
        send,
        &[
            r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"So."},"finish_reason":"stop"}],"#,
            r#""usage":{"prompt_tokens":1,"completion_tokens":2}}"#,
        ],
    );
    frames(answered(&mut calling));
    // The object serves all of them.
    assert!(found(&cache, unstreamed()).is_some());
    assert!(found(&cache, question()).is_some());
    assert!(found(&cache, with_usage()).is_some());
}

/// What is stored is of no use to them; their call is as good as any other.
#[test]
fn callers_that_a_stored_stream_does_not_serve_share_one_call() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    ask(&cache, &mut provider, question(), &WHOLE);
    let mut leader = start(&cache, unstreamed());
    let mut follower = start(&cache, unstreamed());
    let (_, send) = mock::arrived(&mut provider);
    mock::nothing_arrived(&mut provider);
    object(send, &[r#"{"choices":[{"finish_reason":"stop"}]}"#]);
    let leader = frames(answered(&mut leader));
    assert_eq!(frames(answered(&mut follower)), leader);
    let stats = layer.handle().stats();
    assert_eq!((stats.misses, stats.collapsed, stats.hits), (2, 1, 0));
}

/// A caller that does not ask for the usage chunk does not get it; one that does is not served without.
#[test]
fn usage_is_replayed_to_those_that_ask_for_it() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    ask(&cache, &mut provider, question(), &WHOLE);
    assert!(found(&cache, with_usage()).is_none());
    // The call that was not answered is of no interest.
    let (cache, mut provider) = upstream(&layer);
    let told = [ROLE, TOKEN, FINISH, USAGE, DONE];
    ask(&cache, &mut provider, with_usage(), &told);
    assert_eq!(frames(found(&cache, with_usage()).unwrap()), told);
    assert_eq!(
        frames(found(&cache, question()).unwrap()).concat(),
        WHOLE.concat().as_bytes()
    );
}
