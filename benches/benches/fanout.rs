//! What several branches of a call cost.
//!
//! `hedge-idle` is the price of a hedge that is not sent: the inner service answers at once, or after one turn. In the others
//! each branch takes one turn. A call is `poll_ready`, `call` and polling its answer until it is there, without a runtime's
//! scheduler; a timer, where one is needed, is tokio's.
//!
//! `pick-of-4` is the price of choosing one of four targets, counting what it has in flight and recording how long it took.
//! tower's balance does so by one policy, and for one caller at a time: it is not `Clone`.
//!
//! tower's hedge has no layer, and its record is filled with twenty latencies of 5 s, as language models have. JoinSet, which
//! needs a scheduler, runs on a runtime of one thread, and so do the others of its case.

use std::{
    borrow::Cow,
    convert::Infallible,
    fmt::Debug,
    future::Future,
    hint::black_box,
    pin::{Pin, pin},
    sync::LazyLock,
    task::{Context, Poll, Waker},
    time::Duration,
};

use benches::{Case, Suite, peer};
use bytes::Bytes;
use futures_buffered::BufferedStreamExt;
use futures_util::{StreamExt, stream};
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::Full;
use tokio::{runtime::Runtime, task::JoinSet};
use tower::{
    Layer, Service,
    balance::p2c::Balance,
    discover::ServiceList,
    hedge::{Hedge, Policy},
    load::{CompleteOnResponse, PeakEwma},
};
use tower_llm_core::{Call, Described, Key, KeyBy, Operation, Provider, Unary};
use tower_llm_fanout::{Delay, FanoutLayer, Pick, Pool, RipeAt, Target};
use tower_resilience_hedge::HedgeLayer;

const OURS: &str = "tower-llm-fanout";
const LATER: Duration = Duration::from_secs(30);

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime can be made")
});

/// A request of a service's own type.
#[derive(Clone, Copy, Debug)]
struct Prompt {
    tokens: u64,
}

/// Answers after so many turns.
#[derive(Clone, Copy, Debug)]
struct Model {
    turns: usize,
}

/// An answer that comes after so many turns.
struct Turns<T> {
    left: usize,
    answer: Option<T>,
}

/// Hedges every call.
#[derive(Clone, Copy, Debug)]
struct Always;

impl Described for Prompt {
    fn call(&self) -> Option<Cow<'_, Call>> {
        None
    }
}

impl<T: Unpin> Future for Turns<T> {
    type Output = Result<T, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.left > 0 {
            self.left -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(self.answer.take().expect("polled after it was ready")))
    }
}

impl Service<Prompt> for Model {
    type Response = u64;
    type Error = Infallible;
    type Future = Turns<u64>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, prompt: Prompt) -> Turns<u64> {
        Turns {
            left: self.turns,
            answer: Some(prompt.tokens),
        }
    }
}

impl Service<Request<Full<Bytes>>> for Model {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Turns<Response<Full<Bytes>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
        Turns {
            left: self.turns,
            answer: Some(Response::new(request.into_body())),
        }
    }
}

impl<Req: Clone> Policy<Req> for Always {
    fn clone_request(&self, request: &Req) -> Option<Req> {
        Some(request.clone())
    }

    fn can_retry(&self, _: &Req) -> bool {
        true
    }
}

fn main() {
    let mut suite = Suite::new("fanout");
    idle(&mut suite, "hedge-idle", 0);
    idle(&mut suite, "hedge-idle-after-a-turn", 1);
    idle_http(&mut suite);
    race(&mut suite);
    map(&mut suite);
    pick(&mut suite);
}

/// A hedge that is not sent, around a typed service.
fn idle(suite: &mut Suite, name: &str, turns: usize) {
    let case = Case::new(name);
    let model = Model { turns };
    let prompt = Prompt { tokens: 7 };
    let fixed = FanoutLayer::hedge(Delay::fixed(LATER)).watch(Unary);
    let fixed = fixed.build().expect("the settings are right");
    let recorded = FanoutLayer::hedge(Delay::slowest(0.05)).watch(Unary);
    let recorded = recorded.build().expect("the settings are right");
    // Its record is filled.
    let mut prime = called(recorded.layer(Model { turns: 1 }), prompt);
    (0..1_000).for_each(|_| prime());
    let resilience = HedgeLayer::builder()
        .delay(LATER)
        .max_hedged_attempts(2)
        .build();
    let resilience = resilience.layer(model);

    suite.subject(&case, "bare", || called(model, prompt));
    suite.subject(&case, OURS, || called(fixed.layer(model), prompt));
    suite.subject(&case, "tower-llm-fanout, of the slowest 5 %", || {
        called(recorded.layer(model), prompt)
    });
    suite.subject(&case, &peer("tower"), || {
        called(tower::<Prompt>(model), prompt)
    });
    suite.subject(&case, &peer("tower-resilience-hedge"), || {
        called(resilience.clone(), prompt)
    });
}

