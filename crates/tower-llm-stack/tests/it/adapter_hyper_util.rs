//! `adapters::hyper_util` and `adapters::base_url` against a real server.

use crate::support::{InFlight, eventually, find, serve, stream, text};
use bytes::Bytes;
use http::{Request, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper_util::client::legacy::connect::HttpConnector;
use tower::{BoxError, Layer, ServiceBuilder, ServiceExt};
use tower_llm_stack::DescribeLayer;
use tower_llm_stack::adapters::base_url::{BaseUrl, BaseUrlError, BaseUrlLayer};
use tower_llm_stack::adapters::hyper_util::client;

#[tokio::test]
async fn completes_paths_and_sets_the_host() {
    let server = serve(async |_, request: Request<Bytes>| {
        let host = request.headers()["host"].to_str().unwrap();
        text(200, format!("{host}{}", request.uri()))
    })
    .await;
    let service = ServiceBuilder::new()
        .layer(BaseUrlLayer::new(BaseUrl::new(&server.url("/v1")).unwrap()))
        .service(client(HttpConnector::new()));

    for path in ["/models", "/v1/models"] {
        let mut request = Request::get(path).body(Full::<Bytes>::default()).unwrap();
        // As a server forwards it after an HTTP/2 request; hyper's client would reject it.
        *request.version_mut() = Version::HTTP_2;
        request
            .headers_mut()
            .insert("host", "gateway.local".parse().unwrap());
        let response = service.clone().oneshot(request).await.unwrap();
        let sent = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(sent, format!("{}/v1/models", server.addr));
    }
}

#[tokio::test]
async fn an_address_that_cannot_be_joined_is_not_sent() {
    let server = serve(async |_, _| text(200, "")).await;
    let service = ServiceBuilder::new()
        .layer(BaseUrlLayer::new(server.url("").parse().unwrap()))
        .service(client(HttpConnector::new()));

    let request = Request::options("*")
        .body(Full::<Bytes>::default())
        .unwrap();
    let error = service.oneshot(request).await.unwrap_err();

    assert!(find::<BaseUrlError>(&*error).is_some());
    assert_eq!(server.seen.requests(), 0);
}

#[tokio::test]
async fn streams_and_drops_the_call_with_the_body() {
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
        .service(client(HttpConnector::new()));

    let request = Request::get(server.url("/"))
        .body(Full::<Bytes>::default())
        .unwrap();
    let mut body = service.oneshot(request).await.unwrap().into_body();
    let mut sender = senders.recv().await.unwrap();
    sender.send_data("one".into()).await.unwrap();
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        "one"
    );
    assert_eq!((in_flight.0.value(), server.seen.open()), (1, 1));

    drop(body);

    assert_eq!(in_flight.0.value(), 0);
    eventually("the server sees the call end", || server.seen.open() == 0).await;
}

#[tokio::test]
async fn more_than_a_hundred_response_headers_pass() {
    let server = serve(async |_, _| {
        let mut response = text(200, "");
        for number in 0..300 {
            let name = http::HeaderName::try_from(format!("x-{number}")).unwrap();
            response.headers_mut().insert(name, number.into());
        }
        response
    })
    .await;
    let request = Request::get(server.url("/"))
        .body(Full::<Bytes>::default())
        .unwrap();
    let response = client(HttpConnector::new()).oneshot(request).await.unwrap();
    assert_eq!(response.headers()["x-299"], "299");
}

#[tokio::test]
async fn an_upload_keeps_its_framing() {
    let server = serve(async |_, request: Request<Bytes>| {
        let framing = match request.headers().get("content-length") {
            Some(length) => length.to_str().unwrap().to_owned(),
            None => "chunked".to_owned(),
        };
        text(200, format!("{framing} {}", request.body().len()))
    })
    .await;
    let service = DescribeLayer::new().layer(client(HttpConnector::new()));
    let frames = || {
        let frames = ["RIFF", "more"].map(|data| Ok::<_, BoxError>(Frame::data(Bytes::from(data))));
        StreamBody::new(futures_util::stream::iter(frames))
    };
    let known = BoxBody::new(Full::new(Bytes::from("RIFFmore")).map_err(BoxError::from));
    for (body, expected) in [(BoxBody::new(frames()), "chunked 8"), (known, "8 8")] {
        let request = Request::post(server.url("/v1/audio/transcriptions"))
            .header("content-type", "audio/wav")
            .body(body)
            .unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        let seen = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(seen, expected);
    }
}
