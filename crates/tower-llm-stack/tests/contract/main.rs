//! What the layers promise each other: one module for each event, one test for each layer that it bears on.
//!
//! | event | caller's limit | provider's limit | bulkhead |
//! |---|---|---|---|
//! | refusal by any layer | refunded | refunded whole | freed |
//! | caller leaves, before or inside the body | settled by what was seen | same | freed at once |
//! | 200 with an error inside the stream | by outcome | by outcome | freed at end |
//! | stream cut without terminal marker | seen | seen | freed |
//! | retry | once per call | each attempt | each attempt |
//! | branch | once per call | each branch reserves and settles | each its own place |

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    FutureExt, StreamExt,
    future::{self, Either},
    poll, stream,
};
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use tower::{
    Layer, Service, ServiceExt, layer::layer_fn, retry, service_fn, util::BoxCloneSyncService,
};
use tower_llm_stack::{
    BoxError, BulkheadHandle, BulkheadLayer, Limit, RateLimitHandle, RateLimitLayer, Refusal, Stack,
};
use tower_llm_testkit::{
    Behavior, Fault, InBand,
    wire::{self, End},
};

type Body = UnsyncBoxBody<Bytes, BoxError>;
type Client = BoxCloneSyncService<Request<Full<Bytes>>, Response<Body>, BoxError>;

/// An estimated 10 tokens of input: 40 bytes of text.
const REQUEST: &str = r#"{
    "model": "m", "max_tokens": 100, "stream": true, "stream_options": {"include_usage": true},
    "messages": [{"role": "user", "content": "forty bytes of text are ten tokens or so"}]
}"#;

const ESTIMATED_INPUT: u64 = 10;

/// Reserved of a caller's limit: the estimated input and the maximum of the output.
const RESERVED_OF_CALLER: Taken = taken(1, ESTIMATED_INPUT + 100);

/// Reserved of OpenAI's: the larger of the two.
const RESERVED_OF_PROVIDER: Taken = taken(1, 100);

/// What an answer uses by its provider's word.
const USED: Taken = taken(1, 12 + 7);

/// What was sent, and nothing came of it.
const INPUT: Taken = taken(1, ESTIMATED_INPUT);

const A_REQUEST: Taken = taken(1, 0);
const NOTHING: Taken = taken(0, 0);

fn answer() -> Behavior {
    Behavior::new().input_tokens(12).output_tokens(7)
}

fn request() -> Request<Full<Bytes>> {
    let request = Request::post("/v1/chat/completions");
    request.body(REQUEST.into()).unwrap()
}

// === the layers under test ===

/// What is taken of a limit of requests and one of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Taken {
    requests: u64,
    tokens: u64,
}

const fn taken(requests: u64, tokens: u64) -> Taken {
    Taken { requests, tokens }
}

/// A caller's limit, a provider's limit, and places: in one stack, or with something between the first two.
struct Layers {
    callers: RateLimitLayer,
    providers: RateLimitLayer,
    bulkhead: BulkheadLayer,
    model: Model,
}

/// How the layers stand when an event is over.
struct Stand {
    callers: RateLimitHandle,
    providers: RateLimitHandle,
    bulkhead: BulkheadHandle,
}

impl Layers {
    /// Room for a hundred calls in each layer.
    fn new(answers: impl IntoIterator<Item = Behavior>) -> Self {
        Self::with_room(100, 100, 100, answers)
    }

    /// Room for so many calls in the caller's limit, the provider's, and the bulkhead; no call waits for any.
    fn with_room(
        callers: u64,
        providers: u64,
        places: usize,
        answers: impl IntoIterator<Item = Behavior>,
    ) -> Self {
        let limits = |requests| {
            [
                Limit::requests(requests).per_minute(),
                Limit::tokens(1_000_000).per_minute(),
            ]
        };
        let callers = RateLimitLayer::for_callers().limits(limits(callers));
        let providers = RateLimitLayer::for_providers()
            .limits(limits(providers))
            .max_waiting(0);
        let bulkhead = BulkheadLayer::builder(places).max_waiting(0);
        Self {
            callers: callers.build().unwrap(),
            providers: providers.build().unwrap(),
            bulkhead: bulkhead.build().unwrap(),
            model: Model::new(answers),
        }
    }

    fn stack(&self) -> Client {
        let stack = Stack::builder()
            .caller_rate_limit(self.callers.clone())
            .provider_rate_limit(self.providers.clone())
            .bulkhead(self.bulkhead.clone())
            .build();
        boxed(stack.layer(self.model.clone().service()))
    }

