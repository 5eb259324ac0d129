//! How many probes run at once, and how they end.

use super::*;

/// Counts calls, and holds them until released.
async fn keep(
    inside: Arc<AtomicUsize>,
    mut let_go: watch::Receiver<bool>,
) -> Result<http::Response<Full<Bytes>>, BoxError> {
    inside.fetch_add(1, SeqCst);
    let_go.wait_for(|&is_free| is_free).await?;
    WELL.answer()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn exactly_the_probes_of_ten_thousand_calls_at_once_are_admitted() {
    for probes in [1, 7] {
        let layer = touchy()
            .probes(probes)
            .advanced(|set| set.probe_lease(60 * MINUTE))
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
async fn at_most_the_configured_number_of_probes_runs_at_once() {
    for probes in [1, 3] {
        let mut staged = Staged::new(touchy().probes(probes).success_threshold(100));
        half_open(&mut staged).await;
        let mut in_flight: VecDeque<_> = (0..probes).map(|_| staged.begin()).collect();
        for number in 0..10 {
            assert_eq!(stats(&staged.handle).probes, probes);
            staged.refused();
            let first = in_flight.pop_front().unwrap();
            match number % 3 {
                0 => first.end(WELL),
                1 => first.end(NEUTRAL),
                _ => first.leave(),
            }
            assert_eq!(stats(&staged.handle).probes, probes - 1);
            in_flight.push_back(staged.begin());
        }
        in_flight.clear();
        assert_eq!(stats(&staged.handle).probes, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn enough_successes_close_and_one_failure_opens() {
    let mut staged = Staged::new(touchy().success_threshold(3));
    half_open(&mut staged).await;
    staged.tell_times(2, WELL);
    // Neither a success nor a failure.
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
async fn a_failed_probe_opens_at_once_and_the_other_probes_do_not_count() {
    let mut staged = Staged::new(touchy().probes(3));
    half_open(&mut staged).await;
    let [first, second, third] = [(); 3].map(|()| staged.begin());
    first.end(FAILED);
    assert_eq!(stats(&staged.handle).probes, 0);
    advance(OPEN_FOR).await;
    // Their leases belong to an earlier generation: three are free.
    let _probes = [(); 3].map(|()| staged.begin());
    second.end(WELL);
    third.end(FAILED);
    assert_eq!((staged.state(), staged.stale()), (State::HalfOpen, 2));
    assert_eq!(stats(&staged.handle).probes, 3);
    staged.refused();
}

#[tokio::test(start_paused = true)]
async fn one_call_probes_several_circuits_and_each_judges_it_separately() {
    let mut staged = Staged::new(touchy());
    let provider = CircuitId::provider("openai");
    let account = CircuitId::account("openai", "");
    for circuit in [&model(), &provider, &account] {
        staged.handle.trip(circuit, SECOND);
    }
    advance(SECOND).await;
    let probe = staged.begin();
    let probes = |circuit| staged.handle.stats_of(circuit).unwrap().probes;
    assert_eq!([&model(), &provider, &account].map(probes), [1, 1, 1]);
    probe.end(FAILED);
    assert_eq!(staged.state(), State::Open);
    // The provider was reached: its circuit needs no more. This says nothing about the account.
    assert_eq!(staged.handle.state(&provider), State::Closed);
    let stats = staged.handle.stats_of(&account).unwrap();
    assert_eq!((stats.state, stats.probes), (State::HalfOpen, 0));
}

/// Such a response is neither a success nor a client error. If it left a probe undecided, its lease would stay held.
#[tokio::test(start_paused = true)]
async fn a_redirect_or_a_switch_of_protocols_ends_a_probe() {
    let provider = CircuitId::provider("openai");
    for status in [101, 301, 302, 303, 304, 307, 308] {
        let answer = Says::Status(status);
        // The provider was reached.
        let tested = Tested::new(touchy());
        tested.handle.trip(&provider, OPEN_FOR);
        advance(OPEN_FOR).await;
        tested.tell(answer);
        assert_eq!(tested.handle.state(&provider), State::Closed, "{status}");

        // The model was called and did not answer: its probe has failed, and the next one is due after the open time.
        let tested = Tested::new(touchy());
        tested.tell(FAILED);
        advance(OPEN_FOR).await;
        tested.tell(answer);
        assert_eq!(tested.state(), State::Open, "{status}");
        assert_eq!(tested.refused().retry_after(), Some(OPEN_FOR), "{status}");
        advance(OPEN_FOR).await;
        tested.tell(WELL);
        assert_eq!(tested.state(), State::Closed, "{status}");

        // No particular answer is expected of an undescribed call, or of one that reads stored data.
        let retrieve = Call::builder(Provider::OPENAI, Operation::RETRIEVE).model("m");
        for call in [None, Some(retrieve.build())] {
            let tested = Tested::new(touchy().key_by(KeyBy::shared()));
            let request = |says| {
                let mut request = Request::new(());
                request.extensions_mut().insert(says);
                if let Some(call) = &call {
                    request.extensions_mut().insert(call.clone());
                }
                request
            };
            tested.call(request(FAILED)).unwrap();
            tested.refuses(request(WELL));
            advance(OPEN_FOR).await;
            assert_eq!(tested.call(request(answer)).unwrap(), status);
            // Closed: all calls pass.
            for _ in 0..5 {
                tested.call(request(WELL)).unwrap();
            }
            assert_eq!(tested.handle.stats()[0].state, State::Closed, "{status}");
        }
    }
}
