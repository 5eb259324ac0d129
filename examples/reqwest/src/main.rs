//! A stack around a `reqwest::Client`.
//!
//! Calls `OPENAI_BASE_URL` with `OPENAI_API_KEY`; without the former, a simulated provider of its own.
//! For `https` enable one of reqwest's TLS features.

use std::env;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use tower::{ServiceBuilder, ServiceExt};
use tower_llm_stack::{
    BoxError, BulkheadFull, BulkheadLayer, Completion, OnEndLayer, Stack, TimeoutLayer,
    adapters::{base_url::BaseUrl, reqwest::ReqwestService},
};
use tower_llm_testkit::SimulatedProvider;

/// A stream reports its usage only if the request asks for it.
const STREAMED: &str = r#","stream":true,"stream_options":{"include_usage":true}"#;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let provider;
    let base_url = match env::var("OPENAI_BASE_URL") {
        Ok(url) => url,
        Err(_) => {
            provider = SimulatedProvider::start().await?;
            format!("{}/v1", provider.url())
        }
    };

    // One call at a time, so that the second one is refused.
    let bulkhead = BulkheadLayer::builder(1).max_waiting(0).build()?;
    let handle = bulkhead.handle();
    let stack = Stack::builder()
        .own(OnEndLayer::new(|_, completion| {
            let Completion { outcome, usage, .. } = completion;
            println!("outcome: {outcome:?}, usage: {usage:?}");
        }))
        .bulkhead(bulkhead)
        .timeout(TimeoutLayer::new())
        .build();
    let client = ReqwestService::new(reqwest::Client::new()).base_url(BaseUrl::new(&base_url)?);
    let service = ServiceBuilder::new().layer(stack).service(client);

    let response = service.clone().oneshot(chat("")?).await?;
    let answer = response.into_body().collect().await?.to_bytes();
    println!("answer: {}", String::from_utf8_lossy(&answer));

    let mut stream = service.clone().oneshot(chat(STREAMED)?).await?.into_body();

    // The stream holds its permit until it ends or is dropped.
    if let Err(error) = service.oneshot(chat("")?).await {
        let full = error.downcast_ref::<BulkheadFull>();
        println!(
            "refused: {error}; limit {:?}",
            full.map(BulkheadFull::limit)
        );
    }

    while let Some(frame) = stream.frame().await.transpose()? {
        let data = frame.into_data().unwrap_or_default();
        print!("{}", String::from_utf8_lossy(&data));
    }
    println!("bulkhead: {:?}", handle.stats());
    Ok(())
}

fn chat(options: &str) -> http::Result<Request<Full<Bytes>>> {
    let key = env::var("OPENAI_API_KEY").unwrap_or_default();
    let messages = r#"[{"role":"user","content":"Where does the river run?"}]"#;
    let body = format!(r#"{{"model":"gpt-5-mini","messages":{messages}{options}}}"#);
    Request::post("/chat/completions")
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json")
        .body(body.into())
}
