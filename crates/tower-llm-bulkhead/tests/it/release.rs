//! When a call releases its permit.

use std::{
    future::{Future, pending},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use crate::support::{Ask, CONTENT, DONE, ROLE, asked, chat, full, openai, read};
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok};
use tower::{Service, service_fn};
use tower_layer::Layer;
use tower_llm_bulkhead::{Bulkhead, BulkheadGuard, BulkheadHandle, BulkheadLayer, ReleaseAt};
use tower_llm_core::{BoxError, HttpBody, Unary, Watched};
use tower_llm_testkit::mock::{Sender, Upstream, arrived, poll_frame, poll_ready, start, stream};
use tower_test::mock::{self, Handle, Mock};

type Request = http::Request<()>;
type Response = http::Response<Upstream>;
type Http = Bulkhead<Mock<Request, Response>, HttpBody>;

fn bulkhead(release_at: ReleaseAt) -> BulkheadLayer {
    let builder = BulkheadLayer::builder(1).release_at(release_at);
    builder.build().expect("good settings")
}

fn served(layer: &BulkheadLayer) -> (Http, Handle<Request, Response>) {
    let (mock, upstream) = mock::pair();
    (layer.layer(mock), upstream)
}

fn in_flight(handle: &BulkheadHandle) -> usize {
    openai(handle).0
}

/// A stream whose response headers have arrived: the sender of its frames, and the body behind the bulkhead.
fn streaming(layer: &BulkheadLayer) -> (Sender, Watched<Upstream, BulkheadGuard>) {
    let (sender, body) = Upstream::new();
    (sender, through(layer, stream(body)).into_body())
}

/// `response` as it leaves the bulkhead.
fn through(
    layer: &BulkheadLayer,
    response: Response,
) -> http::Response<Watched<Upstream, BulkheadGuard>> {
    let (service, mut upstream) = served(layer);
    let mut call = start(&service, chat());
    assert_pending!(call.poll());
    assert_eq!(in_flight(&layer.handle()), 1);
    arrived(&mut upstream).1.send_response(response);
    assert_eq!(in_flight(&layer.handle()), 1);
    assert_ready_ok!(call.poll())
}

/// Records how many permits are in use when it runs.
fn noting(handle: &BulkheadHandle) -> (Arc<AtomicUsize>, impl FnOnce() + Send + 'static) {
    let noted = Arc::new(AtomicUsize::new(usize::MAX));
    let (note, handle) = (Arc::clone(&noted), handle.clone());
    (noted, move || {
        note.store(in_flight(&handle), Ordering::Relaxed)
    })
}

#[tokio::test(start_paused = true)]
async fn released_at_the_headers_the_permit_is_free_while_the_body_runs() {
    let layer = bulkhead(ReleaseAt::ResponseHeaders);
    let (sender, mut body) = streaming(&layer);
    assert_eq!(in_flight(&layer.handle()), 0);
    sender.send(CONTENT);
    assert_eq!(read(&mut body), CONTENT);
    // Nothing is released twice: the permit belongs to another call by now.
    let (service, _upstream) = served(&layer);
    let _running = start(&service, chat());
    drop(body);
    assert_eq!(in_flight(&layer.handle()), 1);
}

#[tokio::test(start_paused = true)]
async fn at_the_first_token_the_permit_is_free_with_the_first_content() {
    let layer = bulkhead(ReleaseAt::FirstToken);
    let (sender, mut body) = streaming(&layer);
    assert_eq!(in_flight(&layer.handle()), 1);
    let (begun, rest) = CONTENT.split_at(CONTENT.find("Hi").unwrap());
    for frame in [": keep-alive\n\n", ROLE, begun] {
        sender.send(frame);
        assert_eq!(read(&mut body), frame);
        assert_eq!(in_flight(&layer.handle()), 1, "{frame}");
    }
    sender.send(rest);
    assert_eq!(read(&mut body), rest);
    assert_eq!(in_flight(&layer.handle()), 0);
    sender.send(CONTENT);
    assert_eq!(read(&mut body), CONTENT);
    let (service, _upstream) = served(&layer);
    let _running = start(&service, chat());
    drop(body);
    assert_eq!(in_flight(&layer.handle()), 1);
}

