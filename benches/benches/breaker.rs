//! What one call costs that a circuit breaker lets through, over calling the inner service directly.
//!
//! The circuit is closed, but for the case `open`: this is the price of looking at it and of counting how the call ended.
//! All subjects are around one service, whose answer is there at once.
//!
//! Ours judges a call when its response's body has ended; a typed response ends with its head, so that here all judge at
//! the same time. The peers always judge at the head, and a stream that breaks off is a success to them. What they do besides:
//!
//! - tower-resilience: one circuit, a tower layer. Its count window does not slide: counts grow until the circuit changes,
//!   and nothing is judged before it is full. Its time window slides, and adds up all its records at each call. Two threads
//!   wait for each other at an asynchronous lock.
//! - seatbelt: one circuit, or one for each key that a closure makes; a tower layer. Ten buckets over 30 s, the ratio
//!   alone. Calls that are dropped are judged apart.
//! - failsafe: one circuit, no layer: its figure is the service's future in its own. A decaying average over 30 s, and
//!   five failures in a row.
//! - recloser: one circuit, no layer, as failsafe. The last 100 calls, and no probes: half-open lets all through.
//!
//! Each has its defaults, but where a case says otherwise. In the case `three`, tower's and tower-resilience's limits are
//! of requests, for all calls together; ours by provider are of requests and tokens, learn from the answers, and all of ours
//! are held to the end.

use std::{
    borrow::Cow,
    error::Error,
    fmt::{self, Debug},
    future::{Future, Ready, poll_fn, ready},
    hint::black_box,
    pin::pin,
    sync::LazyLock,
    task::{Context, Poll, Waker},
    time::Duration,
};

use benches::{Case, Frames, Suite, drain, payload, peer, runtime};
use bytes::Bytes;
use failsafe::futures::CircuitBreaker as _;
use http::Response;
use recloser::{AsyncRecloser, Recloser};
use seatbelt::{
    RecoveryInfo, ResilienceContext,
    breaker::{Breaker as Seatbelt, BreakerId},
    typestates::Set,
};
use tick::Clock;
use tokio::{runtime::Runtime, time::Instant};
use tower::{
    Layer, Service,
    limit::{ConcurrencyLimitLayer, RateLimitLayer as TowerRateLimitLayer},
    service_fn,
};
use tower_llm_breaker::{BreakerBuilder, BreakerGate, BreakerLayer, CircuitId, State};
use tower_llm_bulkhead::{BulkheadGate, BulkheadLayer};
use tower_llm_core::{
    Call, Completion, Described, GateLayer, Gated, Guard, HttpBody, Key, KeyBy, Operation,
    Provider, Unary, Watch,
};
use tower_llm_ratelimit::{Limit, RateLimitBuilder, RateLimitGate, RateLimitLayer};
use tower_resilience_circuitbreaker::{
    CircuitBreakerConfigBuilder, CircuitBreakerLayer, SlidingWindowType,
};

const HOUR: Duration = Duration::from_secs(3_600);
/// More than is ever used.
const RATE: u64 = 1 << 31;
const PLACES: usize = 1_000;

/// Where peers sleep while another thread holds their lock, and where they have their timers.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(runtime);

/// A request of a service's own type.
#[derive(Clone, Copy, Debug)]
struct Prompt {
    tokens: u64,
    fails: bool,
    call: Option<&'static Call>,
}

impl Prompt {
    fn new(call: Option<&'static Call>) -> Self {
        Self {
            tokens: 7,
            fails: false,
            call,
        }
    }
}

impl Described for Prompt {
    fn call(&self) -> Option<Cow<'_, Call>> {
        self.call.map(Cow::Borrowed)
    }
}

/// Of no size, so that to box it allocates nothing.
#[derive(Clone, Copy, Debug)]
struct Unreachable;

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the provider is not reached")
    }
}

impl Error for Unreachable {}

