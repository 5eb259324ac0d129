//! A stack around hyper-util's client.
//!
//! Calls `OPENAI_BASE_URL` with `OPENAI_API_KEY`; without the former, a simulated provider of its own.
//! For `https` give the client a connector that speaks TLS, such as hyper-rustls'.

use std::env;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::connect::HttpConnector;
use tower::{ServiceBuilder, ServiceExt};
use tower_llm_stack::{
    BoxError, BulkheadLayer, Completion, OnEndLayer, Refusal, Stack, TimeoutLayer,
    adapters::{
        base_url::{BaseUrl, BaseUrlLayer},
        hyper_util::client,
    },
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
    let service = ServiceBuilder::new()
        .layer(stack)
        .layer(BaseUrlLayer::new(BaseUrl::new(&base_url)?))
        .service(client(HttpConnector::new()));

    let response = service.clone().oneshot(chat("")?).await?;
    let answer = response.into_body().collect().await?.to_bytes();
    println!("answer: {}", String::from_utf8_lossy(&answer));

    let response = service.clone().oneshot(chat(STREAMED)?).await?;
    let mut stream = response.into_body();

    // The stream holds its permit until it ends or is dropped.
    if let Err(error) = service.oneshot(chat("")?).await {
        let refusal = Refusal::find(&*error);
        println!("refused: {error}; by {:?}", refusal.map(Refusal::layer));
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
