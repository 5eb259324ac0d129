//! Verdicts that do not change, and responses that are not answers.

use super::*;

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
fn a_cut_does_not_change_an_outcome_that_was_decided() {
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
fn a_response_that_is_not_an_answer_is_not_a_success() {
    let truncated = Outcome::Failed(Failure::Truncated);
    let html = || response(200, "text/html", Script::data(["<p>Are you human?"]));
    assert_eq!(answered(true, html()), truncated);
    assert_eq!(answered(false, html()), truncated);
    for nothing in ["", "  \n \n"] {
        assert_eq!(answered(false, json(Script::data([nothing]))), truncated);
    }
    // Nor is it a client error.
    for status in [302, 307] {
        let moved = response(status, "application/json", Script::data(["{}"]));
        assert_eq!(answered(false, moved), Outcome::Failed(Failure::Status));
    }
    // Compressed data cannot be read, and counts by its content type.
    let mut gzip = json(Script::data([&b"\x1f\x8b"[..]]));
    let encoding = HeaderValue::from_static("gzip");
    gzip.headers_mut().insert("content-encoding", encoding);
    assert_eq!(answered(false, gzip), Outcome::Success);
}

#[test]
fn a_redirect_is_a_success() {
    let call = Call::builder(Provider::OPENAI, Operation::RETRIEVE).build();
    for status in [101, 302, 304] {
        let answer = response(status, "text/html", Script::data([""]));
        let (completion, _) = watch_to_end(Some(&call), answer);
        assert_eq!(completion.outcome, Outcome::Success, "{status}");
    }
}

#[test]
fn stored_responses_cost_nothing_again() {
    let body = r#"{"object":"response","status":"completed","output":[{"content":[{"text":"hi"}]}],
        "usage":{"input_tokens":5000,"output_tokens":3000,"total_tokens":8000}}"#;
    let answer = || json(Script::data([body]));
    let stored = Call::builder(Provider::OPENAI, Operation::RETRIEVE)
        .dialect(Dialect::OpenAiResponses)
        .build();
    let (completion, _) = watch_to_end(Some(&stored), answer());
    let none = (Outcome::Success, None, 0);
    assert_eq!(
        (completion.outcome, completion.usage, completion.output_seen),
        none
    );

    let (completion, _) = watch_to_end(None, answer());
    assert_eq!(completion.usage, Some(Usage::new(5000, 3000)));
}

#[test]
fn an_error_concerns_only_what_it_names() {
    let subject = |status, body: &'static str| {
        let answer = response(status, "text/plain", Script::data([body]));
        watch_to_end(None, answer).0.subject
    };
    assert_eq!(subject(401, ""), Some(Subject::Credential));
    assert_eq!(
        subject(403, r#"{"error":{"type":"permission_error"}}"#),
        None
    );
    let invalid = r#"{"error":{"code":400,"details":[{"reason":"API_KEY_INVALID"}]}}"#;
    assert_eq!(subject(400, invalid), Some(Subject::Credential));
    let in_band = r#"{"error":{"type":"authentication_error","message":"x"}}"#;
    assert_eq!(subject(200, in_band), Some(Subject::Credential));

    let money = r#"{"error":{"type":"insufficient_quota"}}"#;
    assert_eq!(subject(429, money), Some(Subject::Account));
    for of_model in [
        r#"{"error":{"code":429,"details":[{"violations":[{"quotaId":"GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]}]}}"#,
        r#"{"error":{"code":429,"details":[{"violations":[{"quotaId":"RequestsPerDay","quotaDimensions":{"model":"pro"}}]}]}}"#,
        r#"{"error":{"code":429,"details":[{"reason":"RATE_LIMIT_EXCEEDED","metadata":{"quota_limit":"GenerateContentRequestsPerDayPerProjectPerModel"}}]}}"#,
        r#"{"error":{"code":"quota_exceeded","model":"pro","message":"x"}}"#,
    ] {
        assert_eq!(subject(429, of_model), Some(Subject::Model), "{of_model}");
    }
}

