//! `adapters::async_openai`: a real async-openai client over tower layers.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{
    InFlight, Refused, ServerBody, eventually, find, nowhere, serve, stream, text,
};
use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::middleware::retry::OpenAIRetryLayer;
use async_openai::middleware::{HttpRequestFactory, ReqwestService as Theirs};
use async_openai::types::chat::{
    ChatCompletionRequestUserMessageArgs, CreateChatCompletionRequest,
    CreateChatCompletionRequestArgs,
};
use bytes::Bytes;
use futures_util::StreamExt;
use http::Request;
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use reqwest::Body;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_llm_stack::RequestBody;
use tower_llm_stack::adapters::StackError;
use tower_llm_stack::adapters::async_openai::OpenAiService;
use tower_llm_stack::adapters::reqwest::ReqwestService;

const COMPLETION: &str = r#"{
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-5",
    "choices": [{"index": 0, "finish_reason": "stop", "logprobs": null,
        "message": {"role": "assistant", "content": "pong", "refusal": null}}]
}"#;

fn chunk(content: &str) -> Bytes {
    let json = format!(
        r#"{{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-5",
        "choices":[{{"index":0,"delta":{{"content":"{content}"}},"finish_reason":null}}]}}"#
    );
    // One event is one line.
    format!("data: {}\n\n", json.replace('\n', "")).into()
}

fn upstream() -> ReqwestService {
    ReqwestService::new(plain())
}

fn plain() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

fn client<S>(url: String, service: S) -> Client<OpenAIConfig>
where
    S: Service<HttpRequestFactory, Response = reqwest::Response> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    S::Error: Into<OpenAIError> + Send + Sync + 'static,
{
    let config = OpenAIConfig::new()
        .with_api_base(url)
        .with_api_key("test-key");
    Client::with_config(config).with_http_service(service)
}

fn ping() -> CreateChatCompletionRequest {
    let message = ChatCompletionRequestUserMessageArgs::default()
        .content("ping")
        .build()
        .unwrap();
    CreateChatCompletionRequestArgs::default()
        .model("gpt-5")
        .messages([message.into()])
        .build()
        .unwrap()
}

async fn refuse(_: Request<RequestBody<Body>>) -> Result<http::Response<Full<Bytes>>, BoxError> {
    Err(Refused("tokens").into())
}

#[tokio::test]
async fn a_chat_call_goes_through_the_layers() {
    let server = serve(async |_, request: Request<Bytes>| {
        assert_eq!(request.uri(), "/v1/chat/completions");
        assert_eq!(request.headers()["authorization"], "Bearer test-key");
        assert!(request.body().starts_with(b"{"));
        text(200, COMPLETION)
    })
    .await;
    let in_flight = InFlight::default();
    let stack = ServiceBuilder::new()
        .layer(in_flight.clone())
        .concurrency_limit(1)
        .service(upstream());
    let client = client(server.url("/v1"), OpenAiService::new(stack));

    let response = client.chat().create(ping()).await.unwrap();

    assert_eq!(response.choices[0].message.content.as_deref(), Some("pong"));
    assert_eq!(in_flight.0.value(), 0);
}

#[tokio::test]
async fn a_streamed_chat_call_holds_its_layers_until_the_stream_is_dropped() {
    let (frames, mut senders) = tokio::sync::mpsc::unbounded_channel();
    let server = serve(move |_, _| {
        let (sender, response) = stream();
        frames.send(sender).unwrap();
        std::future::ready(response)
    })
    .await;
    let in_flight = InFlight::default();
    let stack = ServiceBuilder::new()
        .layer(in_flight.clone())
        .service(upstream());
    let client = client(server.url("/v1"), OpenAiService::new(stack));

    let mut answer = client.chat().create_stream(ping()).await.unwrap();
    let mut sender = senders.recv().await.unwrap();
    for content in ["po", "ng"] {
        // The next event is not sent before this one was read, so nothing can have been buffered.
        sender.send_data(chunk(content)).await.unwrap();
        let part = answer.next().await.unwrap().unwrap();
        assert_eq!(part.choices[0].delta.content.as_deref(), Some(content));
    }
    assert_eq!((in_flight.0.value(), server.seen.open()), (1, 1));

    drop(answer);

    // async-openai reads in its own task, which has to notice the drop.
    eventually("the layers release the call", || in_flight.0.value() == 0).await;
    eventually("the server sees the call end", || server.seen.open() == 0).await;
}

