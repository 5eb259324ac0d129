//! Probes for which the first token may be enough.

use super::*;

/// A call that has begun to stream, and how it went on.
#[tokio::test(start_paused = true)]
async fn a_probes_first_token_closes_it_if_that_is_enough() {
    for is_enough in [false, true] {
        let layer = touchy().first_token_is_success(is_enough).build().unwrap();
        let _service = probing(&layer, Told::default()).await;
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
        // What it came to is counted as of any call.
        assert_eq!(counts(&handle), (u64::from(is_enough), 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_fails_after_its_first_token_counts_as_any_calls_failure() {
    let layer = builder().first_token_is_success(true).build().unwrap();
    let _service = probing(&layer, Told::default()).await;
    let mut probe = streaming(&layer);
    probe.pass(CONTENT);
    probe.pass(ERROR);
    probe.end();
    assert_eq!(counts(&layer.handle()), (1, 1));
    assert_eq!(layer.handle().state(&model()), State::Closed);

    let layer = touchy().first_token_is_success(true).build().unwrap();
    let _service = probing(&layer, Told::default()).await;
    let mut probe = streaming(&layer);
    probe.pass(CONTENT);
    probe.end();
    assert_eq!(layer.handle().state(&model()), State::Open);
}

#[tokio::test(start_paused = true)]
async fn first_tokens_are_successes_of_which_several_may_be_needed() {
    let layer = touchy()
        .first_token_is_success(true)
        .success_threshold(2)
        .build()
        .unwrap();
    let _service = probing(&layer, Told::default()).await;
    let handle = layer.handle();
    let mut first = streaming(&layer);
    first.pass(CONTENT);
    assert_eq!(
        (stats(&handle).state, stats(&handle).probes),
        (State::HalfOpen, 0)
    );
    // It ends, and counts no second time.
    first.pass(DONE);
    first.end();
    assert_eq!(handle.state(&model()), State::HalfOpen);
    let mut second = streaming(&layer);
    second.pass(CONTENT);
    assert_eq!(handle.state(&model()), State::Closed);

    // One that breaks off after all opens it.
    handle.trip(&model(), SECOND);
    advance(SECOND).await;
    let mut first = streaming(&layer);
    first.pass(CONTENT);
    first.end();
    assert_eq!(handle.state(&model()), State::Open);
}

/// A probe whose lease had run out got its first token when another had closed the circuit, and was then taken for one
/// of the calls since.
#[tokio::test(start_paused = true)]
async fn a_first_token_of_an_earlier_generation_brings_no_call_into_the_present() {
    let layer = touchy()
        .first_token_is_success(true)
        .probe_lease(MINUTE)
        .build()
        .unwrap();
    let _service = probing(&layer, Told::default()).await;
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