    /// The layers in two stacks, with `between` where what calls several times for one call has its place.
    fn around<S>(&self, between: impl Layer<Client, Service = S>) -> Client
    where
        S: Service<Request<Full<Bytes>>, Response = Response<Body>, Error = BoxError>,
        S: Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        let inside = Stack::builder()
            .without_describe()
            .provider_rate_limit(self.providers.clone())
            .bulkhead(self.bulkhead.clone())
            .build();
        let attempts = boxed(inside.layer(self.model.clone().service()));
        let outside = Stack::builder()
            .caller_rate_limit(self.callers.clone())
            .build();
        boxed(outside.layer(between.layer(attempts)))
    }

    fn stand(&self) -> Stand {
        Stand {
            callers: self.callers.handle(),
            providers: self.providers.handle(),
            bulkhead: self.bulkhead.handle(),
        }
    }
}

impl Stand {
    fn of_caller(&self) -> Taken {
        Taken::of(&self.callers)
    }

    fn of_provider(&self) -> Taken {
        Taken::of(&self.providers)
    }

    fn places_held(&self) -> usize {
        let stats = self.bulkhead.stats();
        stats.iter().map(|stats| stats.in_flight).sum()
    }
}

impl Taken {
    /// Of both limits of a layer; what it says is consumed must be gone from what remains.
    fn of(handle: &RateLimitHandle) -> Self {
        let stats = handle.stats();
        let [requests, tokens] = &*stats else {
            panic!("two limits: {stats:?}");
        };
        for stats in [requests, tokens] {
            assert_eq!(stats.remaining, stats.limit.amount() - stats.consumed);
        }
        taken(requests.consumed, tokens.consumed)
    }
}

/// The upstream: answers as it is told, and as [`answer`] when it is told no more.
#[derive(Clone)]
struct Model(Arc<Mutex<VecDeque<Behavior>>>);

impl Model {
    fn new(answers: impl IntoIterator<Item = Behavior>) -> Self {
        Self(Arc::new(Mutex::new(answers.into_iter().collect())))
    }

    fn service(self) -> Client {
        Client::new(service_fn(move |request: Request<Full<Bytes>>| {
            let behavior = self.0.lock().unwrap().pop_front();
            let reply = request.into_body().collect().map(move |body| {
                let body = body.unwrap().to_bytes();
                let behavior = behavior.unwrap_or_else(answer);
                wire::reply("/v1/chat/completions", &body, &behavior)
            });
            async { respond(reply.await).await }
        }))
    }
}

async fn respond(reply: wire::Reply) -> Result<Response<Body>, BoxError> {
    tokio::time::sleep(reply.before_head).await;
    let end = match reply.end {
        End::Clean => stream::empty().boxed(),
        End::Silence => stream::pending().boxed(),
        End::NoHead => future::pending().await,
        _ => return Err("connection reset".into()),
    };
    let frames = reply.frames.into_iter();
    let frames = frames.map(|frame| Ok(Frame::data(frame.bytes)));
    let body = StreamBody::new(stream::iter(frames).chain(end));
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(reply.status)?;
    *response.headers_mut() = reply.headers;
    Ok(response)
}

fn boxed<S, B>(service: S) -> Client
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>, Error = BoxError>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    Client::new(service.map_response(|response: Response<B>| {
        response.map(|body| body.map_err(Into::into).boxed_unsync())
    }))
}

/// Calls, and reads to the end.
async fn read(client: &Client) {
    let response = client.clone().oneshot(request()).await.unwrap();
    // The error that a broken body ends with is the upstream's, and part of the event.
    let _ = response.into_body().collect().await;
}

/// The layer that refuses a call.
async fn refused_by(client: &Client) -> &'static str {
    let error = client.clone().oneshot(request()).await.unwrap_err();
    Refusal::find(&*error).unwrap().layer()
}

/// The output that passes in so many events of an answer, in tokens of four bytes.
fn output_seen(events: usize) -> u64 {
    let frames = wire::body("/v1/chat/completions", REQUEST.as_bytes(), &answer());
    let text = |frame: &Bytes| -> usize {
        let json = frame.strip_prefix(b"data: ").unwrap();
        let json: serde_json::Value = serde_json::from_slice(json).unwrap();
        let content = json.pointer("/choices/0/delta/content");
        content.map_or(0, |content| content.as_str().unwrap().len())
    };
    let bytes: usize = frames.iter().take(events).map(text).sum();
    assert!(bytes > 0, "something is seen");
    u64::try_from(bytes).unwrap().div_ceil(4)
}

