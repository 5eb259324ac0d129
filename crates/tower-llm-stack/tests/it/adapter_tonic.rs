//! `adapters::tonic`: layers around a real channel, under a real gRPC client.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::time::Duration;

use crate::support::{InFlight, Refused, Server, ServerBody, eventually, find, serve};
use bytes::{Buf, BufMut, Bytes};
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, Request};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::timeout::error::Elapsed;
use tower::{BoxError, Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_llm_stack::adapters::tonic::StatusLayer;
use tower_llm_stack::{
    BreakerLayer, BulkheadLayer, Call, DescribeLayer, Limit, Operation, Provider, RateLimitLayer,
    Refusal, RequestBody, Stack, TimedOut, TimeoutLayer, breaker::CircuitId,
};

const UNENCODABLE: &[u8] = b"unencodable";

/// Messages are bytes, whose meaning does not matter here.
#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, dst: &mut EncodeBuf<'_>) -> Result<(), Status> {
        if item == UNENCODABLE {
            return Err(Status::invalid_argument("cannot be encoded"));
        }
        dst.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(src.copy_to_bytes(src.remaining())))
    }
}

/// A gRPC message as sent.
pub(crate) fn message(payload: &[u8]) -> Bytes {
    let mut message = vec![0];
    message.put_u32(u32::try_from(payload.len()).unwrap());
    message.put_slice(payload);
    message.into()
}

pub(crate) fn answer(
    messages: Vec<Bytes>,
    then: impl Future<Output = ()> + Send + Sync + 'static,
) -> http::Response<ServerBody> {
    let data = messages
        .into_iter()
        .map(|data| Ok::<_, BoxError>(Frame::data(data)));
    let end = futures_util::stream::once(async move {
        then.await;
        let trailers = HeaderMap::from_iter([(
            "grpc-status".parse().unwrap(),
            HeaderValue::from_static("0"),
        )]);
        Ok(Frame::trailers(trailers))
    });
    http::Response::builder()
        .header("content-type", "application/grpc")
        .body(BodyExt::boxed(StreamBody::new(
            futures_util::stream::iter(data).chain(end),
        )))
        .unwrap()
}

/// A response without messages.
pub(crate) fn unavailable() -> http::Response<ServerBody> {
    let mut response = answer(vec![], std::future::ready(())).map(|_| {
        let empty = http_body_util::Empty::new();
        BodyExt::boxed(empty.map_err(|never| match never {}))
    });
    let code = HeaderValue::from(Code::Unavailable as i32);
    response.headers_mut().insert("grpc-status", code);
    response
}

fn channel(server: &Server) -> Channel {
    Endpoint::from_shared(server.url(""))
        .unwrap()
        .connect_lazy()
}

#[tokio::test]
async fn a_layer_with_a_body_of_its_own_goes_around_a_channel() {
    let server = serve(async |_, request: Request<Bytes>| {
        assert_eq!(request.uri().path(), "/llm.Chat/Complete");
        assert_eq!(request.body(), &message(b"ping"));
        answer(vec![message(b"pong")], std::future::ready(()))
    })
    .await;
    let in_flight = InFlight::default();
    let stack = ServiceBuilder::new()
        .layer(StatusLayer::new(|_| None))
        .layer(in_flight.clone())
        .concurrency_limit(1)
        .service(channel(&server));
    let mut client = tonic::client::Grpc::new(stack);

    for _ in 0..2 {
        client.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static("/llm.Chat/Complete");
        let request = tonic::Request::new(Bytes::from_static(b"ping"));
        let response = client.unary(request, path, Raw).await.unwrap();
        assert_eq!(response.into_inner(), "pong");
    }
    assert_eq!(in_flight.0.value(), 0);
}

#[tokio::test]
async fn a_stream_holds_its_layers_until_it_is_dropped() {
    let server = serve(async |_, _| answer(vec![message(b"one")], std::future::pending())).await;
    let in_flight = InFlight::default();
    let stack = ServiceBuilder::new()
        .layer(in_flight.clone())
        .service(channel(&server));
    let mut client = tonic::client::Grpc::new(stack);

    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/llm.Chat/Stream");
    let request = tonic::Request::new(Bytes::from_static(b"ping"));
    let mut messages = client
        .server_streaming(request, path, Raw)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(messages.message().await.unwrap().unwrap(), "one");
    assert_eq!((in_flight.0.value(), server.seen.open()), (1, 1));

    drop(messages);

    assert_eq!(in_flight.0.value(), 0);
    eventually("the server sees the stream reset", || {
        server.seen.open() == 0
    })
    .await;
}

