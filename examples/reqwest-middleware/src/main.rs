//! A stack as one middleware of `reqwest-middleware`.
//!
//! Calls `OPENAI_BASE_URL` with `OPENAI_API_KEY`; without the former, a simulated provider of its own.
//! For `https` enable one of reqwest's TLS features.

use std::env;

use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, RequestBuilder};
use serde_json::{Value, json};
use tower_llm_stack::{
    BoxError, BulkheadLayer, Refusal, Stack, TimeoutLayer,
    adapters::reqwest_middleware::TowerMiddleware,
};
use tower_llm_testkit::SimulatedProvider;

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

    // One call at a time, so that a second one can be seen to be refused.
    let bulkhead = BulkheadLayer::builder(1).max_waiting(0).build()?;
    let handle = bulkhead.handle();
    let stack = Stack::builder()
        .bulkhead(bulkhead)
        .timeout(TimeoutLayer::new())
        .build();
    // Middlewares of your own go before it or behind it with `with`.
    let client = ClientBuilder::new(reqwest::Client::new())
        .with(TowerMiddleware::new(stack))
        .build();

    let answer: Value = chat(&client, &base_url, false).send().await?.json().await?;
    println!("answer: {}", answer["choices"][0]["message"]["content"]);
    println!("usage: {}", answer["usage"]);

    let mut stream = chat(&client, &base_url, true).send().await?;

    // The stream holds its permit until it has ended or is dropped.
    if let Err(error) = chat(&client, &base_url, false).send().await {
        let refusal = Refusal::find(&error);
        println!("refused: {error}; by {:?}", refusal.map(Refusal::layer));
    }

    while let Some(chunk) = stream.chunk().await? {
        print!("{}", String::from_utf8_lossy(&chunk));
    }
    println!("bulkhead: {:?}", handle.stats());
    Ok(())
}

fn chat(client: &ClientWithMiddleware, base_url: &str, stream: bool) -> RequestBuilder {
    client
        .post(format!("{base_url}/chat/completions"))
        .bearer_auth(env::var("OPENAI_API_KEY").unwrap_or_default())
        .json(&json!({
            "model": "gpt-5-mini",
            "messages": [{"role": "user", "content": "Where does the river run?"}],
            "stream": stream,
        }))
}
