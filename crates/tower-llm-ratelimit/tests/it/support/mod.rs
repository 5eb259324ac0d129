//! Requests, services and responses that a test scripts.

use std::{borrow::Cow, collections::BTreeMap, fmt, task::Poll, time::Duration};

use tokio_test::assert_ready;
use tower::Service;
use tower_layer::Layer;
use tower_llm_core::{
    Armed, BoxError, Call, Caller, Completion, Described, Guard, Key, Operation, Outcome, Provider,
    Unary, Usage, Watch,
};
use tower_llm_ratelimit::{
    ExceedsLimit, KeyStats, LimitStats, RateLimit, RateLimitBuilder, RateLimitHandle,
    RateLimitLayer, RateLimited,
};
use tower_llm_testkit::mock::{arrived, start};
use tower_test::mock::{self, Handle, Mock};

pub(crate) const NS: Duration = Duration::from_nanos(1);
pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3_600);

/// By then a one-minute sliding window has forgotten what was used in its first slice: 13 slices of
/// 5 seconds.
pub(crate) const MINUTE_FORGOTTEN: Duration = Duration::from_secs(65);

// === requests ===

/// A numbered chat request of a caller.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) id: usize,
    pub(crate) call: Option<Call>,
    pub(crate) headers: BTreeMap<&'static str, &'static str>,
}

impl Ask {
    /// From `caller`, with `input` tokens and at most `output`.
    pub(crate) fn of(caller: &str, input: u64, output: u64) -> Self {
        let call = Call::builder(Provider::OPENAI, Operation::CHAT)
            .caller(Caller::named(caller))
            .input_tokens(input)
            .max_output_tokens(output);
        Self {
            id: 0,
            call: Some(call.build()),
            headers: BTreeMap::new(),
        }
    }

    /// From Ann, with `tokens` in total.
    pub(crate) fn tokens(tokens: u64) -> Self {
        Self::of("ann", tokens, 0)
    }

    pub(crate) fn id(mut self, id: usize) -> Self {
        self.id = id;
        self
    }

    pub(crate) fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.insert(name, value);
        self
    }
}

impl Described for Ask {
    fn call(&self) -> Option<Cow<'_, Call>> {
        self.call.as_ref().map(Cow::Borrowed)
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.get(name).map(|value| value.as_bytes())
    }
}

// === responses ===

/// Watches a response that is open until the test ends it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Open;

/// Such a response; dropping it means that the caller disconnected.
#[derive(Debug)]
pub(crate) struct Opened<R, G: Guard> {
    pub(crate) response: R,
    armed: Armed<G>,
}

impl<R> Watch<R> for Open {
    type Out<G: Guard> = Opened<R, G>;

    fn watch<G: Guard>(&self, _: Option<&Call>, response: R, guard: G) -> Opened<R, G> {
        let armed = Armed::new(guard);
        Opened { response, armed }
    }
}

impl<R, G: Guard> Opened<R, G> {
    /// Ends the response successfully, with this usage.
    pub(crate) fn used(mut self, input: u64, output: u64) {
        let mut completion = Completion::new(Outcome::Success);
        completion.usage = Some(Usage::new(input, output));
        self.armed.end(&completion);
    }

    pub(crate) fn ended(mut self, completion: &Completion) {
        self.armed.end(completion);
    }
}

// === services ===

/// Limits of callers around a mock that answers with numbers.
pub(crate) type Asked<W> = RateLimit<Mock<Ask, usize>, W>;

pub(crate) fn asked<W: Clone>(layer: &RateLimitLayer<W>) -> (Asked<W>, Handle<Ask, usize>) {
    let (mock, upstream) = mock::pair();
    (layer.layer(mock), upstream)
}

/// Limits of callers whose responses end at once.
pub(crate) fn unary() -> RateLimitBuilder<Unary> {
    RateLimitLayer::for_callers().watch(Unary)
}

/// Limits of callers whose responses are open until the test ends them.
pub(crate) fn open() -> RateLimitBuilder<Open> {
    RateLimitLayer::for_callers().watch(Open)
}

/// Makes a call that is admitted and answered.
#[track_caller]
pub(crate) fn admitted<W: Watch<usize>>(
    service: &Asked<W>,
    upstream: &mut Handle<Ask, usize>,
    ask: Ask,
) -> W::Out<tower_llm_ratelimit::Reservation> {
    let mut call = start(service, ask);
    if let Poll::Ready(result) = call.poll() {
        panic!("the call is not admitted: {:?}", result.err());
    }
    let (ask, answer) = arrived(upstream);
    answer.send_response(ask.id);
    match assert_ready!(call.poll()) {
        Ok(response) => response,
        Err(error) => panic!("the call is not answered: {error}"),
    }
}

/// A service that answers at once: for more calls than tokio's budget lets a task make without yielding.
pub(crate) type Ready =
    tower::util::ServiceFn<fn(Ask) -> std::future::Ready<Result<usize, BoxError>>>;

pub(crate) fn ready() -> Ready {
    tower::service_fn(|ask: Ask| std::future::ready(Ok(ask.id)))
}

/// Whether a call is admitted and answered; otherwise it is refused at once.
#[track_caller]
pub(crate) fn passes<S, Req>(service: &S, request: Req) -> bool
where
    S: Service<Req> + Clone,
    S::Error: fmt::Debug,
{
    assert_ready!(start(service, request).poll()).is_ok()
}

/// Makes a call that is refused at once.
#[track_caller]
pub(crate) fn refusal<S>(service: &S, ask: Ask) -> BoxError
where
    S: Service<Ask, Error = BoxError> + Clone,
{
    match assert_ready!(start(service, ask).poll()) {
        Ok(_) => panic!("the call is admitted"),
        Err(error) => error,
    }
}

/// Makes a call that is refused at once; returns its retry-after.
#[track_caller]
pub(crate) fn refused<S>(service: &S, ask: Ask) -> Duration
where
    S: Service<Ask, Error = BoxError> + Clone,
{
    let error = refusal(service, ask);
    let wait = limited(&error).retry_after();
    wait.expect("retry-after is known")
}

#[track_caller]
pub(crate) fn limited(error: &BoxError) -> &RateLimited {
    error.downcast_ref().expect("a limit refused the call")
}

#[track_caller]
pub(crate) fn exceeds(error: &BoxError) -> &ExceedsLimit {
    error
        .downcast_ref()
        .expect("the call is larger than a limit")
}

// === stats ===

/// The stats of the only limit.
#[track_caller]
pub(crate) fn stats(handle: &RateLimitHandle) -> LimitStats {
    let mut stats = handle.stats();
    assert_eq!(stats.len(), 1);
    stats.remove(0)
}

/// What was reserved in each limit.
pub(crate) fn consumed(handle: &RateLimitHandle) -> Vec<u64> {
    handle.stats().iter().map(|stats| stats.consumed).collect()
}

/// What is left of each limit for `key`, for a caller without a tier.
pub(crate) fn remaining(handle: &RateLimitHandle, key: &str) -> Vec<u64> {
    let stats = handle.stats_of(&Key::new(key));
    stats
        .iter()
        .map(|stats: &KeyStats| stats.remaining)
        .collect()
}

/// How many calls wait in the queues of each limit.
pub(crate) fn waiting(handle: &RateLimitHandle) -> Vec<usize> {
    handle.stats().iter().map(|stats| stats.waiting).collect()
}

/// Pseudo-random numbers, the same in each run.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    /// A number below `end` (splitmix64).
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % end
    }
}