fn main() {
    let _entered = RUNTIME.enter();
    let mut suite = Suite::new("breaker");
    closed(&mut suite);
    count_windows(&mut suite);
    time_windows(&mut suite);
    open(&mut suite);
    three(&mut suite);
    three_http(&mut suite);
    many_keys(&mut suite);
}

fn closed(suite: &mut Suite) {
    let case = Case::new("closed");
    let plain = Prompt::new(None);
    let described = Prompt::new(Some(call("gpt-5.1")));
    let service = service_fn(answer);

    suite.subject(&case, "bare", || answered(service, plain));
    for (name, layer, prompt) in [
        ("ours, the defaults", ours(|layer| layer), plain),
        (
            "ours, the defaults, by fault",
            ours(|layer| layer),
            described,
        ),
        ("ours, one circuit", ours(shared), plain),
        (
            "ours, one circuit of 100 calls",
            ours(|layer| shared(layer).window_calls(100)),
            plain,
        ),
        (
            "ours, one circuit, failures in a row",
            ours(|layer| {
                let layer = shared(layer).failure_threshold(5);
                layer.without_failure_ratio()
            }),
            plain,
        ),
        (
            "ours, by provider and model",
            ours(|layer| layer.key_by(KeyBy::provider_and_model())),
            described,
        ),
    ] {
        let ours = layer.layer(service);
        suite.subject(&case, name, || answered(ours.clone(), prompt));
    }

    let resilience = resilience(|layer| layer).layer(service);
    suite.subject(&case, &peer("tower-resilience-circuitbreaker"), || {
        answered(resilience.clone(), plain)
    });
    let one = seatbelt(|layer| layer).layer(service);
    suite.subject(&case, &peer("seatbelt"), || answered(one.clone(), plain));
    let keyed = seatbelt(|layer| {
        layer.breaker_id(|prompt| {
            let call = prompt.call.expect("it has one");
            BreakerId::hashed(&(call.provider(), call.model()), "provider and model")
        })
    });
    let keyed = keyed.layer(service);
    suite.subject(
        &case,
        &format!("{}, by provider and model", peer("seatbelt")),
        || answered(keyed.clone(), described),
    );
    let failsafe = failsafe::Config::new().build();
    let failsafe = service_fn(move |prompt| failsafe.call(answer(prompt)));
    suite.subject(&case, &peer("failsafe"), || {
        answered(failsafe.clone(), plain)
    });
    let recloser = AsyncRecloser::from(Recloser::default());
    let recloser = service_fn(move |prompt| recloser.call(answer(prompt)));
    suite.subject(&case, &peer("recloser"), || {
        answered(recloser.clone(), plain)
    });
}

/// The last so many calls, all of which have been.
fn count_windows(suite: &mut Suite) {
    let case = Case::new("window");
    let prompt = Prompt::new(None);
    for calls in [100, 10_000, 1_000_000] {
        let of = |name: &str| format!("{name}, {calls} calls");
        let ours = LazyLock::new(move || {
            // Only when all have failed.
            let layer = ours(|layer| shared(layer).window_calls(calls).failure_ratio(1.0));
            filled(layer.layer(service_fn(answer)), calls)
        });
        suite.subject(&case, &of("ours"), || {
            answered(LazyLock::force(&ours).clone(), prompt)
        });
        suite.subject(&case, &of("ours, half of them failures"), || {
            by_turns(LazyLock::force(&ours).clone(), prompt)
        });
        let resilience = LazyLock::new(move || {
            let layer = resilience(|layer| layer.sliding_window_size(calls));
            filled(layer.layer(service_fn(answer)), calls)
        });
        suite.subject(&case, &of(&peer("tower-resilience-circuitbreaker")), || {
            answered(LazyLock::force(&resilience).clone(), prompt)
        });
        let recloser = LazyLock::new(move || {
            let recloser = AsyncRecloser::from(Recloser::custom().closed_len(calls).build());
            let service = service_fn(move |prompt| recloser.call(answer(prompt)));
            filled(service, calls)
        });
        suite.subject(&case, &of(&peer("recloser")), || {
            answered(LazyLock::force(&recloser).clone(), prompt)
        });
    }
}

