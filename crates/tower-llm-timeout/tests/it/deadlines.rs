//! When each deadline passes, to the millisecond on both sides, and when it does not apply.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use tokio::time::{Instant, sleep};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_core::{BoxError, Deadline, Dialect};
use tower_llm_timeout::{TimeoutBody, TimeoutLayer};

use crate::support::{
    CONTENT, DONE, KEEP_ALIVE, MILLISECOND, ROLE, SECOND, Upstream, assert_timed_out, call,
    described, events, first_token, idle, json, next, read, response, seconds, sse, streamed,
    total, undescribed,
};

const ANTHROPIC_START: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"role\":\"assistant\",\"content\":[],\"usage\":{\"input_tokens\":9,\"output_tokens\":1}}}\n\n";
const ANTHROPIC_BLOCK: &str = "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n";
const ANTHROPIC_PING: &str = "event: ping\ndata: {\"type\": \"ping\"}\n\n";
const ANTHROPIC_CONTENT: &str = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"Hello\"}}\n\n";
const RESPONSES_CREATED: &str = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"status\":\"in_progress\",\"output\":[]}}\n\n";
const RESPONSES_ITEM: &str = "event: response.output_item.added\ndata: {\"type\":\"response.output_item.added\",\"item\":{\"type\":\"message\",\"content\":[]}}\n\n";
const RESPONSES_CONTENT: &str = "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"Hello\"}\n\n";
const GEMINI_ROLE: &str =
    "data: {\"candidates\":[{\"content\":{\"role\":\"model\"},\"index\":0}]}\n\n";
const GEMINI_CONTENT: &str = "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"Hello\"}],\"role\":\"model\"}}]}\n\n";

/// What each dialect sends before its first token, and a token.
const STREAMS: [(Dialect, &[&str], &str); 4] = [
    (
        Dialect::OpenAi,
        &[
            ROLE,
            "data: {\"choices\":[{\"delta\":{\"content\":\"\"}}]}\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":null}}]}\n\n",
            KEEP_ALIVE,
        ],
        CONTENT,
    ),
    (
        Dialect::OpenAiResponses,
        &[RESPONSES_CREATED, RESPONSES_ITEM, KEEP_ALIVE],
        RESPONSES_CONTENT,
    ),
    (
        Dialect::Anthropic,
        &[ANTHROPIC_START, ANTHROPIC_BLOCK, ANTHROPIC_PING],
        ANTHROPIC_CONTENT,
    ),
    (Dialect::Gemini, &[GEMINI_ROLE, KEEP_ALIVE], GEMINI_CONTENT),
];

/// When, on the clock of the call, a stream was cut and with which text; `None` if it came to its end.
async fn cut_after(
    layer: TimeoutLayer,
    request: Request<()>,
    response: Response<Upstream>,
) -> Option<(Duration, String)> {
    let started = Instant::now();
    let mut response = call(layer, request, response).await;
    let (text, error) = read(response.body_mut()).await;
    if let Some(error) = error {
        return Some((started.elapsed(), error.to_string()));
    }
    let (_, data) = events(&text).pop()?;
    let error = serde_json::from_str::<serde_json::Value>(&data).ok()?;
    let message = error.pointer("/error/message").or(error.get("message"))?;
    Some((started.elapsed(), message.as_str()?.to_owned()))
}

/// Answers with `response` when its head is due.
async fn answer_after<B>(
    layer: TimeoutLayer,
    request: Request<()>,
    head: Duration,
    response: Response<B>,
) -> Result<Response<TimeoutBody<B>>, BoxError>
where
    B: http_body::Body<Data = Bytes>,
{
    let mut response = Some(response);
    let service = service_fn(move |_: Request<()>| {
        let response = response.take().unwrap();
        async move {
            sleep(head).await;
            Ok::<_, Infallible>(response)
        }
    });
    layer.layer(service).oneshot(request).await
}

// === first token ===

#[tokio::test(start_paused = true)]
async fn the_headers_of_a_stream_may_take_until_the_first_token_deadline() {
    for head in [seconds(10) - MILLISECOND, seconds(10)] {
        let answer = || Upstream::new().now(CONTENT).now(DONE);
        let request = streamed(Dialect::OpenAi);
        let response = answer_after(first_token(), request, head, sse(answer())).await;
        let (text, error) = read(response.unwrap().map(Box::pin).body_mut()).await;
        assert_eq!(text, format!("{CONTENT}{DONE}"), "{head:?}");
        assert!(error.is_none());
    }
    let late = seconds(10) + MILLISECOND;
    let request = streamed(Dialect::OpenAi);
    let error = answer_after(first_token(), request, late, sse(Upstream::new())).await;
    assert_timed_out(&error.unwrap_err(), Deadline::FirstToken, seconds(10));
}

