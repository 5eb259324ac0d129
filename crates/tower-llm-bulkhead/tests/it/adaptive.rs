//! Limits that follow a signal: call by call, and for forty minutes in front of a provider.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use crate::support::{CONTENT, DONE, chat, openai, read};
use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, Sleep, advance, sleep, sleep_until},
};
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_bulkhead::{
    Adaptive, Bulkhead, BulkheadBuilder, BulkheadGuard, BulkheadHandle, BulkheadLayer, ReleaseAt,
};
use tower_llm_core::{BoxError, HttpBody, Key, Watched};
use tower_llm_testkit::mock::{Sender, Upstream, arrived, poll_frame, start, stream};
use tower_test::mock::{self, Handle, Mock};

type Request = http::Request<()>;

const SECOND: Duration = Duration::from_secs(1);

fn limit(handle: &BulkheadHandle) -> usize {
    let stats = handle.stats_of(&Key::new("openai"));
    stats.expect("the key exists").limit
}

// === call by call ===

type Response = http::Response<Upstream>;

struct Served {
    service: Bulkhead<Mock<Request, Response>, HttpBody>,
    upstream: Handle<Request, Response>,
    handle: BulkheadHandle,
}

impl Served {
    fn new(builder: BulkheadBuilder) -> Self {
        let layer = builder.build().expect("valid settings");
        let (mock, upstream) = mock::pair();
        Self {
            service: layer.layer(mock),
            upstream,
            handle: layer.handle(),
        }
    }

    fn answer(&mut self, request: Request, response: Response) -> Watched<Upstream, BulkheadGuard> {
        let mut call = start(&self.service, request);
        assert_pending!(call.poll());
        arrived(&mut self.upstream).1.send_response(response);
        assert_ready_ok!(call.poll()).into_body()
    }

    /// A stream whose response headers have arrived.
    fn streaming(&mut self) -> (Sender, Watched<Upstream, BulkheadGuard>) {
        let (sender, body) = Upstream::new();
        (sender, self.answer(chat(), stream(body)))
    }

    /// A call that the provider answers with `status`.
    fn refused(&mut self, status: u16, retry_after: Option<&str>) {
        let (_, body) = Upstream::new();
        let mut response = http::Response::builder().status(status);
        if let Some(retry_after) = retry_after {
            response = response.header("retry-after", retry_after);
        }
        let mut body = self.answer(chat(), response.body(body).expect("a valid response"));
        assert!(assert_ready!(poll_frame(&mut body)).is_none());
    }

    /// A successful stream, with its first token after `first`.
    async fn succeed(&mut self, first: Duration) {
        let (sender, mut body) = self.streaming();
        advance(first).await;
        sender.send(CONTENT);
        read(&mut body);
        sender.send(DONE);
        read(&mut body);
        drop(sender);
        assert!(assert_ready!(poll_frame(&mut body)).is_none());
    }

    fn limit(&self) -> usize {
        limit(&self.handle)
    }
}

