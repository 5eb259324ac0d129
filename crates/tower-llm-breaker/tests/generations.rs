//! What a call has to say that was let through before: and probes, of which none may be lost.

mod support;

use std::{
    collections::VecDeque,
    future::{Future, pending},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::Full;
use support::{
    CONTENT, DONE, ERROR, MINUTE, MS, PATIENCE, ROLE, Request, SECOND, Says, Staged, Tested, Told,
    ask, ask_of, builder, counts, model, open, stats, streaming,
};
use tokio::{
    sync::watch,
    task::{JoinSet, yield_now},
    time::{Instant, advance, timeout},
};
use tokio_test::{assert_ready_err, assert_ready_ok};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_breaker::{BreakerBuilder, BreakerLayer, CircuitId, Force, Reason, State};
use tower_llm_core::BoxError;
use tower_llm_testkit::mock::start;

const WELL: Says = Says::Well;
const FAILED: Says = Says::Status(500);
const NEUTRAL: Says = Says::Status(400);
const OPEN_FOR: Duration = Duration::from_secs(30);

/// Opened by one failure, for 30 s each time.
fn touchy() -> BreakerBuilder {
    builder()
        .consecutive_failures(1)
        .open_for(OPEN_FOR)
        .open_factor(1.0)
}

async fn half_open(staged: &mut Staged) {
    staged.tell(FAILED);
    advance(OPEN_FOR).await;
    assert_eq!(staged.state(), State::HalfOpen);
}

// === results of an earlier generation ===

#[tokio::test(start_paused = true)]
async fn a_success_begun_before_it_opened_closes_nothing() {
    let mut staged = Staged::new(touchy());
    let [while_open, while_half_open, while_probed] = [(); 3].map(|()| staged.begin());
    staged.tell(FAILED);
    while_open.end(WELL);
    assert_eq!((staged.state(), staged.stale()), (State::Open, 1));
    advance(OPEN_FOR).await;
    while_half_open.end(WELL);
    assert_eq!((staged.state(), staged.stale()), (State::HalfOpen, 2));
    let probe = staged.begin();
    while_probed.end(WELL);
    assert_eq!((staged.state(), staged.stale()), (State::HalfOpen, 3));
    staged.refused();
    probe.end(WELL);
    assert_eq!((staged.state(), staged.stale()), (State::Closed, 3));
}

/// What it says of the provider is of the past, but the time that it was told is not.
#[tokio::test(start_paused = true)]
async fn a_time_that_a_call_begun_before_is_told_prolongs_what_is_open_and_opens_nothing() {
    let mut staged = Staged::new(touchy().max_retry_after(1_000 * SECOND));
    let [while_open, while_half_open, once_closed] = [(); 3].map(|()| staged.begin());
    staged.tell(FAILED);
    while_open.end(Says::Later(529, 3_000));
    assert_eq!(staged.refused().retry_after(), Some(1_000 * SECOND));
    advance(1_000 * SECOND).await;
    let probe = staged.begin();
    while_half_open.end(Says::Later(529, 3_000));
    assert_eq!(staged.state(), State::HalfOpen);
    probe.end(WELL);
    once_closed.end(Says::Later(429, 3_000));
    assert_eq!(staged.state(), State::Closed);
}

/// Whichever failure opens it: the longest time that one of them was told counts.
#[tokio::test(start_paused = true)]
async fn it_is_open_for_as_long_as_any_of_its_failures_was_told() {
    let builder = builder().consecutive_failures(2);
    let mut staged = Staged::new(builder.jitter(0.0));
    staged.tell(Says::Later(529, 600));
    assert_eq!(staged.state(), State::Closed);
    advance(100 * SECOND).await;
    staged.tell(FAILED);
    assert_eq!(staged.refused().retry_after(), Some(500 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_failure_begun_before_it_opened_neither_opens_again_nor_counts() {
    let mut staged = Staged::new(touchy());
    let [while_open, while_probed, once_closed] = [(); 3].map(|()| staged.begin());
    staged.tell(FAILED);
    advance(SECOND).await;
    while_open.end(FAILED);
    assert_eq!(staged.refused().retry_after(), Some(OPEN_FOR - SECOND));
    advance(OPEN_FOR - SECOND).await;
    let probe = staged.begin();
    while_probed.end(FAILED);
    assert_eq!((staged.state(), staged.stale()), (State::HalfOpen, 2));
    probe.end(WELL);
    once_closed.end(FAILED);
    assert_eq!((staged.state(), staged.stale()), (State::Closed, 3));
    assert_eq!(staged.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_hundred_failures_at_once_open_it_once() {
    let mut staged = Staged::new(touchy().open_factor(2.0));
    let mut events = staged.handle.subscribe();
    let calls: Vec<_> = (0..100).map(|_| staged.begin()).collect();
    for call in calls {
        call.end(FAILED);
        yield_now().await;
    }
    assert_eq!(staged.stale(), 99);
    assert_eq!(staged.refused().retry_after(), Some(OPEN_FOR));
    let transitions = std::iter::from_fn(|| events.try_recv().ok()).count();
    assert_eq!(transitions, 1);
}

#[tokio::test(start_paused = true)]
async fn a_result_from_before_a_hand_was_laid_on_it_does_not_count() {
    let mut staged = Staged::new(touchy());
    let calls = [(); 3].map(|()| staged.begin());
    staged.handle.force(&model(), Force::Disabled);
    let while_disabled = staged.begin();
    staged.handle.reset(&model());
    let [failed, well, neutral] = calls;
    failed.end(FAILED);
    well.end(WELL);
    neutral.end(NEUTRAL);
    while_disabled.end(FAILED);
    assert_eq!((staged.state(), staged.counts()), (State::Closed, (0, 0)));
    assert_eq!(staged.stale(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_was_slow_before_it_opened_does_not_count_either() {
    let slow = tower_llm_breaker::SlowCalls::over_share(0.5).total(SECOND);
    let mut staged = Staged::new(touchy().slow_calls(slow).minimum_calls(1));
    let call = staged.begin();
    staged.tell(FAILED);
    advance(OPEN_FOR).await;
    staged.tell(WELL);
    call.end(WELL);
    assert_eq!((staged.state(), staged.counts()), (State::Closed, (0, 0)));
    assert_eq!(stats(&staged.handle).slow_calls, 0);
}

// === how many probes ===

/// Counts those who come in, and keeps them until it is told.
async fn keep(
    inside: Arc<AtomicUsize>,
    mut let_go: watch::Receiver<bool>,
) -> Result<http::Response<Full<Bytes>>, BoxError> {
    inside.fetch_add(1, SeqCst);
    let_go.wait_for(|&is_free| is_free).await?;
    WELL.answer()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_ten_thousand_who_come_at_once_exactly_the_probes_pass() {
    for probes in [1, 7] {
        let layer = touchy()
            .probes(probes)
            .probe_lease(60 * MINUTE)
            .build()
            .unwrap();
        let handle = layer.handle();
        let inside = Arc::new(AtomicUsize::new(0));
        let (let_go, gate) = watch::channel(false);
        let service = layer.layer(service_fn({
            let inside = Arc::clone(&inside);
            move |_: Request| keep(Arc::clone(&inside), gate.clone())
        }));
        handle.trip(&model(), Duration::ZERO);
        let ready = async {
            while handle.state(&model()) != State::HalfOpen {
                yield_now().await;
            }
        };
        timeout(PATIENCE, ready).await.unwrap();

        let refused = Arc::new(AtomicUsize::new(0));
        let mut calls = JoinSet::new();
        for _ in 0..10_000 {
            let (service, refused) = (service.clone(), Arc::clone(&refused));
            calls.spawn(async move {
                let answer = service.oneshot(ask(WELL)).await;
                if let Err(error) = &answer {
                    assert_eq!(open(error).state(), State::HalfOpen);
                    refused.fetch_add(1, SeqCst);
                }
            });
        }
        let all_others_refused = async {
            while refused.load(SeqCst) < 10_000 - probes {
                yield_now().await;
            }
        };
        timeout(PATIENCE, all_others_refused).await.unwrap();
        assert_eq!(stats(&handle).probes, probes);
        let_go.send(true).unwrap();
        timeout(PATIENCE, calls.join_all()).await.unwrap();
        assert_eq!(
            (inside.load(SeqCst), refused.load(SeqCst)),
            (probes, 10_000 - probes)
        );
        assert_eq!(stats(&handle).refused, 10_000 - probes as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn so_many_probes_at_once_and_no_more() {
    for probes in [1, 3] {
        let mut staged = Staged::new(touchy().probes(probes).successes_to_close(100));
        half_open(&mut staged).await;
        let mut under_way: VecDeque<_> = (0..probes).map(|_| staged.begin()).collect();
        for number in 0..10 {
            assert_eq!(stats(&staged.handle).probes, probes);
            staged.refused();
            let first = under_way.pop_front().unwrap();
            match number % 3 {
                0 => first.end(WELL),
                1 => first.end(NEUTRAL),
                _ => first.leave(),
            }
            assert_eq!(stats(&staged.handle).probes, probes - 1);
            under_way.push_back(staged.begin());
        }
        under_way.clear();
        assert_eq!(stats(&staged.handle).probes, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn so_many_successes_close_it_and_one_failure_opens_it() {
    let mut staged = Staged::new(touchy().successes_to_close(3));
    half_open(&mut staged).await;
    staged.tell_times(2, WELL);
    // Neither is a success nor a failure.
    staged.tell_times(5, NEUTRAL);
    staged.begin().leave();
    assert_eq!(staged.state(), State::HalfOpen);
    staged.tell(FAILED);
    assert_eq!(staged.state(), State::Open);
    advance(OPEN_FOR).await;
    staged.tell_times(2, WELL);
    assert_eq!(staged.state(), State::HalfOpen);
    staged.tell(WELL);
    assert_eq!(staged.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_failure_opens_it_while_other_probes_run_and_theirs_do_not_count() {
    let mut staged = Staged::new(touchy().probes(3));
    half_open(&mut staged).await;
    let [first, second, third] = [(); 3].map(|()| staged.begin());
    first.end(FAILED);
    assert_eq!(stats(&staged.handle).probes, 0);
    advance(OPEN_FOR).await;
    // Their places are of an earlier generation: three are free.
    let _probes = [(); 3].map(|()| staged.begin());
    second.end(WELL);
    third.end(FAILED);
    assert_eq!((staged.state(), staged.stale()), (State::HalfOpen, 2));
    assert_eq!(stats(&staged.handle).probes, 3);
    staged.refused();
}

// === probes that are lost ===

/// A circuit that is half-open: the next one is its probe.
async fn probing<R>(
    layer: &BreakerLayer,
    inner: R,
) -> tower_llm_breaker::Breaker<R, tower_llm_core::HttpBody> {
    layer.handle().trip(&model(), SECOND);
    advance(SECOND).await;
    layer.layer(inner)
}

/// One probe passes and closes it.
fn assert_recovers(layer: &BreakerLayer) {
    assert_eq!(layer.handle().state(&model()), State::HalfOpen);
    let tested = Tested::of(layer);
    tested.tell(WELL);
    assert_eq!(tested.state(), State::Closed);
}

type Answer = Result<http::Response<Full<Bytes>>, BoxError>;

#[tokio::test(start_paused = true)]
async fn a_probe_whose_caller_leaves_before_the_head_gives_its_place_back() {
    let layer = touchy().build().unwrap();
    let service = probing(&layer, service_fn(|_: Request| pending::<Answer>())).await;
    for is_polled in [false, true] {
        let mut call = start(&service, ask(WELL));
        if is_polled {
            assert!(call.poll().is_pending());
        }
        assert_eq!(stats(&layer.handle()).probes, 1);
        Tested::of(&layer).refused();
        drop(call);
        assert_eq!(stats(&layer.handle()).probes, 0);
    }
    assert_recovers(&layer);
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_caller_leaves_in_the_body_gives_its_place_back() {
    let layer = touchy().build().unwrap();
    let _service = probing(&layer, Told::default()).await;
    for frames in [&[][..], &[ROLE], &[ROLE, CONTENT]] {
        let mut probe = streaming(&layer);
        for frame in frames {
            probe.pass(frame);
        }
        assert_eq!(stats(&layer.handle()).probes, 1);
        Tested::of(&layer).refused();
        drop(probe);
        assert_eq!(stats(&layer.handle()).probes, 0);
    }
    assert_recovers(&layer);
}

/// A panic is the fault of the way to the provider: that circuit is probed here.
async fn probing_way<R>(
    layer: &BreakerLayer,
    inner: R,
) -> tower_llm_breaker::Breaker<R, tower_llm_core::HttpBody> {
    layer.handle().trip(&CircuitId::provider("openai"), SECOND);
    advance(SECOND).await;
    layer.layer(inner)
}

async fn assert_opened_and_recovers(layer: &BreakerLayer) {
    let way = CircuitId::provider("openai");
    let stats = layer.handle().stats_of(&way).expect("it was asked");
    assert_eq!((stats.state, stats.probes), (State::Open, 0));
    advance(OPEN_FOR).await;
    let tested = Tested::of(layer);
    tested.tell(WELL);
    assert_eq!(tested.handle.state(&way), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_panics_when_it_is_called_has_failed() {
    let layer = touchy().build().unwrap();
    let panics = service_fn(|request: Request| -> std::future::Ready<Answer> {
        panic!("as it was told: {request:?}")
    });
    let service = probing_way(&layer, panics).await;
    assert!(catch_unwind(AssertUnwindSafe(|| start(&service, ask(WELL)))).is_err());
    assert_opened_and_recovers(&layer).await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_panics_when_it_is_polled_has_failed() {
    struct Panics;

    impl Future for Panics {
        type Output = Answer;

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Answer> {
            panic!("as it was told")
        }
    }

    let layer = touchy().build().unwrap();
    let service = probing_way(&layer, service_fn(|_: Request| Panics)).await;
    let mut call = start(&service, ask(WELL));
    assert!(catch_unwind(AssertUnwindSafe(|| call.poll())).is_err());
    drop(call);
    assert_opened_and_recovers(&layer).await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_body_panics_has_failed() {
    let layer = touchy().build().unwrap();
    let _service = probing_way(&layer, Told::default()).await;
    let mut probe = streaming(&layer);
    probe.pass(CONTENT);
    probe.send("panic");
    assert!(catch_unwind(AssertUnwindSafe(|| probe.poll())).is_err());
    drop(probe);
    assert_opened_and_recovers(&layer).await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_never_ends_keeps_its_place_for_its_lease_and_no_longer() {
    let mut staged = Staged::new(touchy().probe_lease(MINUTE));
    half_open(&mut staged).await;
    let _hangs = staged.begin();
    assert_eq!(staged.refused().retry_after(), Some(MINUTE));
    advance(MINUTE - MS).await;
    let refused = staged.refused();
    assert_eq!(
        (refused.state(), refused.retry_after()),
        (State::HalfOpen, Some(MS))
    );
    assert_eq!(stats(&staged.handle).probes, 1);
    advance(MS).await;
    assert_eq!(stats(&staged.handle).probes, 0);
    let next = staged.begin();
    staged.refused();
    next.end(WELL);
    assert_eq!(staged.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_probes_that_never_end_do_not_wedge_it() {
    let mut staged = Staged::new(touchy().probe_lease(SECOND).probes(2));
    half_open(&mut staged).await;
    let mut hang = Vec::new();
    for _ in 0..500 {
        hang.extend([staged.begin(), staged.begin()]);
        staged.refused();
        advance(SECOND).await;
    }
    staged.tell(WELL);
    assert_eq!(staged.state(), State::Closed);
    drop(hang);
    assert_eq!((staged.state(), staged.counts()), (State::Closed, (0, 0)));
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_lease_has_run_out_tells_the_truth_until_it_is_decided() {
    // A success closes, a failure opens.
    for (says, state) in [
        (WELL, State::Closed),
        (FAILED, State::Open),
        (NEUTRAL, State::HalfOpen),
    ] {
        let mut staged = Staged::new(touchy().probe_lease(MINUTE));
        half_open(&mut staged).await;
        let late = staged.begin();
        advance(MINUTE).await;
        let probe = staged.begin();
        late.end(says);
        assert_eq!((staged.state(), staged.stale()), (state, 0), "{says:?}");
        if state == State::HalfOpen {
            // It gave no place back but its own, which it had no more.
            staged.refused();
        }
        probe.leave();
    }
    for (says, decided) in [(WELL, FAILED), (FAILED, WELL)] {
        let mut staged = Staged::new(touchy().probe_lease(MINUTE));
        half_open(&mut staged).await;
        let late = staged.begin();
        advance(MINUTE).await;
        staged.tell(decided);
        let state = staged.state();
        late.end(says);
        assert_eq!((staged.state(), staged.stale()), (state, 1), "{says:?}");
        assert_eq!(staged.counts(), (0, 0));
    }
}

// === the first token ===

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
        .successes_to_close(2)
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

// === the ramp ===

async fn ramping(ramp: Duration) -> Tested {
    let tested = Tested::new(touchy().ramp(ramp));
    tested.handle.trip(&model(), SECOND);
    advance(SECOND).await;
    tested.tell(WELL);
    assert_eq!(tested.state(), State::Ramping);
    tested
}

#[tokio::test(start_paused = true)]
async fn at_first_a_tenth_passes_and_in_the_end_all() {
    let tested = ramping(100 * SECOND).await;
    let passed = |times: usize| {
        (0..times)
            .filter(|_| tested.call(ask(WELL)).is_ok())
            .count()
    };
    assert_eq!(passed(1_001), 101);
    let refused = tested.refused();
    assert_eq!(
        (refused.state(), refused.retry_after()),
        (State::Ramping, None)
    );
    assert_eq!(stats(&tested.handle).lasts, Some(100 * SECOND));
    advance(100 * SECOND - MS).await;
    assert_eq!(tested.state(), State::Ramping);
    advance(MS).await;
    assert_eq!(tested.state(), State::Closed);
    assert_eq!(passed(1_000), 1_000);
    assert_eq!(tested.state(), State::Closed);
}

/// A share of those that had come so far was let through, so that from the middle on none was kept out.
#[tokio::test(start_paused = true)]
async fn the_share_that_passes_grows_with_the_time_to_all_of_them() {
    let tested = ramping(100 * SECOND).await;
    let mut shares = Vec::new();
    for _ in 0..10 {
        let mut passed = 0;
        for _ in 0..1_000 {
            passed += usize::from(tested.call(ask(WELL)).is_ok());
            advance(10 * MS).await;
        }
        shares.push(passed);
    }
    // In the tenth that begins at a share of `n` tenths, half a tenth more on average; at least a tenth.
    let expected = [100, 150, 250, 350, 450, 550, 650, 750, 850, 950];
    let is_near = |(&passed, expected): (&usize, usize)| passed.abs_diff(expected) <= 2;
    assert!(shares.iter().zip(expected).all(is_near), "{shares:?}");
}

#[tokio::test(start_paused = true)]
async fn failures_on_the_ramp_open_it_and_what_was_counted_stays_when_it_ends() {
    let tested = ramping(100 * SECOND).await;
    tested.tell(FAILED);
    assert_eq!(tested.state(), State::Open);

    let tested = Tested::new(builder().ramp(10 * SECOND).over_calls(10).minimum_calls(2));
    tested.handle.trip(&model(), SECOND);
    advance(SECOND).await;
    tested.tell(WELL);
    tested.tell(WELL);
    assert_eq!((tested.state(), tested.counts()), (State::Ramping, (1, 0)));
    let mut events = tested.handle.subscribe();
    advance(10 * SECOND).await;
    tested.tell(WELL);
    assert_eq!((tested.state(), tested.counts()), (State::Closed, (2, 0)));
    let event = events.try_recv().unwrap();
    let tower_llm_breaker::EventKind::Transition {
        from, to, reason, ..
    } = event.kind
    else {
        panic!("{event:?}");
    };
    assert_eq!(
        (from, to, reason),
        (State::Ramping, State::Closed, Reason::TimeOver)
    );
}

// === several circuits ===

#[tokio::test(start_paused = true)]
async fn a_probe_that_another_circuit_refuses_gives_its_place_back() {
    let tested = Tested::new(touchy());
    let account = CircuitId::account("openai", "a");
    tested.handle.trip(&model(), SECOND);
    tested.handle.trip(&account, MINUTE);
    advance(SECOND).await;
    for _ in 0..3 {
        // The model's circuit lets it through, as a probe.
        let refused = tested.refuses(ask_of("openai", "a", "m", WELL));
        assert_eq!(refused.circuit(), &account);
        let stats = stats(&tested.handle);
        assert_eq!(
            (stats.state, stats.probes, stats.refused),
            (State::HalfOpen, 0, 0)
        );
    }
    // Somebody else can probe it.
    tested.call(ask_of("openai", "b", "m", WELL)).unwrap();
    assert_eq!(tested.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn one_call_probes_several_circuits_and_each_hears_what_is_its_own() {
    let mut staged = Staged::new(touchy());
    let way = CircuitId::provider("openai");
    let account = CircuitId::account("openai", "");
    for circuit in [&model(), &way, &account] {
        staged.handle.trip(circuit, SECOND);
    }
    advance(SECOND).await;
    let probe = staged.begin();
    let probes = |circuit| staged.handle.stats_of(circuit).unwrap().probes;
    assert_eq!([&model(), &way, &account].map(probes), [1, 1, 1]);
    probe.end(FAILED);
    assert_eq!(staged.state(), State::Open);
    // It was reached: that is all that is asked of the way. Of the account it says nothing.
    assert_eq!(staged.handle.state(&way), State::Closed);
    let stats = staged.handle.stats_of(&account).unwrap();
    assert_eq!((stats.state, stats.probes), (State::HalfOpen, 0));
}

// === many threads ===

/// Calls that fail, succeed, are left or hang, from several threads, and a hand: in the end it can always be closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_happens_at_once_no_probe_is_lost() {
    let layer = builder()
        .consecutive_failures(2)
        .open_for(MS)
        .max_open_for(2 * MS)
        .probes(2)
        .probe_lease(60 * MINUTE)
        .build()
        .unwrap();
    let handle = layer.handle();
    let service = layer.layer(Told::default());
    let mut tasks = JoinSet::new();
    for task in 0..8_usize {
        let (service, handle) = (service.clone(), handle.clone());
        tasks.spawn(async move {
            for number in 0..2_000_usize {
                let says = [WELL, FAILED, NEUTRAL, WELL][(number / 3 + task) % 4];
                let call = service.clone().oneshot(ask(says));
                match (number + task) % 5 {
                    0 => drop(call.now_or_never().map(|answer| answer.map(drop))),
                    _ => {
                        if let Ok(response) = call.await {
                            use http_body_util::BodyExt;
                            response.into_body().collect().await.unwrap();
                        }
                    }
                }
                if number % 101 == task {
                    handle.trip(&model(), Duration::ZERO);
                }
                if number % 7 == 0 {
                    yield_now().await;
                }
            }
        });
    }
    timeout(PATIENCE, tasks.join_all()).await.unwrap();
    assert_eq!(stats(&handle).probes, 0);
    let until = Instant::now() + PATIENCE;
    while handle.state(&model()) != State::Closed {
        assert!(Instant::now() < until, "{:?}", stats(&handle));
        let _ = Tested::of(&layer).call(ask(WELL));
        yield_now().await;
    }
    let mut call = start(&service, ask(WELL));
    drop(assert_ready_ok!(call.poll()));
    handle.force(&model(), Force::Open);
    assert_ready_err!(start(&service, ask(WELL)).poll());
}
