//! Candidates and a judge over HTTP: who pays for them, and what of their responses is passed on.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::time::{sleep, timeout};
use tower::{Service, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_layer::Layer;
use tower_llm_core::{
    BoxError, Call, Completion, Described, OnEndLayer, Operation, Outcome, Provider, RequestBody,
    Usage,
};
use tower_llm_fanout::{EnsembleBuilder, FanoutLayer, IfJudgeFails, Pick, Pool, Report, Target};
use tower_llm_testkit::mock::{Sender, Upstream, stream};

use crate::support::MS;

type Body = RequestBody<Full<Bytes>>;
type Client = BoxCloneSyncService<Request<Body>, Response<Upstream>, BoxError>;
type Ask = fn(&Request<Body>, &[Response<Bytes>]) -> Result<Request<Body>, BoxError>;
type Ended = Arc<Mutex<Vec<Completion>>>;

fn request(operation: Operation) -> Request<Body> {
    let call = Call::builder(Provider::OPENAI, operation).input_tokens(7);
    let mut request = Request::new(RequestBody::held("{}"));
    request.extensions_mut().insert(call.build());
    request
}

fn answer(text: &str, input: u64, output: u64) -> String {
    let usage = format!(r#"{{"prompt_tokens":{input},"completion_tokens":{output}}}"#);
    format!(
        r#"{{"choices":[{{"message":{{"content":"{text}"}},"finish_reason":"stop"}}],"usage":{usage}}}"#
    )
}

/// Answers each call by its candidate's number: after so many ms, with this status and body.
fn client(answers: &[(u64, u16, String)]) -> Client {
    let answers: Arc<[_]> = answers.into();
    BoxCloneSyncService::new(service_fn(move |request: Request<Body>| {
        let number = request.call().unwrap().candidate() as usize;
        let (after, status, body) = answers[number].clone();
        async move {
            sleep(Duration::from_millis(after)).await;
            let (sender, upstream) = Upstream::new();
            sender.send(body.leak());
            drop::<Sender>(sender);
            let mut response = stream(upstream);
            *response.status_mut() = http::StatusCode::from_u16(status)?;
            let json = "application/json".parse()?;
            response.headers_mut().insert("content-type", json);
            Ok(response)
        }
    }))
}

fn ask(request: &Request<Body>, answers: &[Response<Bytes>]) -> Result<Request<Body>, BoxError> {
    let bodies: Vec<_> = answers
        .iter()
        .map(|answer| answer.body().as_ref())
        .collect();
    Ok(RequestBody::request_with(request, bodies.concat()))
}

fn ensemble(judge: Client) -> EnsembleBuilder<Client, Ask> {
    FanoutLayer::ensemble(2, judge, ask as Ask)
}

/// The service with a layer around it that sees how its calls end, as a limit of callers does.
macro_rules! seen {
    ($service:expr, $ended:expr) => {{
        let ended = Arc::clone($ended);
        OnEndLayer::new(move |_: Option<&Call>, end: &Completion| {
            ended.lock().unwrap().push(end.clone());
        })
        .layer($service)
    }};
}

fn two() -> Client {
    client(&[(10, 200, answer("a", 10, 1)), (5, 200, answer("b", 20, 2))])
}

/// What the one call that has ended used, of its own and besides.
fn used(ended: &Ended) -> (Option<Usage>, Option<Usage>) {
    let ended = ended.lock().unwrap();
    assert_eq!(ended.len(), 1, "one call for the layers outside");
    (ended[0].usage, ended[0].extra_usage)
}

async fn text<B: http_body::Body<Data = Bytes>>(response: Response<B>) -> String
where
    B::Error: std::fmt::Debug,
{
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_caller_of_a_judge_that_writes_pays_for_the_candidates_too() {
    let ended = Ended::default();
    let layer = ensemble(client(&[(5, 200, answer("c", 400, 4))]))
        .build()
        .unwrap();
    let service = seen!(layer.layer(two()), &ended);
    let response = service.oneshot(request(Operation::CHAT)).await.unwrap();
    let report = response.extensions().get::<Report>().unwrap().clone();
    assert_eq!(text(response).await, answer("c", 400, 4));
    assert_eq!(
        used(&ended),
        (Some(Usage::new(400, 4)), Some(Usage::new(30, 3)))
    );
    assert!(report.winner().is_none());
    assert_eq!(report.attempts().len(), 2);
    let judge = report.judge().unwrap();
    assert_eq!(
        (judge.started, judge.outcome),
        (10 * MS, Some(Outcome::Success))
    );
}

#[tokio::test(start_paused = true)]
async fn the_caller_of_a_judge_that_chooses_pays_for_the_judge_and_the_others() {
    let ended = Ended::default();
    let choose = |verdict: &Response<Bytes>| {
        verdict
            .body()
            .windows(4)
            .position(|at| at == b"\"1\"}")
            .map(|_| 1)
    };
    let judge = client(&[(5, 200, answer("1", 400, 4))]);
    let layer = FanoutLayer::best_of(2, judge, ask as Ask, choose);
    let layer = layer.report_headers(true).build().unwrap();
    let target = |name| Target::new(name, two());
    let pool = Pool::builder().pick(Pick::in_order());
    let pool = pool.targets(["x", "y"].map(target)).build().unwrap();
    let service = seen!(layer.across(&pool), &ended);
    let response = service.oneshot(request(Operation::CHAT)).await.unwrap();
    assert_eq!(response.headers()["x-fanout-target"], "y");
    assert_eq!(response.headers()["x-fanout-attempts"], "2");
    assert_eq!(text(response).await, answer("b", 20, 2));
    assert_eq!(
        used(&ended),
        (Some(Usage::new(20, 2)), Some(Usage::new(410, 5)))
    );
}

#[tokio::test(start_paused = true)]
async fn a_judge_that_fails_is_paid_for_as_its_error_says() {
    let overloaded = r#"{"error":{"type":"server_error"}}"#.to_owned();
    // A 500 has used nothing. An error inside a 200 has used its input: two bodies of some 90 bytes, as bytes / 4.
    let tokens = (answer("a", 10, 1) + &answer("b", 20, 2)).len().div_ceil(4) as u64;
    for (status, judge) in [(500, Usage::default()), (200, Usage::new(tokens, 0))] {
        let ended = Ended::default();
        let broken = client(&[(5, status, overloaded.clone())]);
        let builder = ensemble(broken);
        let service = seen!(builder.clone().build().unwrap().layer(two()), &ended);
        let response = service.oneshot(request(Operation::CHAT)).await.unwrap();
        assert_eq!(text(response).await, answer("a", 10, 1));
        let others = Usage::new(20, 2).plus(&judge);
        assert_eq!(used(&ended), (Some(Usage::new(10, 1)), Some(others)));

        let ended = Ended::default();
        let builder = builder.if_judge_fails(IfJudgeFails::Error);
        let service = seen!(builder.build().unwrap().layer(two()), &ended);
        let response = service.oneshot(request(Operation::CHAT)).await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(text(response).await, overloaded);
        assert_eq!(used(&ended).1, Some(Usage::new(30, 3)));
    }
}

#[tokio::test(start_paused = true)]
async fn an_ensemble_without_enough_answers_is_paid_for_and_says_what_went_wrong() {
    let ended = Ended::default();
    let throttled = r#"{"error":{"type":"rate_limit_error"}}"#.to_owned();
    let some = client(&[(10, 200, answer("a", 10, 1)), (5, 429, throttled)]);
    let layer = ensemble(two()).min_ok(2).build().unwrap();
    let service = seen!(layer.layer(some), &ended);
    let error = service.oneshot(request(Operation::CHAT)).await.unwrap_err();
    let seen = Completion::of_error(&*error);
    assert_eq!(seen.outcome, Outcome::Throttled { retry_after: None });
    // Nothing of the call is estimated beside what its candidates report.
    assert_eq!(
        used(&ended),
        (Some(Usage::default()), Some(Usage::new(10, 1)))
    );
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_pays_for_the_candidates_that_have_answered() {
    let judged = || client(&[(1_000, 200, answer("c", 400, 4))]);
    // While the second candidate is in flight, and while the judge is.
    for (after, extra) in [(7, Usage::new(20, 2)), (50, Usage::new(30, 3))] {
        let ended = Ended::default();
        let service = seen!(ensemble(judged()).build().unwrap().layer(two()), &ended);
        let call = service.oneshot(request(Operation::CHAT));
        timeout(Duration::from_millis(after), call)
            .await
            .unwrap_err();
        assert_eq!(used(&ended), (None, Some(extra)));
        assert_eq!(ended.lock().unwrap()[0].outcome, Outcome::Abandoned);
    }
}

#[tokio::test(start_paused = true)]
async fn a_judge_may_stream_and_a_call_with_one_branch_passes_as_it_is() {
    let (sender, upstream) = Upstream::new();
    let upstream = Arc::new(Mutex::new(Some(upstream)));
    let streams = BoxCloneSyncService::new(service_fn(move |_: Request<Body>| {
        let upstream = upstream.lock().unwrap().take().unwrap();
        async { Ok::<_, BoxError>(stream(upstream)) }
    }));
    let first = "data: {\"choices\":[{\"delta\":{\"content\":\"c\"}}]}\n\n";
    sender.send(first);
    let layer = ensemble(streams.clone()).build().unwrap();
    let response = layer.layer(two()).oneshot(request(Operation::CHAT)).await;
    // It is there before the judge has finished.
    let mut body = response.unwrap().into_body();
    let frame = body.frame().await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), first);

    // No inference: an answer of any length, as it comes.
    let whole = vec![b'x'; 2 << 20];
    let file = String::from_utf8(whole).unwrap();
    let one = client(&[(1, 200, file.clone())]);
    let mut service = layer.layer(one);
    let response = service
        .ready()
        .await
        .unwrap()
        .call(request(Operation::RETRIEVE));
    let response = response.await.unwrap();
    assert!(response.extensions().get::<Report>().is_none());
    assert_eq!(text(response).await.len(), file.len());
    assert_eq!(layer.stats().branches, 3);
}
