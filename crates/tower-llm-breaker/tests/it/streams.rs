//! Verdicts at the end of a stream, and sometimes before it.

use std::{str, time::Duration};

use crate::support::{
    CONTENT, DONE, ERROR, MINUTE, MS, ROLE, Request, SECOND, Says, Scripted, Staged, Streaming,
    Tested, WELL, ask, ask_of, builder, chat, counts, mocked, model, stats, streaming, touchy,
};
use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full};
use tokio::{task::yield_now, time::advance};
use tokio_test::{assert_ready_err, assert_ready_ok};
use tower::{Service, service_fn};
use tower_layer::Layer;
use tower_llm_breaker::{
    BreakerBuilder, BreakerHandle, BreakerLayer, CircuitId, CircuitOpen, EventKind, Reason,
    SlowCalls, State,
};
use tower_llm_core::{BoxError, DescribeLayer, Refusal, RefusalKind, RefusalLayer};
use tower_llm_testkit::fixtures::{self, Fixture, Verdict};
use tower_llm_testkit::mock::{arrived, poll_ready, start, stream};

/// Counts all calls, and no failures open it.
fn counting() -> BreakerBuilder {
    builder()
        .advanced(|set| set.max_open_ratio(0.0))
        .window_calls(100)
}

fn provider() -> CircuitId {
    CircuitId::provider("openai")
}

/// Calls and failures of the provider's circuit.
fn counts_of_provider(handle: &BreakerHandle) -> (u64, u64) {
    let stats = handle.stats_of(&provider()).expect("the circuit exists");
    (stats.calls, stats.failures)
}

// === each call counts once ===