/// The calls of so long, a million of which have just been.
///
/// tower-resilience keeps each call for as long as the window is. With one of a second, it comes to hold as many as can be
/// added up one by one within that second; longer ones would only be full after minutes.
fn time_windows(suite: &mut Suite) {
    const CALLS: usize = 1_000_000;
    let case = Case::new("window");
    let prompt = Prompt::new(None);
    for seconds in [1, 60, 3_600] {
        let of = |name: &str| format!("{name}, {seconds} s");
        let time = Duration::from_secs(seconds);
        let ours = LazyLock::new(move || {
            let layer = ours(|layer| shared(layer).window(time).failure_ratio(1.0));
            filled(layer.layer(service_fn(answer)), CALLS)
        });
        suite.subject(&case, &of("ours"), || {
            answered(LazyLock::force(&ours).clone(), prompt)
        });
        suite.subject(&case, &of("ours, half of them failures"), || {
            by_turns(LazyLock::force(&ours).clone(), prompt)
        });
        let seatbelt = LazyLock::new(move || {
            let layer = seatbelt(|layer| layer.sampling_duration(time));
            filled(layer.layer(service_fn(answer)), CALLS)
        });
        suite.subject(&case, &of(&peer("seatbelt")), || {
            answered(LazyLock::force(&seatbelt).clone(), prompt)
        });
    }
    let resilience = LazyLock::new(|| {
        let layer = resilience(|layer| {
            let layer = layer.sliding_window_type(SlidingWindowType::TimeBased);
            layer.sliding_window_duration(Duration::from_secs(1))
        });
        let service = layer.layer(service_fn(answer));
        let mut fill = answered(service.clone(), prompt);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            fill();
        }
        service
    });
    let name = format!("{}, 1 s", peer("tower-resilience-circuitbreaker"));
    suite.subject(&case, &name, || {
        answered(LazyLock::force(&resilience).clone(), prompt)
    });
}

/// A call that is not let through.
fn open(suite: &mut Suite) {
    let case = Case::new("open");
    let plain = Prompt::new(None);
    let described = Prompt::new(Some(call("gpt-5.1")));
    let service = service_fn(answer);
    for (name, layer, prompt) in [
        ("ours, one circuit", ours(shared), plain),
        (
            "ours, the defaults, by fault",
            ours(|layer| layer),
            described,
        ),
    ] {
        let ours = failed(layer.layer(service), prompt);
        if prompt.call.is_some() {
            let provider = CircuitId::provider("openai");
            assert_eq!(layer.handle().state(&provider), State::Open);
        }
        suite.subject(&case, name, || refused(ours.clone(), prompt));
    }

    let resilience = resilience(|layer| layer.wait_duration_in_open(HOUR)).layer(service);
    let resilience = failed(resilience, plain);
    suite.subject(&case, &peer("tower-resilience-circuitbreaker"), || {
        // It makes a timer where it finds its lock taken.
        let entered = RUNTIME.enter();
        let mut refused = refused(resilience.clone(), plain);
        move || {
            let _entered = &entered;
            refused();
        }
    });
    let seatbelt = seatbelt(|layer| layer.break_duration(HOUR)).layer(service);
    let seatbelt = failed(seatbelt, plain);
    suite.subject(&case, &peer("seatbelt"), || {
        refused(seatbelt.clone(), plain)
    });
    let backoff = failsafe::backoff::constant(HOUR);
    let policy = failsafe::failure_policy::consecutive_failures(5, backoff);
    let failsafe = failsafe::Config::new().failure_policy(policy).build();
    let failsafe = service_fn(move |prompt| failsafe.call(answer(prompt)));
    let failsafe = failed(failsafe, plain);
    suite.subject(&case, &peer("failsafe"), || {
        refused(failsafe.clone(), plain)
    });
    let recloser = AsyncRecloser::from(Recloser::custom().open_wait(HOUR).build());
    let recloser = service_fn(move |prompt| recloser.call(answer(prompt)));
    let recloser = failed(recloser, plain);
    suite.subject(&case, &peer("recloser"), || {
        refused(recloser.clone(), plain)
    });
}

