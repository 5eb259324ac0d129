//! What one call costs that the limits let through, over calling the inner service directly.
//!
//! There is room for every call: this is the price of the decision. Ours decides over all limits of a call at once and
//! keeps what the call has taken until it has ended; the peers decide over one at a time, and forget. `governor` is no
//! layer: its figure is a check and the call of the bare service.
//!
//! The clock is most of it: `std::time::Instant`, which we read once a call since tests run on paused time, costs 25 ns here;
//! `governor` reads the processor's counter for 11.

use std::{
    borrow::Cow,
    convert::Infallible,
    fmt::Debug,
    future::{Future, Ready, poll_fn, ready},
    hint::black_box,
    num::NonZeroU32,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum::body::Body;
use benches::{Case, Frames, Suite, drain, now, payload, peer, runtime};
use bytes::Bytes;
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};
use tower::{Layer, Service, limit::RateLimitLayer as TowerRateLimitLayer, service_fn};
use tower_governor::{
    governor::{Governor, GovernorConfigBuilder},
    key_extractor::GlobalKeyExtractor,
};
use tower_llm_core::{Call, Caller, Described, HttpBody, KeyBy, Operation, Provider, Unary};
use tower_llm_ratelimit::{Limit, RateLimitBuilder, RateLimitLayer, SharedLimits};
use tower_llm_redis::Redis;
use tower_llm_testkit::redis::RedisServer;

/// More than is ever used.
const LIMIT: u64 = 1 << 31;
const MAX: NonZeroU32 = NonZeroU32::MAX;
const COST: NonZeroU32 = NonZeroU32::new(70).expect("it is not zero");

/// A request of a service's own type.
#[derive(Clone, Debug)]
struct Prompt<'a>(&'a Call);

impl Described for Prompt<'_> {
    fn call(&self) -> Option<Cow<'_, Call>> {
        Some(Cow::Borrowed(self.0))
    }
}

fn main() {
    let mut suite = Suite::new("ratelimit");
    one_limit(&mut suite);
    keyed_cost(&mut suite);
    several_limits(&mut suite);
    many_keys(&mut suite);
    leased(&mut suite);
    shipped(&mut suite);
    http(&mut suite);
    http_shipped(&mut suite);
}

/// One limit of requests that all calls share.
fn one_limit(suite: &mut Suite) {
    let case = Case::new("one-limit");
    let call = call("gpt-5.1", "caller");
    let shared = |limit| limits([limit], KeyBy::shared());
    let bucket = shared(requests().bucket(LIMIT)).layer(service_fn(echo));
    let window = shared(requests()).layer(service_fn(echo));
    let direct: DefaultDirectRateLimiter = RateLimiter::direct(Quota::per_second(MAX));

    suite.subject(&case, "bare", || admitted(service_fn(echo), Prompt(&call)));
    suite.subject(&case, "bucket", || admitted(bucket.clone(), Prompt(&call)));
    suite.subject(&case, "window", || admitted(window.clone(), Prompt(&call)));
    suite.subject(&case, &peer("governor"), || {
        let (mut service, direct, call) = (service_fn(echo), &direct, &call);
        move || {
            assert!(direct.check().is_ok());
            let response = now(service.call(black_box(Prompt(call)))).expect("it never fails");
            assert_eq!(black_box(response), 7);
        }
    });

    let runtime = runtime();
    suite.subject(&case, &peer("tower"), || {
        // It makes a timer.
        let _entered = runtime.enter();
        let layer = TowerRateLimitLayer::new(u64::MAX, Duration::from_secs(86_400));
        admitted(layer.layer(service_fn(echo)), Prompt(&call))
    });
    let resilience = tower_resilience_ratelimiter::RateLimiterLayer::builder()
        .limit_for_period(usize::MAX)
        .refresh_period(Duration::from_secs(60))
        .build()
        .expect("no setting is zero")
        .layer(service_fn(echo_number));
    suite.subject(&case, &peer("tower-resilience-ratelimiter"), || {
        admitted(resilience.clone(), 7)
    });
}

