//! What a follower costs: a caller that shares the stream of another.
//!
//! The upstream delivers one frame at a time, and then has nothing. After each, all callers are woken, read it, and are told
//! that there is no more; so each polls twice for a frame, as it does on a server. Nothing is stored.
//!
//! How long a thousand callers wait for the first frame is read on a runtime, with a task for each.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use benches::{Case, Suite, now, payload, runtime};
use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use tokio::{task::JoinSet, time::Instant};
use tower::{Service, service_fn};

use crate::{
    calls::{Described, EVENTS, Numbered, builder, cached, request, response},
    second::quantiles,
};

const FOLLOWERS: [usize; 4] = [0, 1, 10, 100];
const TOKENS: usize = 200;

const CALLERS: usize = 1_000;
const ROUNDS: u64 = 20;

/// A body that delivers a frame each time that it is allowed to.
struct Slow {
    left: &'static [Bytes],
    gate: Arc<Mutex<Gate>>,
}

#[derive(Default)]
struct Gate {
    allowed: usize,
    waker: Option<Waker>,
}

pub(crate) fn measure(suite: &mut Suite) {
    let mut measured = None;
    for (i, unit) in ["us at p50", "us at p99"].into_iter().enumerate() {
        suite.figure("first frame", "1,000 callers of one call", unit, || {
            measured.get_or_insert_with(|| runtime().block_on(first_frame()))[i]
        });
    }
    let few = FOLLOWERS.map(|followers| flight(suite, 1, followers));
    let many = FOLLOWERS.map(|followers| flight(suite, TOKENS, followers));
    let (Some(alone_few), Some(alone_many)) = (few[0], many[0]) else {
        return;
    };
    for (i, followers) in FOLLOWERS.into_iter().enumerate().skip(1) {
        let (Some(few), Some(many)) = (few[i], many[i]) else {
            continue;
        };
        let (few, many) = (few - alone_few, many - alone_many);
        let frame = (many - few) / (TOKENS - 1) as f64 / followers as f64;
        let subject = format!("{followers} followers");
        suite.figure("follower", &subject, "ns a frame and follower", || frame);
        suite.figure("follower", &subject, "ns a follower without frames", || {
            few / followers as f64 - 5.0 * frame
        });
    }
}

/// A whole call of a leader and its followers.
fn flight(suite: &mut Suite, tokens: usize, followers: usize) -> Option<f64> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let frames = payload::forever(payload::chat_stream(tokens));
    let case = Case::new(format!("flight of {} frames", frames.len()));
    let body = Numbered::new(&payload::chat_request(2_000));
    suite.subject(&case, &format!("{followers} followers"), || {
        let gate = Arc::<Mutex<Gate>>::default();
        let upstream = service_fn(answer(frames, &gate));
        let (mut service, layer) = cached(builder().memory(None), upstream);
        let cache = layer.handle();
        // Callers ask the same, and no two threads do.
        let body = body.clone().with(NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut expected = 0;
        move || {
            *gate.lock().unwrap_or_else(PoisonError::into_inner) = Gate::default();
            let callers = (0..=followers).map(|_| now(service.call(request(body.clone()))));
            let bodies: Result<Vec<_>, _> = callers
                .map(|response| response.map(Response::into_body))
                .collect();
            let mut bodies = bodies.expect("the call is answered");
            for frame in frames {
                allow(&gate);
                for body in &mut bodies {
                    let read = next(body).expect("there is a frame for each");
                    assert_eq!(read.len(), frame.len());
                }
                for body in &mut bodies {
                    assert!(next(body).is_none(), "there is one for each");
                }
            }
            drop(bodies);
            expected += followers as u64;
            assert_eq!(cache.stats().collapsed, expected);
        }
    })
}

/// How long after the provider has sent the first frame the callers of one call have it.
async fn first_frame() -> [f64; 2] {
    let gate = Arc::<Mutex<Gate>>::default();
    let frames = payload::forever(payload::chat_stream(1));
    let upstream = service_fn(answer(frames, &gate));
    let (mut service, layer) = cached(builder().memory(None), upstream);
    let mut body = Numbered::new(&payload::chat_request(2_000));
    let mut waits = Vec::new();
    for round in 0..ROUNDS {
        *gate.lock().unwrap_or_else(PoisonError::into_inner) = Gate::default();
        let body = body.with(round);
        let waiting = Arc::new(AtomicUsize::new(0));
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let response = service.call(request(body.clone())).await;
            let mut body = response.expect("the call is answered").into_body();
            let waiting = Arc::clone(&waiting);
            callers.spawn(async move {
                assert!(next(&mut body).is_none(), "nothing was sent");
                waiting.fetch_add(1, Ordering::Relaxed);
                let frame = body.frame().await.expect("there is a frame for each");
                let at = Instant::now();
                (frame.expect("it does not fail").is_data(), at)
            });
        }
        while waiting.load(Ordering::Relaxed) < CALLERS {
            tokio::task::yield_now().await;
        }
        let sent = Instant::now();
        allow(&gate);
        for (is_data, at) in callers.join_all().await {
            assert!(is_data);
            waits.push(at - sent);
        }
    }
    let followers = (CALLERS as u64 - 1) * ROUNDS;
    assert_eq!(layer.handle().stats().collapsed, followers);
    quantiles(waits)
}

/// Answers with a body that delivers a frame whenever the gate allows it.
fn answer(
    frames: &'static [Bytes],
    gate: &Arc<Mutex<Gate>>,
) -> impl Fn(Described) -> Ready<Result<Response<Slow>, Infallible>> + Clone + use<> {
    let gate = Arc::clone(gate);
    move |_| {
        let gate = Arc::clone(&gate);
        ready(Ok(response(EVENTS, Slow { left: frames, gate })))
    }
}

fn allow(gate: &Mutex<Gate>) {
    let mut gate = gate.lock().unwrap_or_else(PoisonError::into_inner);
    gate.allowed += 1;
    let waker = gate.waker.take();
    drop(gate);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The next frame; `None` if there is none yet, or none any more.
fn next<B>(body: &mut B) -> Option<Bytes>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut cx = Context::from_waker(Waker::noop());
    match Pin::new(body).poll_frame(&mut cx) {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
        _ => None,
    }
}

impl Body for Slow {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some((first, left)) = self.left.split_first() else {
            return Poll::Ready(None);
        };
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        if gate.allowed == 0 {
            gate.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        gate.allowed -= 1;
        drop(gate);
        self.left = left;
        Poll::Ready(Some(Ok(Frame::data(first.clone()))))
    }
}
