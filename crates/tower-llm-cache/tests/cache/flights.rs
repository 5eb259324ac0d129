//! Calls that share one upstream call.

use std::{
    convert::Infallible,
    future,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    thread, vec,
};

use futures_util::stream;
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody};
use tower::service_fn;
use tower_layer::Layer;
use tower_llm_cache::{FlightFailed, Policy};
use tower_llm_core::{BoxError, Served};
use tower_llm_testkit::mock::{self, Upstream};
use tower_service::Service;

use crate::support::*;

#[test]
fn identical_calls_share_one_and_each_reads_all_of_it() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let mut leader = start(&cache, question());
    let mut early = start(&cache, question());
    let (_, send) = mock::arrived(&mut provider);
    let sender = stream(send);
    let mut leader = answered(&mut leader);
    let mut early = answered(&mut early);
    assert_eq!(status(&leader), "tower-llm-cache; fwd=miss");
    assert_eq!(status(&early), "tower-llm-cache; fwd=miss; collapsed");
    assert_eq!(leader.extensions().get::<Served>(), None);
    assert_eq!(early.extensions().get(), Some(&Served::Follower));

    sender.send(ROLE);
    sender.send(TOKEN);
    assert_eq!(next(leader.body_mut()).unwrap().unwrap(), ROLE);
    assert_eq!(next(leader.body_mut()).unwrap().unwrap(), TOKEN);

    // It begins with the first frame, whenever it comes.
    let mut late = found(&cache, question()).expect("the headers are there");
    for expected in [ROLE, TOKEN] {
        assert_eq!(next(late.body_mut()).unwrap().unwrap(), expected);
        assert_eq!(next(early.body_mut()).unwrap().unwrap(), expected);
    }
    assert!(is_waiting(late.body_mut()));
    sender.send(FINISH);
    drop(sender);
    // Any of them drives the upstream.
    assert_eq!(frames(late), [FINISH]);
    assert_eq!(frames(early), [FINISH]);
    assert_eq!(frames(leader), [FINISH]);
    mock::nothing_arrived(&mut provider);
    let stats = layer.handle().stats();
    assert_eq!((stats.misses, stats.collapsed, stats.in_flight), (1, 2, 0));
}

#[test]
fn a_leader_that_leaves_at_any_time_harms_no_follower() {
    for cut in 0..=WHOLE.len() {
        let layer = shared();
        let (cache, mut provider) = upstream(&layer);
        let leader = start(&cache, question());
        let mut follower = start(&cache, question());
        let (_, send) = mock::arrived(&mut provider);
        let mut leader = Some(leader);
        if cut == 0 {
            leader = None;
        }
        let sender = stream(send);
        let mut leading = leader.map(|mut leader| answered(&mut leader));
        for (index, frame) in WHOLE.into_iter().enumerate() {
            if index + 1 == cut {
                leading = None;
            }
            sender.send(frame);
            if let Some(leading) = &mut leading {
                next(leading.body_mut()).unwrap().unwrap();
            }
        }
        drop(sender);
        assert_eq!(frames(answered(&mut follower)), WHOLE, "left after {cut}");
        assert!(found(&cache, question()).is_some());
        mock::nothing_arrived(&mut provider);
    }
}

#[test]
fn a_leader_that_reads_nothing_harms_no_follower() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    // Never polled again after its first poll.
    let _leader = start(&cache, question());
    let mut follower = start(&cache, question());
    answer(&mut provider, &WHOLE);
    assert!(follower.is_woken());
    assert_eq!(frames(answered(&mut follower)), WHOLE);
}

/// A wake-up for each frame that a task has just read would poll it twice as often.
#[test]
fn a_caller_is_not_woken_by_the_frames_that_it_fetches_itself() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let mut calling = start(&cache, question());
    let sender = stream(mock::arrived(&mut provider).1);
    let mut body = tokio_test::task::spawn(answered(&mut calling).into_body());
    for frame in WHOLE {
        assert!(body.enter(|cx, body| body.poll_frame(cx)).is_pending());
        sender.send(frame);
        assert!(body.is_woken());
        // Polled by the executor: the wake-up is used up.
        let read = body.enter(|cx, body| body.poll_frame(cx));
        assert!(read.is_ready());
        assert!(!body.is_woken(), "{frame}");
    }
}

#[test]
fn the_last_to_leave_drops_the_upstream() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let mut callers: Vec<_> = (0..3).map(|_| start(&cache, question())).collect();
    let (_, send) = mock::arrived(&mut provider);
    let dropped = Arc::new(AtomicBool::new(false));
    let (sender, body) = Upstream::new();
    let note = Arc::clone(&dropped);
    let body = body.on_drop(move || note.store(true, Ordering::Relaxed));
    send.send_response(mock::stream(body));
    sender.send(ROLE);
    let mut answers: Vec<_> = callers.iter_mut().map(answered).collect();
    while let Some(mut answer) = answers.pop() {
        assert!(!dropped.load(Ordering::Relaxed));
        next(answer.body_mut()).unwrap().unwrap();
        drop(answer);
    }
    assert!(dropped.load(Ordering::Relaxed));
    // A new caller starts afresh.
    let _calling = start(&cache, question());
    mock::arrived(&mut provider);
}