#[tokio::test(start_paused = true)]
async fn what_comes_before_the_first_token_does_not_count_as_one() {
    for (dialect, before, token) in STREAMS {
        let preamble = || {
            let frames = before.iter().enumerate();
            frames.fold(Upstream::new(), |upstream, (n, frame)| {
                upstream.at(seconds(n as u64), *frame)
            })
        };
        let in_time = preamble().at(seconds(10), token);
        let cut = cut_after(first_token(), streamed(dialect), sse(in_time)).await;
        assert_eq!(cut, None, "{dialect:?}");

        let late = preamble().at(seconds(10) + MILLISECOND, token);
        let cut = cut_after(first_token(), streamed(dialect), sse(late)).await;
        let expected = (seconds(10), "no first token within 10s".to_owned());
        assert_eq!(cut, Some(expected), "{dialect:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_the_first_token_a_stream_may_take_its_time() {
    for (dialect, _, token) in STREAMS {
        let slow = Upstream::new()
            .at(seconds(9), token)
            .at(seconds(900), token);
        let cut = cut_after(first_token(), streamed(dialect), sse(slow)).await;
        assert_eq!(cut, None, "{dialect:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_in_a_split_frame_arrives_with_its_first_byte_of_content() {
    let (first, rest) = CONTENT.split_at(CONTENT.find("llo").unwrap());
    let split = Upstream::new().at(seconds(9), first).at(seconds(20), rest);
    let cut = cut_after(first_token(), streamed(Dialect::OpenAi), sse(split)).await;
    assert_eq!(cut, None);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_does_not_stream_has_no_first_token() {
    let request = described(Dialect::OpenAi, false);
    let body = Upstream::new().at(seconds(200), "{}");
    let response = answer_after(first_token(), request, seconds(100), json(body)).await;
    let (text, error) = read(response.unwrap().map(Box::pin).body_mut()).await;
    assert_eq!((text.as_str(), error.is_none()), ("{}", true));
}

#[tokio::test(start_paused = true)]
async fn an_undescribed_call_has_a_first_token_once_its_headers_show_a_stream() {
    let respond = async |head, token| {
        let body = Upstream::new().now(ROLE).at(token, CONTENT);
        let response = answer_after(first_token(), undescribed(), head, sse(body)).await;
        read(response.unwrap().map(Box::pin).body_mut()).await.0
    };
    let whole = format!("{ROLE}{CONTENT}");
    assert_eq!(respond(seconds(5), seconds(10)).await, whole);
    // Before the response headers it was not known that there would be a token to wait for.
    assert_eq!(respond(seconds(12), seconds(1)).await, whole);
    let cut = respond(seconds(5), seconds(10) + MILLISECOND).await;
    assert!(cut.contains("no first token within 10s"), "{cut}");

    let slow = response("audio/mpeg", Upstream::new().at(seconds(60), "sound"));
    let response = call(first_token(), undescribed(), slow).await;
    assert_eq!(read(&mut response.into_body()).await.0, "sound");
}

/// It was cut in the midst of its tokens: nothing that is compressed was ever taken for one.
#[tokio::test(start_paused = true)]
async fn the_first_data_is_the_first_token_of_a_stream_that_cannot_be_read() {
    let body = |first| {
        Upstream::new()
            .at(first, "some")
            .at(first + seconds(60), "more")
    };
    let compressed = |first| {
        let mut response = sse(body(first));
        let headers = response.headers_mut();
        headers.insert("content-encoding", "gzip".parse().unwrap());
        response
    };
    let framed = |first| response("application/vnd.amazon.eventstream", body(first));
    let formats: [&dyn Fn(Duration) -> Response<Upstream>; 2] = [&compressed, &framed];
    for format in formats {
        let request = streamed(Dialect::OpenAi);
        let cut = cut_after(first_token(), request, format(seconds(10))).await;
        assert_eq!(cut, None);

        let request = streamed(Dialect::OpenAi);
        let late = format(seconds(10) + MILLISECOND);
        let cut = cut_after(first_token(), request, late).await;
        let expected = (seconds(10), "no first token within 10s".to_owned());
        assert_eq!(cut, Some(expected));
    }
}

/// It was cut although the token was on its way: the time of the reader was counted as the provider's.
#[tokio::test(start_paused = true)]
async fn a_slow_reader_does_not_use_up_the_time_to_the_first_token() {
    let body = Upstream::new()
        .now(ROLE)
        .at(seconds(600) + MILLISECOND, CONTENT);
    let response = call(first_token(), streamed(Dialect::OpenAi), sse(body)).await;
    let mut body = response.into_body();
    sleep(seconds(300)).await;
    assert_eq!(next(&mut body).await.unwrap().unwrap(), ROLE);
    sleep(seconds(300)).await;
    assert_eq!(next(&mut body).await.unwrap().unwrap(), CONTENT);

    // It is no more than stopped: what was waited for before counts.
    let body = Upstream::new().at(seconds(4), ROLE).silent();
    let response = call(first_token(), streamed(Dialect::OpenAi), sse(body)).await;
    let mut body = response.into_body();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), ROLE);
    sleep(seconds(300)).await;
    let asked = Instant::now();
    let error = next(&mut body).await.unwrap().unwrap();
    assert!(error.contains("no first token"), "{error}");
    assert_eq!(asked.elapsed(), seconds(6));
}

// === idle ===

#[tokio::test(start_paused = true)]
async fn a_frame_may_take_as_long_as_idle_and_no_longer() {
    let after = |gap| {
        let body = Upstream::new().now(CONTENT).at(gap, CONTENT).at(gap, DONE);
        cut_after(idle(), streamed(Dialect::OpenAi), sse(body))
    };
    assert_eq!(after(seconds(10) - MILLISECOND).await, None);
    assert_eq!(after(seconds(10)).await, None);
    let cut = after(seconds(10) + MILLISECOND).await;
    let expected = (seconds(10), "nothing more came within 10s".to_owned());
    assert_eq!(cut, Some(expected));
}

#[tokio::test(start_paused = true)]
async fn idle_counts_from_the_response_headers() {
    let body = Upstream::new().silent();
    let request = streamed(Dialect::OpenAi);
    let response = answer_after(idle(), request, seconds(100), sse(body)).await;
    let had_head = Instant::now();
    let (text, _) = read(response.unwrap().map(Box::pin).body_mut()).await;
    assert!(text.contains("nothing more came within 10s"), "{text}");
    assert_eq!(had_head.elapsed(), seconds(10));
}

#[tokio::test(start_paused = true)]
async fn any_frame_shows_that_the_upstream_is_there() {
    let frames = (1..=20).fold(Upstream::new(), |upstream, n| {
        upstream.at(n * seconds(10), KEEP_ALIVE)
    });
    let cut = cut_after(idle(), undescribed(), sse(frames.silent())).await;
    let expected = (seconds(210), "nothing more came within 10s".to_owned());
    assert_eq!(cut, Some(expected));
}

#[tokio::test(start_paused = true)]
async fn idle_rests_while_a_first_token_is_waited_for() {
    let layer = TimeoutLayer::builder()
        .first_token(seconds(120))
        .idle(seconds(10))
        .build()
        .unwrap();
    let reasons = Upstream::new().now(ROLE).at(seconds(119), CONTENT).silent();
    let cut = cut_after(layer, streamed(Dialect::OpenAi), sse(reasons)).await;
    let expected = (seconds(129), "nothing more came within 10s".to_owned());
    assert_eq!(cut, Some(expected));
}

#[tokio::test(start_paused = true)]
async fn idle_bears_on_bodies_that_are_no_streams() {
    let body = Upstream::new().at(SECOND, "{\"id\":").silent();
    let request = described(Dialect::OpenAi, false);
    let (text, error) = read(call(idle(), request, json(body)).await.body_mut()).await;
    assert_eq!(text, "{\"id\":");
    assert_timed_out(&error.unwrap(), Deadline::Idle, seconds(10));
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_not_a_silent_provider() {
    let there = Upstream::new().now(CONTENT).now(CONTENT).now(CONTENT);
    let just_then = Upstream::new()
        .now(CONTENT)
        .at(seconds(610), CONTENT)
        .at(seconds(1_220), CONTENT);
    for body in [there, just_then] {
        let response = call(idle(), streamed(Dialect::OpenAi), sse(body)).await;
        let mut body = response.into_body();
        for _ in 0..3 {
            assert_eq!(next(&mut body).await.unwrap().unwrap(), CONTENT);
            sleep(seconds(600)).await;
        }
        assert!(next(&mut body).await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stops_and_returns_gets_what_arrived_meanwhile() {
    let body = Upstream::new().at(seconds(5), CONTENT).silent();
    let response = call(idle(), streamed(Dialect::OpenAi), sse(body)).await;
    let mut body = response.into_body();
    assert!(crate::support::poll_once(Box::pin(next(&mut body))).is_pending());
    sleep(seconds(600)).await;
    assert_eq!(next(&mut body).await.unwrap().unwrap(), CONTENT);

    // Nothing has arrived since the poll: that is silence.
    assert!(crate::support::poll_once(Box::pin(next(&mut body))).is_pending());
    sleep(seconds(600)).await;
    let asked = Instant::now();
    let error = next(&mut body).await.unwrap().unwrap();
    assert!(error.contains("nothing more came"), "{error}");
    assert_eq!(asked.elapsed(), Duration::ZERO);
}

// === total ===

#[tokio::test(start_paused = true)]
async fn the_total_counts_from_the_call_to_the_end_of_the_body() {
    let respond = |head, last| {
        let started = Instant::now();
        async move {
            let body = Upstream::new().now(CONTENT).at(last, CONTENT).silent();
            let response = answer_after(total(), undescribed(), head, sse(body)).await;
            let (text, _) = read(response.unwrap().map(Box::pin).body_mut()).await;
            (started.elapsed(), text.matches("Hello").count(), text)
        }
    };
    // Together: the frame is there, so it is passed on.
    for (last, tokens) in [(seconds(10), 2), (seconds(10) + MILLISECOND, 1)] {
        let (after, seen, text) = respond(seconds(9), last).await;
        assert_eq!((after, seen), (seconds(10), tokens));
        assert!(text.contains("not finished within 10s"), "{text}");
    }
    let late = seconds(10) + MILLISECOND;
    let error = answer_after(total(), undescribed(), late, sse(Upstream::new())).await;
    assert_timed_out(&error.unwrap_err(), Deadline::Total, seconds(10));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_always_has_a_frame_is_bound_by_the_total() {
    let body = (0..1_000).fold(Upstream::new(), |upstream, _| upstream.now(CONTENT));
    let response = call(total(), streamed(Dialect::OpenAi), sse(body)).await;
    let mut body = response.into_body();
    // Frames at 0, 1, .. 10 s; the next would be at 11 s.
    for _ in 0..=10 {
        assert_eq!(next(&mut body).await.unwrap().unwrap(), CONTENT);
        sleep(SECOND).await;
    }
    let error = next(&mut body).await.unwrap().unwrap();
    assert!(error.contains("not finished within 10s"), "{error}");
    assert!(next(&mut body).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn an_end_that_is_read_late_is_an_end() {
    let body = Upstream::new().now(CONTENT);
    let response = call(total(), streamed(Dialect::OpenAi), sse(body)).await;
    let mut body = response.into_body();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), CONTENT);
    sleep(seconds(60)).await;
    assert!(next(&mut body).await.is_none());
}

/// It was thrown away, while the layers around had been told that the call had ended well.
#[tokio::test(start_paused = true)]
async fn a_last_frame_that_is_read_late_is_passed_on() {
    let body = Upstream::new().now("{}").knows_end();
    let response = call(total(), undescribed(), json(body)).await;
    let mut body = response.into_body();
    sleep(seconds(60)).await;
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "{}");
    assert!(next(&mut body).await.is_none());
}

/// It was taken for a time-out, while the layers around had been told that the connection broke.
#[tokio::test(start_paused = true)]
async fn an_error_that_is_read_late_is_the_error() {
    let body = Upstream::new().error_at(SECOND, "connection reset");
    let response = call(total(), undescribed(), sse(body)).await;
    let mut body = response.into_body();
    sleep(seconds(60)).await;
    let error = next(&mut body).await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "connection reset");
    assert!(next(&mut body).await.is_none());
}

// === together ===

#[tokio::test(start_paused = true)]
async fn the_deadline_that_passes_first_is_reported() {
    let layer = TimeoutLayer::builder()
        .first_token(seconds(20))
        .first_token_max(seconds(20))
        .idle(seconds(8))
        .total(seconds(30))
        .build()
        .unwrap();
    let cut = |body: Upstream| cut_after(layer, streamed(Dialect::OpenAi), sse(body.silent()));
    let told = |after, text: &str| Some((seconds(after), text.to_owned()));

    let stalled = Upstream::new().at(SECOND, CONTENT);
    assert_eq!(cut(stalled).await, told(9, "nothing more came within 8s"));
    let kept_alive = |last| {
        (1..=last).fold(Upstream::new(), |upstream, n| {
            upstream.at(n * seconds(7), KEEP_ALIVE)
        })
    };
    assert_eq!(
        cut(kept_alive(10)).await,
        told(20, "no first token within 20s")
    );
    let slow = kept_alive(2)
        .at(seconds(19), CONTENT)
        .at(seconds(25), CONTENT);
    assert_eq!(cut(slow).await, told(30, "not finished within 30s"));
}

#[tokio::test(start_paused = true)]
async fn a_stream_may_have_a_total_of_its_own() {
    let layer = TimeoutLayer::builder()
        .first_token(seconds(50))
        .total(seconds(10))
        .total_streamed(seconds(60))
        .build()
        .unwrap();
    for (is_streamed, total) in [(false, seconds(10)), (true, seconds(60))] {
        let started = Instant::now();
        let body = Upstream::new().now(CONTENT).silent();
        let request = described(Dialect::OpenAi, is_streamed);
        let mut response = call(layer, request, sse(body)).await;
        read(response.body_mut()).await;
        assert_eq!(started.elapsed(), total);
    }
}