#[test]
fn a_retry_time_only_in_the_text_counts() {
    let wait = |status, label, body: String| {
        let (completion, _) = watch_to_end(None, response(status, label, Script::data([body])));
        completion.outcome
    };
    let six_minutes = Some(Duration::from_secs(360));
    let long = "x".repeat(300);
    for body in [
        format!(
            r#"{{"error":{{"message":"{long} Please try again in 6m0s.","code":"rate_limit_exceeded"}}}}"#
        ),
        format!(r#"{{"error":"{long}. Please retry after 360 seconds"}}"#),
        format!(r#"{{"message":"{long}. Please try again in 6 minutes"}}"#),
        format!("{long}. Please try again in 360s"),
    ] {
        for label in ["application/json", "text/plain"] {
            let throttled = Outcome::Throttled {
                retry_after: six_minutes,
            };
            assert_eq!(wait(429, label, body.clone()), throttled, "{body}");
        }
    }
}

/// The outcome of a response to an unknown operation.
fn other(response: Response<Script>) -> Completion {
    let call = Call::builder(Provider::OPENAI, Operation::OTHER).build();
    watch_to_end(Some(&call), response).0
}

#[test]
fn an_error_in_response_to_an_unknown_operation_is_judged_like_its_status() {
    for (body, expected) in [
        (
            r#"{"error":{"type":"invalid_request_error","message":"no such size"}}"#,
            Outcome::ClientError,
        ),
        (
            r#"{"type":"error","error":{"type":"not_found_error","message":"x"}}"#,
            Outcome::ClientError,
        ),
        (
            r#"{"error":{"code":429,"message":"x","status":"RESOURCE_EXHAUSTED"}}"#,
            Outcome::Throttled { retry_after: None },
        ),
        (
            r#"{"error":{"type":"overloaded_error","message":"x"}}"#,
            Outcome::Overloaded { retry_after: None },
        ),
        (
            r#"{"error":{"type":"server_error","message":"x"}}"#,
            Outcome::Failed(Failure::InBand),
        ),
        (
            r#"{"object":"error","type":"BadRequestError","message":"x"}"#,
            Outcome::ClientError,
        ),
        (
            r#"{"code":"InvalidApiKey","message":"x"}"#,
            Outcome::ClientError,
        ),
        (
            r#"{"status":"error","error":{"code":"rate_limit_exceeded"}}"#,
            Outcome::Throttled { retry_after: None },
        ),
    ] {
        for label in ["application/json", "text/plain"] {
            let answer = response(200, label, Script::data([body]));
            assert_eq!(other(answer).outcome, expected, "{body}");
        }
        let event = format!("event: error\ndata: {body}\n\n");
        assert_eq!(
            other(sse(Script::data([event]))).outcome,
            expected,
            "{body}"
        );
    }
    let credential = r#"{"error":{"type":"authentication_error","message":"x"}}"#;
    let completion = other(json(Script::data([credential])));
    assert_eq!(completion.subject, Some(Subject::Credential));
}

#[test]
fn a_failed_object_is_not_a_failure_of_the_server() {
    for body in [
        r#"{"object":"batch","status":"failed","error":{"code":"x","message":"bad file"}}"#,
        r#"{"error":{"code":"server_error","message":"x"},"object":"video","status":"queued"}"#,
        r#"{"id":"task","status":"failed","error":{"code":"server_error","message":"x"}}"#,
        r#"{"id":"ftjob-1","object":"fine_tuning.job","error":{"code":"invalid_file"}}"#,
        r#"{"results":[{"error":{"code":"server_error"}}]}"#,
        // A message and a code of its own do not make an object an error.
        r#"{"message":"done","code":"print(1)"}"#,
    ] {
        let completion = other(json(Script::data([body])));
        assert_eq!(completion.outcome, Outcome::Success, "{body}");
    }
    // A stored object that is only read is not an error either, whatever it looks like.
    let call = Call::builder(Provider::GEMINI, Operation::RETRIEVE).build();
    let body = r#"{"name":"operations/1","done":true,"error":{"code":13,"message":"x"}}"#;
    let (completion, _) = watch_to_end(Some(&call), json(Script::data([body])));
    assert_eq!(completion.outcome, Outcome::Success);
}

#[test]
fn an_empty_error_is_not_an_error() {
    for error in [
        "null",
        "{}",
        "[]",
        "\"\"",
        r#"{"code":null,"message":null}"#,
    ] {
        let body = format!(r#"{{"choices":[],"error":{error}}}"#);
        let (completion, _) = watch_to_end(None, json(Script::data([body])));
        assert_eq!(completion.outcome, Outcome::Success, "{error}");
    }
}

#[test]
fn usage_in_the_total_is_not_counted_twice() {
    // As proxies write Anthropic's usage in OpenAI's format.
    let body = r#"{"usage":{"prompt_tokens":1000,"completion_tokens":105,
        "prompt_tokens_details":{"cached_tokens":900},"completion_tokens_details":{"reasoning_tokens":100},
        "cache_read_input_tokens":900,"cache_creation_input_tokens":50}}"#;
    let (completion, _) = watch_to_end(None, json(Script::data([body])));
    let usage = completion.usage.unwrap();
    assert_eq!((usage.input, usage.output), (1_000, 105));
    assert_eq!(
        (usage.cached_input, usage.cache_write, usage.reasoning),
        (900, 50, 100)
    );
}

#[test]
fn a_byte_order_mark_hides_no_event() {
    let first = format!("\u{feff}{USAGE}");
    let alone: Vec<_> = first.bytes().map(|byte| Bytes::from(vec![byte])).collect();
    for pieces in [vec![Bytes::from(first)], alone] {
        let (completion, _) = watch_to_end(None, sse(Script::data(pieces)));
        assert_eq!(completion.usage, Some(Usage::new(9, 2)));
    }
}

#[test]
fn no_wait_is_longer_than_a_month() {
    let mut throttled = response(429, "application/json", Script::data(["{}"]));
    let long = HeaderValue::from_static("1000000000000000000");
    throttled.headers_mut().insert("retry-after", long);
    let (completion, _) = watch_to_end(None, throttled);
    let retry_after = Some(Duration::from_secs(31 * 86_400));
    assert_eq!(completion.outcome, Outcome::Throttled { retry_after });
}

/// The finish reason of a body that is read to its end.
fn finish(response: Response<Script>) -> Option<FinishReason> {
    completion(response).finish
}

fn completion(response: Response<Script>) -> Completion {
    let log = Log::new();
    let mut body = HttpBody
        .watch(None, response, log.probe("only"))
        .into_body();
    while next_frame(&mut body).is_some() {}
    log.completion()
}

#[test]
fn the_worst_of_several_finish_reasons_counts() {
    let choice = |reason| format!(r#"{{"index":0,"delta":{{}},"finish_reason":"{reason}"}}"#);
    for (reasons, expected) in [
        (["length", "stop"], FinishReason::Length),
        (["stop", "length"], FinishReason::Length),
        (["content_filter", "length"], FinishReason::ContentFilter),
        (["tool_calls", "stop"], FinishReason::ToolCalls),
        (["stop", "stop"], FinishReason::Stop),
    ] {
        let [first, second] = reasons.map(choice);
        let whole = format!(r#"{{"choices":[{first},{second}]}}"#);
        assert_eq!(
            finish(json(Script::data([whole.leak() as &str]))),
            Some(expected)
        );
        let events =
            format!("data: {{\"choices\":[{first}]}}\n\ndata: {{\"choices\":[{second}]}}\n\n");
        assert_eq!(
            finish(sse(Script::data([events.leak() as &str]))),
            Some(expected)
        );
    }
}

#[test]
fn an_answer_with_a_choice_that_has_not_finished_has_no_finish_reason_of_a_whole_one() {
    let choice =
        |index, reason| format!(r#"{{"index":{index},"delta":{{}},"finish_reason":{reason}}}"#);
    for (reasons, expected, finished) in [
        ([r#""stop""#, "null"], None, 1),
        (["null", r#""tool_calls""#], None, 1),
        ([r#""length""#, "null"], Some(FinishReason::Length), 1),
        ([r#""stop""#, r#""stop""#], Some(FinishReason::Stop), 2),
    ] {
        let [first, second] = [choice(0, reasons[0]), choice(1, reasons[1])];
        let whole = format!(r#"{{"choices":[{first},{second}]}}"#);
        let events = format!(
            "data: {{\"choices\":[{second}]}}\n\ndata: {{\"choices\":[{first}]}}\n\ndata: [DONE]\n\n"
        );
        for response in [
            json(Script::data([whole.leak() as &str])),
            sse(Script::data([events.leak() as &str])),
        ] {
            let completion = completion(response);
            assert_eq!(completion.outcome, Outcome::Success);
            assert_eq!(completion.finish, expected, "{reasons:?}");
            assert_eq!(completion.finished_choices, finished, "{reasons:?}");
        }
    }
}

#[test]
fn a_refusal_is_not_a_stop_even_if_the_provider_says_so() {
    let message =
        r#"{"choices":[{"message":{"content":null,"refusal":"No."},"finish_reason":"stop"}]}"#;
    assert_eq!(
        finish(json(Script::data([message]))),
        Some(FinishReason::ContentFilter)
    );
    let delta = "data: {\"choices\":[{\"delta\":{\"refusal\":\"No.\"}}]}\n\n";
    let stop = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    assert_eq!(
        finish(sse(Script::data([delta, stop]))),
        Some(FinishReason::ContentFilter)
    );
    let none =
        r#"{"choices":[{"message":{"content":"Yes.","refusal":null},"finish_reason":"stop"}]}"#;
    assert_eq!(finish(json(Script::data([none]))), Some(FinishReason::Stop));
}

#[test]
fn a_responses_stream_reports_its_finish_reason() {
    let completed = "data: {\"type\":\"response.completed\",\"response\":{}}\n\n";
    assert_eq!(
        finish(sse(Script::data([completed]))),
        Some(FinishReason::Stop)
    );
}
