//! A closure runs once at the end of every call.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    borrow::Cow,
    convert::Infallible,
    future::{Ready, pending, ready},
    sync::{Arc, Mutex},
};

use http::{Request, Response};
use http_body_util::BodyExt;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};
use tower_llm_core::{
    BoxError, Call, Completion, Described, Failure, OnEndLayer, Operation, Outcome, Provider,
    TooLarge, Unary, Usage,
};

use crate::support::{Script, json};

const ANSWER: &str = r#"{"choices":[{"message":{"content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":2}}"#;

/// The arguments of the closure: the model, and how the call ended.
type Ends = Arc<Mutex<Vec<(Option<String>, Completion)>>>;

fn record(ends: &Ends) -> impl Fn(Option<&Call>, &Completion) + Clone + use<> {
    let ends = Arc::clone(ends);
    move |call, completion| {
        let model = call.and_then(Call::model).map(str::to_owned);
        ends.lock().unwrap().push((model, completion.clone()));
    }
}

fn only(ends: &Ends) -> (Option<String>, Completion) {
    let ends = ends.lock().unwrap();
    let [end] = &ends[..] else {
        panic!("called {} times", ends.len());
    };
    end.clone()
}

fn request() -> Request<()> {
    let mut request = Request::new(());
    let call = Call::builder(Provider::OPENAI, Operation::CHAT).model("m");
    request.extensions_mut().insert(call.build());
    request
}

fn failing(error: impl Into<BoxError>) -> Ready<Result<Response<Script>, BoxError>> {
    ready(Err(error.into()))
}

#[tokio::test]
async fn the_closure_runs_when_the_body_has_ended() {
    let ends = Ends::default();
    let service = OnEndLayer::new(record(&ends)).layer(service_fn(async |_: Request<()>| {
        Ok::<_, Infallible>(json(Script::data([ANSWER])))
    }));
    let response = service.oneshot(request()).await.unwrap();
    assert!(ends.lock().unwrap().is_empty());
    response.into_body().collect().await.unwrap();
    let (model, completion) = only(&ends);
    assert_eq!(model.as_deref(), Some("m"));
    assert_eq!(completion.outcome, Outcome::Success);
    assert_eq!(completion.usage, Some(Usage::new(9, 2)));
}

#[tokio::test]
async fn the_closure_runs_when_a_call_fails_is_refused_or_is_dropped() {
    let errors: [(fn() -> Ready<Result<Response<Script>, BoxError>>, Outcome); 2] = [
        (|| failing("reset"), Outcome::Failed(Failure::Transport)),
        (|| failing(TooLarge::new(1)), Outcome::Refused),
    ];
    for (error, outcome) in errors {
        let ends = Ends::default();
        let layer = OnEndLayer::new(record(&ends));
        let service = layer.layer(service_fn(move |_: Request<()>| error()));
        service.oneshot(request()).await.unwrap_err();
        assert_eq!(only(&ends).1.outcome, outcome);
    }

    let ends = Ends::default();
    let layer = OnEndLayer::new(record(&ends));
    let mut service = layer.layer(service_fn(|_: Request<()>| {
        pending::<Result<Response<Script>, BoxError>>()
    }));
    drop(service.call(request()));
    assert_eq!(only(&ends).1.outcome, Outcome::Abandoned);
}

struct Typed;

impl Described for Typed {
    fn call(&self) -> Option<Cow<'_, Call>> {
        None
    }
}

#[tokio::test]
async fn the_closure_runs_for_typed_services_and_the_readied_one_is_called() {
    let ends = Ends::default();
    let mut service = ServiceBuilder::new()
        .layer(OnEndLayer::new(record(&ends)).watch(Unary))
        .layer(ConcurrencyLimitLayer::new(1))
        .service(service_fn(async |_: Typed| Ok::<_, Infallible>(7)));
    for _ in 0..3 {
        let answer = service.ready().await.unwrap().call(Typed).await.unwrap();
        assert_eq!(answer, 7);
    }
    let ends = ends.lock().unwrap();
    let success = (None, Completion::new(Outcome::Success));
    assert_eq!(*ends, [success.clone(), success.clone(), success]);
}
