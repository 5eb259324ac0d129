//! `adapters::reqwest_middleware`: tower layers inside a real `ClientWithMiddleware`.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::support::{Gauge, InFlight, Refused, eventually, find, nowhere, serve, stream, text};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use http::{Extensions, Request, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use reqwest::{Body, Response};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Error, Middleware, Next};
use tower::limit::ConcurrencyLimitLayer;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt};
use tower_llm_stack::adapters::reqwest_middleware::{Port, PortError, TowerMiddleware};
use tower_llm_stack::{Completion, Outcome, RequestBody};

type InnerRequest = Request<RequestBody<Body>>;
type InnerResponse = http::Response<Body>;
type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A layer made of an async function that may call the port as it likes.
#[derive(Clone)]
struct Calls<F>(F);

impl<F: Clone> Layer<Port> for Calls<F> {
    type Service = CallsService<F>;

    fn layer(&self, port: Port) -> Self::Service {
        CallsService {
            port,
            calls: self.0.clone(),
        }
    }
}

#[derive(Clone)]
struct CallsService<F> {
    port: Port,
    calls: F,
}

impl<F, Fut> Service<InnerRequest> for CallsService<F>
where
    F: Fn(Port, InnerRequest) -> Fut,
    Fut: Future<Output = Result<InnerResponse, BoxError>> + Send + 'static,
{
    type Response = InnerResponse;
    type Error = BoxError;
    type Future = BoxFuture<Result<InnerResponse, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: InnerRequest) -> Self::Future {
        Box::pin((self.calls)(self.port.clone(), request))
    }
}

/// Clones the request, whose body is held.
fn clone(request: &InnerRequest) -> InnerRequest {
    RequestBody::try_clone_request(request).unwrap()
}

fn plain() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

fn client(middleware: impl Middleware) -> ClientWithMiddleware {
    ClientBuilder::new(plain()).with(middleware).build()
}

fn layered<L>(layer: L) -> ClientWithMiddleware
where
    L: Layer<Port>,
    TowerMiddleware<L::Service>: Middleware,
{
    client(TowerMiddleware::new(layer))
}

#[tokio::test]
async fn request_and_response_pass_unchanged() {
    let server = serve(async |_, request: Request<Bytes>| {
        assert_eq!(request.method(), "POST");
        assert_eq!(request.headers()["x-tenant"], "blue");
        let mut response = text(201, request.into_body());
        response
            .headers_mut()
            .insert("x-request-id", "7".parse().unwrap());
        response
    })
    .await;
    let url = server.url("/v1/chat/completions?a=b");

    let response = layered(InFlight::default())
        .post(&url)
        .header("x-tenant", "blue")
        .body("ping")
        .send()
        .await
        .unwrap();

    assert_eq!(response.status(), StatusCode::CREATED);
    assert_eq!(response.headers()["x-request-id"], "7");
    assert_eq!(response.url().as_str(), url);
    assert_eq!(response.text().await.unwrap(), "ping");
}

#[tokio::test]
async fn the_address_is_the_target_of_a_redirect() {
    let server = serve(async |number, _| {
        let mut response = text(if number == 0 { 307 } else { 200 }, "");
        response
            .headers_mut()
            .insert("location", "/new".parse().unwrap());
        response
    })
    .await;
    let client = layered(InFlight::default());

    let response = client.get(server.url("/old")).send().await.unwrap();

    assert_eq!(response.url().as_str(), server.url("/new"));
}

#[tokio::test]
async fn a_layer_may_call_again() {
    let server = serve(async |number, request: Request<Bytes>| {
        let status = if number < 2 { 500 } else { 200 };
        text(status, request.into_body())
    })
    .await;
    let retry = Calls(async |port: Port, request: InnerRequest| {
        loop {
            let response = port.clone().oneshot(clone(&request)).await?;
            if response.status() == StatusCode::OK {
                return Ok(response);
            }
        }
    });

    let response = layered(retry)
        .post(server.url("/"))
        .body("ping")
        .send()
        .await
        .unwrap();

    assert_eq!(response.text().await.unwrap(), "ping");
    assert_eq!(server.seen.requests(), 3);
}

