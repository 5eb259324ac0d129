//! What a client's error is attributed to: its own timeout, the request body, or the connection.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{find, nowhere, serve, stream as stream_by_hand, text};
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
use tower_llm_stack::adapters::base_url::{BaseUrl, BaseUrlError, BaseUrlLayer};
use tower_llm_stack::adapters::hyper_util::{RequestBodyLayer, client};
use tower_llm_stack::adapters::reqwest::ReqwestService;
use tower_llm_stack::adapters::{RequestBodyError, SentBody};
use tower_llm_stack::{Completion, Failure, Guard, HttpBody, Outcome, Watch};

const TIMEOUT: Duration = Duration::from_millis(50);
const BROKEN: &str = "the upload broke off";

type Upload = StreamBody<stream::Iter<std::array::IntoIter<Result<Frame<Bytes>, BoxError>, 2>>>;

/// Both of reqwest's timeouts that bound the response.
const OWN_TIMEOUTS: [fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder; 2] = [
    |client| client.timeout(TIMEOUT),
    |client| client.read_timeout(TIMEOUT),
];

/// A request body that breaks off after its first frame.
fn broken() -> Upload {
    let first = Ok(Frame::data(Bytes::from_static(b"first")));
    StreamBody::new(stream::iter([first, Err(BROKEN.into())]))
}

fn reqwest(configure: fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder) -> ReqwestService {
    let client = reqwest::Client::builder().no_proxy();
    ReqwestService::new(configure(client).build().unwrap())
}

fn hyper<B>(configure: fn(&mut hyper_util::client::legacy::Builder)) -> Client<HttpConnector, B>
where
    B: Body + Send,
    B::Data: Send,
{
    let mut builder = Client::builder(TokioExecutor::new());
    configure(&mut builder);
    builder.build(HttpConnector::new())
}

fn outcome(error: &BoxError) -> Outcome {
    Completion::of_error(&**error).outcome
}

/// How a call ended, as a layer around the client sees it.
#[derive(Clone, Default)]
struct Ended(Arc<Mutex<Option<Outcome>>>);

impl Guard for Ended {
    fn end(&mut self, completion: &Completion) {
        *self.0.lock().unwrap() = Some(completion.outcome);
    }
}

/// Reads `response` until it fails, and returns the error and the outcome that layers saw.
async fn fails<B>(response: Response<B>) -> (BoxError, Outcome)
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let ended = Ended::default();
    let response = HttpBody.watch(None, response, ended.clone());
    let error = response.into_body().collect().await.unwrap_err();
    let outcome = ended.0.lock().unwrap().take();
    (error, outcome.unwrap())
}

#[tokio::test]
async fn reqwests_own_timeout_counts_against_the_model() {
    let server = serve(async |_, _| std::future::pending().await).await;
    for configure in OWN_TIMEOUTS {
        let request = Request::get(server.url("/"))
            .body(Empty::<Bytes>::new())
            .unwrap();
        let error = reqwest(configure).oneshot(request).await.unwrap_err();
        assert_eq!(outcome(&error), Outcome::Failed(Failure::Timeout));
        assert!(find::<reqwest::Error>(&*error).unwrap().is_timeout());
    }
}

#[tokio::test]
async fn reqwests_own_timeout_within_a_body_counts_against_the_model() {
    let (senders, mut sent) = tokio::sync::mpsc::unbounded_channel();
    let server = serve(move |_, _| {
        let (sender, response) = stream_by_hand();
        senders.send(sender).unwrap();
        std::future::ready(response)
    })
    .await;
    for configure in OWN_TIMEOUTS {
        let request = Request::get(server.url("/"))
            .body(Empty::<Bytes>::new())
            .unwrap();
        let response = reqwest(configure).oneshot(request).await.unwrap();
        let mut sender = sent.recv().await.unwrap();
        sender.send_data("one".into()).await.unwrap();
        let (error, outcome) = fails(response).await;
        assert_eq!(outcome, Outcome::Failed(Failure::Timeout));
        assert!(find::<reqwest::Error>(&*error).unwrap().is_timeout());
    }
}

#[tokio::test]
async fn a_refused_connection_is_a_connection_failure() {
    let request = Request::get(nowhere().await)
        .body(Empty::<Bytes>::new())
        .unwrap();
    let error = reqwest(|client| client.timeout(Duration::from_secs(30)))
        .oneshot(request)
        .await
        .unwrap_err();
    assert_eq!(outcome(&error), Outcome::Failed(Failure::Transport));
    assert!(error.is::<reqwest::Error>());
}