/// A limit of tokens for each caller, of which a call takes 70.
fn keyed_cost(suite: &mut Suite) {
    let case = Case::new("keyed-cost");
    let call = call("gpt-5.1", "caller-123456");
    let bucket = limits([tokens().bucket(LIMIT)], KeyBy::caller()).layer(service_fn(echo));
    let window = limits([tokens()], KeyBy::caller()).layer(service_fn(echo));
    let keyed: DefaultKeyedRateLimiter<String> = RateLimiter::keyed(Quota::per_second(MAX));
    let key = "caller-123456".to_owned();

    suite.subject(&case, "bare", || admitted(service_fn(echo), Prompt(&call)));
    suite.subject(&case, "bucket", || admitted(bucket.clone(), Prompt(&call)));
    suite.subject(&case, "window", || admitted(window.clone(), Prompt(&call)));
    suite.subject(&case, &peer("governor"), || {
        checked(&call, vec![(&keyed, &key)])
    });
}

/// Two limits of one caller; and six, of two units for each of organisation, caller and model.
fn several_limits(suite: &mut Suite) {
    let call = call("gpt-5.1", "caller-123456");
    let two = Case::new("two-limits");
    let six = Case::new("six-limits");
    let bucket = |limit: Limit| limit.bucket(LIMIT);
    let both = |key_by: KeyBy| [requests().by(key_by.clone()), tokens().by(key_by)];
    let kinds = [KeyBy::account(), KeyBy::caller(), KeyBy::model()];

    let of_two = both(KeyBy::caller());
    let of_six = kinds.map(both).into_iter().flatten();
    for (case, limited) in [(&two, of_two.to_vec()), (&six, of_six.collect())] {
        let buckets = limited.iter().cloned().map(bucket);
        let buckets = limits(buckets, KeyBy::caller()).layer(service_fn(echo));
        let count = limited.len();
        let windows = limits(limited, KeyBy::caller()).layer(service_fn(echo));
        let keyed: Vec<DefaultKeyedRateLimiter<String>> = (0..count)
            .map(|_| RateLimiter::keyed(Quota::per_second(MAX)))
            .collect();
        let keys = ["organisation-1", "caller-123456", "gpt-5.1"].map(str::to_owned);

        suite.subject(case, "bucket", || admitted(buckets.clone(), Prompt(&call)));
        suite.subject(case, "window", || admitted(windows.clone(), Prompt(&call)));
        suite.subject(
            case,
            &format!("{}, check by check", peer("governor")),
            || {
                let keys = keys.iter().cycle();
                checked(&call, keyed.iter().zip(keys).collect())
            },
        );
    }
}

/// The first of a million callers over and over, and all of them in turn.
fn many_keys(suite: &mut Suite) {
    const KEYS: usize = 1_000_000;
    let calls: Vec<Call> = (0..KEYS)
        .map(|i| call("gpt-5.1", &format!("caller-{i:06}")))
        .collect();
    let names: Vec<String> = (0..KEYS).map(|i| format!("caller-{i:06}")).collect();
    let layer = RateLimitLayer::for_callers()
        .limit(tokens())
        .max_keys(2 * KEYS)
        .watch(Unary)
        .build()
        .expect("no setting is zero");
    let ours = layer.layer(service_fn(echo));
    let keyed: DefaultKeyedRateLimiter<String> = RateLimiter::keyed(Quota::per_second(MAX));
    // Where keys lie must not follow the order in which they come.
    for i in (0..KEYS).map(|i| i * 611_953 % KEYS) {
        admitted(ours.clone(), Prompt(&calls[i]))();
        checked(&calls[i], vec![(&keyed, &names[i])])();
    }
    assert_eq!(layer.handle().stats()[0].keys, KEYS);

    let case = Case::new("one-of-a-million-keys");
    suite.subject(&case, "window", || {
        admitted(ours.clone(), Prompt(&calls[0]))
    });
    suite.subject(&case, &peer("governor"), || {
        checked(&calls[0], vec![(&keyed, &names[0])])
    });

    let case = Case::new("a-million-keys-in-turn");
    suite.subject(&case, "window", || {
        let mut service = ours.clone();
        let mut turn = calls.iter().cycle();
        move || {
            let call = turn.next().expect("they go round");
            let response = now(service.call(Prompt(black_box(call)))).expect("there is room");
            assert_eq!(black_box(response), 7);
        }
    });
    suite.subject(&case, &peer("governor"), || {
        let mut turn = names.iter().cycle();
        let keyed = &keyed;
        move || {
            let name = turn.next().expect("they go round");
            assert!(matches!(
                keyed.check_key_n(black_box(name), COST),
                Ok(Ok(()))
            ));
        }
    });
}

