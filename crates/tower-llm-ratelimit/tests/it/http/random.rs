//! A thousand calls that end at random stages, and their total cost.

use std::time::Duration;

use http::HeaderName;
use http_body_util::BodyExt;
use tokio::{
    task::JoinSet,
    time::{advance, pause, timeout},
};
use tower::ServiceExt;
use tower_llm_core::{Key, KeyBy};
use tower_llm_ratelimit::{KeyStats, Limit, RateLimitHandle, RateLimitLayer};
use tower_llm_testkit::{Behavior, Cut, SimulatedProvider};

use crate::http_support::{
    APIS, Api, Cost, NOTHING, PATIENCE, Request, Seen, Stack, changes, consumed, settled, stack,
};

const MS: Duration = Duration::from_millis(1);

/// A generator with the same numbers in each run (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// The choices for random calls.
struct Mix {
    apis: &'static [Api],
    faults: &'static [&'static str],
    cut: Cut,
    /// Tokens: the maximum of the requests is 100.
    most_output: u64,
}

/// A call, and when it is dropped.
struct Random {
    api: Api,
    streamed: bool,
    request: Request,
    /// The call is never polled.
    unpolled: bool,
    patience: Duration,
    frames: u64,
}

impl Random {
    fn new(number: u64, provider: &SimulatedProvider, mix: &Mix) -> Self {
        let mut numbers = Numbers(number);
        let api = mix.apis[numbers.below(mix.apis.len() as u64) as usize];
        let streamed = numbers.below(4) > 0;
        let mut request = api.request(provider, streamed);
        let mut set = |name, value: String| {
            let value = value.parse().expect("a legal value");
            request.headers_mut().insert(name, value);
        };
        set("x-number", number.to_string());
        set("x-sim-input-tokens", numbers.below(60).to_string());
        set(
            "x-sim-output-tokens",
            numbers.below(mix.most_output).to_string(),
        );
        set("x-sim-head-ms", numbers.below(3).to_string());
        if numbers.below(2) == 0 {
            let fault = mix.faults[numbers.below(mix.faults.len() as u64) as usize];
            set("x-sim-fault", fault.to_owned());
            set("x-sim-fault-after", numbers.below(30).to_string());
        }
        Self {
            api,
            streamed,
            request,
            unpolled: numbers.below(20) == 0,
            patience: match numbers.below(5) {
                0 => MS * numbers.below(5) as u32,
                _ => PATIENCE,
            },
            frames: match numbers.below(2) {
                0 => numbers.below(40),
                _ => u64::MAX,
            },
        }
    }

    /// Makes the call and checks its cost; returns the expected cost.
    async fn run(self, service: Stack, handle: RateLimitHandle) -> Cost {
        let Self { api, streamed, .. } = self;
        let number = self.request.headers()["x-number"].clone();
        let is_silent = self
            .request
            .headers()
            .get("x-sim-fault")
            .is_some_and(|fault| fault == "silence" || fault == "stall");
        let call = service.oneshot(self.request);
        if self.unpolled {
            return NOTHING;
        }
        let key = Key::new(number.to_str().expect("a number"));
        let patience = if is_silent {
            self.patience.min(20 * MS)
        } else {
            self.patience
        };
        let mut seen = Seen::default();
        match timeout(patience, call).await {
            Err(_) => {}
            Ok(Err(_)) => seen.failed = true,
            Ok(Ok(response)) => {
                seen.status = Some(response.status().as_u16());
                let mut body = response.into_body();
                for _ in 0..self.frames {
                    let patience = if is_silent { 20 * MS } else { PATIENCE };
                    match timeout(patience, body.frame()).await {
                        Ok(Some(Ok(frame))) => {
                            let data = frame.into_data().unwrap_or_default();
                            seen.body += std::str::from_utf8(&data).expect("text");
                        }
                        Ok(Some(Err(_)) | None) => break,
                        Err(_) if is_silent => break,
                        Err(_) => panic!("no frame arrives: {seen:?}"),
                    }
                }
            }
        }
        let cost = seen.cost(api, streamed);
        let [requests, _, output, _] = &handle.stats_of(&key)[..] else {
            panic!("four limits");
        };
        let taken = |stats: &KeyStats| stats.limit.amount() - stats.remaining;
        let taken = (taken(requests), taken(output));
        assert_eq!(taken, (cost[0], cost[2]), "{api:?} {streamed}: {seen:?}");
        cost
    }
}

