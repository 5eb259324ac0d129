//! A stack under async-openai, through its hook for HTTP services.
//!
//! Calls `OPENAI_BASE_URL` with `OPENAI_API_KEY`; without the former, a simulated provider of its own.
//! For `https` enable one of reqwest's TLS features.

use std::{env, time::Duration};

use async_openai::{
    Client,
    config::OpenAIConfig,
    error::OpenAIError,
    types::chat::{
        ChatCompletionRequestUserMessage, CreateChatCompletionRequest,
        CreateChatCompletionRequestArgs,
    },
};
use futures_util::StreamExt;
use tower::ServiceBuilder;
use tower_llm_stack::{
    BoxError, BulkheadLayer, Refusal, Stack, TimeoutLayer,
    adapters::{async_openai::OpenAiService, reqwest::ReqwestService},
};
use tower_llm_testkit::{Behavior, SimulatedProvider};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let mut config = OpenAIConfig::new();
    let provider;
    if env::var("OPENAI_BASE_URL").is_err() {
        provider = SimulatedProvider::start().await?;
        // async-openai reads ahead of its user, so the stream must last for the refusal below.
        provider.set(Behavior::new().gap(Duration::from_millis(50)));
        config = config.with_api_base(format!("{}/v1", provider.url()));
    }

    // One call at a time, so that a second one can be seen to be refused.
    let bulkhead = BulkheadLayer::builder(1).max_waiting(0).build()?;
    let handle = bulkhead.handle();
    let stack = Stack::builder()
        .bulkhead(bulkhead)
        .timeout(TimeoutLayer::new())
        .build();
    let service = ServiceBuilder::new()
        .layer(stack)
        .service(ReqwestService::new(reqwest::Client::new()));
    let client = Client::with_config(config).with_http_service(OpenAiService::new(service));

    let answer = client.chat().create(chat()?).await?;
    println!("answer: {:?}", answer.choices[0].message.content);
    println!("usage: {:?}", answer.usage);

    let mut stream = client.chat().create_stream(chat()?).await?;

    // The stream holds its permit until the provider has ended it, or it is dropped.
    if let Err(error) = client.chat().create(chat()?).await {
        let refusal = Refusal::find(&error);
        println!("refused: {error}; by {:?}", refusal.map(Refusal::layer));
    }

    while let Some(part) = stream.next().await {
        for choice in part?.choices {
            println!("part: {:?}", choice.delta.content);
        }
    }
    println!("bulkhead: {:?}", handle.stats());
    Ok(())
}

fn chat() -> Result<CreateChatCompletionRequest, OpenAIError> {
    let question = ChatCompletionRequestUserMessage::from("Where does the river run?");
    CreateChatCompletionRequestArgs::default()
        .model("gpt-5-mini")
        .messages([question.into()])
        .build()
}