/// Limits that processes share in Redis, of which this one has leases; beside the same limits of its own.
fn leased(suite: &mut Suite) {
    let runtime = runtime();
    let server = runtime.block_on(RedisServer::start());
    let server = server.expect("`cargo xtask test` installs redis-server");
    let redis = runtime.block_on(Redis::builder(server.url()).connect());
    let shared = SharedLimits::new(redis.expect("it runs"), "bench", 2);
    let _entered = runtime.enter();
    let builder = || callers().limit(tokens());
    let leased = builder().shared(shared.lease_for(Duration::from_secs(5)));
    let leased = leased.build().expect("nothing is zero");
    let own = builder().build().expect("nothing is zero");
    let (leased, own) = (leased.layer(service_fn(echo)), own.layer(service_fn(echo)));
    let call = call("gpt-5.1", "caller-123456");

    let case = Case::new("leased");
    let handle = runtime.handle();
    suite.subject(&case, "window of its own", || {
        admitted(own.clone(), Prompt(&call))
    });
    suite.subject(&case, "window leased", || {
        let mut service = leased.clone();
        let call = &call;
        // Each thread may be the one that asks Redis.
        let entered = handle.enter();
        move || {
            let _entered = &entered;
            let mut answer = pin!(service.call(black_box(Prompt(call))));
            let polled = answer
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()));
            let answer = match polled {
                Poll::Ready(answer) => answer,
                // The lease has ended: Redis is asked.
                Poll::Pending => handle.block_on(answer),
            };
            assert_eq!(black_box(answer.expect("there is room")), 7);
        }
    });
}

/// The limits as they ship: by provider and model, and learning from the provider.
fn shipped(suite: &mut Suite) {
    let call = call("gpt-5.1", "caller-123456");
    let one = Case::new("one-limit-as-it-ships");
    let two = Case::new("two-limits-as-they-ship");
    for (case, limits) in [(&one, vec![tokens()]), (&two, vec![requests(), tokens()])] {
        let keyed: Vec<DefaultKeyedRateLimiter<String>> = limits
            .iter()
            .map(|_| RateLimiter::keyed(Quota::per_second(MAX)))
            .collect();
        let key = "openai/gpt-5.1".to_owned();
        for (name, learns) in [("ours", true), ("ours, learning off", false)] {
            let ours = providers(learns).limits(limits.iter().cloned());
            let ours = ours.watch(Unary).build().expect("nothing is zero");
            let ours = ours.layer(service_fn(echo));
            suite.subject(case, name, || admitted(ours.clone(), Prompt(&call)));
        }
        suite.subject(
            case,
            &format!("{}, check by check", peer("governor")),
            || checked(&call, keyed.iter().map(|keyed| (keyed, &key)).collect()),
        );
    }
}

/// The same around an HTTP service whose responses have the headers that are learned from.
fn http_shipped(suite: &mut Suite) {
    let frames = payload::forever(payload::chat_stream(50));
    let bytes: usize = frames.iter().map(Bytes::len).sum();
    let case = Case::new("http-as-it-ships").bytes(bytes);
    let stream = move |_: Request<()>| {
        let mut response = Response::new(Frames::new(frames));
        *response.headers_mut() = payload::stream_headers();
        ready(Ok::<_, Infallible>(response))
    };
    suite.subject(&case, "bare", || read(service_fn(stream), bytes));
    for (name, learns) in [("ours", true), ("ours, learning off", false)] {
        let ours = providers(learns).limits([requests(), tokens()]).build();
        let ours = ours.expect("nothing is zero").layer(service_fn(stream));
        suite.subject(&case, name, || read(ours.clone(), bytes));
    }
}

