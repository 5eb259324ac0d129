//! Layers of a `Stack` that are left out at run time.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    borrow::Cow,
    convert::Infallible,
    fmt::Debug,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future;
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full, channel::Channel};
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, service_fn,
};
use tower_llm_stack::{
    BreakerHandle, BreakerLayer, BulkheadFull, BulkheadLayer, Call, CircuitOpen, Described,
    ExceedsLimit, Limit, RateLimitLayer, RateLimited, RefusalLayer, RequestBody, Stack, TimedOut,
    TimeoutLayer, Unary, breaker::CircuitId,
};

/// The layers, each of which may be left out.
#[derive(Clone, Default)]
struct Layers {
    refusal: Option<RefusalLayer>,
    callers: Option<RateLimitLayer>,
    breaker: Option<BreakerLayer>,
    providers: Option<RateLimitLayer>,
    bulkhead: Option<BulkheadLayer>,
    timeout: Option<TimeoutLayer>,
}

fn one_request(limits: tower_llm_stack::ratelimit::RateLimitBuilder) -> RateLimitLayer {
    let limits = limits.limit(Limit::requests(1).per_minute());
    limits.max_waiting(0).build().unwrap()
}

fn one_permit() -> BulkheadLayer {
    BulkheadLayer::builder(1).max_waiting(0).build().unwrap()
}

impl Layers {
    fn around<S, B>(
        self,
        client: S,
    ) -> impl Service<
        Request<Full<Bytes>>,
        Response = Response<impl Body<Data = Bytes, Error: Debug>>,
        Error = BoxError,
    > + Clone
    where
        S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible> + Clone,
        B: Body<Data = Bytes, Error = Infallible>,
    {
        let stack = Stack::builder()
            .refusal(self.refusal)
            .caller_rate_limit(self.callers)
            .breaker(self.breaker)
            .provider_rate_limit(self.providers)
            .bulkhead(self.bulkhead)
            .timeout(self.timeout)
            .build();
        stack.layer(client)
    }
}

fn post() -> Request<Full<Bytes>> {
    let body = r#"{"model":"m","messages":[]}"#;
    Request::post("/v1/chat/completions")
        .body(body.into())
        .unwrap()
}

/// Answers with the model of the request.
async fn answer(request: Request<RequestBody>) -> Result<Response<Full<Bytes>>, Infallible> {
    let call = request.extensions().get::<Call>().cloned();
    let model = call.as_ref().and_then(Call::model).unwrap_or_default();
    Ok(Response::new(model.to_owned().into()))
}

/// The text of the response.
async fn ask(layers: Layers) -> String {
    let response = layers.around(service_fn(answer)).oneshot(post()).await;
    let body = response.unwrap().into_body().collect().await.unwrap();
    String::from_utf8(body.to_bytes().to_vec()).unwrap()
}

/// The error of the second of two calls, of which the first was answered and is not read.
async fn second(layers: Layers) -> Result<StatusCode, BoxError> {
    let service = layers.around(service_fn(answer));
    let held = service.clone().oneshot(post()).await.unwrap();
    let second = service.oneshot(post()).await;
    drop(held);
    second.map(|response| response.status())
}

#[tokio::test]
async fn without_any_layer_a_call_passes() {
    assert_eq!(ask(Layers::default()).await, "m");
    assert_eq!(second(Layers::default()).await.unwrap(), StatusCode::OK);
}

