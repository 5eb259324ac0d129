//! Heavy calls that wait, and light calls behind them: neither delays the other for long.

use std::{borrow::Cow, convert::Infallible, time::Duration};

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_bulkhead::{
    Bulkhead, BulkheadBuilder, BulkheadFull, BulkheadHandle, BulkheadLayer, Weigh,
};
use tower_llm_core::{BoxError, Call, Caller, Described, Operation, Provider, Unary};

const SECOND: Duration = Duration::from_secs(1);
const WAIT: Duration = Duration::from_secs(30);
const LIMIT: usize = 100;

/// A call that runs for `runs` once it is admitted.
#[derive(Clone, Debug)]
struct Ask {
    call: Call,
    runs: Duration,
}

impl Described for Ask {
    fn call(&self) -> Option<Cow<'_, Call>> {
        Some(Cow::Borrowed(&self.call))
    }
}

/// Ends with the time that the call waited, or the time until it was refused.
type Running = JoinHandle<Result<Duration, Duration>>;

struct Scene {
    layer: BulkheadLayer<Unary>,
}

impl Scene {
    fn new(builder: BulkheadBuilder<Unary>) -> Self {
        let layer = builder
            .weigh_by(Weigh::Tokens { default_output: 0 })
            .max_wait(WAIT)
            .build()
            .expect("good settings");
        Self { layer }
    }

    fn of_one_key() -> Self {
        Self::new(BulkheadLayer::builder(LIMIT).watch(Unary))
    }

    fn of_all_keys() -> Self {
        let builder = BulkheadLayer::builder(10 * LIMIT).global_limit(LIMIT);
        Self::new(builder.watch(Unary))
    }

    fn handle(&self) -> BulkheadHandle {
        self.layer.handle()
    }

    fn start(
        &self,
        key: &'static str,
        caller: &'static str,
        weight: u64,
        runs: Duration,
    ) -> Running {
        let service: Bulkhead<_, Unary> = self.layer.layer(service_fn(|ask: Ask| async move {
            sleep(ask.runs).await;
            Ok::<_, Infallible>(Instant::now() - ask.runs)
        }));
        let mut call = Call::builder(Provider::new(key), Operation::CHAT)
            .input_tokens(weight)
            .max_output_tokens(0);
        if !caller.is_empty() {
            call = call.caller(Caller::named(caller));
        }
        let ask = Ask {
            call: call.build(),
            runs,
        };
        let came = Instant::now();
        tokio::spawn(async move {
            let ended: Result<Instant, BoxError> = service.oneshot(ask).await;
            ended.map(|began| began - came).map_err(|error| {
                assert!(error.is::<BulkheadFull>(), "{error}");
                came.elapsed()
            })
        })
    }
}

struct Ended {
    heavy: Vec<Result<Duration, Duration>>,
    light_refused: usize,
    light_waited: Duration,
}

