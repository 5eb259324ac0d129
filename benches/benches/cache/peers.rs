//! The peers, each with a hit of the kind that it can have.

use std::{convert::Infallible, fmt::Debug, future::ready, hint::black_box, time::Duration};

use benches::{Case, Frames, Suite, drain, now, payload, peer};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header::CACHE_CONTROL};
use http_body::Body;
use http_body_util::Empty;
use http_cache::{CacheMode, HttpCache, HttpCacheOptions, MokaManager};
use http_cache_tower::HttpCacheLayer;
use tokio::runtime;
use tower::{Layer, Service, service_fn};
use tower_http_cache::{backend::memory::InMemoryBackend, layer::CacheLayer as TowerHttpLayer};
use tower_resilience_cache::CacheLayer as ResilienceLayer;

use crate::calls::{JSON, first_frame, response};

/// What a body that needs no copy looks like to a cache of clones.
#[derive(Clone)]
struct Cloned(&'static [Bytes]);

/// Any value that is `Clone`, by a key that the user makes of the request: here the bytes as they are.
pub(crate) fn keyed_by_body(
    suite: &mut Suite,
    case: &Case,
    body: &'static [u8],
    frames: &'static [Bytes],
) {
    let layer = ResilienceLayer::builder()
        .max_size(1_000)
        .ttl(Duration::from_secs(1_800))
        .key_extractor(|request: &Bytes| request.clone())
        .build()
        .expect("a key is made");
    let upstream = move |_: Bytes| ready(Ok::<_, Infallible>(Cloned(frames)));
    let service = layer.layer(service_fn(upstream));
    suite.subject(case, &peer("tower-resilience-cache"), || {
        let mut service = service.clone();
        move || {
            let request = Bytes::from_static(black_box(body));
            let Cloned(frames) = now(service.call(request)).expect("the call is answered");
            assert_eq!(first_frame(Frames::new(frames)), frames[0].len());
        }
    });
}

/// Those that know the method and the address of a request alone: a GET, and an answer of 10 KB.
pub(crate) fn get(suite: &mut Suite) {
    let frames = payload::forever(vec![payload::chat_response(10_000)]);
    let case = Case::new("hit, a GET without a body").bytes(frames[0].len());
    let upstream = service_fn(move |_: Request<Empty<Bytes>>| {
        let mut response = response(JSON, Frames::new(frames));
        let lasts = HeaderValue::from_static("max-age=1800");
        response.headers_mut().insert(CACHE_CONTROL, lasts);
        ready(Ok::<_, Infallible>(response))
    });
    let runtime = runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime can be built");

    let http_cache = HttpCacheLayer::with_cache(HttpCache {
        mode: CacheMode::Default,
        manager: MokaManager::default(),
        options: HttpCacheOptions::default(),
    });
    let http_cache = http_cache.layer(upstream);
    suite.subject(&case, &peer("http-cache-tower"), || {
        got(http_cache.clone(), runtime.handle(), frames[0].len())
    });
    let tower_http = TowerHttpLayer::builder(InMemoryBackend::new(1_000))
        .ttl(Duration::from_secs(1_800))
        .build()
        .layer(upstream);
    suite.subject(&case, &peer("tower-http-cache"), || {
        got(tower_http.clone(), runtime.handle(), frames[0].len())
    });
}

/// Makes the call in the runtime, whose clock they read. On two threads they may wait for each other.
fn got<S, B>(mut service: S, runtime: &runtime::Handle, length: usize) -> impl FnMut()
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>>,
    S::Error: Debug,
    B: Body<Data = Bytes>,
    B::Error: Debug,
{
    move || {
        let request = Request::get("http://localhost/v1/models").body(Empty::new());
        let request = request.expect("the address is one");
        let answered = runtime.block_on(async { service.call(request).await });
        assert_eq!(
            drain(answered.expect("the call is answered").into_body()),
            length
        );
    }
}
