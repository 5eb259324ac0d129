//! A real client.

use async_openai::{
    Client,
    config::OpenAIConfig,
    types::{
        chat::{
            ChatCompletionRequestUserMessageArgs, CreateChatCompletionRequest,
            CreateChatCompletionRequestArgs,
        },
        embeddings::CreateEmbeddingRequestArgs,
    },
};
use futures_util::StreamExt;
use tower_llm_testkit::{Behavior, SimulatedProvider};

use crate::support::Running;

fn client(gateway: &Running) -> Client<OpenAIConfig> {
    let config = OpenAIConfig::new()
        .with_api_base(format!("http://{}/v1", gateway.addr))
        .with_api_key("theirs");
    Client::with_config(config)
}

fn ping() -> CreateChatCompletionRequest {
    let message = ChatCompletionRequestUserMessageArgs::default()
        .content("ping")
        .build()
        .unwrap();
    CreateChatCompletionRequestArgs::default()
        .model("gpt-5-mini")
        .messages([message.into()])
        .build()
        .unwrap()
}

#[tokio::test]
async fn async_openai_chats_through_the_gateway() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Behavior::new().output_tokens(9));
    let gateway = Running::over(&provider, &[]).await;

    let answer = client(&gateway).chat().create(ping()).await.unwrap();

    assert_eq!(answer.model, "gpt-5-mini");
    assert_eq!(answer.usage.unwrap().completion_tokens, 9);
    assert!(answer.choices[0].message.content.is_some());
    assert_eq!(
        provider.recorded()[0].headers["authorization"],
        "Bearer theirs"
    );
}

#[tokio::test]
async fn async_openai_streams_through_the_gateway() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Behavior::new().output_tokens(9));
    let gateway = Running::over(&provider, &[]).await;
    let client = client(&gateway);
    let whole = client.chat().create(ping()).await.unwrap();

    let mut stream = client.chat().create_stream(ping()).await.unwrap();
    let mut words = Vec::new();
    while let Some(part) = stream.next().await {
        let part = part.unwrap();
        words.extend(
            part.choices
                .into_iter()
                .filter_map(|choice| choice.delta.content),
        );
    }

    words.retain(|word| !word.is_empty());
    assert_eq!(words.len(), 9);
    // The words depend on the request, which said `stream` the second time.
    assert!(whole.choices[0].message.content.is_some());
    crate::support::eventually("the permit is free", async || gateway.held() == 0).await;
}

#[tokio::test]
async fn async_openai_embeds_through_the_gateway() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &[]).await;
    let request = CreateEmbeddingRequestArgs::default()
        .model("text-embedding-3-small")
        .input(["one", "two", "three"])
        .build()
        .unwrap();
    let answer = client(&gateway).embeddings().create(request).await.unwrap();
    assert_eq!(answer.data.len(), 3);
}