#[test]
fn a_failed_call_fails_all_that_share_it_and_never_ends_cleanly() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let mut callers: Vec<_> = (0..3).map(|_| start(&cache, question())).collect();
    let (_, send) = mock::arrived(&mut provider);
    let sender = stream(send);
    sender.send(ROLE);
    sender.fail("connection reset");
    for calling in &mut callers {
        let mut answer = answered(calling);
        assert_eq!(next(answer.body_mut()).unwrap().unwrap(), ROLE);
        let error = next(answer.body_mut()).unwrap().unwrap_err();
        assert_eq!(error.to_string(), "connection reset");
        assert!(next(answer.body_mut()).is_none());
    }
    assert!(found(&cache, question()).is_none());
}

#[test]
fn an_error_instead_of_an_answer_reaches_all_with_its_sources() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let mut callers: Vec<_> = (0..2).map(|_| start(&cache, question())).collect();
    let (_, send) = mock::arrived(&mut provider);
    let source = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    send.send_error(source);
    for calling in &mut callers {
        let Poll::Ready(Err(error)) = calling.poll() else {
            panic!("it failed");
        };
        let source = error.source().unwrap().downcast_ref::<std::io::Error>();
        assert_eq!(
            source.unwrap().kind(),
            std::io::ErrorKind::ConnectionRefused
        );
    }
}

#[test]
fn a_panic_of_the_upstream_fails_the_others() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let mut callers: Vec<_> = (0..2).map(|_| start(&cache, question())).collect();
    let (_, send) = mock::arrived(&mut provider);
    let sender = stream(send);
    let mut answers: Vec<_> = callers.iter_mut().map(answered).collect();
    assert!(is_waiting(answers[1].body_mut()));
    sender.send("panic");
    let panicked =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| next(answers[0].body_mut())));
    assert!(panicked.is_err());
    let error = next(answers[1].body_mut()).unwrap().unwrap_err();
    let error = error.source().unwrap();
    assert!(error.is::<FlightFailed>(), "{error:?}");
}

#[test]
fn beyond_the_size_limit_no_caller_joins_and_a_slow_reader_loses_its_answer() {
    let layer = caching(Policy::completions().max_answer_bytes(2 * TOKEN.len()));
    let (cache, mut provider) = upstream(&layer);
    let mut callers: Vec<_> = (0..2).map(|_| start(&cache, question())).collect();
    let (_, send) = mock::arrived(&mut provider);
    let sender = stream(send);
    let mut answers: Vec<_> = callers.iter_mut().map(answered).collect();
    for _ in 0..5 {
        sender.send(TOKEN);
    }
    let mut slow = answers.pop().unwrap();
    let mut fast = answers.pop().unwrap();
    assert_eq!(next(slow.body_mut()).unwrap().unwrap(), TOKEN);
    for _ in 0..5 {
        assert_eq!(next(fast.body_mut()).unwrap().unwrap(), TOKEN);
    }
    let error = next(slow.body_mut()).unwrap().unwrap_err();
    assert!(error.is::<FlightFailed>());
    // Too late to join.
    let _calling = start(&cache, question());
    mock::arrived(&mut provider);

    // Alone, a reader is not too slow for itself.
    drop(slow);
    for _ in 0..50 {
        sender.send(TOKEN);
    }
    drop(sender);
    assert_eq!(frames(fast).len(), 50);
}

#[test]
fn streamed_calls_and_others_do_not_share() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let _streamed = start(&cache, question());
    let _unstreamed = start(
        &cache,
        described(post(CHAT), &QUESTION.replace("true", "false")),
    );
    mock::arrived(&mut provider);
    mock::arrived(&mut provider);
}

/// The one would get a chunk that it did not ask for, and the other would miss its usage.
#[test]
fn streams_with_and_without_usage_do_not_share() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let option = r#"{"stream_options":{"include_usage":true},"#;
    let _with = start(
        &cache,
        described(post(CHAT), &QUESTION.replacen('{', option, 1)),
    );
    let _without = start(&cache, question());
    mock::arrived(&mut provider);
    mock::arrived(&mut provider);
}

/// Calls `model` from four threads at once through a new cache; returns what each of them has read.
fn all_at_once<F>(model: F) -> Vec<bytes::Bytes>
where
    F: Service<Sent, Error = BoxError> + Clone + Send + Sync + 'static,
    F: Service<Sent, Response = http::Response<Frames>, Future: Send>,
{
    const CALLERS: usize = 4;
    let cache = shared().layer(model);
    let barrier = Barrier::new(CALLERS);
    let read = || {
        let mut cache = cache.clone();
        let calling = {
            let request = question();
            barrier.wait();
            cache.call(request)
        };
        let answer = tokio_test::block_on(calling).unwrap();
        let body = tokio_test::block_on(answer.into_body().collect());
        body.unwrap().to_bytes()
    };
    thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(read)).collect();
        callers
            .into_iter()
            .map(|caller| caller.join().unwrap())
            .collect()
    })
}

