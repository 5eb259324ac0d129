//! `adapters::reqwest` against a real server.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use crate::support::{InFlight, eventually, find, nowhere, serve, stream, text};
use bytes::Bytes;
use futures_util::future::poll_fn;
use http::{Request, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt};
use tower_llm_stack::DescribeLayer;
use tower_llm_stack::adapters::base_url::{BaseUrl, BaseUrlError};
use tower_llm_stack::adapters::reqwest::ReqwestService;

fn service() -> ReqwestService {
    ReqwestService::new(client())
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

fn body(text: &'static str) -> Full<Bytes> {
    Full::new(Bytes::from_static(text.as_bytes()))
}

#[tokio::test]
async fn sends_method_path_headers_and_body_and_returns_the_response() {
    let server = serve(async |_, request: Request<Bytes>| {
        assert_eq!(request.method(), "POST");
        assert_eq!(request.uri(), "/v1/chat/completions?a=b");
        assert_eq!(request.headers()["x-tenant"], "blue");
        assert_eq!(request.headers()["content-length"], "4");
        let mut response = text(201, request.into_body());
        response
            .headers_mut()
            .insert("x-request-id", "7".parse().unwrap());
        response
    })
    .await;
    let request = Request::post(server.url("/v1/chat/completions?a=b"))
        .header("x-tenant", "blue")
        .body(body("ping"))
        .unwrap();

    let response = service().oneshot(request).await.unwrap();

    assert_eq!(response.status(), StatusCode::CREATED);
    assert_eq!(response.headers()["x-request-id"], "7");
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "ping"
    );
}

#[tokio::test]
async fn completes_paths_with_the_base_url_and_its_host() {
    let server = serve(async |_, request: Request<Bytes>| {
        let host = request.headers()["host"].to_str().unwrap();
        text(200, format!("{host}{}", request.uri()))
    })
    .await;
    let base = BaseUrl::new(&server.url("/openai/v1")).unwrap();
    let request = Request::post("/v1/models?a=b")
        .header("host", "gateway.local")
        .body(body(""))
        .unwrap();

    let response = service().base_url(base).oneshot(request).await.unwrap();

    let sent = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(sent, format!("{}/openai/v1/models?a=b", server.addr));
}

#[tokio::test]
async fn refuses_an_address_it_cannot_complete() {
    let error = service()
        .oneshot(Request::get("/v1/models").body(body("")).unwrap())
        .await
        .unwrap_err();
    assert!(find::<reqwest::Error>(&*error).unwrap().is_builder());

    let base = BaseUrl::new("http://127.0.0.1:1").unwrap();
    let error = service()
        .base_url(base)
        .oneshot(Request::options("*").body(body("")).unwrap())
        .await
        .unwrap_err();
    assert!(find::<BaseUrlError>(&*error).is_some());
}

#[tokio::test]
async fn a_failed_connection_is_reqwests_own_error() {
    let request = Request::get(nowhere().await).body(body("")).unwrap();
    let error = service().oneshot(request).await.unwrap_err();
    assert!(find::<reqwest::Error>(&*error).unwrap().is_connect());
}

#[tokio::test]
async fn streams_the_response_and_drops_the_call_with_the_body() {
    let (frames, mut senders) = tokio::sync::mpsc::unbounded_channel();
    let server = serve(move |_, _| {
        let (sender, response) = stream();
        frames.send(sender).unwrap();
        std::future::ready(response)
    })
    .await;
    let in_flight = InFlight::default();
    let service = ServiceBuilder::new()
        .layer(in_flight.clone())
        .service(service());
    let request = Request::get(server.url("/")).body(body("")).unwrap();

    let response = service.oneshot(request).await.unwrap();
    let mut body = response.into_body();
    let mut sender = senders.recv().await.unwrap();
    for data in ["one", "two"] {
        // The next frame is not sent before this one was read, so nothing can have been buffered.
        sender.send_data(data.into()).await.unwrap();
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), data);
    }
    assert_eq!((in_flight.0.value(), server.seen.open()), (1, 1));

    drop(body);

    assert_eq!(in_flight.0.value(), 0);
    eventually("the server sees the call end", || server.seen.open() == 0).await;
}