#[tokio::test]
async fn a_layer_may_call_twice_at_once_and_the_loser_is_cancelled() {
    // The first call is never answered, so only a second concurrent one can be.
    let server = serve(async |number, request: Request<Bytes>| {
        if number == 0 {
            std::future::pending::<()>().await;
        }
        text(200, request.into_body())
    })
    .await;
    let hedge = Calls(async |port: Port, request: InnerRequest| {
        let first = port.clone().oneshot(clone(&request));
        let second = port.oneshot(request);
        match select(first, second).await {
            Either::Left((response, _)) | Either::Right((response, _)) => response,
        }
    });

    let response = layered(hedge)
        .post(server.url("/"))
        .body("ping")
        .send()
        .await
        .unwrap();

    assert_eq!(response.text().await.unwrap(), "ping");
    assert_eq!(server.seen.requests(), 2);
    eventually("the loser is cancelled", || server.seen.open() == 0).await;
}

#[tokio::test]
async fn an_inner_call_is_cancelled_as_soon_as_the_layer_drops_it() {
    let server = serve(async |_, _| std::future::pending().await).await;
    let cancelled = server.seen.clone();
    // Drops its call, and returns only once the server has noticed: the rest of the request is still running.
    let gives_up = Calls(move |port: Port, request: InnerRequest| {
        let cancelled = cancelled.clone();
        async move {
            tokio::select! {
                _ = port.oneshot(request) => unreachable!("the call is never answered"),
                () = eventually("it arrives", || cancelled.requests() == 1) => {}
            }
            eventually("the server sees the call end", || cancelled.open() == 0).await;
            Ok(http::Response::new(Body::from("gave up")))
        }
    });

    let url = server.url("/v1/models");
    let response = layered(gives_up).get(&url).send().await.unwrap();

    // The layer's own response has no address, so the request's is used.
    assert_eq!(response.url().as_str(), url);
    assert_eq!(response.text().await.unwrap(), "gave up");
}

#[tokio::test]
async fn dropping_the_request_drops_everything_inside() {
    let server = serve(async |_, _| std::future::pending().await).await;
    let in_flight = InFlight::default();
    let request = layered(in_flight.clone()).get(server.url("/"));
    let call = tokio::spawn(request.send());
    eventually("the request arrives", || server.seen.open() == 1).await;
    assert_eq!(in_flight.0.value(), 1);

    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());

    assert_eq!(in_flight.0.value(), 0);
    eventually("the server sees the call end", || server.seen.open() == 0).await;
}

#[tokio::test]
async fn the_response_streams_and_holds_its_layers_to_the_end() {
    let (frames, mut senders) = tokio::sync::mpsc::unbounded_channel();
    let server = serve(move |_, _| {
        let (sender, response) = stream();
        frames.send(sender).unwrap();
        std::future::ready(response)
    })
    .await;
    let in_flight = InFlight::default();
    let client = layered(in_flight.clone());

    let mut response = client.get(server.url("/")).send().await.unwrap();
    let mut sender = senders.recv().await.unwrap();
    for data in ["one", "two"] {
        // The next frame is not sent before this one was read, so nothing can have been buffered.
        sender.send_data(data.into()).await.unwrap();
        assert_eq!(response.chunk().await.unwrap().unwrap(), data);
        assert_eq!(in_flight.0.value(), 1);
    }
    drop(sender);
    assert_eq!(response.chunk().await.unwrap(), None);
    assert_eq!(in_flight.0.value(), 0, "ended");

    let mut response = client.get(server.url("/")).send().await.unwrap();
    let mut sender = senders.recv().await.unwrap();
    sender.send_data("one".into()).await.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "one");
    assert_eq!(in_flight.0.value(), 1);
    drop(response);
    assert_eq!(in_flight.0.value(), 0, "dropped");
    eventually("the server sees the call end", || server.seen.open() == 0).await;
}

