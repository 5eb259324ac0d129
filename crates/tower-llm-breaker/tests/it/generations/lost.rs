//! Probes that are dropped, panic, hang or are refused by another circuit: none holds its lease for good.

use super::*;

/// One successful probe closes the circuit.
fn assert_recovers(layer: &BreakerLayer) {
    assert_eq!(layer.handle().state(&model()), State::HalfOpen);
    let tested = Tested::of(layer);
    tested.tell(WELL);
    assert_eq!(tested.state(), State::Closed);
}

type Answer = Result<http::Response<Full<Bytes>>, BoxError>;

#[tokio::test(start_paused = true)]
async fn a_probe_dropped_before_the_response_headers_gives_its_lease_back() {
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
async fn a_probe_dropped_in_the_body_gives_its_lease_back() {
    let layer = touchy().build().unwrap();
    let _service = probing(&layer, Scripted::default()).await;
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

/// A panic counts against the provider: its circuit is probed here.
async fn probing_provider<R>(
    layer: &BreakerLayer,
    inner: R,
) -> tower_llm_breaker::Breaker<R, tower_llm_core::HttpBody> {
    layer.handle().trip(&CircuitId::provider("openai"), SECOND);
    advance(SECOND).await;
    layer.layer(inner)
}

async fn assert_opened_and_recovers(layer: &BreakerLayer) {
    let provider = CircuitId::provider("openai");
    let stats = layer
        .handle()
        .stats_of(&provider)
        .expect("the circuit exists");
    assert_eq!((stats.state, stats.probes), (State::Open, 0));
    advance(OPEN_FOR).await;
    let tested = Tested::of(layer);
    tested.tell(WELL);
    assert_eq!(tested.handle.state(&provider), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_panics_in_call_fails() {
    let layer = touchy().build().unwrap();
    let panics = service_fn(|request: Request| -> std::future::Ready<Answer> {
        panic!("scripted panic: {request:?}")
    });
    let service = probing_provider(&layer, panics).await;
    assert!(catch_unwind(AssertUnwindSafe(|| start(&service, ask(WELL)))).is_err());
    assert_opened_and_recovers(&layer).await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_panics_in_poll_fails() {
    struct Panics;

    impl Future for Panics {
        type Output = Answer;

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Answer> {
            panic!("scripted panic")
        }
    }

    let layer = touchy().build().unwrap();
    let service = probing_provider(&layer, service_fn(|_: Request| Panics)).await;
    let mut call = start(&service, ask(WELL));
    assert!(catch_unwind(AssertUnwindSafe(|| call.poll())).is_err());
    drop(call);
    assert_opened_and_recovers(&layer).await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_body_panics_fails() {
    let layer = touchy().build().unwrap();
    let _service = probing_provider(&layer, Scripted::default()).await;
    let mut probe = streaming(&layer);
    probe.pass(CONTENT);
    probe.send("panic");
    assert!(catch_unwind(AssertUnwindSafe(|| probe.poll())).is_err());
    drop(probe);
    assert_opened_and_recovers(&layer).await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_never_ends_holds_its_lease_only_until_it_expires() {
    let mut staged = Staged::new(touchy().advanced(|set| set.probe_lease(MINUTE)));
    half_open(&mut staged).await;
    let _hangs = staged.begin();
    // Not the minute that it may hold at most: a tenth of the open time.
    assert_eq!(staged.refused().retry_after(), Some(3 * SECOND));
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
async fn a_thousand_probes_that_never_end_do_not_block_the_circuit() {
    let mut staged = Staged::new(touchy().advanced(|set| set.probe_lease(SECOND)).probes(2));
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
async fn a_probe_with_an_expired_lease_counts_until_the_circuit_is_decided() {
    // A success closes, a failure opens.
    for (says, state) in [
        (WELL, State::Closed),
        (FAILED, State::Open),
        (NEUTRAL, State::HalfOpen),
    ] {
        let mut staged = Staged::new(touchy().advanced(|set| set.probe_lease(MINUTE)));
        half_open(&mut staged).await;
        let late = staged.begin();
        advance(MINUTE).await;
        let probe = staged.begin();
        late.end(says);
        assert_eq!((staged.state(), staged.stale()), (state, 0), "{says:?}");
        if state == State::HalfOpen {
            // The call gave back only its own lease, which had expired already.
            staged.refused();
        }
        probe.leave();
    }
    for (says, decided) in [(WELL, FAILED), (FAILED, WELL)] {
        let mut staged = Staged::new(touchy().advanced(|set| set.probe_lease(MINUTE)));
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

#[tokio::test(start_paused = true)]
async fn a_probe_that_another_circuit_refuses_gives_its_lease_back() {
    let tested = Tested::new(touchy());
    let account = CircuitId::account("openai", "a");
    tested.handle.trip(&model(), SECOND);
    tested.handle.trip(&account, MINUTE);
    advance(SECOND).await;
    for _ in 0..3 {
        // The model's circuit admits the call, as a probe.
        let refused = tested.refuses(ask_of("openai", "a", "m", WELL));
        assert_eq!(refused.circuit(), &account);
        let stats = stats(&tested.handle);
        assert_eq!(
            (stats.state, stats.probes, stats.refused),
            (State::HalfOpen, 0, 0)
        );
    }
    // Another call can probe it.
    tested.call(ask_of("openai", "b", "m", WELL)).unwrap();
    assert_eq!(tested.state(), State::Closed);
}

// === many threads ===

/// Calls that fail, succeed, are dropped or hang, from several threads, and manual changes: at the end the circuit can
/// always be closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_race_loses_a_probe() {
    let layer = builder()
        .failure_threshold(2)
        .open_for(MS)
        .max_open_for(2 * MS)
        .probes(2)
        .advanced(|set| set.probe_lease(60 * MINUTE))
        .build()
        .unwrap();
    let handle = layer.handle();
    let service = layer.layer(Scripted::default());
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
