//! Callers take turns in a queue, and calls that are not polled do not block others.

use crate::support::{Ask, HOUR, MS, Open, SECOND, admitted, asked, limited, open, stats, waiting};
use tokio::time::advance;
use tokio_test::{assert_pending, assert_ready, task::Spawn};
use tower_llm_core::KeyBy;
use tower_llm_ratelimit::{Limit, RateLimitBuilder, ResponseFuture};
use tower_llm_testkit::mock::{arrived, nothing_arrived, start};
use tower_test::mock::{Handle, Mock, SendResponse};

type Call = Spawn<ResponseFuture<Mock<Ask, usize>, Ask, Open>>;

/// One token each second for all callers together, and up to sixty at once.
fn a_token_a_second() -> RateLimitBuilder<Open> {
    open()
        .limit(Limit::tokens(60).per_minute().bucket(60))
        .key_by(KeyBy::shared())
        .max_waiting(100)
        .max_wait(HOUR)
}

/// Polls woken calls until no more are woken.
fn poll_woken(calls: &mut [Call]) {
    while let Some(call) = calls.iter_mut().find(|call| call.is_woken()) {
        assert_pending!(call.poll());
    }
}

/// The sent calls, which are not answered.
#[derive(Default)]
struct Sent(Vec<SendResponse<usize>>);

impl Sent {
    #[track_caller]
    fn next(&mut self, upstream: &mut Handle<Ask, usize>) -> usize {
        let (ask, answer) = arrived(upstream);
        self.0.push(answer);
        ask.id
    }
}