/// 20 of 100 permits are in use for `held`. One caller queues two calls of 90 permits, and others start five calls
/// of one permit each second for 60 s, each of which runs for a second.
async fn two_heavy_and_300_light(scene: &Scene, keys: [&'static str; 2], held: Duration) -> Ended {
    let _held = scene.start(keys[0], "long", 20, held);
    tokio::task::yield_now().await;
    let heavy: Vec<_> = (0..2)
        .map(|_| scene.start(keys[0], "heavy", 90, SECOND))
        .collect();
    let callers = ["one", "two", "three", "four", "five"];
    let mut light = Vec::new();
    for _ in 0..60 {
        for caller in callers {
            sleep(SECOND / 5).await;
            light.push(scene.start(keys[1], caller, 1, SECOND));
        }
    }
    let mut ended = Ended {
        heavy: Vec::new(),
        light_refused: 0,
        light_waited: Duration::ZERO,
    };
    for call in heavy {
        ended
            .heavy
            .push(call.await.expect("the call does not panic"));
    }
    for call in light {
        match call.await.expect("the call does not panic") {
            Ok(waited) => ended.light_waited = ended.light_waited.max(waited),
            Err(_) => ended.light_refused += 1,
        }
    }
    ended
}

/// A heavy call blocked its key until it left, with 80 permits free: 51 of the 300 light calls were refused.
#[tokio::test(start_paused = true)]
async fn two_heavy_calls_that_never_fit_refuse_no_light_one() {
    let scene = Scene::of_one_key();
    let ended = two_heavy_and_300_light(&scene, ["a", "a"], 1_000 * SECOND).await;
    assert_eq!(ended.light_refused, 0);
    assert!(ended.light_waited <= 2 * SECOND, "{:?}", ended.light_waited);
    assert_eq!(ended.heavy, [Err(WAIT), Err(WAIT)]);
}

/// The heavy call blocked all keys: 49 of the 300 were refused.
#[tokio::test(start_paused = true)]
async fn a_heavy_call_that_waits_for_the_global_limit_refuses_no_light_one_of_another_key() {
    let scene = Scene::of_all_keys();
    let ended = two_heavy_and_300_light(&scene, ["a", "b"], 1_000 * SECOND).await;
    assert_eq!(ended.light_refused, 0);
    assert!(ended.light_waited <= 2 * SECOND, "{:?}", ended.light_waited);
    assert_eq!(ended.heavy, [Err(WAIT), Err(WAIT)]);
}

/// Light calls never stop, and both heavy ones are served soon after the permits that they need could be free.
#[tokio::test(start_paused = true)]
async fn light_calls_do_not_starve_heavy_ones() {
    for (scene, keys) in [
        (Scene::of_one_key(), ["a", "a"]),
        (Scene::of_all_keys(), ["a", "b"]),
    ] {
        let ended = two_heavy_and_300_light(&scene, keys, 10 * SECOND).await;
        assert_eq!(ended.light_refused, 0);
        let [Ok(first), Ok(second)] = ended.heavy[..] else {
            panic!("{:?}", ended.heavy);
        };
        // Calls that had overtaken it end within a second; after that, each of the other callers has its turn.
        assert!(first <= 12 * SECOND, "{first:?}");
        assert!(second <= 20 * SECOND, "{second:?}");
    }
}

/// Calls that overtake weigh no more than the heavy one, and no others overtake until they have ended.
#[tokio::test(start_paused = true)]
async fn a_batch_that_overtakes_weighs_no_more_than_the_call_it_overtakes() {
    let scene = Scene::of_one_key();
    let in_use = || scene.handle().stats()[0].permits_in_use;
    let _held = scene.start("a", "long", 20, 1_000 * SECOND);
    tokio::task::yield_now().await;
    // These calls have no known caller: a lighter call need not wait even behind a call of its own caller.
    let _heavy = scene.start("a", "", 81, SECOND);
    let light: Vec<_> = (0..20)
        .map(|_| scene.start("a", "", 8, 3 * SECOND))
        .collect();
    sleep(SECOND).await;
    // Ten calls of weight eight fit besides the 20, and weigh 80; an eleventh would be too much for the batch too.
    assert_eq!(in_use(), 100);
    sleep(2 * SECOND + SECOND / 2).await;
    assert_eq!(in_use(), 100);
    let mut waited = Vec::new();
    for call in light {
        waited.push(call.await.unwrap().expect("the call is served").as_secs());
    }
    assert_eq!(waited, [[0; 10], [3; 10]].concat());
}

/// The next call of the same caller became the head and blocked the others again.
#[tokio::test(start_paused = true)]
async fn a_caller_whose_first_call_leaves_unserved_goes_to_the_end() {
    let scene = Scene::of_one_key();
    let held = scene.start("a", "long", 100, 10 * SECOND);
    tokio::task::yield_now().await;
    let leaves = scene.start("a", "one", 50, SECOND);
    tokio::task::yield_now().await;
    let stays = scene.start("a", "one", 50, SECOND);
    tokio::task::yield_now().await;
    let other = scene.start("a", "other", 60, SECOND);
    tokio::task::yield_now().await;
    leaves.abort();
    held.await.unwrap().unwrap();
    // 50 and 60 do not fit at once, which shows the order.
    assert_eq!(other.await.unwrap(), Ok(10 * SECOND));
    assert_eq!(stays.await.unwrap(), Ok(11 * SECOND));
}