/// Around an HTTP service that answers with a stream, read to its end. The peer forgets it at its head.
fn http(suite: &mut Suite) {
    let frames = payload::forever(payload::chat_stream(50));
    let bytes: usize = frames.iter().map(Bytes::len).sum();
    let case = Case::new("http").bytes(bytes);
    let stream = move |_: Request<()>| {
        let mut response = Response::new(Frames::new(frames));
        let content_type = HeaderValue::from_static("text/event-stream");
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        ready(Ok::<_, Infallible>(response))
    };
    let callers = || RateLimitLayer::for_callers().limits([requests(), tokens()]);
    let build = |builder: RateLimitBuilder<HttpBody>| builder.build().expect("nothing is zero");
    let with_headers = build(callers()).layer(service_fn(stream));
    let silent = callers().headers(tower_llm_ratelimit::Headers::None);
    let silent = build(silent).layer(service_fn(stream));
    let governor = GovernorConfigBuilder::default()
        .per_nanosecond(1)
        .burst_size(u32::MAX)
        .key_extractor(GlobalKeyExtractor)
        .finish()
        .expect("nothing is zero");

    suite.subject(&case, "bare", || read(service_fn(stream), bytes));
    for (name, service) in [
        ("two windows", silent),
        ("two windows, with headers", with_headers),
    ] {
        suite.subject(&case, name, || read(service.clone(), bytes));
    }
    suite.subject(
        &case,
        &format!("{}, one limit", peer("tower_governor")),
        || {
            // It answers with bodies of axum or tonic only, which box what they hold.
            let boxed = service_fn(move |request| {
                let answer = now(service_fn(stream).call(request));
                ready(answer.map(|response| response.map(Body::new)))
            });
            read(Governor::new(boxed, &governor), bytes)
        },
    );
}

/// One call after another, with the same prompt.
fn admitted<S, R: Clone>(mut service: S, prompt: R) -> impl FnMut()
where
    S: Service<R, Response = u64>,
    S::Error: Debug,
{
    move || {
        now(poll_fn(|cx| service.poll_ready(cx))).expect("it is ready at once");
        let response = now(service.call(black_box(prompt.clone()))).expect("there is room");
        assert_eq!(black_box(response), 7);
    }
}

/// One request after another, whose responses are read to their end.
fn read<S, B>(mut service: S, bytes: usize) -> impl FnMut()
where
    S: Service<Request<()>, Response = Response<B>>,
    S::Error: Debug,
    B: http_body::Body<Data = Bytes>,
    B::Error: Debug,
{
    let call = call("gpt-5.1", "caller-123456");
    move || {
        let mut request = Request::new(());
        request.extensions_mut().insert(call.clone());
        let response = now(service.call(black_box(request))).expect("there is room");
        assert_eq!(drain(response.into_body()), bytes);
    }
}

/// The bare service, after these limiters have let the call through one by one.
fn checked<'a>(
    call: &'a Call,
    limiters: Vec<(&'a DefaultKeyedRateLimiter<String>, &'a String)>,
) -> impl FnMut() + 'a {
    let mut service = service_fn(echo);
    move || {
        for (limiter, key) in &limiters {
            assert!(matches!(
                limiter.check_key_n(black_box(*key), COST),
                Ok(Ok(()))
            ));
        }
        let response = now(service.call(black_box(Prompt(call)))).expect("it never fails");
        assert_eq!(black_box(response), 7);
    }
}

fn echo(_: Prompt<'_>) -> Ready<Result<u64, Infallible>> {
    ready(Ok(7))
}

fn echo_number(number: u64) -> Ready<Result<u64, Infallible>> {
    ready(Ok(number))
}

fn call(model: &str, caller: &str) -> Call {
    Call::builder(Provider::OPENAI, Operation::CHAT)
        .model(model)
        .account("organisation-1")
        .caller(Caller::named(caller))
        .input_tokens(20)
        .max_output_tokens(50)
        .build()
}

fn requests() -> Limit {
    Limit::requests(LIMIT).per_second()
}

fn tokens() -> Limit {
    Limit::tokens(LIMIT).per_second()
}

fn callers() -> RateLimitBuilder<Unary> {
    RateLimitLayer::for_callers().watch(Unary)
}

fn limits(limits: impl IntoIterator<Item = Limit>, key_by: KeyBy) -> RateLimitLayer<Unary> {
    let builder = callers().limits(limits).key_by(key_by);
    builder.build().expect("nothing is zero")
}

fn providers(learns: bool) -> RateLimitBuilder<HttpBody> {
    RateLimitLayer::for_providers().enforce_reported_limits(learns)
}