/// Breaker, rate limit and bulkhead, the breaker outermost.
fn three(suite: &mut Suite) {
    let case = Case::new("three");
    let plain = Prompt::new(None);
    let described = Prompt::new(Some(call("gpt-5.1")));
    let service = service_fn(answer);

    suite.subject(&case, "bare", || answered(service, plain));
    let one = three_of_one(Unary).layer(service);
    suite.subject(&case, "ours, one key, a limit of requests", || {
        answered(one.clone(), plain)
    });
    let by_provider = three_by_provider(Unary).layer(service);
    suite.subject(
        &case,
        "ours, by provider, limits of requests and tokens",
        || answered(by_provider.clone(), described),
    );
    let shipped = three_as_they_ship(Unary).layer(service);
    suite.subject(&case, "ours, as they ship", || {
        answered(shipped.clone(), described)
    });
    let one = one_gate(service, three_of_one(Unary), Unary);
    suite.subject(&case, "ours as one gate, one key", || {
        answered(one.clone(), plain)
    });
    let by_provider = one_gate(service, three_by_provider(Unary), Unary);
    suite.subject(&case, "ours as one gate, by provider", || {
        answered(by_provider.clone(), described)
    });
    let shipped = one_gate(service, three_as_they_ship(Unary), Unary);
    suite.subject(&case, "ours as one gate, as they ship", || {
        answered(shipped.clone(), described)
    });

    let limit = tower_resilience_ratelimiter::RateLimiterLayer::builder()
        .limit_for_period(usize::MAX)
        .refresh_period(Duration::from_secs(60))
        .build()
        .expect("no setting is zero");
    let bulkhead = tower_resilience_bulkhead::BulkheadLayer::builder()
        .max_concurrent_calls(PLACES)
        .build()
        .expect("no setting is zero");
    let resilience = (resilience(|layer| layer), limit, bulkhead).layer(service);
    let name = peer("tower-resilience-circuitbreaker");
    suite.subject(&case, &format!("{name} and its two limits"), || {
        answered(resilience.clone(), plain)
    });
    let bulkhead = ConcurrencyLimitLayer::new(PLACES).layer(service);
    suite.subject(&case, &format!("{}, two limits", peer("tower")), || {
        // Only one thread has a rate limit. It makes a timer.
        let _entered = RUNTIME.enter();
        let limit = TowerRateLimitLayer::new(u64::MAX, Duration::from_secs(86_400));
        answered(limit.layer(bulkhead.clone()), plain)
    });
}

/// The three around an HTTP service that answers with a stream, read to its end.
///
/// The innermost watching layer reads the body, and the others follow: so it is compared with that layer alone. Of two
/// lengths, so that what is due to a call is told apart from what is due to a frame.
fn three_http(suite: &mut Suite) {
    let lengths = [10, 200].map(|tokens| {
        let frames = payload::forever(payload::chat_stream(tokens));
        let case = Case::new(format!("three-http, {} frames", frames.len()));
        let [lead, added @ ..] = http(suite, &case, frames);
        let over = |added: Option<f64>| Some(added? - lead?);
        (frames.len() as f64, added.map(over))
    });
    let [(few, short), (many, long)] = lengths;
    for (name, short, long) in [
        ("one key", short[0], long[0]),
        ("by provider", short[1], long[1]),
        ("as they ship", short[2], long[2]),
        ("as they ship, as one gate", short[3], long[3]),
    ] {
        if let (Some(short), Some(long)) = (short, long) {
            let frame = (long - short) / (many - few);
            let call = short - frame * few;
            println!("{name}: {call:.0} ns a call and {frame:.1} ns a frame over the lead\n");
        }
    }
}