#[tokio::test]
async fn a_request_that_cannot_be_sent_is_a_client_error() {
    let request = || {
        Request::options("*")
            .body(Full::<Bytes>::default())
            .unwrap()
    };

    let error = reqwest(|client| client)
        .oneshot(request())
        .await
        .unwrap_err();
    assert_eq!(outcome(&error), Outcome::ClientError);
    assert!(find::<reqwest::Error>(&*error).unwrap().is_builder());

    let base = BaseUrl::new("http://127.0.0.1:1").unwrap();
    let service = reqwest(|client| client).base_url(base.clone());
    let error = service.oneshot(request()).await.unwrap_err();
    assert_eq!(outcome(&error), Outcome::ClientError);
    assert!(find::<BaseUrlError>(&*error).is_some());

    let service = ServiceBuilder::new()
        .layer(BaseUrlLayer::new(base))
        .service(client(HttpConnector::new()));
    let error = service.oneshot(request()).await.unwrap_err();
    assert_eq!(outcome(&error), Outcome::ClientError);
    assert!(find::<BaseUrlError>(&*error).is_some());
}

/// A call whose request body breaks off while it is sent.
async fn sends_a_broken_body<S, R>(service: S)
where
    S: Service<Request<Upload>, Response = Response<R>, Error = BoxError>,
    R: std::fmt::Debug,
{
    let server = serve(async |_, _| text(200, "never sent")).await;
    let request = Request::post(server.url("/")).body(broken()).unwrap();
    let error = service.oneshot(request).await.unwrap_err();
    assert_eq!(outcome(&error), Outcome::ClientError, "{error:?}");
    let body = find::<RequestBodyError>(&*error).unwrap();
    let cause = std::error::Error::source(body).unwrap();
    assert_eq!(
        std::iter::successors(Some(cause), |&e| e.source())
            .last()
            .unwrap()
            .to_string(),
        BROKEN
    );
}

#[tokio::test]
async fn a_broken_request_body_is_a_client_error() {
    sends_a_broken_body(reqwest(|client| client)).await;
    let layer = ServiceBuilder::new().layer(RequestBodyLayer::new());
    sends_a_broken_body(layer.service(hyper::<SentBody<Upload>>(|_| {}))).await;
}

/// Over HTTP/2 the client resets the stream, and its error does not name the body at all.
#[tokio::test]
async fn a_broken_request_body_is_a_client_error_over_http2() {
    sends_a_broken_body(reqwest(|client| client.http2_prior_knowledge())).await;
    let layer = ServiceBuilder::new().layer(RequestBodyLayer::new());
    let client = hyper::<SentBody<Upload>>(|builder| {
        builder.http2_only(true);
    });
    sends_a_broken_body(layer.service(client)).await;
}

/// A server that responds before it has read the request body.
async fn answers_early() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        // Reads until the client closes.
        tokio::io::copy(&mut stream, &mut tokio::io::sink())
            .await
            .ok();
    });
    url
}

async fn breaks_off_during_the_response<S, R>(service: S)
where
    S: Service<Request<Channel<Bytes, BoxError>>, Response = Response<R>, Error = BoxError>,
    R: Body<Data = Bytes, Error: Into<BoxError>>,
{
    let (sender, body): (Sender<Bytes, BoxError>, _) = Channel::new(1);
    let request = Request::post(answers_early().await).body(body).unwrap();
    let response = service.oneshot(request).await.unwrap();

    sender.abort(BROKEN.into());

    // The model was at work: the call is charged for what was seen, as if the caller had disconnected.
    let (error, seen) = fails(response).await;
    assert_eq!(seen, Outcome::Abandoned);
    assert_eq!(outcome(&error), Outcome::ClientError);
    assert!(find::<RequestBodyError>(&*error).is_some());
}

#[tokio::test]
async fn a_request_body_broken_during_the_response_is_a_disconnect() {
    breaks_off_during_the_response(reqwest(|client| client)).await;
    let layer = ServiceBuilder::new().layer(RequestBodyLayer::new());
    breaks_off_during_the_response(layer.service(hyper(|_| {}))).await;
}