#[tokio::test]
async fn each_layer_acts_without_the_others() {
    let callers = Layers {
        callers: Some(one_request(RateLimitLayer::for_callers())),
        ..Layers::default()
    };
    assert!(second(callers).await.unwrap_err().is::<RateLimited>());

    let providers = Layers {
        providers: Some(one_request(RateLimitLayer::for_providers())),
        ..Layers::default()
    };
    assert!(second(providers).await.unwrap_err().is::<RateLimited>());

    let breaker = BreakerLayer::new();
    let handle: BreakerHandle = breaker.handle();
    handle.trip(&CircuitId::model("openai", "m"), Duration::from_secs(60));
    let open = Layers {
        breaker: Some(breaker),
        ..Layers::default()
    };
    let error = open.around(service_fn(answer)).oneshot(post()).await;
    assert!(error.err().unwrap().is::<CircuitOpen>());

    let refused = Layers {
        refusal: Some(RefusalLayer::new()),
        callers: Some(one_request(RateLimitLayer::for_callers())),
        ..Layers::default()
    };
    assert_eq!(
        second(refused).await.unwrap(),
        StatusCode::TOO_MANY_REQUESTS
    );
}

#[tokio::test(start_paused = true)]
async fn a_timeout_acts_if_present() {
    let silence = service_fn(|_| future::pending::<Result<Response<Full<Bytes>>, Infallible>>());
    let total = TimeoutLayer::builder().total(Duration::from_secs(1));
    let timeout = Layers {
        timeout: Some(total.build().unwrap()),
        ..Layers::default()
    };
    let error = timeout.around(silence).oneshot(post()).await.err().unwrap();
    assert!(TimedOut::find(&*error).is_some());
}

#[tokio::test]
async fn a_permit_is_held_to_the_end_of_the_body_through_optional_layers() {
    let bulkhead = one_permit();
    let handle = bulkhead.handle();
    let layers = Layers {
        bulkhead: Some(bulkhead),
        ..Layers::default()
    };
    let (sender, body) = Channel::<Bytes, Infallible>::new(1);
    let body = Arc::new(Mutex::new(Some(body)));
    let service = layers.around(service_fn(move |_| {
        let body = body.lock().unwrap().take().unwrap();
        future::ready(Ok::<_, Infallible>(Response::new(body)))
    }));

    let response = service.clone().oneshot(post()).await.unwrap();

    assert_eq!(handle.stats()[0].in_flight, 1);
    let error = service.oneshot(post()).await.err().unwrap();
    assert!(error.is::<BulkheadFull>());
    drop(sender);
    response.into_body().collect().await.unwrap();
    assert_eq!(handle.stats()[0].in_flight, 0);
}

#[tokio::test]
async fn optional_layers_call_the_service_that_was_readied() {
    let with = Layers {
        bulkhead: Some(BulkheadLayer::new(10).unwrap()),
        providers: Some(RateLimitLayer::for_providers().build().unwrap()),
        ..Layers::default()
    };
    for layers in [Layers::default(), with] {
        let client = ServiceBuilder::new()
            .layer(ConcurrencyLimitLayer::new(1))
            .service(service_fn(answer));
        let mut service = layers.around(client);
        for _ in 0..3 {
            let call = service.ready().await.unwrap().call(post());
            assert_eq!(call.await.unwrap().status(), StatusCode::OK);
        }
    }
}

// === types that are not HTTP ===

struct Prompt;

impl Described for Prompt {
    fn call(&self) -> Option<Cow<'_, Call>> {
        None
    }
}

#[tokio::test]
async fn a_typed_service_takes_optional_layers() {
    let one = RateLimitLayer::for_callers().limit(Limit::requests(1).per_minute());
    let one = one.watch(Unary).build().unwrap();
    for (limit, admitted) in [(Some(one), 1), (None, 3)] {
        let stack = Stack::builder()
            .without_describe()
            .caller_rate_limit(limit)
            .bulkhead(None::<BulkheadLayer<Unary>>)
            .build();
        let service = stack.layer(service_fn(|_| future::ready(Ok::<_, Infallible>(7))));
        let mut answers = 0;
        for _ in 0..3 {
            match service.clone().oneshot(Prompt).await {
                Ok(7) => answers += 1,
                Ok(other) => panic!("{other}"),
                Err(error) => assert!(error.is::<RateLimited>() && !error.is::<ExceedsLimit>()),
            }
        }
        assert_eq!(answers, admitted);
    }
}
