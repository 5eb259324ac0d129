//! Calls, and an upstream that answers as a test says.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::time::sleep;
use tower::{Service, ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_core::{BoxError, Call, Caller, Dialect, Operation, Provider};
use tower_llm_monitor::{MonitorLayer, RowSnapshot, Snapshot, Stats};
use tower_llm_testkit::mock::{Sender, Upstream, stream};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MODEL: &str = "gpt-5-mini";

/// What the usage of [`answer`] costs with [`MODEL`], in billionths of a dollar: 9 at 0.25 and 3 at 2.00 for a million.
pub(crate) const COST: u64 = 2_250 + 6_000;

pub(crate) const ROLE: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
/// Two tokens, by their bytes.
pub(crate) const CONTENT: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"eightbyt\"}}]}\n\n";
pub(crate) const STOP: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
pub(crate) const USAGE: &str =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":3}}\n\n";
pub(crate) const ERROR: &str =
    "data: {\"error\":{\"message\":\"m\",\"type\":\"server_error\"}}\n\n";
pub(crate) const DONE: &str = "data: [DONE]\n\n";

pub(crate) type Answer = Result<Response<Full<Bytes>>, BoxError>;

/// A request to [`MODEL`], of 100 bytes and about 5 tokens.
pub(crate) fn request() -> Request<()> {
    request_to(MODEL)
}

pub(crate) fn request_to(model: &str) -> Request<()> {
    let call = Call::builder(Provider::OPENAI, Operation::CHAT)
        .dialect(Dialect::OpenAi)
        .model(model)
        .caller(Caller::named("team"))
        .input_tokens(5)
        .body_bytes(100);
    of(call.build())
}

pub(crate) fn streamed() -> Request<()> {
    let call = Call::builder(Provider::OPENAI, Operation::CHAT).dialect(Dialect::OpenAi);
    of(call.model(MODEL).input_tokens(5).streamed(true).build())
}

pub(crate) fn of(call: Call) -> Request<()> {
    let mut request = Request::new(());
    request.extensions_mut().insert(call);
    request
}

pub(crate) fn json(status: u16, body: &'static str) -> Response<Full<Bytes>> {
    let response = Response::builder().status(status);
    let response = response.header("content-type", "application/json");
    response.body(Full::new(Bytes::from(body))).unwrap()
}

/// An answer that used nine tokens of input and three of output.
pub(crate) fn answer() -> Response<Full<Bytes>> {
    json(
        200,
        r#"{"choices":[{"finish_reason":"stop","message":{"content":"x"}}],"usage":{"prompt_tokens":9,"completion_tokens":3}}"#,
    )
}

/// A call that is answered so, and read to its end.
pub(crate) async fn call(monitor: &MonitorLayer, request: Request<()>, answer: Answer) {
    call_after(monitor, request, Duration::ZERO, answer).await;
}

/// A call that is answered so, after a while.
pub(crate) async fn call_after(
    monitor: &MonitorLayer,
    request: Request<()>,
    after: Duration,
    answer: Answer,
) {
    let answer = std::sync::Mutex::new(Some(answer));
    let service = monitor.layer(service_fn(|_: Request<()>| {
        let answer = answer.lock().unwrap().take();
        async move {
            sleep(after).await;
            answer.unwrap()
        }
    }));
    let mut service = unclonable(service);
    if let Ok(response) = service.ready().await.unwrap().call(request).await {
        // How it ends is what is counted.
        let _ = response.into_body().collect().await;
    }
}

/// A service that lends what it answers with.
fn unclonable<S>(service: S) -> S {
    service
}

/// The response of a stream whose frames are sent one by one.
pub(crate) async fn open(
    monitor: &MonitorLayer,
) -> (
    Sender,
    impl http_body::Body<Data = Bytes, Error = BoxError> + Unpin + use<>,
) {
    let (sender, body) = Upstream::new();
    let body = std::sync::Arc::new(std::sync::Mutex::new(Some(body)));
    let service = monitor.layer(service_fn(move |_: Request<()>| {
        let body = body.lock().unwrap().take().unwrap();
        async { Ok::<_, BoxError>(stream(body)) }
    }));
    let response = service.oneshot(streamed()).await.unwrap();
    (sender, Box::pin(response.into_body()))
}

pub(crate) fn snapshot(monitor: &MonitorLayer) -> Snapshot {
    monitor.handle().snapshot()
}

/// All calls since the start.
pub(crate) fn stats(monitor: &MonitorLayer) -> Stats {
    snapshot(monitor).total.since_start
}

/// The only row.
#[track_caller]
pub(crate) fn only_row(monitor: &MonitorLayer) -> RowSnapshot {
    let rows = snapshot(monitor).rows;
    let [row] = <[RowSnapshot; 1]>::try_from(rows).unwrap();
    row
}

/// Asserts that these labels have these counts, and the others none.
#[track_caller]
pub(crate) fn assert_counts(counts: &tower_llm_monitor::Counts, expected: &[(&str, u64)]) {
    let counted: Vec<_> = counts.iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(counted, expected);
}