/// What reads the stream, and around it the three of one key, by provider, as they ship, and so as one gate.
fn http(suite: &mut Suite, case: &Case, frames: &'static [Bytes]) -> [Option<f64>; 5] {
    struct Unheard;

    impl Guard for Unheard {
        fn end(&mut self, _: &Completion) {}
    }

    let bytes: usize = frames.iter().map(Bytes::len).sum();
    let case = case.clone().bytes(bytes);
    let stream = move |_: Prompt| {
        let mut response = Response::new(Frames::new(frames));
        *response.headers_mut() = payload::stream_headers();
        ready(Ok::<_, Unreachable>(response))
    };
    let service = service_fn(stream);
    let described = Prompt::new(Some(call("gpt-5.1")));

    suite.subject(&case, "bare", || {
        let mut service = service;
        move || {
            let response = finish(service.call(black_box(described))).expect("it never fails");
            assert_eq!(drain(response.into_body()), bytes);
        }
    });
    let lead = suite.subject(&case, "watched by one that does nothing", || {
        let mut service = service;
        move || {
            let response = finish(service.call(black_box(described))).expect("it never fails");
            let response = HttpBody.watch(described.call, response, Unheard);
            assert_eq!(drain(response.into_body()), bytes);
        }
    });
    let one = three_of_one(HttpBody).layer(service);
    let one = suite.subject(&case, "ours, one key, a limit of requests", || {
        let mut service = one.clone();
        move || {
            let response = finish(service.call(black_box(described))).expect("there is room");
            assert_eq!(drain(response.into_body()), bytes);
        }
    });
    let by_provider = three_by_provider(HttpBody).layer(service);
    let by_provider = suite.subject(
        &case,
        "ours, by provider, limits of requests and tokens",
        || {
            let mut service = by_provider.clone();
            move || {
                let response = finish(service.call(black_box(described))).expect("there is room");
                assert_eq!(drain(response.into_body()), bytes);
            }
        },
    );
    let shipped = three_as_they_ship(HttpBody).layer(service);
    let shipped = suite.subject(&case, "ours, as they ship", || {
        let mut service = shipped.clone();
        move || {
            let response = finish(service.call(black_box(described))).expect("there is room");
            assert_eq!(drain(response.into_body()), bytes);
        }
    });
    let one_gate = one_gate(service, three_as_they_ship(HttpBody), HttpBody);
    let one_gate = suite.subject(&case, "ours as one gate, as they ship", || {
        let mut service = one_gate.clone();
        move || {
            let response = finish(service.call(black_box(described))).expect("there is room");
            assert_eq!(drain(response.into_body()), bytes);
        }
    });
    [lead, one, by_provider, shipped, one_gate]
}

/// The first of a million keys over and over.
fn many_keys(suite: &mut Suite) {
    const KEYS: usize = 1_000_000;
    let keyed = LazyLock::new(|| {
        let layer = ours(|layer| {
            let layer = layer.key_by(KeyBy::provider_and_model());
            layer.max_keys(2 * KEYS)
        });
        let service = layer.layer(service_fn(answer));
        let model = |i: usize| format!("ft:gpt-5.1:{i}");
        // Where keys lie must not follow the order in which they come.
        for i in (0..KEYS).map(|i| i * 611_953 % KEYS) {
            let call = call(&model(i));
            answered(service.clone(), Prompt::new(Some(call)))();
        }
        let last = CircuitId::key_only(Key::pair("openai", model(KEYS - 1)));
        assert!(
            layer.handle().stats_of(&last).is_some(),
            "no key was evicted"
        );
        service
    });
    let prompt = Prompt::new(Some(call("ft:gpt-5.1:0")));

    let case = Case::new("closed-one-of-a-million-keys");
    suite.subject(&case, "ours, by provider and model", || {
        answered(LazyLock::force(&keyed).clone(), prompt)
    });
}