/// The same around an HTTP service: the request is cloned before it is known whether it is sent again.
fn idle_http(suite: &mut Suite) {
    let case = Case::new("hedge-idle-http");
    let model = Model { turns: 0 };
    let layer = |at| {
        let hedge = FanoutLayer::hedge(Delay::fixed(LATER)).ripe_at(at);
        hedge.build().expect("the settings are right")
    };
    let (headers, content) = (layer(RipeAt::Headers), layer(RipeAt::FirstContent));
    let resilience = HedgeLayer::builder()
        .delay(LATER)
        .max_hedged_attempts(2)
        .build();
    let resilience = resilience.layer(model);

    suite.subject(&case, "bare", || sent(model));
    suite.subject(&case, "tower-llm-fanout, at the headers", || {
        sent(headers.layer(model))
    });
    suite.subject(&case, OURS, || sent(content.layer(model)));
    suite.subject(&case, &peer("tower"), || {
        sent(tower::<Request<Full<Bytes>>>(model))
    });
    suite.subject(&case, &peer("tower-resilience-hedge"), || {
        sent(resilience.clone())
    });
}

/// Three branches at once; the first one wins.
fn race(suite: &mut Suite) {
    let case = Case::new("race-3");
    let model = Model { turns: 1 };
    let prompt = Prompt { tokens: 7 };
    let ours = FanoutLayer::race(3).watch(Unary).build();
    let ours = ours.expect("the settings are right").layer(model);
    let resilience = HedgeLayer::builder()
        .no_delay()
        .max_hedged_attempts(3)
        .build();
    let resilience = resilience.layer(model);

    suite.subject(&case, OURS, || called(ours.clone(), prompt));
    suite.subject(&case, &peer("tower-resilience-hedge"), || {
        called(resilience.clone(), prompt)
    });
    suite.subject(&case, "JoinSet", || {
        move || {
            RUNTIME.block_on(async {
                let mut set = JoinSet::new();
                (0..3).for_each(|_| {
                    set.spawn(Model { turns: 1 }.call(prompt));
                });
                let first = set.join_next().await.expect("there are three");
                assert_eq!(first.expect("no task panics"), Ok(7));
            });
        }
    });
}

/// 64 items, eight at a time, in order.
fn map(suite: &mut Suite) {
    let case = Case::new("map-64-by-8");
    let model = Model { turns: 1 };
    let items = || (0..64).map(|tokens| Prompt { tokens }).collect::<Vec<_>>();
    let ours = FanoutLayer::map(8).watch(Unary).build();
    let ours = ours.expect("the settings are right").layer(model);
    let sum = (0..64).sum::<u64>();

    suite.subject(&case, OURS, || {
        let mut service = ours.clone();
        move || {
            let collected = run(service.call(items())).expect("it never fails");
            assert_eq!(collected.good(), 64);
        }
    });
    suite.subject(&case, &peer("futures-buffered"), || {
        move || {
            let calls = stream::iter(items()).map(|prompt| Model { turns: 1 }.call(prompt));
            let answers: Vec<_> = run(calls.buffered_ordered(8).collect());
            assert_eq!(answers.into_iter().flatten().sum::<u64>(), sum);
        }
    });
    suite.subject(&case, "futures-util, buffered", || {
        move || {
            let calls = stream::iter(items()).map(|prompt| Model { turns: 1 }.call(prompt));
            let answers: Vec<_> = run(StreamExt::buffered(calls, 8).collect());
            assert_eq!(answers.into_iter().flatten().sum::<u64>(), sum);
        }
    });
    suite.subject(&case, "JoinSet", || {
        move || {
            RUNTIME.block_on(async {
                let (mut set, mut items) = (JoinSet::new(), items().into_iter());
                let mut total = 0;
                for prompt in items.by_ref().take(8) {
                    set.spawn(Model { turns: 1 }.call(prompt));
                }
                while let Some(answer) = set.join_next().await {
                    total += answer.expect("no task panics").unwrap_or_default();
                    if let Some(prompt) = items.next() {
                        set.spawn(Model { turns: 1 }.call(prompt));
                    }
                }
                assert_eq!(total, sum);
            });
        }
    });
}