#[tokio::test]
async fn requests_share_the_state_of_one_layer() {
    let most = Arc::new(Mutex::new(0));
    let inside = Gauge::default();
    let server = serve({
        let most = most.clone();
        move |_, _| {
            let (most, inside) = (most.clone(), inside.clone());
            async move {
                let _entered = inside.enter();
                {
                    let mut most = most.lock().unwrap();
                    *most = inside.value().max(*most);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
                text(200, "")
            }
        }
    })
    .await;
    let client = layered(ConcurrencyLimitLayer::new(2));

    let calls = (0..20).map(|_| client.get(server.url("/")).send());
    let responses = futures_util::future::join_all(calls).await;

    assert!(responses.iter().all(Result::is_ok));
    assert_eq!(server.seen.requests(), 20);
    assert_eq!(*most.lock().unwrap(), 2);
}

#[tokio::test]
async fn a_refusal_is_a_middleware_error_and_among_its_sources() {
    let refuse = Calls(async |_, _| Err(Refused("tokens").into()));

    let error = layered(refuse)
        .get("http://127.0.0.1:1/")
        .send()
        .await
        .unwrap_err();

    assert!(error.is_middleware());
    assert_eq!(error.to_string(), "refused: tokens");
    assert_eq!(find::<Refused>(&error), Some(&Refused("tokens")));
}

#[tokio::test]
async fn an_error_from_behind_the_layer_is_unchanged() {
    let client = layered(
        ServiceBuilder::new()
            .concurrency_limit(1)
            .layer(InFlight::default()),
    );
    let error = client.get(nowhere().await).send().await.unwrap_err();
    assert!(error.is_connect(), "{error:?}");

    // The layers see it too, as reqwest's error among the sources.
    let seen = Calls(async |port: Port, request| {
        let error = port.oneshot(request).await.unwrap_err();
        assert!(find::<reqwest::Error>(&*error).unwrap().is_connect());
        Err(error)
    });
    let error = layered(seen).get(nowhere().await).send().await.unwrap_err();
    assert!(error.is_connect(), "{error:?}");
}

fn streamed(chunks: &'static [&'static str]) -> Body {
    let frames = chunks
        .iter()
        .map(|chunk| Ok::<_, BoxError>(http_body::Frame::data(Bytes::from(*chunk))));
    Body::wrap(StreamBody::new(futures_util::stream::iter(frames)))
}

#[tokio::test]
async fn a_request_body_that_is_bytes_can_be_cloned_and_a_streamed_one_passes_once() {
    let server = serve(async |_, request: Request<Bytes>| text(200, request.into_body())).await;
    let twice_if_held = Calls(async |port: Port, request: InnerRequest| {
        let clone = RequestBody::try_clone_request(&request);
        let first = port.clone().oneshot(request).await?;
        match clone {
            Some(request) => port.clone().oneshot(request).await,
            None => Ok(first),
        }
    });
    let client = layered(twice_if_held);
    let post = |body: Body| client.post(server.url("/")).body(body).send();

    let answer = post(Body::from("some bytes")).await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "some bytes");
    assert_eq!(server.seen.requests(), 2);

    for body in [
        streamed(&["one", "two"]),
        // Its length is known, which is the only difference.
        Body::wrap(Full::new(Bytes::from("onetwo"))),
    ] {
        let sent = server.seen.requests();
        let answer = post(body).await.unwrap();
        assert_eq!(answer.text().await.unwrap(), "onetwo");
        assert_eq!(server.seen.requests(), sent + 1);
    }
}

#[tokio::test]
async fn a_failed_request_body_does_not_count_against_the_provider() {
    let server = serve(async |_, request: Request<Bytes>| text(200, request.into_body())).await;
    let failing = futures_util::stream::iter([
        Ok(http_body::Frame::data(Bytes::from("one"))),
        Err::<http_body::Frame<Bytes>, BoxError>(Refused("disk").into()),
    ]);
    let error = layered(InFlight::default())
        .post(server.url("/"))
        .body(Body::wrap(StreamBody::new(failing)))
        .send()
        .await
        .unwrap_err();
    assert_eq!(find::<Refused>(&error), Some(&Refused("disk")));
    assert_eq!(Completion::of_error(&error).outcome, Outcome::ClientError);
}

#[tokio::test]
async fn a_call_without_the_requests_extensions_is_refused() {
    let forgets = Calls(async |port: Port, request: InnerRequest| {
        let uri = request.uri().clone();
        let mut renewed = Request::new(request.into_body());
        *renewed.uri_mut() = uri;
        port.oneshot(renewed).await
    });
    let error = layered(forgets)
        .get("http://127.0.0.1:1/")
        .send()
        .await
        .unwrap_err();
    assert!(!find::<PortError>(&error).unwrap().is_ended());
}

#[tokio::test]
async fn a_call_after_the_request_has_ended_is_refused() {
    let (late, mut calls) = tokio::sync::mpsc::unbounded_channel();
    let keeps = Calls(move |port: Port, request: InnerRequest| {
        late.send((port, request)).unwrap();
        std::future::ready(Ok(http::Response::new(Body::from("early"))))
    });
    layered(keeps)
        .get("http://127.0.0.1:1/")
        .send()
        .await
        .unwrap();

    let (port, request) = calls.recv().await.unwrap();
    let error = port.oneshot(request).await.unwrap_err();

    assert!(find::<PortError>(&*error).unwrap().is_ended());
}