// === the layers ===

fn ours(set: impl FnOnce(BreakerBuilder<Unary>) -> BreakerBuilder<Unary>) -> BreakerLayer<Unary> {
    let builder = BreakerLayer::builder().open_for(HOUR).max_open_for(HOUR);
    set(builder.watch(Unary)).build().expect("all is in bounds")
}

fn shared<W>(builder: BreakerBuilder<W>) -> BreakerBuilder<W> {
    builder.key_by(KeyBy::shared())
}

type Resilience = CircuitBreakerConfigBuilder<tower_resilience_circuitbreaker::DefaultClassifier>;

fn resilience(
    set: impl FnOnce(Resilience) -> Resilience,
) -> CircuitBreakerLayer<tower_resilience_circuitbreaker::DefaultClassifier> {
    let layer = set(CircuitBreakerLayer::builder()).build();
    layer.expect("all is in bounds")
}

type SeatbeltLayer = seatbelt::breaker::BreakerLayer<Prompt, Result<u64, Unreachable>, Set, Set>;

fn seatbelt(set: impl FnOnce(SeatbeltLayer) -> SeatbeltLayer) -> SeatbeltLayer {
    let _entered = RUNTIME.enter();
    let context = ResilienceContext::new(Clock::new_tokio());
    let layer = Seatbelt::layer("bench", &context)
        .recovery_with(|result: &Result<u64, Unreachable>, _| match result {
            Ok(_) => RecoveryInfo::never(),
            Err(_) => RecoveryInfo::retry(),
        })
        .rejected_input_error(|_, _| Unreachable);
    set(layer)
}

/// Breaker, rate limit and bulkhead with their plainest settings.
fn three_of_one<W: Clone>(watch: W) -> (BreakerLayer<W>, RateLimitLayer<W>, BulkheadLayer<W>) {
    // The window that tower-resilience has unless told otherwise.
    let breaker = shared(BreakerLayer::builder().watch(watch.clone())).window_calls(100);
    let limit = limits(watch.clone(), KeyBy::shared()).limit(requests());
    let limit = limit.enforce_reported_limits(false);
    of(breaker, limit, bulkhead(watch, KeyBy::shared()))
}

fn three_by_provider<W: Clone>(watch: W) -> (BreakerLayer<W>, RateLimitLayer<W>, BulkheadLayer<W>) {
    let breaker = BreakerLayer::builder().watch(watch.clone());
    let breaker = breaker.key_by(KeyBy::provider());
    let limit = limits(watch.clone(), KeyBy::provider()).limits([requests(), tokens()]);
    of(breaker, limit, bulkhead(watch, KeyBy::provider()))
}

/// The defaults: circuits by fault, limits of requests and tokens by provider and model that learn, permits by provider.
fn three_as_they_ship<W: Clone>(
    watch: W,
) -> (BreakerLayer<W>, RateLimitLayer<W>, BulkheadLayer<W>) {
    let breaker = BreakerLayer::builder().watch(watch.clone());
    let limit = RateLimitLayer::for_providers().watch(watch.clone());
    let limit = limit.limits([requests(), tokens()]);
    let bulkhead = BulkheadLayer::builder(PLACES).watch(watch).build();
    of(breaker, limit, bulkhead.expect("all is in bounds"))
}

fn of<W>(
    breaker: BreakerBuilder<W>,
    limit: RateLimitBuilder<W>,
    bulkhead: BulkheadLayer<W>,
) -> (BreakerLayer<W>, RateLimitLayer<W>, BulkheadLayer<W>) {
    let breaker = breaker.build().expect("all is in bounds");
    let limit = limit.build().expect("all is in bounds");
    (breaker, limit, bulkhead)
}

type OneGate<S, W> = Gated<S, (BreakerGate, (RateLimitGate, BulkheadGate)), W>;