#[tokio::test(start_paused = true)]
async fn without_a_first_token_the_permit_is_free_at_the_end() {
    let layer = bulkhead(ReleaseAt::FirstToken);
    let (sender, mut body) = streaming(&layer);
    sender.send(ROLE);
    read(&mut body);
    assert_eq!(in_flight(&layer.handle()), 1);
    drop(sender);
    assert!(assert_ready!(poll_frame(&mut body)).is_none());
    assert_eq!(in_flight(&layer.handle()), 0);

    // An unstreamed response has no first token.
    let (sender, body) = Upstream::new();
    let mut body = through(&layer, http::Response::new(body)).into_body();
    sender.send(r#"{"choices":[{"message":{"content":"Hi"}}]}"#);
    read(&mut body);
    assert_eq!(in_flight(&layer.handle()), 1);
    drop(sender);
    assert!(assert_ready!(poll_frame(&mut body)).is_none());
    assert_eq!(in_flight(&layer.handle()), 0);
}

#[tokio::test(start_paused = true)]
async fn at_the_end_the_permit_is_held_until_the_body_has_no_more_frames() {
    let layer = bulkhead(ReleaseAt::End);
    let (sender, mut body) = streaming(&layer);
    for frame in [ROLE, CONTENT, DONE] {
        assert_pending!(poll_frame(&mut body));
        sender.send(frame);
        assert_eq!(read(&mut body), frame);
        assert_eq!(in_flight(&layer.handle()), 1, "{frame}");
    }
    drop(sender);
    assert!(assert_ready!(poll_frame(&mut body)).is_none());
    assert_eq!(in_flight(&layer.handle()), 0);
    assert!(assert_ready!(poll_frame(&mut body)).is_none());
    drop(body);
    assert_eq!(in_flight(&layer.handle()), 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_reports_its_end_gives_the_permit_back_with_its_last_frame() {
    let layer = bulkhead(ReleaseAt::End);
    let (sender, body) = Upstream::new();
    let mut body = through(&layer, stream(body.of_known_length(2))).into_body();
    sender.send(CONTENT);
    read(&mut body);
    assert_eq!(in_flight(&layer.handle()), 1);
    sender.send(DONE);
    read(&mut body);
    assert_eq!(in_flight(&layer.handle()), 0);

    let _empty = through(&layer, stream(Upstream::new().1.of_known_length(0)));
    assert_eq!(in_flight(&layer.handle()), 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_dropped_or_fails_gives_the_permit_back_at_once() {
    for release_at in [ReleaseAt::End, ReleaseAt::FirstToken] {
        let layer = bulkhead(release_at);
        let (_sender, body) = streaming(&layer);
        drop(body);
        assert_eq!(in_flight(&layer.handle()), 0);

        let (sender, mut body) = streaming(&layer);
        sender.send(ROLE);
        read(&mut body);
        assert_eq!(in_flight(&layer.handle()), 1);
        drop(body);
        assert_eq!(in_flight(&layer.handle()), 0);

        let (sender, mut body) = streaming(&layer);
        sender.fail("cut off");
        let error = assert_ready!(poll_frame(&mut body)).unwrap().unwrap_err();
        assert_eq!(error.to_string(), "cut off");
        assert_eq!(in_flight(&layer.handle()), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_panics_gives_the_permit_back_when_it_is_dropped() {
    let layer = bulkhead(ReleaseAt::End);
    let (sender, mut body) = streaming(&layer);
    sender.send("panic");
    let polled = catch_unwind(AssertUnwindSafe(|| poll_frame(&mut body)));
    assert!(polled.is_err());
    drop(body);
    assert_eq!(in_flight(&layer.handle()), 0);
}

#[tokio::test(start_paused = true)]
async fn the_upstream_is_dropped_before_its_permit_is_free() {
    type Body = Watched<Upstream, BulkheadGuard>;
    let ends: [(&str, fn(Sender, Body)); 5] = [
        ("end", |sender, mut body| {
            drop(sender);
            assert!(assert_ready!(poll_frame(&mut body)).is_none());
        }),
        ("error", |sender, mut body| {
            sender.fail("cut off");
            assert!(assert_ready!(poll_frame(&mut body)).unwrap().is_err());
        }),
        ("drop", |_sender, body| drop(body)),
        ("last frame", |sender, mut body| {
            sender.send(CONTENT);
            read(&mut body);
            sender.send(DONE);
            read(&mut body);
        }),
        ("panic", |sender, mut body| {
            sender.send("panic");
            let polled = catch_unwind(AssertUnwindSafe(|| poll_frame(&mut body)));
            assert!(polled.is_err());
        }),
    ];
    for (name, end) in ends {
        let layer = bulkhead(ReleaseAt::End);
        let handle = layer.handle();
        let (noted, note) = noting(&handle);
        let (sender, body) = Upstream::new();
        let body = body.of_known_length(2).on_drop(note);
        end(sender, through(&layer, stream(body)).into_body());
        assert_eq!(noted.load(Ordering::Relaxed), 1, "{name}");
        assert_eq!(in_flight(&handle), 0, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_inner_error_gives_the_permit_back() {
    for release_at in [
        ReleaseAt::ResponseHeaders,
        ReleaseAt::FirstToken,
        ReleaseAt::End,
    ] {
        let layer = bulkhead(release_at);
        let (service, mut upstream) = served(&layer);
        let mut call = start(&service, chat());
        arrived(&mut upstream).1.send_error("gone");
        let error = assert_ready_err!(call.poll());
        assert_eq!(error.to_string(), "gone");
        assert_eq!(in_flight(&layer.handle()), 0);
    }
}

/// An upstream call that runs a closure when it is dropped, and does not end before.
struct Dropped<F: FnOnce()>(Option<F>);

impl<F: FnOnce() + Unpin> Future for Dropped<F> {
    type Output = Result<usize, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        std::pin::pin!(pending()).poll(cx)
    }
}

impl<F: FnOnce()> Drop for Dropped<F> {
    fn drop(&mut self) {
        if let Some(run) = self.0.take() {
            run();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_ends_upstream_before_its_permit_is_free() {
    let layer = BulkheadLayer::builder(1).watch(Unary).build().unwrap();
    let handle = layer.handle();
    let (noted, drops) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let service = layer.layer(service_fn({
        let (noted, drops, handle) = (Arc::clone(&noted), Arc::clone(&drops), handle.clone());
        move |_: Ask| {
            let (noted, drops) = (Arc::clone(&noted), Arc::clone(&drops));
            let handle = handle.clone();
            Dropped(Some(move || {
                noted.fetch_add(in_flight(&handle), Ordering::Relaxed);
                drops.fetch_add(1, Ordering::Relaxed);
            }))
        }
    }));
    let mut direct = start(&service, Ask::new(0));
    let mut queued = start(&service, Ask::new(1));
    assert_pending!(direct.poll());
    assert_pending!(queued.poll());
    drop(direct);
    assert_eq!(drops.load(Ordering::Relaxed), 1);
    assert_pending!(queued.poll());
    assert_eq!(in_flight(&handle), 1);
    drop(queued);
    assert_eq!(drops.load(Ordering::Relaxed), 2);
    assert_eq!(noted.load(Ordering::Relaxed), 2);
    assert_eq!(openai(&handle), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_inner_panic_gives_the_permit_back() {
    let layer = BulkheadLayer::builder(1).watch(Unary).build().unwrap();
    let handle = layer.handle();
    // Number 0 panics in `call`, all others in their future.
    let service = layer.layer(service_fn(|ask: Ask| {
        assert_ne!(ask.id, 0, "scripted panic");
        async move {
            assert_eq!(ask.id, 0, "scripted panic");
            Ok::<_, BoxError>(ask.id)
        }
    }));
    let in_call = catch_unwind(AssertUnwindSafe(|| start(&service, Ask::new(0))));
    assert!(in_call.is_err());
    assert_eq!(in_flight(&handle), 0);

    let mut call = start(&service, Ask::new(1));
    let mut queued = [2, 3].map(|id| start(&service, Ask::new(id)));
    for call in &mut queued {
        assert_pending!(call.poll());
    }
    assert_eq!(openai(&handle), (1, 2, 0));
    let in_future = catch_unwind(AssertUnwindSafe(|| call.poll()));
    assert!(in_future.is_err());
    drop(call);
    for mut call in queued {
        assert!(call.is_woken());
        let late = catch_unwind(AssertUnwindSafe(|| call.poll()));
        assert!(late.is_err());
        assert_eq!(in_flight(&handle), 1);
    }
    assert_eq!(openai(&handle), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_typed_response_releases_the_permit_on_arrival() {
    for release_at in [
        ReleaseAt::ResponseHeaders,
        ReleaseAt::FirstToken,
        ReleaseAt::End,
    ] {
        let layer = BulkheadLayer::builder(1)
            .max_waiting(0)
            .release_at(release_at)
            .watch(Unary)
            .build()
            .unwrap();
        let (mut service, mut upstream) = asked(&layer);
        let mut call = start(&service, Ask::new(0));
        arrived(&mut upstream).1.send_response(1);
        assert_ready_ok!(poll_ready(&mut service));
        let refused = service.call(Ask::new(1));
        full(&assert_ready_err!(tokio_test::task::spawn(refused).poll()));
        assert_eq!(openai(&layer.handle()), (1, 0, 1));
        assert_ready_ok!(call.poll());
        // Its future may still exist.
        assert_eq!(openai(&layer.handle()), (0, 0, 1));
    }
}
