//! Probes for which the first token may be enough.

use super::*;

/// A probe that has begun to stream, and how it continues.
#[tokio::test(start_paused = true)]
async fn a_probes_first_token_closes_if_configured() {
    for is_enough in [false, true] {
        let layer = touchy()
            .advanced(|set| set.first_token_is_success(is_enough))
            .build()
            .unwrap();
        let _service = probing(&layer, Scripted::default()).await;
        let handle = layer.handle();
        let mut probe = streaming(&layer);
        probe.pass(ROLE);
        assert_eq!(handle.state(&model()), State::HalfOpen);
        probe.pass(CONTENT);
        let expected = if is_enough {
            State::Closed
        } else {
            State::HalfOpen
        };
        assert_eq!(handle.state(&model()), expected);
        probe.pass(DONE);
        probe.end();
        assert_eq!(handle.state(&model()), State::Closed);
        // Its outcome counts as that of any call.
        assert_eq!(counts(&handle), (u64::from(is_enough), 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_fails_after_its_first_token_counts_as_any_calls_failure() {
    let layer = builder()
        .advanced(|set| set.first_token_is_success(true))
        .build()
        .unwrap();
    let _service = probing(&layer, Scripted::default()).await;
    let mut probe = streaming(&layer);
    probe.pass(CONTENT);
    probe.pass(ERROR);
    probe.end();
    assert_eq!(counts(&layer.handle()), (1, 1));
    assert_eq!(layer.handle().state(&model()), State::Closed);

    let layer = touchy()
        .advanced(|set| set.first_token_is_success(true))
        .build()
        .unwrap();
    let _service = probing(&layer, Scripted::default()).await;
    let mut probe = streaming(&layer);
    probe.pass(CONTENT);
    probe.end();
    assert_eq!(layer.handle().state(&model()), State::Open);
}

#[tokio::test(start_paused = true)]
async fn several_first_tokens_may_be_needed() {
    let layer = touchy()
        .advanced(|set| set.first_token_is_success(true))
        .success_threshold(2)
        .build()
        .unwrap();
    let _service = probing(&layer, Scripted::default()).await;
    let handle = layer.handle();
    let mut first = streaming(&layer);
    first.pass(CONTENT);
    assert_eq!(
        (stats(&handle).state, stats(&handle).probes),
        (State::HalfOpen, 0)
    );
    // Its end does not count again.
    first.pass(DONE);
    first.end();
    assert_eq!(handle.state(&model()), State::HalfOpen);
    let mut second = streaming(&layer);
    second.pass(CONTENT);
    assert_eq!(handle.state(&model()), State::Closed);

    // A stream that breaks off later opens the circuit.
    handle.trip(&model(), SECOND);
    advance(SECOND).await;
    let mut first = streaming(&layer);
    first.pass(CONTENT);
    first.end();
    assert_eq!(handle.state(&model()), State::Open);
}

/// A probe with an expired lease got its first token after another had closed the circuit; it then counted as a call of
/// the new generation.
#[tokio::test(start_paused = true)]
async fn a_first_token_of_an_earlier_generation_stays_in_that_generation() {
    let layer = touchy()
        .advanced(|set| set.first_token_is_success(true).probe_lease(MINUTE))
        .build()
        .unwrap();
    let _service = probing(&layer, Scripted::default()).await;
    let handle = layer.handle();
    let mut late = streaming(&layer);
    advance(MINUTE).await;
    Tested::of(&layer).tell(WELL);
    assert_eq!(handle.state(&model()), State::Closed);
    late.pass(CONTENT);
    late.pass(ERROR);
    late.end();
    assert_eq!(handle.state(&model()), State::Closed);
    assert_eq!(counts(&handle), (0, 0));
    assert_eq!(stats(&handle).stale, 1);
}