const FAULTS: [&str; 12] = [
    "429",
    "quota",
    "overloaded",
    "500",
    "400",
    "reset",
    "reset-head",
    "cut",
    "stall",
    "error",
    "error-429",
    "error-overloaded",
];

fn sum(costs: impl IntoIterator<Item = Cost>) -> Cost {
    costs.into_iter().fold(NOTHING, |sum, cost| {
        [0, 1, 2, 3].map(|limit| sum[limit] + cost[limit])
    })
}

/// A thousand random calls, twenty at a time; their expected costs, and the limits that all of them used.
async fn a_thousand(mix: Mix) {
    let provider = SimulatedProvider::start().await.expect("a free port");
    provider.set(Behavior::new().cut(mix.cut.clone()));
    let amount = 10_000_000;
    let layer = RateLimitLayer::for_callers()
        .limit(Limit::requests(amount).per_minute())
        .limit(Limit::input_tokens(amount).per_minute().bucket(amount))
        .limit(Limit::output_tokens(amount).per_hour())
        .limit(Limit::tokens(amount).per_second())
        .key_by(KeyBy::header(HeaderName::from_static("x-number")))
        .build()
        .expect("legal settings");
    let handle = layer.handle();
    let service = stack(&layer);
    let (mut tasks, mut costs) = (JoinSet::new(), Vec::new());
    for number in 0..1_000 {
        if tasks.len() == 20 {
            costs.push(
                tasks
                    .join_next()
                    .await
                    .expect("one is left")
                    .expect("nothing panics"),
            );
        }
        let random = Random::new(number, &provider, &mix);
        tasks.spawn(random.run(service.clone(), handle.clone()));
    }
    costs.extend(tasks.join_all().await);

    // The calls differed.
    let refunded = costs.iter().filter(|&&cost| cost == NOTHING).count();
    let requests = costs.iter().filter(|&&cost| cost == [1, 0, 0, 0]).count();
    let outputs = costs.iter().filter(|cost| cost[2] > 0).count();
    let counts = [refunded, requests, outputs];
    assert!(counts.iter().all(|&count| count >= 50), "{counts:?}");

    assert_eq!(consumed(&handle), sum(costs.iter().copied()));
    // No call was settled twice: the totals are the sums of the changes of each call.
    let polled = costs.len() - unpolled(&mix, &provider);
    assert_eq!(handle.stats()[0].admitted, polled as u64);
    let (down, up) = settled(&handle);
    let reserved = crate::http_support::RESERVED.map(|reserved| reserved * polled as u64);
    let balance = [0, 1, 2, 3].map(|limit| reserved[limit] + up[limit] - down[limit]);
    assert_eq!(balance, consumed(&handle));
    let ups = costs.iter().map(|&cost| changes(cost).1);
    assert_eq!(up, sum(ups));

    let idle = provider
        .wait_for(PATIENCE, |counts| counts.in_flight == 0)
        .await;
    assert!(idle.is_ok(), "{idle:?}");
    // After each period all of each limit is available again: nothing has leaked.
    pause();
    let windows = [65, 60, 3_900, 2].map(Duration::from_secs);
    for (limit, window) in windows.into_iter().enumerate() {
        advance(window).await;
        assert_eq!(handle.stats()[limit].remaining, amount, "{limit}");
    }
}

fn unpolled(mix: &Mix, provider: &SimulatedProvider) -> usize {
    let random = (0..1_000).map(|number| Random::new(number, provider, mix));
    random.filter(|random| random.unpolled).count()
}

#[tokio::test]
async fn a_thousand_calls_that_end_anywhere_cost_the_sum_of_each() {
    let mix = Mix {
        apis: &APIS,
        faults: &FAULTS,
        cut: Cut::Events,
        most_output: 130,
    };
    a_thousand(mix).await;
}

/// Frames end anywhere too: within a word of the text, or within a number of the usage.
#[tokio::test]
async fn frame_boundaries_make_no_difference() {
    // Without events that may look complete when cut: the last one of Responses, which repeats all of the text,
    // and errors.
    let mix = Mix {
        apis: &[Api::Chat, Api::ChatUsage, Api::Messages, Api::Gemini],
        faults: &FAULTS[..9],
        cut: Cut::Every(53),
        most_output: 20,
    };
    a_thousand(mix).await;
}