#[tokio::test]
async fn an_error_gets_the_code_of_one_of_its_sources() {
    let server = serve(async |_, _| std::future::pending().await).await;
    let code_of = |error: &(dyn std::error::Error + 'static)| {
        if error.is::<Elapsed>() {
            return Some(Code::DeadlineExceeded);
        }
        error.is::<Refused>().then_some(Code::ResourceExhausted)
    };
    let stack = ServiceBuilder::new()
        .layer(StatusLayer::new(code_of))
        .timeout(Duration::from_millis(50))
        .service(channel(&server));
    let mut client = tonic::client::Grpc::new(stack);
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/llm.Chat/Complete");
    let request = tonic::Request::new(Bytes::new());
    let status = client.unary(request, path, Raw).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);

    #[derive(Debug)]
    struct Wrapped(Refused);
    impl std::fmt::Display for Wrapped {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("branch failed")
        }
    }
    impl std::error::Error for Wrapped {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }
    let stack = ServiceBuilder::new()
        .layer(StatusLayer::new(code_of))
        .service(service_fn(async |()| {
            Err::<http::Response<ServerBody>, BoxError>(Wrapped(Refused("tokens")).into())
        }));
    let status = stack.oneshot(()).await.err().unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "branch failed");
    assert_eq!(find::<Refused>(&status), Some(&Refused("tokens")));
}

#[tokio::test]
async fn an_error_without_a_code_gets_tonics_own() {
    let failing = |error: fn() -> BoxError| {
        ServiceBuilder::new()
            .layer(StatusLayer::new(|_| None))
            .service(service_fn(move |()| {
                std::future::ready(Err::<http::Response<ServerBody>, BoxError>(error()))
            }))
            .oneshot(())
    };
    let status = failing(|| Refused("tokens").into()).await.err().unwrap();
    assert_eq!(status.code(), Code::Unknown);
    assert_eq!(find::<Refused>(&status), Some(&Refused("tokens")));

    let status = failing(|| Status::aborted("conflict").into())
        .await
        .err()
        .unwrap();
    assert_eq!(status.code(), Code::Aborted);
}

/// The code was `UNKNOWN`: the layer saw only errors instead of response headers.
#[tokio::test]
async fn an_error_inside_a_stream_gets_its_code_too() {
    let server = serve(async |_, _| answer(vec![message(b"one")], std::future::pending())).await;
    let idle = TimeoutLayer::builder().idle(Duration::from_secs(2));
    let stack = ServiceBuilder::new()
        .layer(StatusLayer::refusals())
        .layer(idle.build().unwrap())
        .service(channel(&server));
    let mut client = tonic::client::Grpc::new(stack);

    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/llm.Chat/Stream");
    let request = tonic::Request::new(Bytes::from_static(b"ping"));
    let response = client.server_streaming(request, path, Raw).await.unwrap();
    let mut messages = response.into_inner();
    assert_eq!(messages.message().await.unwrap().unwrap(), "one");
    let status = messages.message().await.unwrap_err();

    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(status.message(), "nothing more came within 2s");
    assert!(find::<TimedOut>(&status).is_some());
}

#[tokio::test]
async fn a_described_request_goes_into_a_channel_as_tonics_own_body() {
    let service = DescribeLayer::new().layer(service_fn(
        async |request: Request<RequestBody<tonic::body::Body>>| {
            // Messages are not JSON, so a stream of them is not collected.
            assert_eq!(request.body().as_bytes(), None);
            let request: Request<tonic::body::Body> = request.map(tonic::body::Body::new);
            let body = request.into_body().collect().await?;
            Ok::<_, BoxError>(body.to_bytes())
        },
    ));
    let message = tonic::body::Body::new(http_body_util::Full::new(Bytes::from("\0\0\0\0\0")));
    let request = Request::post("/llm.v1.Model/Generate")
        .header("content-type", "application/grpc")
        .body(message)
        .unwrap();
    assert_eq!(service.oneshot(request).await.unwrap().len(), 5);
}