#[tokio::test(start_paused = true)]
async fn throttling_cuts_the_limit_once_per_interval_of_our_own() {
    let adaptive = Adaptive::on_throttling();
    let mut served = Served::new(BulkheadLayer::builder(100).adaptive(adaptive));
    // The provider asks to wait for an hour, which does not stop the limit from changing.
    for (after, limit) in [(0, 90), (9, 90), (1, 81), (0, 81), (10, 72)] {
        advance(after * SECOND).await;
        served.refused(429, Some("3600"));
        assert_eq!(served.limit(), limit);
    }
    advance(10 * SECOND).await;
    served.refused(529, None);
    assert_eq!(served.limit(), 64);
    // A client error says nothing about the provider.
    advance(10 * SECOND).await;
    served.refused(400, None);
    assert_eq!(served.limit(), 64);
    assert_eq!(openai(&served.handle), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_static_limit_does_not_change() {
    let mut served = Served::new(BulkheadLayer::builder(10));
    served.refused(429, Some("3600"));
    served.succeed(60 * SECOND).await;
    assert_eq!(served.limit(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_success_raises_a_limit_of_one_and_admits_a_waiting_call() {
    let adaptive = Adaptive::on_throttling();
    let mut served = Served::new(BulkheadLayer::builder(1).adaptive(adaptive));
    let (sender, mut body) = served.streaming();
    let waiting = [(); 3].map(|()| {
        let mut call = start(&served.service, chat());
        assert_pending!(call.poll());
        call
    });
    sender.send(DONE);
    drop(sender);
    read(&mut body);
    assert!(assert_ready!(poll_frame(&mut body)).is_none());
    assert_eq!(served.limit(), 2);
    // Its own permit, and the new one.
    let woken = waiting.each_ref().map(|call| call.is_woken());
    assert_eq!(woken, [true, true, false]);
    assert_eq!(openai(&served.handle), (2, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_late_first_token_cuts_at_once_and_an_early_one_raises() {
    let adaptive = Adaptive::on_first_token(5 * SECOND);
    let mut served = Served::new(BulkheadLayer::builder(2).adaptive(adaptive));
    // At a limit of two, one call in flight uses half of it.
    served.succeed(5 * SECOND).await;
    assert_eq!(served.limit(), 2);
    served.succeed(5 * SECOND).await;
    assert_eq!(served.limit(), 3);

    let (sender, mut body) = served.streaming();
    assert_pending!(poll_frame(&mut body));
    advance(5 * SECOND).await;
    sender.send(crate::support::ROLE);
    read(&mut body);
    assert_pending!(poll_frame(&mut body));
    assert_eq!(served.limit(), 3);
    advance(Duration::from_millis(1)).await;
    assert_pending!(poll_frame(&mut body));
    assert_eq!(served.limit(), 2);
    sender.send(CONTENT);
    read(&mut body);
    // Each call is one signal.
    advance(60 * SECOND).await;
    sender.send(DONE);
    drop((sender, body));
    assert_eq!(served.limit(), 2);
}

/// The token arrived at once and was not read.
#[tokio::test(start_paused = true)]
async fn a_slow_reader_cuts_no_limit() {
    let adaptive = Adaptive::on_first_token(5 * SECOND);
    let mut served = Served::new(BulkheadLayer::builder(100).adaptive(adaptive));
    for has_asked in [false, true] {
        let (sender, mut body) = served.streaming();
        if has_asked {
            assert_pending!(poll_frame(&mut body));
        }
        sender.send(CONTENT);
        advance(60 * SECOND).await;
        read(&mut body);
        drop(body);
        assert_eq!(served.limit(), 100, "{has_asked}");
    }
}

/// Nothing was sent: the call waited in an inner bulkhead and got no permit.
#[tokio::test(start_paused = true)]
async fn a_refusal_by_an_inner_layer_never_cuts_the_limit() {
    let adaptive = Adaptive::on_first_token(5 * SECOND);
    let outer = BulkheadLayer::builder(100).adaptive(adaptive);
    let outer = outer.build().unwrap();
    let inner = BulkheadLayer::builder(1).max_wait(4 * SECOND);
    let (mock, mut upstream) = mock::pair::<_, Response>();
    let service = outer.layer(inner.build().unwrap().layer(mock));
    let mut first = start(&service, chat());
    assert_pending!(first.poll());
    let _held = arrived(&mut upstream);
    let mut second = start(&service, chat());
    assert_pending!(second.poll());
    advance(60 * SECOND).await;
    assert_ready_err!(second.poll());
    assert_eq!(limit(&outer.handle()), 100);
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_a_permit_does_not_count_as_provider_latency() {
    let adaptive = Adaptive::on_first_token(5 * SECOND);
    let mut served = Served::new(BulkheadLayer::builder(1).adaptive(adaptive));
    let (_sender, body) = served.streaming();
    let mut late = start(&served.service, chat());
    assert_pending!(late.poll());
    advance(20 * SECOND).await;
    // Silent for too long, while the limit is at its minimum.
    drop(body);
    assert_pending!(late.poll());
    let (sender, body) = Upstream::new();
    arrived(&mut served.upstream).1.send_response(stream(body));
    let mut body = assert_ready_ok!(late.poll()).into_body();
    advance(4 * SECOND).await;
    sender.send(CONTENT);
    read(&mut body);
    assert_eq!(served.limit(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_stream_dropped_without_a_token_counts_as_late_only_if_it_was() {
    for (after, limit) in [(5, 10), (6, 8)] {
        for at in [ReleaseAt::ResponseHeaders, ReleaseAt::End] {
            let adaptive = Adaptive::on_first_token(5 * SECOND);
            let builder = BulkheadLayer::builder(10).release_at(at);
            let mut served = Served::new(builder.adaptive(adaptive));
            // Before the response headers, and after.
            for has_head in [false, true] {
                let mut call = start(&served.service, chat());
                assert_pending!(call.poll());
                let (_sender, body) = Upstream::new();
                let (_, answer) = arrived(&mut served.upstream);
                advance(after * SECOND).await;
                if has_head {
                    answer.send_response(stream(body));
                    drop(assert_ready_ok!(call.poll()));
                }
                drop(call);
                assert_eq!(served.limit(), limit);
            }
            assert_eq!(openai(&served.handle), (0, 0, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_duration_of_an_unstreamed_call_is_no_signal() {
    let adaptive = Adaptive::on_first_token(5 * SECOND);
    let mut served = Served::new(BulkheadLayer::builder(1).adaptive(adaptive.floor(1)));
    for seconds in [1, 60] {
        let mut call = start(&served.service, Request::default());
        assert_pending!(call.poll());
        advance(seconds * SECOND).await;
        let (_, body) = Upstream::new();
        let answer = arrived(&mut served.upstream).1;
        answer.send_response(http::Response::new(body));
        let mut body = assert_ready_ok!(call.poll()).into_body();
        assert!(assert_ready!(poll_frame(&mut body)).is_none());
        let stats = served.handle.stats_of(&Key::new("")).unwrap();
        assert_eq!(stats.limit, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn each_key_adapts_on_its_own_and_continues_from_a_set_limit() {
    let adaptive = Adaptive::on_throttling().ceiling(200);
    let key = Key::new("anthropic");
    let builder = BulkheadLayer::builder(100).limit_for(key.clone(), 50);
    let mut served = Served::new(builder.adaptive(adaptive));
    served.handle.set_limit(&key, 60).unwrap();
    served.refused(429, None);
    assert_eq!(served.limit(), 90);
    assert_eq!(served.handle.stats_of(&key).unwrap().limit, 60);
    served.handle.set_limit(&Key::new("openai"), 200).unwrap();
    served.refused(429, None);
    assert_eq!(served.limit(), 180);
}

// === in front of a provider ===

const SLOTS: usize = 80;

/// Twentieths of a log-normal distribution, in milliseconds: median 6.7 s, mean 12 s.
const DURATIONS: [u64; 20] = [
    710, 1_290, 1_800, 2_310, 2_810, 3_370, 4_000, 4_650, 5_390, 6_250, 7_180, 8_330, 9_660,
    11_200, 13_300, 16_000, 19_400, 25_000, 34_800, 63_100,
];

/// Pseudo-random numbers, the same in each run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Between zero and one.
    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The time to the next arrival of a Poisson process with that rate per second.
    fn gap(&mut self, per_second: f64) -> Duration {
        Duration::from_secs_f64(-(1.0 - self.part()).ln() / per_second)
    }

    fn duration(&mut self) -> Duration {
        let at = usize::try_from(self.next() % 20).expect("the number is small");
        Duration::from_millis(DURATIONS[at])
    }
}

/// A stream that begins at once and ends at its time.
struct Answer {
    frames: usize,
    end: Pin<Box<Sleep>>,
    // Held to its end.
    _slot: Option<Slot>,
}

enum Slot {
    Counted(Arc<AtomicUsize>),
    Queued(#[expect(dead_code, reason = "held for its drop")] tokio::sync::OwnedSemaphorePermit),
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Self::Counted(count) = self {
            count.fetch_sub(1, Relaxed);
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = match self.frames {
            2 => CONTENT,
            1 => {
                ready!(self.end.as_mut().poll(cx));
                DONE
            }
            _ => return Poll::Ready(None),
        };
        self.frames -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(frame.as_bytes())))))
    }
}

fn answer(lasts: Duration, slot: Slot) -> http::Response<Answer> {
    stream(Answer {
        frames: 2,
        end: Box::pin(sleep(lasts)),
        _slot: Some(slot),
    })
}

/// Refuses calls beyond its slots, within a tenth of a second.
async fn refusing(in_use: Arc<AtomicUsize>, lasts: Duration) -> http::Response<Answer> {
    let slot = Slot::Counted(Arc::clone(&in_use));
    if in_use.fetch_add(1, Relaxed) < SLOTS {
        sleep(Duration::from_millis(600)).await;
        return answer(lasts, slot);
    }
    drop(slot);
    sleep(Duration::from_millis(100)).await;
    let refused = http::Response::builder()
        .status(429)
        .header("retry-after", "3600");
    let nothing = Answer {
        frames: 0,
        end: Box::pin(sleep(Duration::ZERO)),
        _slot: None,
    };
    refused.body(nothing).expect("a valid response")
}

/// Queues calls beyond its slots, first in, first out.
async fn queueing(slots: Arc<Semaphore>, lasts: Duration) -> http::Response<Answer> {
    let slot = slots.acquire_owned().await.expect("the semaphore is open");
    sleep(Duration::from_millis(600)).await;
    answer(lasts, Slot::Queued(slot))
}

/// The result of forty minutes, of which the second half is counted.
#[derive(Debug, Default)]
struct Trial {
    offered: usize,
    admitted: usize,
    /// Refused by the provider.
    refused: usize,
    /// With a first token within five seconds of the caller's request.
    in_time: usize,
    mean_limit: f64,
    lowest: usize,
    highest: usize,
}

impl Trial {
    /// The ratio of admitted calls that the provider refused.
    fn refused_ratio(&self) -> f64 {
        self.refused as f64 / self.admitted as f64
    }

    fn in_time_ratio(&self) -> f64 {
        self.in_time as f64 / self.offered as f64
    }
}

enum End {
    Shed,
    Refused,
    FirstToken(Duration),
}

async fn trial<F, Fut>(builder: BulkheadBuilder, per_second: f64, provider: F) -> Trial
where
    F: Fn(Duration) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = http::Response<Answer>> + Send + 'static,
{
    let layer = builder.build().expect("valid settings");
    let handle = layer.handle();
    let mut numbers = Numbers(7);
    let mut trial = Trial {
        lowest: usize::MAX,
        ..Trial::default()
    };
    let mut calls = JoinSet::new();
    let (mut limits, mut at) = (0, Instant::now());
    let (counted, end) = (at + 1_200 * SECOND, at + 2_400 * SECOND);
    while at < end {
        at += numbers.gap(per_second);
        sleep_until(at).await;
        let lasts = numbers.duration();
        let provider = provider.clone();
        let service = layer.layer(service_fn(move |_: Request| {
            let response = provider(lasts);
            async move { Ok::<_, Infallible>(response.await) }
        }));
        let call = async move {
            let asked = Instant::now();
            let Ok(response) = service.oneshot(chat()).await else {
                return End::Shed;
            };
            let is_refused = response.status() == 429;
            let mut body = response.into_body();
            let mut first = None;
            while let Some(Ok(_)) = body.frame().await {
                first.get_or_insert(asked.elapsed());
            }
            match first {
                Some(first) if !is_refused => End::FirstToken(first),
                _ => End::Refused,
            }
        };
        if at < counted {
            calls.spawn(async move { (false, call.await) });
        } else {
            calls.spawn(async move { (true, call.await) });
            let limit = limit(&handle);
            trial.lowest = trial.lowest.min(limit);
            trial.highest = trial.highest.max(limit);
            trial.offered += 1;
            limits += limit;
        }
        while let Some(call) = calls.try_join_next() {
            trial.count(call.expect("no call panics"));
        }
    }
    while let Some(call) = calls.join_next().await {
        trial.count(call.expect("no call panics"));
    }
    trial.mean_limit = limits as f64 / trial.offered as f64;
    assert_eq!(openai(&handle).0, 0);
    trial
}

impl Trial {
    fn count(&mut self, (is_counted, end): (bool, End)) {
        if !is_counted {
            return;
        }
        match end {
            End::Shed => return,
            End::Refused => self.refused += 1,
            End::FirstToken(after) => self.in_time += usize::from(after <= 5 * SECOND),
        }
        self.admitted += 1;
    }
}

async fn before_refusing(builder: BulkheadBuilder, per_second: f64) -> Trial {
    let in_use = Arc::<AtomicUsize>::default();
    let provider = move |lasts| refusing(Arc::clone(&in_use), lasts);
    trial(builder.max_waiting(0), per_second, provider).await
}

async fn before_queueing(builder: BulkheadBuilder, per_second: f64) -> Trial {
    let slots = Arc::new(Semaphore::new(SLOTS));
    let provider = move |lasts| queueing(Arc::clone(&slots), lasts);
    trial(builder.max_waiting(0), per_second, provider).await
}

#[tokio::test(start_paused = true)]
async fn on_throttling_the_limit_finds_the_slots_of_a_refusing_provider() {
    let none = before_refusing(BulkheadLayer::builder(1_000), 12.0).await;
    println!("none: {none:?}");
    assert!(none.refused_ratio() > 0.35, "{none:?}");

    let knows = before_refusing(BulkheadLayer::builder(SLOTS), 12.0).await;
    println!("static: {knows:?}");
    assert_eq!((knows.lowest, knows.highest), (SLOTS, SLOTS));
    assert_eq!(knows.refused, 0);

    for begin in [20, 400] {
        let builder = BulkheadLayer::builder(begin).adaptive(Adaptive::on_throttling());
        let found = before_refusing(builder, 12.0).await;
        println!("from {begin}: {found:?}");
        // Every refusal asks to wait for an hour, and the limit keeps changing.
        assert!(
            found.refused > 0 && found.lowest < found.highest,
            "{found:?}"
        );
        assert!(found.refused_ratio() < 0.01, "{found:?}");
        assert!((68.0..=82.0).contains(&found.mean_limit), "{found:?}");
        assert!(found.lowest >= 60 && found.highest <= 90, "{found:?}");
        // The adaptive limit does not serve more calls than no limit would.
        assert!(found.in_time <= none.in_time, "{found:?} {none:?}");
        assert!(found.in_time as f64 > 0.85 * none.in_time as f64);
    }
}

#[tokio::test(start_paused = true)]
async fn on_first_tokens_the_limit_finds_the_capacity_of_a_queueing_provider() {
    let none = before_queueing(BulkheadLayer::builder(1_000), 9.0).await;
    println!("none: {none:?}");
    assert!(none.in_time_ratio() < 0.05, "{none:?}");

    let knows = before_queueing(BulkheadLayer::builder(SLOTS), 9.0).await;
    println!("static: {knows:?}");
    assert_eq!((knows.lowest, knows.highest), (SLOTS, SLOTS));

    // Such a provider never throttles.
    let throttling = BulkheadLayer::builder(200).adaptive(Adaptive::on_throttling());
    let throttling = before_queueing(throttling, 9.0).await;
    println!("on throttling: {throttling:?}");
    assert!(
        throttling.lowest >= 200 && throttling.in_time_ratio() < 0.05,
        "{throttling:?}"
    );

    for begin in [20, 400] {
        let adaptive = Adaptive::on_first_token(5 * SECOND);
        let builder = BulkheadLayer::builder(begin).adaptive(adaptive);
        let found = before_queueing(builder, 9.0).await;
        println!("from {begin}: {found:?}");
        assert!((75.0..=115.0).contains(&found.mean_limit), "{found:?}");
        let ratio = found.in_time as f64 / knows.in_time as f64;
        assert!(ratio > 0.85, "{found:?} {knows:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_is_not_reached_does_not_rise() {
    let builder = BulkheadLayer::builder(100).adaptive(Adaptive::on_throttling());
    let idle = before_refusing(builder, 2.0).await;
    assert_eq!((idle.lowest, idle.highest), (100, 100), "{idle:?}");
    assert_eq!(idle.refused, 0);
}