// === the table ===

/// The row to measure the others by.
mod answer_that_is_read_to_its_end {
    use super::*;

    async fn event() -> Stand {
        let layers = Layers::new([]);
        read(&layers.stack()).await;
        layers.stand()
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_settled_by_usage() {
        assert_eq!(event().await.of_caller(), USED);
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_settled_by_usage() {
        assert_eq!(event().await.of_provider(), USED);
    }

    #[tokio::test(start_paused = true)]
    async fn the_place_is_held_to_the_end_of_the_body() {
        let layers = Layers::new([]);
        let response = layers.stack().oneshot(request()).await.unwrap();
        let stand = layers.stand();
        assert_eq!(stand.places_held(), 1);
        assert_eq!(stand.of_caller(), RESERVED_OF_CALLER);
        assert_eq!(stand.of_provider(), RESERVED_OF_PROVIDER);
        response.into_body().collect().await.unwrap();
        assert_eq!(stand.places_held(), 0);
    }
}

mod refusal_by_the_callers_limit {
    use super::*;

    async fn event() -> Stand {
        let layers = Layers::with_room(1, 100, 100, []);
        read(&layers.stack()).await;
        assert_eq!(refused_by(&layers.stack()).await, "ratelimit");
        layers.stand()
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_keeps_what_was_before() {
        assert_eq!(event().await.of_caller(), USED);
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_not_asked() {
        let stand = event().await;
        let stats = &stand.providers.stats()[0];
        assert_eq!((stats.admitted, stats.refused), (1, 0));
        assert_eq!(stand.of_provider(), USED);
    }

    #[tokio::test(start_paused = true)]
    async fn no_place_is_asked_for() {
        let layers = Layers::with_room(1, 100, 1, [Fault::StallAfter(3).into()]);
        let held = layers.stack().oneshot(request()).await.unwrap();
        // It would have been refused for want of a place, too.
        assert_eq!(refused_by(&layers.stack()).await, "ratelimit");
        let stand = layers.stand();
        assert_eq!(stand.places_held(), 1);
        assert_eq!(stand.bulkhead.stats()[0].refused, 0);
        drop(held);
    }
}

mod refusal_by_the_providers_limit {
    use super::*;

    async fn event() -> Stand {
        let layers = Layers::with_room(100, 1, 100, []);
        read(&layers.stack()).await;
        assert_eq!(refused_by(&layers.stack()).await, "ratelimit");
        layers.stand()
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_refunded_whole() {
        let stand = event().await;
        assert_eq!(stand.of_caller(), USED);
        // It was let through, and given back: one request, and what both calls had reserved beyond the 19 tokens.
        let [requests, tokens] = &stand.callers.stats()[..] else {
            panic!("two limits");
        };
        assert_eq!((requests.admitted, requests.settled_down), (2, 1));
        let reserved = 2 * RESERVED_OF_CALLER.tokens;
        assert_eq!(tokens.settled_down, reserved - USED.tokens);
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_keeps_what_was_before() {
        let stand = event().await;
        assert_eq!(stand.of_provider(), USED);
        let stats = &stand.providers.stats()[0];
        assert_eq!((stats.admitted, stats.refused), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn no_place_is_asked_for() {
        let layers = Layers::with_room(100, 1, 1, [Fault::StallAfter(3).into()]);
        let held = layers.stack().oneshot(request()).await.unwrap();
        assert_eq!(refused_by(&layers.stack()).await, "ratelimit");
        let stand = layers.stand();
        assert_eq!(stand.places_held(), 1);
        assert_eq!(stand.bulkhead.stats()[0].refused, 0);
        drop(held);
    }
}

mod refusal_by_the_bulkhead {
    use super::*;

    /// One call holds the place and breaks off; the other is refused meanwhile.
    async fn event() -> Stand {
        let layers = Layers::with_room(100, 100, 1, [Fault::NoAnswer.into()]);
        let mut held = layers.stack().oneshot(request());
        assert!(poll!(&mut held).is_pending());
        assert_eq!(refused_by(&layers.stack()).await, "bulkhead");
        let stand = layers.stand();
        // The other's reservations are left.
        assert_eq!(stand.of_caller(), RESERVED_OF_CALLER);
        assert_eq!(stand.of_provider(), RESERVED_OF_PROVIDER);
        assert_eq!(stand.places_held(), 1);
        drop(held);
        stand
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_refunded_whole() {
        let stand = event().await;
        assert_eq!(stand.of_caller(), INPUT);
        assert_eq!(stand.callers.stats()[0].settled_down, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_refunded_whole() {
        let stand = event().await;
        assert_eq!(stand.of_provider(), INPUT);
        assert_eq!(stand.providers.stats()[0].settled_down, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_place_is_free_when_its_holder_is_gone() {
        assert_eq!(event().await.places_held(), 0);
    }
}

mod caller_leaves_before_the_body {
    use super::*;

    async fn event() -> Stand {
        let layers = Layers::new([Fault::NoAnswer.into()]);
        let mut call = layers.stack().oneshot(request());
        assert!(poll!(&mut call).is_pending());
        let stand = layers.stand();
        assert_eq!(stand.of_caller(), RESERVED_OF_CALLER);
        assert_eq!(stand.of_provider(), RESERVED_OF_PROVIDER);
        assert_eq!(stand.places_held(), 1);
        drop(call);
        stand
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_charged_the_input() {
        assert_eq!(event().await.of_caller(), INPUT);
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_charged_the_input() {
        assert_eq!(event().await.of_provider(), INPUT);
    }

    #[tokio::test(start_paused = true)]
    async fn the_place_is_free_at_once() {
        assert_eq!(event().await.places_held(), 0);
    }
}

mod caller_leaves_inside_the_body {
    use super::*;

    const EVENTS: usize = 4;

    async fn event() -> Stand {
        let layers = Layers::new([answer().fault(Fault::StallAfter(EVENTS))]);
        let response = layers.stack().oneshot(request()).await.unwrap();
        let mut body = response.into_body();
        for _ in 0..EVENTS {
            body.frame().await.unwrap().unwrap();
        }
        let stand = layers.stand();
        assert_eq!(stand.places_held(), 1);
        drop(body);
        stand
    }

    fn seen() -> Taken {
        taken(1, ESTIMATED_INPUT + output_seen(EVENTS))
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_settled_by_what_was_seen() {
        assert_eq!(event().await.of_caller(), seen());
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_settled_by_what_was_seen() {
        assert_eq!(event().await.of_provider(), seen());
    }

    #[tokio::test(start_paused = true)]
    async fn the_place_is_free_at_once() {
        assert_eq!(event().await.places_held(), 0);
    }
}

mod success_with_an_error_inside_the_stream {
    use super::*;

    const EVENTS: usize = 4;

    /// Each kind of error, and what it leaves of the call: nothing where the provider had no capacity, the request
    /// where it was one too many, what was seen where it failed.
    fn kinds() -> [(InBand, Taken); 3] {
        let seen = taken(1, ESTIMATED_INPUT + output_seen(EVENTS));
        [
            (InBand::Overloaded, NOTHING),
            (InBand::RateLimited, A_REQUEST),
            (InBand::ServerError, seen),
        ]
    }

    async fn event(error: InBand) -> Stand {
        let layers = Layers::new([answer().fault(Fault::ErrorAfter(EVENTS, error))]);
        let response = layers.stack().oneshot(request()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let stand = layers.stand();
        assert_eq!(stand.places_held(), 1);
        response.into_body().collect().await.unwrap();
        stand
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_settled_by_outcome() {
        for (error, left) in kinds() {
            assert_eq!(event(error).await.of_caller(), left, "{error:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_settled_by_outcome() {
        for (error, left) in kinds() {
            assert_eq!(event(error).await.of_provider(), left, "{error:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_place_is_free_at_the_end() {
        for (error, _) in kinds() {
            assert_eq!(event(error).await.places_held(), 0, "{error:?}");
        }
    }
}

mod stream_cut_without_terminal_marker {
    use super::*;

    const EVENTS: usize = 4;

    async fn event() -> Stand {
        let layers = Layers::new([answer().fault(Fault::CutAfter(EVENTS))]);
        read(&layers.stack()).await;
        layers.stand()
    }

    fn seen() -> Taken {
        taken(1, ESTIMATED_INPUT + output_seen(EVENTS))
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_charged_what_was_seen() {
        assert_eq!(event().await.of_caller(), seen());
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_charged_what_was_seen() {
        assert_eq!(event().await.of_provider(), seen());
    }

    #[tokio::test(start_paused = true)]
    async fn the_place_is_free() {
        assert_eq!(event().await.places_held(), 0);
    }
}

mod retry_inside {
    use super::*;

    /// Two failures and an answer, between the caller's limit and the provider's.
    async fn event() -> Stand {
        // One place: it must be free before the next attempt asks for it.
        let layers = Layers::with_room(100, 100, 1, [failure(), failure()]);
        read(&layers.around(retry::RetryLayer::new(Twice::default()))).await;
        layers.stand()
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_charged_once() {
        let stand = event().await;
        assert_eq!(stand.of_caller(), USED);
        assert_eq!(stand.callers.stats()[0].admitted, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_charged_for_each_attempt() {
        let stand = event().await;
        assert_eq!(stand.of_provider(), taken(3, USED.tokens));
        assert_eq!(stand.providers.stats()[0].admitted, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn each_attempt_has_a_place() {
        let stand = event().await;
        assert_eq!(stand.places_held(), 0);
        assert_eq!(stand.bulkhead.stats()[0].refused, 0);
    }
}

mod retry_outside {
    use super::*;

    /// Two failures and an answer, around the whole stack: each attempt is a call.
    async fn event() -> Stand {
        let layers = Layers::with_room(100, 100, 1, [failure(), failure()]);
        let retries = retry::Retry::new(Twice::default(), layers.stack());
        read(&Client::new(retries)).await;
        layers.stand()
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_charged_for_each_attempt() {
        assert_eq!(event().await.of_caller(), taken(3, USED.tokens));
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_charged_for_each_attempt() {
        assert_eq!(event().await.of_provider(), taken(3, USED.tokens));
    }

    #[tokio::test(start_paused = true)]
    async fn each_attempt_has_a_place() {
        let stand = event().await;
        assert_eq!(stand.places_held(), 0);
        assert_eq!(stand.bulkhead.stats()[0].refused, 0);
    }
}

mod branch {
    use super::*;

    /// Two branches under way, of which one answers in a second and the other never.
    async fn event() -> (Stand, impl Future<Output = Response<Body>>) {
        let winner = answer().head_delay(Duration::from_secs(1));
        let layers = Layers::new([Fault::NoAnswer.into(), winner]);
        let race = layers.around(layer_fn(race));
        let mut call = Box::pin(race.oneshot(request()).map(Result::unwrap));
        assert!(poll!(&mut call).is_pending());
        (layers.stand(), call)
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_charged_once() {
        let (stand, call) = event().await;
        assert_eq!(stand.of_caller(), RESERVED_OF_CALLER);
        call.await.into_body().collect().await.unwrap();
        assert_eq!(stand.of_caller(), USED);
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_charged_for_each_branch() {
        let (stand, call) = event().await;
        call.await.into_body().collect().await.unwrap();
        let both = taken(2, USED.tokens + ESTIMATED_INPUT);
        assert_eq!(stand.of_provider(), both);
        assert_eq!(stand.providers.stats()[0].admitted, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn each_branch_has_a_place_and_the_losers_is_free_before_the_winner_is_handed_out() {
        let (stand, call) = event().await;
        assert_eq!(stand.places_held(), 2);
        let winner = call.await;
        assert_eq!(stand.places_held(), 1);
        winner.into_body().collect().await.unwrap();
        assert_eq!(stand.places_held(), 0);
    }
}

// === what calls several times for one call ===

fn failure() -> Behavior {
    Fault::Status(500).into()
}

/// Tries again twice, whatever failed with a 500.
#[derive(Clone, Default)]
struct Twice {
    attempts: usize,
}

impl retry::Policy<Request<Full<Bytes>>, Response<Body>, BoxError> for Twice {
    type Future = future::Ready<()>;

    fn retry(
        &mut self,
        _: &mut Request<Full<Bytes>>,
        result: &mut Result<Response<Body>, BoxError>,
    ) -> Option<future::Ready<()>> {
        let has_failed = result.as_ref().unwrap().status() == StatusCode::INTERNAL_SERVER_ERROR;
        self.attempts += 1;
        (has_failed && self.attempts <= 2).then(|| future::ready(()))
    }

    fn clone_request(&mut self, request: &Request<Full<Bytes>>) -> Option<Request<Full<Bytes>>> {
        Some(request.clone())
    }
}

/// Calls twice at once, and hands out the answer that comes first.
fn race(attempts: Client) -> Client {
    Client::new(service_fn(move |request: Request<Full<Bytes>>| {
        let one = attempts.clone().oneshot(request.clone());
        let other = attempts.clone().oneshot(request);
        async {
            // Dropping what is left of the other ends it.
            match future::select(one, other).await {
                Either::Left((response, _)) | Either::Right((response, _)) => response,
            }
        }
    }))
}