// === Stack::grpc ===

pub(crate) type Client<S> = tonic::client::Grpc<S>;

/// Calls a model, which the request names.
pub(crate) async fn ask<S, B>(
    client: &mut Client<S>,
    message: &'static [u8],
) -> Result<tonic::Response<Bytes>, Status>
where
    S: tonic::client::GrpcService<tonic::body::Body, ResponseBody = B>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    client
        .ready()
        .await
        .map_err(|_| Status::unavailable("not ready"))?;
    let path = http::uri::PathAndQuery::from_static("/llm.Chat/Complete");
    let mut request = tonic::Request::new(Bytes::from_static(message));
    let call = Call::builder(Provider::OPENAI, Operation::CHAT).model("m");
    request.extensions_mut().insert(call.build());
    client.unary(request, path, Raw).await
}

#[tokio::test]
async fn a_grpc_stack_answers_refusals_with_a_code() {
    let server = serve(async |_, _| answer(vec![message(b"pong")], std::future::ready(()))).await;
    let limit = RateLimitLayer::for_callers().limit(Limit::requests(1).per_minute());
    let stack = Stack::grpc()
        .caller_rate_limit(limit.build().unwrap())
        .build();
    let mut client = Client::new(ServiceBuilder::new().layer(stack).service(channel(&server)));
    assert_eq!(
        ask(&mut client, b"ping").await.unwrap().into_inner(),
        "pong"
    );
    let status = ask(&mut client, b"ping").await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(find::<Refusal>(&status).unwrap().layer(), "ratelimit");

    let full = BulkheadLayer::builder(1).max_waiting(0).build().unwrap();
    let server = serve(async |_, _| std::future::pending().await).await;
    let stack = Stack::grpc().bulkhead(full).build();
    let client = Client::new(ServiceBuilder::new().layer(stack).service(channel(&server)));
    let mut holder = client.clone();
    let held = tokio::spawn(async move { ask(&mut holder, b"ping").await });
    eventually("the first call arrives", || server.seen.open() == 1).await;
    let status = ask(&mut client.clone(), b"ping").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    held.abort();
}

/// Failures that the circuits of the model and of the connection to its provider have counted.
fn failures(breaker: &BreakerLayer) -> (u64, u64) {
    let handle = breaker.handle();
    let of = |id| handle.stats_of(&id).map_or(0, |stats| stats.failures);
    let model = CircuitId::model("openai", "m");
    (of(model), of(CircuitId::provider("openai")))
}

/// The timeout was a failure of the connection, with the code `CANCELLED`.
#[tokio::test]
async fn a_timeout_of_the_channel_counts_against_the_model() {
    let server = serve(async |_, _| std::future::pending().await).await;
    let endpoint = Endpoint::from_shared(server.url("")).unwrap();
    let channel = endpoint.timeout(Duration::from_millis(50)).connect_lazy();
    let breaker = BreakerLayer::new();
    let stack = Stack::grpc().breaker(breaker.clone()).build();
    let mut client = Client::new(ServiceBuilder::new().layer(stack).service(channel));

    let status = ask(&mut client, b"ping").await.unwrap_err();

    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(failures(&breaker), (1, 0));
}

/// The error was a failure of the connection.
#[tokio::test]
async fn a_message_that_cannot_be_encoded_is_a_client_error() {
    let server = serve(async |_, _| answer(vec![], std::future::ready(()))).await;
    let breaker = BreakerLayer::new();
    let stack = Stack::grpc().breaker(breaker.clone()).build();
    let mut client = Client::new(ServiceBuilder::new().layer(stack).service(channel(&server)));

    let status = ask(&mut client, UNENCODABLE).await.unwrap_err();

    // tonic reports every error of a codec as an internal one.
    assert_eq!(status.code(), Code::Internal);
    assert!(status.message().contains("cannot be encoded"), "{status}");
    assert_eq!(failures(&breaker), (0, 0));
}