#[tokio::test]
async fn a_refusal_names_its_cause() {
    let refusing = || {
        client(
            "http://127.0.0.1:1/v1".into(),
            OpenAiService::new(service_fn(refuse)),
        )
    };

    for error in [
        refusing().chat().create(ping()).await.unwrap_err(),
        refusing().chat().create_stream(ping()).await.err().unwrap(),
    ] {
        assert_eq!(error.to_string(), "refused: tokens");
        assert_eq!(find::<Refused>(&error), Some(&Refused("tokens")));
        let OpenAIError::Boxed(boxed) = error else {
            panic!("not boxed: {error:?}");
        };
        let inner = boxed.downcast::<StackError>().unwrap().into_inner();
        assert_eq!(*inner.downcast::<Refused>().unwrap(), Refused("tokens"));
    }
}

#[tokio::test]
async fn async_openais_retry_layer_repeats_responses_but_no_refusals() {
    let server = serve(async |number, _| match number {
        0 => text(503, "busy"),
        _ => text(200, COMPLETION),
    })
    .await;
    let retried = ServiceBuilder::new()
        .layer(OpenAIRetryLayer::new(3))
        .service(OpenAiService::new(upstream()));
    client(server.url("/v1"), retried)
        .chat()
        .create(ping())
        .await
        .unwrap();
    assert_eq!(server.seen.requests(), 2);

    let refusals = Arc::new(AtomicUsize::new(0));
    let counted = refusals.clone();
    let refusing = service_fn(move |request| {
        counted.fetch_add(1, Ordering::SeqCst);
        refuse(request)
    });
    let retried = ServiceBuilder::new()
        .layer(OpenAIRetryLayer::new(3))
        .service(OpenAiService::new(refusing));
    let error = client(server.url("/v1"), retried)
        .chat()
        .create(ping())
        .await
        .unwrap_err();
    assert_eq!(find::<Refused>(&error), Some(&Refused("tokens")));
    assert_eq!(refusals.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn only_the_stack_retries() {
    let server = serve(async |_, _| text(503, "busy")).await;
    let client = client(server.url("/v1"), OpenAiService::new(upstream()));

    let error = client.chat().create(ping()).await.unwrap_err();

    assert!(matches!(error, OpenAIError::ApiError(error) if error.status_code == 503));
    assert_eq!(server.seen.requests(), 1);
}

#[tokio::test]
async fn a_failed_connection_is_reqwests_error_as_without_a_stack() {
    let url = format!("{}/v1", nowhere().await);
    let stack = ServiceBuilder::new()
        .concurrency_limit(1)
        .service(upstream());
    let ours = client(url.clone(), OpenAiService::new(stack));
    let theirs = client(url, Theirs::new(plain()));
    for client in [ours, theirs] {
        let error = client.chat().create(ping()).await.unwrap_err();
        assert!(
            matches!(&error, OpenAIError::Reqwest(error) if error.is_connect()),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_built_is_async_openais_own_error() {
    let client = client("no address".into(), OpenAiService::new(upstream()));
    let error = client.chat().create(ping()).await.unwrap_err();
    assert!(
        matches!(&error, OpenAIError::Reqwest(error) if error.is_builder()),
        "{error:?}"
    );
}

/// If this fails, async-openai now keeps the cause: change the adapter's docs.
#[tokio::test]
async fn an_error_inside_a_stream_loses_its_cause() {
    let server = serve(async |_, _| -> http::Response<ServerBody> {
        let (mut sender, response) = stream();
        sender.send_data(chunk("po")).await.unwrap();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            drop(sender);
        });
        response
    })
    .await;
    let cut = |response: http::Response<reqwest::Body>| {
        response.map(|body| {
            let frames = BodyStream::new(body.map_err(BoxError::from)).take(1);
            let cut = futures_util::stream::iter([Err(BoxError::from(Refused("idle")))]);
            StreamBody::new(frames.chain(cut))
        })
    };
    let stack = ServiceBuilder::new().map_response(cut).service(upstream());
    let client = client(server.url("/v1"), OpenAiService::new(stack));

    let mut answer = client.chat().create_stream(ping()).await.unwrap();
    answer.next().await.unwrap().unwrap();
    let error = answer.next().await.unwrap().unwrap_err();

    assert!(matches!(error, OpenAIError::StreamError(_)));
    assert!(
        error.to_string().contains("error decoding response body"),
        "{error}"
    );
    assert_eq!(find::<Refused>(&error), None);
    assert!(answer.next().await.is_none());
}

#[tokio::test]
async fn json_is_held_and_a_form_is_streamed_and_keeps_its_length() {
    let server = serve(async |_, request: Request<Bytes>| {
        let length = request.headers()["content-length"].to_str().unwrap();
        assert_eq!(length, request.body().len().to_string());
        text(200, request.into_body())
    })
    .await;
    let stack = ServiceBuilder::new()
        .map_request(|request: Request<RequestBody<Body>>| {
            let is_form = request.headers()["content-type"] != "application/json";
            assert_eq!(request.body().as_bytes().is_none(), is_form);
            request
        })
        .service(upstream());
    let service = OpenAiService::new(stack);
    let sent = "x".repeat(1000);
    let url = server.url("/v1/files");

    let (to, file) = (url.clone(), sent.clone());
    let form = HttpRequestFactory::new(move || {
        let form = reqwest::multipart::Form::new().text("file", file.clone());
        let request = reqwest::Client::new().post(&to).multipart(form).build();
        async move { Ok(request?) }
    });
    let response = service.clone().oneshot(form).await.unwrap();
    assert_eq!(response.url().path(), "/v1/files");
    assert!(response.text().await.unwrap().contains(&sent));

    let json = HttpRequestFactory::new(move || {
        let request = reqwest::Client::new().post(&url).json(&[1]).build();
        async move { Ok(request?) }
    });
    let response = service.oneshot(json).await.unwrap();
    assert_eq!(response.text().await.unwrap(), "[1]");
}

#[tokio::test]
async fn calls_the_stack_that_was_made_ready() {
    // The mock panics if it is called without having been readied.
    let (stack, mut handle) =
        tower_test::mock::pair::<Request<RequestBody<Body>>, http::Response<Full<Bytes>>>();
    let mut service = OpenAiService::new(stack);
    let factory = HttpRequestFactory::new(|| async {
        Ok(reqwest::Client::new()
            .post("http://h/v1/embeddings")
            .body("ping")
            .build()?)
    });

    handle.allow(0);
    assert!(futures_util::poll!(service.ready()).is_pending());
    handle.allow(1);
    let response = service.ready().await.unwrap().call(factory);
    let (response, ()) = tokio::join!(response, async {
        let (request, reply) = handle.next_request().await.unwrap();
        assert_eq!(request.uri(), "http://h/v1/embeddings");
        assert_eq!(
            request.into_body().collect().await.unwrap().to_bytes(),
            "ping"
        );
        reply.send_response(http::Response::new(Full::from("pong")));
    });

    let response = response.unwrap();
    // The stack made the response, so it has the request's address.
    assert_eq!(response.url().as_str(), "http://h/v1/embeddings");
    assert_eq!(response.text().await.unwrap(), "pong");
}
