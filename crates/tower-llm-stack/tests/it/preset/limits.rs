//! Permits, limits of the provider, and circuits.

use futures_util::FutureExt;
use tower_llm_stack::{BulkheadFull, CircuitOpen, Limit, RateLimited, breaker::State};
use tower_llm_testkit::RetryAfter;

use super::*;
use crate::contract::layers::model;

fn permits(preset: Preset) -> Only {
    Only {
        bulkhead: Some(preset.bulkhead().build().unwrap()),
        ..Only::default()
    }
}

/// A limit that many calls wait for.
fn one_a_second(preset: Preset) -> Only {
    let limits = preset
        .provider_rate_limit()
        .limit(Limit::requests(1).per_second())
        .max_wait(86_400 * SECOND);
    Only {
        providers: Some(limits.build().unwrap()),
        ..Only::default()
    }
}

/// Calls that have started and may have to wait.
fn start(client: &Client, calls: usize) -> Vec<impl Future<Output = Answer> + Unpin + use<>> {
    let mut calls: Vec<_> = (0..calls)
        .map(|_| Box::pin(call(client, plain())))
        .collect();
    calls
        .iter_mut()
        .for_each(|call| assert!(call.now_or_never().is_none()));
    calls
}

#[tokio::test(start_paused = true)]
async fn so_many_calls_run_at_once() {
    for (preset, permits_each) in numbers("concurrent calls per provider") {
        let upstream = Upstream::always(Fault::NoAnswer);
        let client = permits(preset).around(preset, &upstream);
        let calls = start(&client, permits_each + 5);
        assert_eq!(upstream.calls(), permits_each, "{preset:?}");
        drop(calls);
    }
}

#[tokio::test(start_paused = true)]
async fn so_many_calls_wait() {
    for (preset, waiting) in numbers("calls that wait for a permit, or for a limit") {
        let upstream = Upstream::always(Fault::NoAnswer);
        let client = permits(preset).around(preset, &upstream);
        let calls = start(&client, 10 + waiting);
        let refused = call(&client, plain()).await.unwrap_err();
        assert!(refused.is::<BulkheadFull>(), "{preset:?}: {refused}");
        drop(calls);

        let client = one_a_second(preset).around(preset, &upstream);
        let calls = start(&client, 1 + waiting);
        let refused = call(&client, plain()).now_or_never().unwrap();
        assert!(refused.unwrap_err().is::<RateLimited>(), "{preset:?}");
        drop(calls);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_so_long() {
    for (preset, most) in times("longest wait for either") {
        let upstream = Upstream::always(Fault::NoAnswer);
        let client = permits(preset).around(preset, &upstream);
        let calls = start(&client, 10);
        let (waited, refused) = timed(call(&client, plain())).await;
        assert!(refused.unwrap_err().is::<BulkheadFull>());
        assert_eq!(waited, most, "{preset:?}");
        drop(calls);

        for (until, is_refused) in [(most, false), (most + SECOND, true)] {
            let throttled = Fault::Throttled(RetryAfter::Seconds(until.as_secs()));
            let upstream = Upstream::once(throttled);
            let only = Only {
                providers: Some(preset.provider_rate_limit().build().unwrap()),
                ..Only::default()
            };
            let client = only.around(preset, &upstream);
            let throttled = call(&client, plain()).await.unwrap();
            assert_eq!(throttled.status(), 429);
            read(Ok(throttled)).await.unwrap();
            let (waited, answer) = timed(call(&client, plain())).await;
            match is_refused {
                true => assert!(answer.unwrap_err().is::<RateLimited>(), "{preset:?}"),
                false => assert_eq!(waited, until, "{preset:?}"),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn so_many_requests_a_minute_are_sent() {
    const MANY: usize = 2_000;
    for (preset, a_minute) in switch("requests a minute, per provider and model") {
        let upstream = Upstream::always(Fault::NoAnswer);
        let limits = preset.provider_rate_limit().max_waiting(0);
        let only = Only {
            providers: Some(limits.build().unwrap()),
            ..Only::default()
        };
        let client = only.around(preset, &upstream);
        let mut calls: Vec<_> = (0..MANY)
            .map(|_| Box::pin(call(&client, plain())))
            .collect();
        let refused = calls
            .iter_mut()
            .filter_map(|call| call.now_or_never())
            .filter(Result::is_err)
            .count();
        let expected = a_minute.map_or(MANY, |requests| requests.parse().unwrap());
        let sent = (upstream.calls(), refused);
        assert_eq!(sent, (expected, MANY - expected), "{preset:?}");
    }
}

/// The circuit of a preset, and calls that all fail, or succeed.
struct Circuit {
    breaker: BreakerLayer,
    failing: Client,
    working: Client,
}

impl Circuit {
    fn new(preset: Preset) -> Self {
        let breaker = preset.breaker().build().unwrap();
        let only = Only {
            breaker: Some(breaker.clone()),
            ..Only::default()
        };
        let around = |upstream| only.clone().around(preset, &upstream);
        let failing = around(Upstream::always(Fault::Status(500)));
        let working = around(Upstream::always(Behavior::new()));
        Self {
            breaker,
            failing,
            working,
        }
    }

    async fn opened(preset: Preset) -> Self {
        let circuit = Self::new(preset);
        for _ in 0..5 {
            read(call(&circuit.failing, plain()).await).await.unwrap();
        }
        assert_eq!(circuit.state(), State::Open);
        circuit
    }

    fn state(&self) -> State {
        self.breaker.handle().state(&model())
    }

    async fn is_open(&self) -> bool {
        let answer = call(&self.working, plain()).await;
        read(answer)
            .await
            .is_err_and(|error| error.is::<CircuitOpen>())
    }
}

#[tokio::test(start_paused = true)]
async fn so_many_failures_open_a_circuit() {
    for (preset, failures) in numbers("failures in a row that open a circuit") {
        let circuit = Circuit::new(preset);
        for failed in 0..failures {
            assert_eq!(circuit.state(), State::Closed, "{preset:?}: {failed}");
            read(call(&circuit.failing, plain()).await).await.unwrap();
        }
        assert!(circuit.is_open().await, "{preset:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_circuit_stays_open_for_so_long() {
    for (preset, open) in times("time that it stays open at first") {
        let circuit = Circuit::opened(preset).await;
        tokio::time::sleep(open - SECOND).await;
        assert!(circuit.is_open().await, "{preset:?}");
        // Jitter adds up to a tenth.
        tokio::time::sleep(SECOND + open / 10).await;
        assert!(!circuit.is_open().await, "{preset:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn so_many_probes_close_a_circuit() {
    for (preset, probes) in numbers("probes that close it") {
        let circuit = Circuit::opened(preset).await;
        tokio::time::sleep(100 * SECOND).await;
        for _ in 0..probes {
            assert_eq!(circuit.state(), State::HalfOpen, "{preset:?}");
            assert!(!circuit.is_open().await);
        }
        assert_eq!(circuit.state(), State::Closed, "{preset:?}");
    }
}

/// All layers at once: what a preset's stack does not say differently.
#[tokio::test(start_paused = true)]
async fn a_whole_preset_answers() {
    for preset in PRESETS {
        let upstream = Upstream::once(Fault::Status(500));
        let client: Client = boxed(Stack::preset(preset).build().layer(upstream.service()));
        let whole = read(call(&client, streamed()).await).await.unwrap();
        assert!(whole.ends_with(b"data: [DONE]\n\n"), "{preset:?}");
        assert_eq!(upstream.calls(), 2, "{preset:?}");
    }
}