#[tokio::test]
async fn a_call_in_flight_when_the_request_ends_is_refused() {
    let server = serve(async |_, _| std::future::pending().await).await;
    let url = server.url("/");
    let (late, mut calls) = tokio::sync::mpsc::unbounded_channel();
    let spawns = Calls(move |port: Port, request: InnerRequest| {
        let (late, seen) = (late.clone(), server.seen.clone());
        let call = tokio::spawn(port.oneshot(request));
        async move {
            eventually("the request arrives", || seen.open() == 1).await;
            late.send(call).unwrap();
            Ok(http::Response::new(Body::from("early")))
        }
    });
    layered(spawns).get(url).send().await.unwrap();

    let error = calls.recv().await.unwrap().await.unwrap().unwrap_err();

    assert!(find::<PortError>(&*error).unwrap().is_ended());
}

#[derive(Clone, Debug, PartialEq)]
struct Mark(&'static str);

#[derive(Clone, Debug, PartialEq)]
struct Left(usize);

/// A middleware behind the layer: records what it sees in the extensions, and adds its own.
#[derive(Clone, Default)]
struct Behind(Arc<Mutex<Vec<Option<Mark>>>>);

#[async_trait::async_trait]
impl Middleware for Behind {
    async fn handle(
        &self,
        request: reqwest::Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<Response, Error> {
        let number = {
            let mut seen = self.0.lock().unwrap();
            seen.push(extensions.get().cloned());
            seen.len()
        };
        extensions.insert(Left(number));
        next.run(request, extensions).await
    }
}

/// A middleware in front of the layer: records what the one behind it added.
#[derive(Clone, Default)]
struct Before(Arc<Mutex<Option<Left>>>);

#[async_trait::async_trait]
impl Middleware for Before {
    async fn handle(
        &self,
        request: reqwest::Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<Response, Error> {
        let response = next.run(request, extensions).await;
        *self.0.lock().unwrap() = extensions.get().cloned();
        response
    }
}

#[tokio::test]
async fn extensions_go_through_every_branch_and_come_back_with_the_one_that_is_returned() {
    let server = serve(async |_, _| text(200, "")).await;
    let twice = Calls(async |port: Port, mut request: InnerRequest| {
        assert_eq!(request.extensions().get(), Some(&Mark("users")));
        let first = port.clone().oneshot(clone(&request)).await?;
        request.extensions_mut().insert(Mark("layers"));
        port.oneshot(request).await?;
        Ok(first)
    });
    let (before, behind) = (Before::default(), Behind::default());
    let client = ClientBuilder::new(plain())
        .with(before.clone())
        .with(TowerMiddleware::new(twice))
        .with(behind.clone())
        .build();

    client
        .get(server.url("/"))
        .with_extension(Mark("users"))
        .send()
        .await
        .unwrap();

    let seen = behind.0.lock().unwrap();
    assert_eq!(*seen, [Some(Mark("users")), Some(Mark("layers"))]);
    assert_eq!(*before.0.lock().unwrap(), Some(Left(1)));
}

#[tokio::test]
async fn extensions_of_another_requests_response_are_dropped() {
    // A layer that answers every request with the headers of the first response, as a careless cache does.
    let server = serve(async |_, _| text(200, "")).await;
    let kept = Arc::new(Mutex::new(None));
    let cache = Calls(move |port: Port, request: InnerRequest| {
        let kept = kept.clone();
        async move {
            let hit: Option<http::response::Parts> = kept.lock().unwrap().clone();
            let parts = match hit {
                Some(parts) => parts,
                None => port.oneshot(request).await?.into_parts().0,
            };
            *kept.lock().unwrap() = Some(parts.clone());
            Ok(http::Response::from_parts(parts, Body::default()))
        }
    });
    let before = Before::default();
    let client = ClientBuilder::new(plain())
        .with(before.clone())
        .with(TowerMiddleware::new(cache))
        .with(Behind::default())
        .build();

    client.get(server.url("/")).send().await.unwrap();
    assert_eq!(*before.0.lock().unwrap(), Some(Left(1)));
    client.get(server.url("/")).send().await.unwrap();
    assert_eq!(*before.0.lock().unwrap(), None);
}

#[tokio::test]
async fn two_layers_as_two_middlewares_keep_their_ports_apart() {
    let server = serve(async |number, _| {
        if number % 2 == 0 {
            std::future::pending::<()>().await;
        }
        text(200, "pong")
    })
    .await;
    let hedge = || {
        TowerMiddleware::new(Calls(async |port: Port, request: InnerRequest| {
            let calls = [port.clone().oneshot(clone(&request)), port.oneshot(request)];
            let mut calls: futures_util::stream::FuturesUnordered<_> = calls.into_iter().collect();
            calls.next().await.unwrap()
        }))
    };
    let client = ClientBuilder::new(plain())
        .with(hedge())
        .with(hedge())
        .build();

    let response = client.get(server.url("/")).send().await.unwrap();

    assert_eq!(response.text().await.unwrap(), "pong");
    eventually("all losers are cancelled", || server.seen.open() == 0).await;
}

#[tokio::test]
async fn a_requests_own_timeout_applies_to_each_inner_call() {
    let server = serve(async |number, _| {
        if number == 0 {
            std::future::pending::<()>().await;
        }
        text(200, "pong")
    })
    .await;
    let retry = Calls(async |port: Port, request: InnerRequest| {
        let first = port.clone().oneshot(clone(&request)).await.unwrap_err();
        assert!(find::<reqwest::Error>(&*first).unwrap().is_timeout());
        port.oneshot(request).await
    });
    let response = layered(retry)
        .get(server.url("/"))
        .timeout(Duration::from_secs(2))
        .send()
        .await
        .unwrap();
    assert_eq!(response.text().await.unwrap(), "pong");
}

#[tokio::test]
async fn an_error_in_a_layers_body_reaches_the_reader_with_its_cause() {
    let (frames, mut senders) = tokio::sync::mpsc::unbounded_channel();
    let server = serve(move |_, _| {
        let (sender, response) = stream();
        frames.send(sender).unwrap();
        std::future::ready(response)
    })
    .await;
    let cuts = ServiceBuilder::new().map_response(|response: InnerResponse| {
        response.map(|body| {
            let frames = http_body_util::BodyStream::new(body.map_err(BoxError::from)).take(1);
            let cut = futures_util::stream::iter([Err(BoxError::from(Refused("idle")))]);
            StreamBody::new(frames.chain(cut))
        })
    });
    let mut response = layered(cuts).get(server.url("/")).send().await.unwrap();
    let mut sender = senders.recv().await.unwrap();
    sender.send_data("one".into()).await.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "one");

    let error = response.chunk().await.unwrap_err();

    assert_eq!(find::<Refused>(&error), Some(&Refused("idle")));
}

/// They got a `PortError`, which the circuit counted as a failure.
#[cfg(feature = "preset")]
#[tokio::test]
async fn requests_that_share_a_call_begin_another_if_the_first_is_dropped() {
    use tower_llm_stack::{BreakerLayer, CacheLayer, FanoutLayer, Scope, Stack};

    const SHARING: usize = 7;

    let server = serve(async |number, _| match number {
        0 => std::future::pending().await,
        _ => text(200, r#"{"choices":[{"finish_reason":"stop"}]}"#),
    })
    .await;
    let breaker = BreakerLayer::builder()
        .failure_threshold(1)
        .build()
        .unwrap();
    let stack = Stack::builder()
        .cache(CacheLayer::builder(Scope::shared()).build().unwrap())
        .fanout(FanoutLayer::retry(2).build().unwrap())
        .breaker(breaker.clone())
        .build();
    let client = ClientBuilder::new(reqwest::Client::new())
        .with(TowerMiddleware::new(stack))
        .build();
    let ask = || {
        let request = client.post(server.url("/v1/chat/completions"));
        tokio::spawn(request.body(r#"{"model":"m","messages":[]}"#).send())
    };
    let first = ask();
    eventually("the call arrives", || server.seen.requests() == 1).await;
    let others: Vec<_> = (0..SHARING).map(|_| ask()).collect();
    tokio::task::yield_now().await;
    first.abort();
    for other in others {
        assert_eq!(other.await.unwrap().unwrap().status(), StatusCode::OK);
    }
    assert_eq!(server.seen.requests(), 2, "they share the other call too");
    let failures = breaker.handle().stats();
    assert!(failures.iter().all(|circuit| circuit.failures == 0));
}
