//! A stack in an axum server: a proxy in front of a provider.
//!
//! Forwards calls to `OPENAI_BASE_URL` with the caller's own credential; without that variable, to a simulated provider.
//! Listens on a free port and calls itself. For `https`, give the client a connector that speaks TLS.

use std::{env, time::Duration};

use axum::Router;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::connect::HttpConnector;
use tower::{ServiceBuilder, ServiceExt};
use tower_llm_stack::{
    BoxError, BulkheadLayer, RefusalLayer, Stack, TimeoutLayer,
    adapters::{
        base_url::{BaseUrl, BaseUrlLayer},
        hyper_util::client,
    },
};
use tower_llm_testkit::{Behavior, SimulatedProvider};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let provider;
    let base_url = match env::var("OPENAI_BASE_URL") {
        Ok(url) => url,
        Err(_) => {
            provider = SimulatedProvider::start().await?;
            // The connection reads ahead, so the stream must last until the refusal below.
            provider.set(Behavior::new().gap(Duration::from_millis(50)));
            format!("{}/v1", provider.url())
        }
    };

    // One call at a time, so that the second one is refused.
    let bulkhead = BulkheadLayer::builder(1).max_waiting(0).build()?;
    let handle = bulkhead.handle();
    let stack = Stack::builder()
        .refusal(RefusalLayer::new().infallible())
        .bulkhead(bulkhead)
        .timeout(TimeoutLayer::new())
        .build();
    let proxy = ServiceBuilder::new()
        .layer(stack)
        .layer(BaseUrlLayer::new(BaseUrl::new(&base_url)?.replacing()))
        .service(client(HttpConnector::new()));

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let own_url = format!("http://{}/v1", listener.local_addr()?);
    let app = Router::new().fallback_service(proxy);
    tokio::spawn(async move { axum::serve(listener, app).await });

    let caller = ServiceBuilder::new()
        .layer(BaseUrlLayer::new(BaseUrl::new(&own_url)?))
        .service(client(HttpConnector::new()));

    let response = caller.clone().oneshot(chat(false)?).await?;
    let answer = response.into_body().collect().await?.to_bytes();
    println!("answer: {}", String::from_utf8_lossy(&answer));

    let mut stream = caller.clone().oneshot(chat(true)?).await?.into_body();

    // The stream holds its permit until it ends or is dropped.
    let response = caller.oneshot(chat(false)?).await?;
    let status = response.status();
    let refusal = response.into_body().collect().await?.to_bytes();
    println!("refused: {status} {}", String::from_utf8_lossy(&refusal));

    while let Some(frame) = stream.frame().await.transpose()? {
        let data = frame.into_data().unwrap_or_default();
        print!("{}", String::from_utf8_lossy(&data));
    }
    println!("bulkhead: {:?}", handle.stats());
    Ok(())
}

fn chat(stream: bool) -> http::Result<Request<Full<Bytes>>> {
    let key = env::var("OPENAI_API_KEY").unwrap_or_default();
    let messages = r#"[{"role":"user","content":"Where does the river run?"}]"#;
    let body = format!(r#"{{"model":"gpt-5-mini","messages":{messages},"stream":{stream}}}"#);
    Request::post("/chat/completions")
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json")
        .body(body.into())
}
