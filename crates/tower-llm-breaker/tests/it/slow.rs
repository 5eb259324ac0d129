//! Slow calls whose callers do not wait for the end.

use crate::support::{
    CONTENT, ROLE, SECOND, Streaming, builder, chat, mocked, model, stats, streaming,
};
use tokio::{task::yield_now, time::advance};
use tower_llm_breaker::{BreakerBuilder, BreakerLayer, SlowCalls, State};
use tower_llm_testkit::mock::{Upstream, arrived, start};

/// Opened if the first token of half of the calls takes longer than 10 s.
fn impatient() -> BreakerBuilder {
    let slow = SlowCalls::at_ratio(0.5).first_token(10 * SECOND);
    builder().slow_calls(slow).window_calls(100)
}

/// A stream whose reader sees that it starts slowly.
async fn slow_stream(layer: &BreakerLayer) -> Streaming {
    let mut stream = streaming(layer);
    stream.pass(ROLE);
    stream.wait();
    advance(11 * SECOND).await;
    stream.wait();
    stream
}

/// Slow calls counted even if dropped, others only if read to the end: these five opened the circuit.
#[tokio::test(start_paused = true)]
async fn five_slow_streams_of_a_thousand_are_few_although_all_readers_leave_early() {
    let layer = impatient().window_calls(1_000).build().unwrap();
    for number in 1..=1_000 {
        let mut stream = match number % 200 {
            0 => slow_stream(&layer).await,
            _ => streaming(&layer),
        };
        stream.pass(CONTENT);
        drop(stream);
        yield_now().await;
        let state = layer.handle().state(&model());
        assert_eq!(state, State::Closed, "{number}");
    }
    assert_eq!(stats(&layer.handle()).slow_calls, 5);
}

/// A call dropped before anything arrives shows nothing about its duration.
#[tokio::test(start_paused = true)]
async fn streams_dropped_before_they_begin_do_not_dilute_slow_ones() {
    let layer = impatient().minimum_calls(1).build().unwrap();
    for _ in 0..100 {
        let mut stream = streaming(&layer);
        stream.pass(ROLE);
        drop(stream);
        yield_now().await;
    }
    drop(slow_stream(&layer).await);
    assert_eq!(layer.handle().state(&model()), State::Open);
}

/// Only successes and failures made a circuit a member of its group, so this one was in none and could not open.
#[tokio::test(start_paused = true)]
async fn a_circuit_with_only_slow_calls_opens_within_the_ratio() {
    let builder = impatient()
        .minimum_calls(1)
        .advanced(|set| set.max_open_ratio(1.0));
    let layer = builder.build().unwrap();
    let (service, mut upstream) = mocked::<http::Response<Upstream>>(&layer);
    let mut call = start(&service, chat());
    assert!(call.poll().is_pending());
    let _unanswered = arrived(&mut upstream);
    advance(11 * SECOND).await;
    assert!(call.poll().is_pending());
    drop(call);
    assert_eq!(layer.handle().state(&model()), State::Open);
}

/// The circuit stayed half-open as long as the callers of all probes disconnected.
#[tokio::test(start_paused = true)]
async fn a_dropped_slow_probe_has_failed() {
    let layer = impatient().build().unwrap();
    layer.handle().trip(&model(), SECOND);
    advance(SECOND).await;
    let probe = slow_stream(&layer).await;
    assert_eq!(layer.handle().state(&model()), State::HalfOpen);
    drop(probe);
    assert_eq!(layer.handle().state(&model()), State::Open);
}

/// A disconnect before the time limit shows nothing.
#[tokio::test(start_paused = true)]
async fn a_probe_dropped_before_it_is_slow_decides_nothing() {
    let layer = impatient().build().unwrap();
    layer.handle().trip(&model(), SECOND);
    advance(SECOND).await;
    let mut probe = streaming(&layer);
    probe.wait();
    advance(9 * SECOND).await;
    drop(probe);
    let stats = stats(&layer.handle());
    assert_eq!((stats.state, stats.probes), (State::HalfOpen, 0));
}