#[tokio::test(start_paused = true)]
async fn callers_take_turns_and_the_calls_of_each_keep_their_order() {
    let layer = a_token_a_second().build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let mut sent = Sent::default();
    admitted(&service, &mut upstream, Ask::tokens(60)).used(60, 0);
    let ask = |caller, id| Ask::of(caller, 1, 0).id(id);
    let asks = (0..20)
        .map(|id| ask("many", id))
        .chain((100..103).map(|id| ask("few", id)))
        .chain([ask("one", 200)]);
    let mut calls: Vec<_> = asks.map(|ask| start(&service, ask)).collect();
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    let mut order = Vec::new();
    for _ in 0..8 {
        advance(SECOND).await;
        poll_woken(&mut calls);
        order.push(sent.next(&mut upstream));
        nothing_arrived(&mut upstream);
    }
    assert_eq!(order, [0, 100, 200, 1, 101, 2, 102, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_flood_by_one_caller_does_not_refuse_another() {
    // A request counts as used: 60 of them ahead would make a new call wait for two minutes.
    let layer = open()
        .limit(Limit::requests(60).per_minute().bucket(1))
        .key_by(KeyBy::shared())
        .max_waiting(100)
        .max_wait(30 * SECOND)
        .build()
        .unwrap();
    let (service, mut upstream) = asked(&layer);
    let mut sent = Sent::default();
    admitted(&service, &mut upstream, Ask::of("many", 1, 0)).used(1, 0);
    let mut flood: Vec<_> = (0..30)
        .map(|id| start(&service, Ask::of("many", 1, 0).id(id)))
        .collect();
    for call in &mut flood {
        assert_pending!(call.poll());
    }
    let mut too_many = start(&service, Ask::of("many", 1, 0));
    let error = assert_ready!(too_many.poll()).map(drop).unwrap_err();
    assert_eq!(limited(&error).retry_after(), Some(31 * SECOND));
    let mut other = start(&service, Ask::of("other", 1, 0).id(100));
    assert_pending!(other.poll());
    flood.push(other);
    for id in [0, 100, 1] {
        advance(SECOND).await;
        poll_woken(&mut flood);
        assert_eq!(sent.next(&mut upstream), id);
    }
}

/// A hundred calls wait. 96 of them are alive but are never polled again, including the first.
#[tokio::test(start_paused = true)]
async fn unpolled_calls_do_not_block_others() {
    for polled_once in [true, false] {
        let layer = a_token_a_second().max_wait(30 * SECOND).build().unwrap();
        let (service, mut upstream) = asked(&layer);
        let mut sent = Sent::default();
        admitted(&service, &mut upstream, Ask::tokens(60)).used(60, 0);
        let mut idle = Vec::new();
        let mut live = Vec::new();
        for id in 0..100 {
            let mut call = start(&service, Ask::tokens(1).id(id));
            if id % 25 == 24 {
                assert_pending!(call.poll());
                live.push(call);
            } else {
                if polled_once {
                    assert_pending!(call.poll());
                }
                idle.push(call);
            }
        }
        assert_eq!(waiting(&layer.handle()), [100]);
        // The head has a second to be polled, and so does each call that was woken to replace it.
        for _ in 0..40 {
            advance(100 * MS).await;
            poll_woken(&mut live);
        }
        for id in [24, 49, 74, 99] {
            assert_eq!(sent.next(&mut upstream), id);
        }
        nothing_arrived(&mut upstream);
        // They do not count any more: a hundred others may wait.
        let mut others: Vec<_> = (200..300)
            .map(|id| start(&service, Ask::tokens(1).id(id)))
            .collect();
        for call in &mut others {
            assert_pending!(call.poll());
        }
        advance(SECOND).await;
        poll_woken(&mut others);
        assert_eq!(sent.next(&mut upstream), 200);
        assert_eq!(stats(&layer.handle()).refused, 0);
        drop(others);
        // Calls that are polled again go first.
        assert_pending!(idle[0].poll());
        advance(SECOND).await;
        poll_woken(&mut idle[..1]);
        assert_eq!(sent.next(&mut upstream), 0);
        drop(idle);
        assert_eq!(waiting(&layer.handle()), [0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_polled_late_remains_the_head() {
    let layer = a_token_a_second().build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let mut sent = Sent::default();
    admitted(&service, &mut upstream, Ask::tokens(60)).used(60, 0);
    let mut first = start(&service, Ask::tokens(2).id(1));
    let mut second = start(&service, Ask::tokens(2).id(2));
    assert_pending!(first.poll());
    assert_pending!(second.poll());
    // It could have been admitted for a second, less a millisecond.
    advance(3 * SECOND - MS).await;
    assert!(!second.is_woken());
    assert_pending!(second.poll());
    nothing_arrived(&mut upstream);
    assert_pending!(first.poll());
    assert_eq!(sent.next(&mut upstream), 1);
    nothing_arrived(&mut upstream);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_woken_by_a_settlement_and_is_not_polled_passes_it_on() {
    let layer = a_token_a_second().build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let running = admitted(&service, &mut upstream, Ask::tokens(60));
    let mut calls: Vec<_> = (1..=3)
        .map(|id| start(&service, Ask::tokens(60).id(id)))
        .collect();
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    running.used(0, 0);
    assert!(calls[0].is_woken() && !calls[1].is_woken());
    let idle = calls.remove(0);
    let began = tokio::time::Instant::now();
    while upstream.poll_request().is_pending() {
        advance(100 * MS).await;
        poll_woken(&mut calls);
        assert!(began.elapsed() < 62 * SECOND);
    }
    drop(idle);
}

#[tokio::test(start_paused = true)]
async fn a_call_served_instead_of_another_wakes_it() {
    let layer = a_token_a_second().build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let mut sent = Sent::default();
    admitted(&service, &mut upstream, Ask::tokens(60)).used(60, 0);
    let mut idle = start(&service, Ask::tokens(1).id(0));
    assert_pending!(idle.poll());
    let mut calls: Vec<Call> = (1..=2)
        .map(|id| start(&service, Ask::tokens(1).id(id)))
        .collect();
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    advance(2 * SECOND).await;
    assert!(calls[0].is_woken() && calls[1].is_woken());
    poll_woken(&mut calls);
    // Both find two tokens.
    assert_eq!(sent.next(&mut upstream), 1);
    assert_eq!(sent.next(&mut upstream), 2);
    drop(idle);
    assert_eq!(waiting(&layer.handle()), [0]);
}