/// The three as one service, which watches a response once.
fn one_gate<S, W: Clone>(
    inner: S,
    (breaker, limit, bulkhead): (BreakerLayer<W>, RateLimitLayer<W>, BulkheadLayer<W>),
    watch: W,
) -> OneGate<S, W> {
    let gates = (breaker.gate(), (limit.gate(), bulkhead.gate()));
    Gated::new(inner, gates, watch)
}

fn limits<W>(watch: W, key_by: KeyBy) -> RateLimitBuilder<W> {
    let builder = RateLimitLayer::for_providers().key_by(key_by);
    builder.watch(watch)
}

fn requests() -> Limit {
    Limit::requests(RATE).per_second()
}

fn tokens() -> Limit {
    Limit::tokens(RATE).per_second()
}

fn bulkhead<W>(watch: W, key_by: KeyBy) -> BulkheadLayer<W> {
    let builder = BulkheadLayer::builder(PLACES).key_by(key_by);
    builder.watch(watch).build().expect("all is in bounds")
}

// === the calls ===

fn answer(prompt: Prompt) -> Ready<Result<u64, Unreachable>> {
    ready(if prompt.fails {
        Err(Unreachable)
    } else {
        Ok(prompt.tokens)
    })
}

/// Lives as long as the suite: peers want requests that borrow nothing.
fn call(model: &str) -> &'static Call {
    let call = Call::builder(Provider::OPENAI, Operation::CHAT)
        .model(model)
        .account("organisation-1")
        .input_tokens(20)
        .max_output_tokens(50)
        .build();
    Box::leak(Box::new(call))
}

/// One call after another, with the same prompt.
fn answered<S>(mut service: S, prompt: Prompt) -> impl FnMut()
where
    S: Service<Prompt, Response = u64>,
    S::Error: Debug,
{
    move || {
        let response = send(&mut service, prompt).expect("it is let through");
        assert_eq!(black_box(response), 7);
    }
}

/// The same, where every second call fails.
fn by_turns<S>(mut service: S, prompt: Prompt) -> impl FnMut()
where
    S: Service<Prompt, Response = u64>,
    S::Error: Debug,
{
    let mut fails = false;
    move || {
        fails = !fails;
        let result = send(&mut service, Prompt { fails, ..prompt });
        assert_eq!(black_box(result).is_err(), fails);
    }
}

/// Calls that are refused: each would be answered.
fn refused<S>(mut service: S, prompt: Prompt) -> impl FnMut()
where
    S: Service<Prompt, Response = u64>,
    S::Error: Debug,
{
    move || {
        let refused = send(&mut service, prompt);
        black_box(refused).expect_err("it is open");
    }
}

/// The service, after so many good calls.
fn filled<S>(service: S, calls: usize) -> S
where
    S: Service<Prompt, Response = u64> + Clone,
    S::Error: Debug,
{
    let mut fill = answered(service.clone(), Prompt::new(None));
    (0..calls).for_each(|_| fill());
    service
}

/// The service, after more calls have failed than anybody takes.
fn failed<S>(service: S, prompt: Prompt) -> S
where
    S: Service<Prompt, Response = u64> + Clone,
    S::Error: Debug,
{
    let mut failing = service.clone();
    let prompt = Prompt {
        fails: true,
        ..prompt
    };
    for _ in 0..200 {
        send(&mut failing, prompt).expect_err("it fails, or is refused");
    }
    service
}

fn send<S>(service: &mut S, prompt: Prompt) -> Result<u64, S::Error>
where
    S: Service<Prompt, Response = u64>,
{
    finish(poll_fn(|cx| service.poll_ready(cx)))?;
    finish(service.call(black_box(prompt)))
}

/// The output of a future that is ready at once, unless it sleeps because another thread holds its lock.
fn finish<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    match future.as_mut().poll(&mut cx) {
        Poll::Ready(output) => output,
        Poll::Pending => RUNTIME.handle().block_on(future),
    }
}
