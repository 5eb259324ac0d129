//! What is counted of each call.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_core::{BoxError, Call, Operation, Provider};
use tower_llm_monitor::MonitorLayer;

#[tokio::test(start_paused = true)]
async fn one_call_is_one_row() {
    let monitor = MonitorLayer::new();
    let service = monitor.layer(service_fn(async |_: Request<()>| {
        let body = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3}}"#;
        let response = Response::builder().header("content-type", "application/json");
        Ok::<_, BoxError>(response.body(Full::new(Bytes::from(body))).unwrap())
    }));
    let mut request = Request::new(());
    let call = Call::builder(Provider::OPENAI, Operation::CHAT).model("gpt-5-mini");
    request.extensions_mut().insert(call.build());
    let response = service.oneshot(request).await.unwrap();
    response.into_body().collect().await.unwrap();

    let snapshot = monitor.handle().snapshot();
    let [row] = &snapshot.rows[..] else {
        panic!("one row: {snapshot:?}")
    };
    assert_eq!((&*row.provider, &*row.model), ("openai", "gpt-5-mini"));
    let stats = &row.summary.since_start;
    assert_eq!((stats.calls, stats.outcomes.of("success")), (1, 1));
    assert_eq!((stats.tokens.input, stats.tokens.output), (9, 3));
    // 9 at 0.25, 3 at 2.00 for a million.
    assert_eq!(stats.cost.as_nanos(), 2_250 + 6_000);
}
