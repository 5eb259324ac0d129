//! What the peers of the cache do with the answers of language models: what `benches/README.md` says of them.

use std::{
    convert::Infallible,
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http::{HeaderValue, Method, Request, Response, header};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use http_cache::{CacheMode, HttpCache, HttpCacheOptions, MokaManager};
use http_cache_tower::HttpCacheLayer;
use tower::{Layer, Service, service_fn};
use tower_http_cache::{KeyExtractor, backend::memory::InMemoryBackend};

const CHAT: &str = "http://localhost/v1/chat/completions";

type Sent = Request<Full<Bytes>>;

fn post(prompt: &'static str) -> Sent {
    Request::post(CHAT)
        .body(Full::from(prompt))
        .expect("it is valid")
}

fn cacheable<B>(body: B) -> Response<B> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("max-age=600"),
    );
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

async fn text<B>(response: Response<B>) -> String
where
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let body = response.into_body().collect().await.expect("it is valid");
    String::from_utf8(body.to_bytes().to_vec()).expect("it is valid")
}

fn tower_http() -> tower_http_cache::CacheLayerBuilder<InMemoryBackend> {
    tower_http_cache::CacheLayer::builder(InMemoryBackend::new(100)).ttl(Duration::from_secs(600))
}

#[tokio::test]
async fn http_cache_tower_sends_each_post() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let upstream = service_fn(move |_: Sent| {
        count.fetch_add(1, Ordering::Relaxed);
        ready(Ok::<_, Infallible>(cacheable(Full::<Bytes>::from("{}"))))
    });
    let mut service = HttpCacheLayer::with_cache(HttpCache {
        mode: CacheMode::ForceCache,
        manager: MokaManager::default(),
        options: HttpCacheOptions::default(),
    })
    .layer(upstream);
    for _ in 0..3 {
        text(service.call(post("Why?")).await.unwrap()).await;
    }
    assert_eq!(sent.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn tower_http_cache_answers_one_prompt_with_the_answer_to_another() {
    let upstream = service_fn(|request: Sent| async {
        let asked = request.into_body().collect().await?.to_bytes();
        Ok::<_, Infallible>(cacheable(Full::from(asked)))
    });
    // What it takes to have it store a POST at all.
    let mut service = tower_http()
        .method_predicate(|method| *method == Method::POST)
        .key_extractor(KeyExtractor::custom(|_, uri| Some(uri.path().to_owned())))
        .build()
        .layer(upstream);
    assert_eq!(
        text(service.call(post("Why?")).await.unwrap()).await,
        "Why?"
    );
    assert_eq!(
        text(service.call(post("How?")).await.unwrap()).await,
        "Why?"
    );
}

#[tokio::test]
async fn tower_http_cache_holds_a_body_back_until_it_has_ended() {
    let upstream = service_fn(|_: Request<Full<Bytes>>| {
        let first = Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"first")));
        let more = stream::iter([first]).chain(stream::pending());
        ready(Ok::<_, Infallible>(cacheable(StreamBody::new(more))))
    });
    let mut service = tower_http().build().layer(upstream);
    let request = Request::get(CHAT).body(Full::default()).unwrap();
    let calling = service.call(request);
    assert!(calling.now_or_never().is_none());
}

#[tokio::test]
async fn tower_resilience_cache_stores_failures_as_it_stores_answers() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let upstream = service_fn(move |_: &'static str| {
        count.fetch_add(1, Ordering::Relaxed);
        ready(Ok::<_, Infallible>((529, "overloaded")))
    });
    let layer = tower_resilience_cache::CacheLayer::builder()
        .max_size(100)
        .key_extractor(|prompt: &&'static str| *prompt)
        .build()
        .unwrap();
    let mut service = layer.layer(upstream);
    for _ in 0..3 {
        assert_eq!(service.call("Why?").await.unwrap(), (529, "overloaded"));
    }
    assert_eq!(sent.load(Ordering::Relaxed), 1);
}