#[tokio::test]
async fn dropping_the_future_ends_the_call() {
    let server = serve(async |_, _| std::future::pending().await).await;
    let request = Request::get(server.url("/")).body(body("")).unwrap();
    let call = tokio::spawn(service().oneshot(request));
    eventually("the request arrives", || server.seen.open() == 1).await;

    call.abort();

    eventually("the server sees the call end", || server.seen.open() == 0).await;
}

#[tokio::test]
async fn bytes_can_be_sent_again_after_a_redirect_and_a_stream_cannot() {
    let server = serve(async |_, request: Request<Bytes>| {
        if request.uri() == "/old" {
            let mut response = text(307, "");
            response
                .headers_mut()
                .insert("location", "/new".parse().unwrap());
            return response;
        }
        text(200, request.into_body())
    })
    .await;
    let old = || Request::post(server.url("/old"));

    let response = service()
        .oneshot(old().body(body("ping")).unwrap())
        .await
        .unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "ping"
    );

    let frames = futures_util::stream::iter([Ok::<_, BoxError>(http_body::Frame::data(
        Bytes::from_static(b"ping"),
    ))]);
    let response = service()
        .oneshot(old().body(StreamBody::new(frames)).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::TEMPORARY_REDIRECT);
}

#[tokio::test]
async fn takes_bodies_of_other_types() {
    let server = serve(async |_, request: Request<Bytes>| text(200, request.into_body())).await;
    let post = || Request::post(server.url("/"));

    let response = service()
        .oneshot(post().body(Empty::<Bytes>::new()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "");

    let reqwest = reqwest::Body::from("ping");
    let response = service()
        .oneshot(post().body(reqwest).unwrap())
        .await
        .unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "ping"
    );
}

#[tokio::test]
async fn is_ready_at_once() {
    let mut service = service();
    let ready = poll_fn(|cx| Service::<Request<Full<Bytes>>>::poll_ready(&mut service, cx));
    assert!(
        futures_util::FutureExt::now_or_never(ready)
            .unwrap()
            .is_ok()
    );
}

#[tokio::test]
async fn a_held_body_is_sent_again_after_a_redirect_and_a_streamed_one_is_not() {
    let server = serve(async |_, request: Request<Bytes>| {
        if request.uri().path() == "/end" {
            return text(200, request.into_body());
        }
        let mut response = text(307, "moved");
        let headers = response.headers_mut();
        headers.insert("location", "/end".parse().unwrap());
        response
    })
    .await;
    let service = DescribeLayer::new().layer(service());
    let post = |content_type: &str, body: &'static str| {
        let request = Request::post(server.url("/begin"))
            .header("content-type", content_type)
            .body(unsync(body))
            .unwrap();
        service.clone().oneshot(request)
    };
    for content_type in ["application/json", "text/plain"] {
        let response = post(content_type, r#"{"a":1}"#).await.unwrap();
        assert_eq!(response.status(), 200);
        let sent = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(sent, r#"{"a":1}"#);
    }
    for content_type in ["multipart/form-data; boundary=b", "audio/wav", ""] {
        let before = server.seen.requests();
        let response = post(content_type, "--b").await.unwrap();
        assert_eq!(
            (response.status().as_u16(), server.seen.requests()),
            (307, before + 1)
        );
    }
}

/// A body that arrives in two frames, of a type that is not `Sync`, as axum's is.
fn unsync(body: &'static str) -> UnsyncBoxBody<Bytes, BoxError> {
    let (first, rest) = body.split_at(1);
    let frames = [first, rest].map(|data| Ok(Frame::data(Bytes::from_static(data.as_bytes()))));
    UnsyncBoxBody::new(StreamBody::new(futures_util::stream::iter(frames)))
}