type Frames = StreamBody<stream::Iter<vec::IntoIter<Result<Frame<bytes::Bytes>, Infallible>>>>;

/// A stream of which all is there at once.
fn ready(frames: &[&'static str]) -> future::Ready<Result<http::Response<Frames>, BoxError>> {
    let frames: Vec<_> = frames
        .iter()
        .map(|frame| Ok(Frame::data(bytes::Bytes::from(*frame))))
        .collect();
    future::ready(Ok(mock::stream(StreamBody::new(stream::iter(frames)))))
}

/// Two participants that fetch one step each could note them the wrong way round.
#[test]
fn steps_come_in_order_whichever_thread_fetches_them() {
    const TOKENS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
    for _ in 0..300 {
        let model = service_fn(|_: Sent| ready(&TOKENS));
        let read = all_at_once(model);
        assert!(read.iter().all(|read| *read == TOKENS.concat()), "{read:?}");
    }
}

/// One that finds the upstream in use by another must not wait for that other's next poll.
#[test]
fn a_caller_that_stops_in_the_middle_leaves_the_upstream_to_the_others() {
    for _ in 0..300 {
        let model = service_fn(|_: Sent| ready(&WHOLE));
        let cache = shared().layer(model);
        let (started, both) = (Barrier::new(2), &cache);
        let (stopped, read) = thread::scope(|scope| {
            let stops = scope.spawn(|| {
                let mut cache = both.clone();
                let calling = cache.call(question());
                started.wait();
                let mut answer = tokio_test::block_on(calling).unwrap();
                let first = tokio_test::block_on(answer.body_mut().frame());
                (answer, first.unwrap().unwrap())
            });
            let mut cache = both.clone();
            let calling = cache.call(question());
            started.wait();
            let answer = tokio_test::block_on(calling).unwrap();
            let read = tokio_test::block_on(answer.into_body().collect()).unwrap();
            (stops.join().unwrap(), read.to_bytes())
        });
        assert_eq!(stopped.1.into_data().unwrap(), ROLE);
        assert_eq!(read, WHOLE.concat());
    }
}

/// A caller may find nothing stored, and then, when it is about to call, no flight any more.
#[test]
fn an_answer_that_is_stored_meanwhile_is_not_paid_for_twice() {
    for _ in 0..300 {
        let calls = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&calls);
        let model = service_fn(move |_: Sent| {
            count.fetch_add(1, Ordering::Relaxed);
            ready(&WHOLE)
        });
        let read = all_at_once(model);
        assert!(read.iter().all(|read| *read == WHOLE.concat()), "{read:?}");
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }
}

/// A caller counts the times that it is woken.
struct Count(AtomicUsize);

impl std::task::Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_thousand_followers_are_woken_once_for_each_frame() {
    const CALLERS: usize = 1_000;
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let mut callers: Vec<_> = (0..CALLERS).map(|_| start(&cache, question())).collect();
    let (_, send) = mock::arrived(&mut provider);
    let sender = stream(send);
    let mut answers: Vec<_> = callers.iter_mut().map(answered).collect();
    let wakes = Arc::new(Count(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&wakes));
    let mut cx = Context::from_waker(&waker);
    let mut polls = 0;
    let mut read = vec![Vec::new(); CALLERS];
    let mut poll_all = |answers: &mut Vec<Answer>, read: &mut Vec<Vec<bytes::Bytes>>| {
        let mut finished = 0;
        for (answer, read) in answers.iter_mut().zip(read) {
            use http_body::Body;
            loop {
                polls += 1;
                match std::pin::Pin::new(answer.body_mut()).poll_frame(&mut cx) {
                    Poll::Ready(Some(frame)) => read.push(frame.unwrap().into_data().unwrap()),
                    Poll::Ready(None) => finished += 1,
                    Poll::Pending => break,
                }
                if finished > 0 {
                    break;
                }
            }
            finished = 0;
        }
    };
    poll_all(&mut answers, &mut read);
    for frame in WHOLE {
        sender.send(frame);
        poll_all(&mut answers, &mut read);
    }
    drop(sender);
    poll_all(&mut answers, &mut read);
    assert!(read.iter().all(|read| *read == WHOLE));
    // Each frame, and the end, wakes each caller once when the upstream has it and once when it is there to be read: the
    // caller that fetched it had not waited since.
    let wakes = wakes.0.load(Ordering::Relaxed);
    assert!(wakes <= CALLERS * 2 * (WHOLE.len() + 1), "{wakes} wakes");
    // A frame and the wait for the next one: two polls.
    assert!(polls <= CALLERS * 2 * (WHOLE.len() + 2), "{polls} polls");
    mock::nothing_arrived(&mut provider);
}