/// One of four targets, by each policy.
fn pick(suite: &mut Suite) {
    let case = Case::new("pick-of-4");
    let model = Model { turns: 0 };
    let prompt = Prompt { tokens: 7 };
    let key_by = KeyBy::custom(|_| Key::new("a caller"));
    let picks = [
        ("tower-llm-fanout, round robin", Pick::round_robin()),
        ("tower-llm-fanout, weighted", Pick::weighted()),
        ("tower-llm-fanout, in flight", Pick::least_in_flight()),
        ("tower-llm-fanout, latency", Pick::latency()),
        ("tower-llm-fanout, sticky", Pick::sticky(key_by)),
    ];

    suite.subject(&case, "bare", || called(model, prompt));
    for (name, pick) in picks {
        let targets = (0..4).map(|index| Target::new(index.to_string(), model));
        let pool = Pool::builder().pick(pick).targets(targets).build();
        let pool = pool.expect("the targets are right");
        let layer = FanoutLayer::failover(1).watch(Unary).build();
        let service = layer.expect("the settings are right").across(&pool);
        suite.subject(&case, name, || called(service.clone(), prompt));
    }
    suite.subject(&case, &peer("tower"), || {
        let (rtt, decay) = (Duration::from_secs(1), Duration::from_secs(10));
        let completion = CompleteOnResponse::default();
        let targets =
            (0..4).map(move |_| PeakEwma::new(model, rtt, decay.as_nanos() as f64, completion));
        called(Balance::new(ServiceList::new::<Prompt>(targets)), prompt)
    });
}

/// tower's hedge of the slowest 5 %, of which it has seen twenty.
fn tower<Req>(model: Model) -> Hedge<Model, Always>
where
    Model: Service<Req, Error = Infallible>,
    Always: Policy<Req>,
{
    let (latencies, period) = ([5_000; 20], Duration::from_secs(60));
    Hedge::new_with_mock_latencies(model, Always, 10, 0.95, period, &latencies)
}

/// One call after another, with the same prompt.
fn called<S>(mut service: S, prompt: Prompt) -> impl FnMut()
where
    S: Service<Prompt, Response = u64>,
    S::Error: Debug,
{
    let _entered = RUNTIME.enter();
    move || {
        let _time = &_entered;
        ready(&mut service);
        let answer = run(service.call(black_box(prompt)));
        assert_eq!(answer.expect("it never fails"), prompt.tokens);
    }
}

/// One HTTP call after another, each with a new request.
fn sent<S, B>(mut service: S) -> impl FnMut()
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    S::Error: Debug,
{
    let _entered = RUNTIME.enter();
    let call = Call::builder(Provider::OPENAI, Operation::CHAT).build();
    move || {
        let _time = &_entered;
        ready(&mut service);
        let mut request = Request::new(Full::new(Bytes::from_static(b"{\"choices\":[]}")));
        for name in [
            "accept",
            "authorization",
            "content-type",
            "host",
            "user-agent",
            "x-id",
        ] {
            let value = HeaderValue::from_static("application/json");
            request
                .headers_mut()
                .insert(HeaderName::from_static(name), value);
        }
        request.extensions_mut().insert(call.clone());
        let response = run(service.call(request)).expect("it never fails");
        black_box(response);
    }
}

fn ready<Req, S: Service<Req>>(service: &mut S)
where
    S::Error: Debug,
{
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready(ready) = service.poll_ready(&mut cx) else {
        panic!("it is always ready");
    };
    ready.expect("it never fails");
}

/// The output of a future that takes turns, and waits for nothing else.
fn run<F: Future>(future: F) -> F::Output {
    let mut cx = Context::from_waker(Waker::noop());
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
    }
}