#[tokio::test(start_paused = true)]
async fn a_stream_counts_when_it_has_ended_and_once() {
    type End = fn(Streaming);
    let ends: [(&str, &[&'static str], End, [(u64, u64); 2]); 7] = [
        (
            "well",
            &[ROLE, CONTENT, DONE],
            Streaming::end,
            [(1, 0), (1, 0)],
        ),
        (
            "error",
            &[ROLE, CONTENT, ERROR],
            Streaming::end,
            [(1, 1), (1, 0)],
        ),
        (
            "error before any content",
            &[ERROR],
            Streaming::end,
            [(1, 1), (1, 0)],
        ),
        (
            "truncated",
            &[ROLE, CONTENT],
            Streaming::end,
            [(1, 1), (1, 0)],
        ),
        (
            "truncated before any frame",
            &[],
            Streaming::end,
            [(1, 1), (1, 0)],
        ),
        // The connection was good before it broke, so the stream counts as truncated.
        ("reset", &[ROLE, CONTENT], Streaming::fail, [(1, 1), (1, 0)]),
        (
            "dropped after its end",
            &[ROLE, CONTENT, DONE],
            drop,
            [(1, 0), (1, 0)],
        ),
    ];
    for (name, frames, end, expected) in ends {
        let layer = counting().build().unwrap();
        let handle = layer.handle();
        let mut stream = streaming(&layer);
        for frame in frames {
            stream.pass(frame);
            assert_eq!(counts(&handle), (0, 0), "{name}: not at its end yet");
        }
        end(stream);
        assert_eq!(
            [counts(&handle), counts_of_provider(&handle)],
            expected,
            "{name}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn streams_that_fail_after_good_headers_open_the_circuit() {
    let layer = builder()
        .window_calls(10)
        .minimum_calls(5)
        .failure_ratio(0.5)
        .build()
        .unwrap();
    let handle = layer.handle();
    for (number, last) in [ERROR, CONTENT, ERROR, CONTENT, ERROR]
        .into_iter()
        .enumerate()
    {
        assert_eq!(handle.state(&model()), State::Closed, "{number}");
        let mut stream = streaming(&layer);
        stream.pass(CONTENT);
        stream.pass(last);
        stream.end();
    }
    assert_eq!(handle.state(&model()), State::Open);
    Tested::of(&layer).refused();
}

/// One call, answered with the whole of `fixture`.
fn replay(fixture: &'static Fixture) -> BreakerHandle {
    let layer = counting().build().expect("good settings");
    let service = DescribeLayer::new().layer(layer.layer(service_fn(
        move |_: http::Request<_>| async move {
            let mut response = http::Response::new(Full::new(Bytes::from_static(fixture.body)));
            *response.status_mut() =
                http::StatusCode::from_u16(fixture.status).expect("a legal status");
            *response.headers_mut() = fixture.header_map();
            Ok::<_, BoxError>(response)
        },
    )));
    let request = http::Request::post(format!("http://provider.test{}", fixture.path))
        .body(Full::<Bytes>::from("{}"))
        .expect("a legal request");
    let mut service = service;
    assert_ready_ok!(poll_ready::<_, http::Request<Full<Bytes>>>(&mut service));
    let response = service
        .call(request)
        .now_or_never()
        .expect("the body is complete");
    let read = response
        .expect("it answers")
        .into_body()
        .collect()
        .now_or_never();
    read.expect("the body is complete")
        .expect("the body does not fail");
    layer.handle()
}

/// Bodies as providers send them, and what each circuit counts for them.
#[tokio::test(start_paused = true)]
async fn provider_bodies_are_counted_by_their_meaning() {
    let all = fixtures::all();
    let mut others = 0;
    for fixture in all {
        let handle = replay(fixture);
        let mut stats = handle.stats();
        stats.sort_by_key(|stats| stats.circuit.scope());
        let [provider, of_model, account, clock] = match &stats[..] {
            [provider, of_model, account, clock] => [provider, of_model, account, clock],
            // Neither counting tokens nor a list says anything about a model.
            [provider, account] => {
                let is_spent = fixture.expect.verdict == Verdict::Exhausted;
                assert_eq!(provider.failures, 0, "{}", fixture.name);
                assert_eq!(account.state == State::Open, is_spent, "{}", fixture.name);
                others += 1;
                continue;
            }
            _ => panic!("{}: {stats:?}", fixture.name),
        };
        let has_time = |ms: Option<u64>| ms.is_some_and(|ms| ms > 0);
        let expected = match fixture.expect.verdict {
            Verdict::Success => (1, 0, State::Closed, State::Closed),
            Verdict::Throttled { retry_after_ms } if has_time(retry_after_ms) => {
                (0, 0, State::Closed, State::Throttled)
            }
            // The quota is that of a model.
            Verdict::Exhausted if fixture.name == "gemini_429_day" => {
                (0, 0, State::Closed, State::Open)
            }
            Verdict::Exhausted => (0, 0, State::Open, State::Closed),
            Verdict::Overloaded { .. }
            | Verdict::FailedStatus
            | Verdict::FailedInBand
            | Verdict::FailedTruncated => (1, 1, State::Closed, State::Closed),
            Verdict::Throttled { .. } | Verdict::ClientError => {
                (0, 0, State::Closed, State::Closed)
            }
        };
        let found = (
            of_model.calls,
            of_model.failures,
            account.state,
            clock.state,
        );
        assert_eq!(found, expected, "{}", fixture.name);
        // The provider was reached; a client error does not count, even for its circuit.
        let reached = u64::from(fixture.expect.verdict != Verdict::ClientError);
        assert_eq!(
            (provider.calls, provider.failures),
            (reached, 0),
            "{}",
            fixture.name
        );
    }
    assert!(others > 0 && others < all.len() / 4, "{others}");
    let has = |verdict| all.iter().any(|fixture| fixture.expect.verdict == verdict);
    assert!(has(Verdict::FailedInBand) && has(Verdict::FailedTruncated) && has(Verdict::Exhausted));
}

// === slow calls ===

fn slow(slow: SlowCalls) -> BreakerLayer {
    counting()
        .slow_calls(slow)
        .minimum_calls(10)
        .build()
        .expect("good settings")
}

/// A stream that has begun and sends nothing more.
#[track_caller]
fn begun(layer: &BreakerLayer) -> Streaming {
    let mut stream = streaming(layer);
    stream.pass(ROLE);
    stream.pass(CONTENT);
    stream.wait();
    stream
}

/// Successes, failures and slow calls.
fn outcomes(handle: &BreakerHandle) -> (u64, u64, u64) {
    let stats = stats(handle);
    (stats.calls, stats.failures, stats.slow_calls)
}

#[tokio::test(start_paused = true)]
async fn a_late_first_token_is_slow_before_it_arrives() {
    let layer = slow(SlowCalls::at_ratio(1.0).first_token(5 * SECOND));
    let handle = layer.handle();
    for (after, is_slow) in [(5 * SECOND - MS, 0), (5 * SECOND, 1)] {
        let mut stream = streaming(&layer);
        stream.pass(ROLE);
        stream.wait();
        advance(after).await;
        assert_eq!(u64::from(stream.body.is_woken()), is_slow);
        stream.wait();
        assert_eq!(outcomes(&handle).2, is_slow);
        stream.pass(CONTENT);
        // Gaps are not judged.
        advance(MINUTE).await;
        stream.pass(DONE);
        stream.end();
    }
    // Both succeeded.
    assert_eq!(outcomes(&handle), (2, 0, 1));
}

/// If late response headers were polled together with the timer, the timer was ignored.
#[tokio::test(start_paused = true)]
async fn late_response_headers_make_a_call_slow() {
    let layer = slow(SlowCalls::at_ratio(1.0).first_token(5 * SECOND));
    let (service, mut upstream) = mocked(&layer);
    let mut call = start(&service, chat());
    assert!(call.poll().is_pending());
    advance(5 * SECOND - MS).await;
    assert!(!call.is_woken());
    advance(MS).await;
    assert!(call.is_woken());
    assert!(call.poll().is_pending());
    assert_eq!(outcomes(&layer.handle()), (0, 0, 1));
    let (_, answer) = arrived(&mut upstream);
    let body = Full::<Bytes>::from([CONTENT, DONE].concat());
    answer.send_response(stream(body));
    let read = assert_ready_ok!(call.poll())
        .into_body()
        .collect()
        .now_or_never();
    read.unwrap().unwrap();
    assert_eq!(outcomes(&layer.handle()), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_long_gap_is_slow_and_a_call_is_slow_once() {
    let layer = slow(SlowCalls::at_ratio(1.0).gap(3 * SECOND));
    let handle = layer.handle();
    for (gap, is_slow) in [(3 * SECOND - MS, 0), (3 * SECOND, 1)] {
        let mut stream = streaming(&layer);
        stream.wait();
        // Before the first token there is no gap.
        advance(MINUTE).await;
        stream.pass(CONTENT);
        for _ in 0..5 {
            stream.wait();
            advance(gap).await;
            stream.wait();
            assert_eq!(outcomes(&handle).2, is_slow);
            stream.pass(CONTENT);
        }
        stream.pass(DONE);
        stream.end();
    }
    assert_eq!(outcomes(&handle), (2, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn only_content_restarts_the_time_to_a_gap() {
    let layer = slow(SlowCalls::at_ratio(1.0).gap(10 * SECOND));
    let handle = layer.handle();
    let mut stream = begun(&layer);
    for _ in 0..5 {
        advance(10 * SECOND - MS).await;
        stream.pass(CONTENT);
        stream.wait();
    }
    for _ in 0..9 {
        advance(SECOND).await;
        stream.pass(": keep-alive\n\n");
        stream.wait();
    }
    assert_eq!(outcomes(&handle), (0, 0, 0));
    advance(SECOND).await;
    stream.wait();
    assert_eq!(outcomes(&handle), (0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn only_an_unstreamed_call_is_slow_by_its_total_time() {
    let settings = counting().slow_calls(SlowCalls::at_ratio(1.0).total(MINUTE));
    let mut staged = Staged::new(settings.clone());
    for (length, is_slow) in [(MINUTE - MS, 0), (MINUTE, 1)] {
        let call = staged.begin();
        advance(length).await;
        call.end(WELL);
        assert_eq!(outcomes(&staged.handle).2, is_slow);
    }
    // A failed call is not slow, and neither are the others.
    let call = staged.begin();
    advance(2 * MINUTE).await;
    call.end(Says::Status(500));

    let layer = settings.build().unwrap();
    let mut stream = streaming(&layer);
    stream.wait();
    advance(60 * MINUTE).await;
    stream.succeed();
    assert_eq!(outcomes(&layer.handle()), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn enough_slow_calls_open_although_all_succeeded() {
    let slow_calls = SlowCalls::at_ratio(0.5).total(MINUTE);
    let mut staged = Staged::new(builder().slow_calls(slow_calls).window_calls(10));
    let mut events = staged.handle.subscribe();
    staged.tell_times(6, WELL);
    for number in 0..5 {
        assert_eq!(staged.state(), State::Closed, "{number}");
        let call = staged.begin();
        advance(MINUTE).await;
        call.end(WELL);
    }
    assert_eq!(staged.state(), State::Open);
    let kind = events.try_recv().unwrap().kind;
    let EventKind::Transition { to, reason, .. } = kind else {
        panic!("{kind:?}");
    };
    assert_eq!((to, reason), (State::Open, Reason::SlowRatio));
    assert_eq!(staged.refused().retry_after(), Some(30 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_slow_has_failed() {
    let layer = slow(SlowCalls::at_ratio(1.0).first_token(5 * SECOND));
    layer.handle().trip(&model(), SECOND);
    advance(SECOND).await;
    let mut probe = streaming(&layer);
    probe.wait();
    advance(5 * SECOND).await;
    probe.wait();
    probe.succeed();
    assert_eq!(layer.handle().state(&model()), State::Open);
}

/// A slow model counts against neither the account nor the provider.
#[tokio::test(start_paused = true)]
async fn a_slow_probe_counts_only_against_the_model() {
    let layer = slow(SlowCalls::at_ratio(1.0).first_token(5 * SECOND));
    let handle = layer.handle();
    let account = CircuitId::account("openai", "");
    for circuit in [&provider(), &account] {
        handle.trip(circuit, SECOND);
    }
    advance(SECOND).await;
    let mut probe = streaming(&layer);
    probe.wait();
    advance(5 * SECOND).await;
    probe.wait();
    probe.succeed();
    assert_eq!(outcomes(&handle), (1, 0, 1));
    assert_eq!(
        [&provider(), &account].map(|circuit| handle.state(circuit)),
        [State::Closed; 2]
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_makes_no_call_slow() {
    let layer = slow(SlowCalls::at_ratio(1.0).gap(5 * SECOND));
    let handle = layer.handle();
    let mut stream = begun(&layer);
    stream.pass(CONTENT);
    for frame in [CONTENT, CONTENT, DONE] {
        // The frame is there before the reader is.
        stream.send(frame);
        advance(MINUTE).await;
        stream.read();
    }
    assert_eq!(outcomes(&handle), (0, 0, 0));
    // Also not if the body is polled again before the next frame.
    advance(MINUTE).await;
    stream.wait();
    assert_eq!(outcomes(&handle), (0, 0, 0));
    stream.end();
    assert_eq!(outcomes(&handle), (1, 0, 0));
}

// === outcomes that say nothing ===

/// Opened by the first outcome that counts at all.
fn by_anything() -> BreakerBuilder {
    touchy().failure_ratio(0.0).minimum_calls(1)
}

#[tokio::test(start_paused = true)]
async fn a_thousand_disconnects_at_any_stage_count_nothing() {
    let layer = by_anything().build().unwrap();
    let handle = layer.handle();
    let stages: [&[&'static str]; 4] = [&[], &[ROLE], &[ROLE, CONTENT], &[ROLE, CONTENT, CONTENT]];
    let service = layer.layer(service_fn(|_: Request| {
        std::future::pending::<Result<http::Response<Full<Bytes>>, BoxError>>()
    }));
    for number in 0..1_000 {
        match number % 6 {
            0 => drop(start(&service, ask(WELL))),
            1 => assert!(start(&service, ask(WELL)).poll().is_pending()),
            stage => {
                let mut stream = streaming(&layer);
                for frame in stages[stage - 2] {
                    stream.pass(frame);
                }
                if number % 4 == 0 {
                    stream.wait();
                }
            }
        }
        yield_now().await;
    }
    assert_eq!(handle.state(&model()), State::Closed);
    for stats in handle.stats() {
        assert_eq!(stats.state, State::Closed, "{stats:?}");
        assert_eq!(
            (stats.calls, stats.failures, stats.probes, stats.stale),
            (0, 0, 0, 0)
        );
    }
    let mut failing = streaming(&layer);
    failing.pass(ERROR);
    failing.end();
    assert_eq!(handle.state(&model()), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_client_errors_count_nothing_and_open_nothing() {
    let tested = Tested::new(by_anything());
    let statuses = [400, 401, 403, 404, 405, 409, 413, 415, 422, 451];
    for number in 0..1_000 {
        tested.tell(Says::Status(statuses[number % statuses.len()]));
    }
    assert_eq!(tested.reached(), 1_000);
    for stats in tested.handle.stats() {
        assert_eq!(stats.state, State::Closed, "{stats:?}");
        assert_eq!((stats.calls, stats.failures), (0, 0), "{stats:?}");
    }
    tested.tell(Says::Status(500));
    assert_eq!(tested.state(), State::Open);
}

// === how a refusal looks ===

/// What a caller sees behind a gateway: the status, `retry-after` and `retry-after-ms`.
fn seen(layer: &BreakerLayer) -> (u16, Option<String>, Option<String>) {
    let mut service = RefusalLayer::new().layer(layer.layer(Scripted::default()));
    assert_ready_ok!(poll_ready(&mut service));
    let response = service
        .call(ask(WELL))
        .now_or_never()
        .expect("the answer is scripted")
        .expect("it answers");
    let header = |name| {
        let value = response.headers().get(name)?;
        Some(str::from_utf8(value.as_bytes()).expect("text").to_owned())
    };
    (
        response.status().as_u16(),
        header("retry-after"),
        header("retry-after-ms"),
    )
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_is_503_and_throttling_429_with_retry_after() {
    let of = |seconds: &str, ms: &str| (Some(seconds.to_owned()), Some(ms.to_owned()));
    let layer = touchy().build().unwrap();
    assert_eq!(seen(&layer), (200, None, None));
    let tested = Tested::of(&layer);
    tested.tell(Says::Status(500));
    advance(Duration::from_millis(1_500)).await;
    let (seconds, ms) = of("29", "28500");
    assert_eq!(seen(&layer), (503, seconds, ms));

    let layer = touchy().build().unwrap();
    let tested = Tested::of(&layer);
    tested.tell(Says::Later(429, 7));
    let (seconds, ms) = of("7", "7000");
    assert_eq!(seen(&layer), (429, seconds, ms));

    let layer = touchy()
        .initial_state(tower_llm_breaker::Force::Open)
        .build()
        .unwrap();
    assert_eq!(seen(&layer), (503, None, None));
}

#[tokio::test(start_paused = true)]
async fn the_refusal_is_found_among_the_sources() {
    let layer = touchy().build().unwrap();
    let tested = Tested::of(&layer);
    tested.tell(Says::Status(500));
    let error = assert_ready_err!(start(&tested.service, ask(WELL)).poll());
    let wrapped: BoxError = Box::new(Around(error));
    let refusal = Refusal::find(&*wrapped).unwrap();
    assert_eq!(
        (refusal.kind(), refusal.layer()),
        (RefusalKind::Unavailable, "breaker")
    );
    assert!(refusal.is_retryable());
    assert_eq!(refusal.retry_after(), Some(30 * SECOND));

    tested
        .call(ask_of("openai", "a", "n", Says::Later(429, 3)))
        .unwrap();
    let error = tested.call(ask_of("openai", "a", "n", WELL)).unwrap_err();
    assert_eq!(
        Refusal::find(&*error).unwrap().kind(),
        RefusalKind::RateLimited
    );
    assert!(error.downcast_ref::<CircuitOpen>().is_some());
}

#[derive(Debug)]
struct Around(BoxError);

impl std::fmt::Display for Around {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("around it")
    }
}

impl std::error::Error for Around {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}
