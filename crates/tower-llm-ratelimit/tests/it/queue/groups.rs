//! Calls that wait for limits with several kinds of key: which queue they are in, and when they change it.

use crate::support::{Ask, MINUTE, MS, Open, SECOND, admitted, asked, open, waiting};
use tokio::time::advance;
use tokio_test::assert_pending;
use tower_llm_core::KeyBy;
use tower_llm_ratelimit::{Limit, RateLimitBuilder};
use tower_llm_testkit::mock::{arrived, nothing_arrived, start};

/// Ten tokens at once for each caller, and 30 for all callers.
fn callers_of_an_organisation() -> RateLimitBuilder<Open> {
    open()
        .limit(Limit::tokens(60).per_minute().bucket(10))
        .limit(
            Limit::tokens(180)
                .per_minute()
                .bucket(30)
                .by(KeyBy::shared()),
        )
        .max_waiting(10)
        .max_wait(MINUTE)
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_its_own_limit_blocks_no_other_caller() {
    let layer = callers_of_an_organisation().build().unwrap();
    let (service, mut upstream) = asked(&layer);
    admitted(&service, &mut upstream, Ask::of("ann", 10, 0)).used(10, 0);
    let mut ann = start(&service, Ask::of("ann", 10, 0).id(1));
    assert_pending!(ann.poll());
    admitted(&service, &mut upstream, Ask::of("bob", 10, 0)).used(10, 0);
    admitted(&service, &mut upstream, Ask::of("cid", 10, 0)).used(10, 0);
    assert_eq!(waiting(&layer.handle()), [1, 0]);

    // Now the organisation's limit blocks all calls, in one queue.
    let mut dan = start(&service, Ask::of("dan", 6, 0).id(2));
    let mut eve = start(&service, Ask::of("eve", 6, 0).id(3));
    assert_pending!(dan.poll());
    assert_pending!(eve.poll());
    assert_eq!(waiting(&layer.handle()), [1, 2]);
    for (call, id) in [(&mut dan, 2), (&mut eve, 3)] {
        advance(2 * SECOND).await;
        assert_pending!(call.poll());
        assert_eq!(arrived(&mut upstream).0.id, id);
    }
    advance(6 * SECOND).await;
    assert_pending!(ann.poll());
    assert_eq!(arrived(&mut upstream).0.id, 1);
    assert_eq!(waiting(&layer.handle()), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_call_blocked_by_another_key_joins_its_queue() {
    let layer = callers_of_an_organisation().build().unwrap();
    let (service, mut upstream) = asked(&layer);
    admitted(&service, &mut upstream, Ask::of("ann", 10, 0)).used(10, 0);
    let mut ann = start(&service, Ask::of("ann", 2, 0).id(1));
    assert_pending!(ann.poll());
    // The organisation's limit is used up, and more.
    admitted(&service, &mut upstream, Ask::of("bob", 10, 0)).used(10, 0);
    admitted(&service, &mut upstream, Ask::of("cid", 10, 0)).used(28, 0);
    let mut dan = start(&service, Ask::of("dan", 3, 0).id(2));
    assert_pending!(dan.poll());
    assert_eq!(waiting(&layer.handle()), [1, 1]);
    advance(2 * SECOND).await;
    // Ann's own limit has room; the organisation's has none, and Dan's call was there before.
    assert_pending!(ann.poll());
    assert_eq!(waiting(&layer.handle()), [0, 2]);
    nothing_arrived(&mut upstream);
    advance(5 * SECOND).await;
    assert_pending!(ann.poll());
    assert_pending!(dan.poll());
    assert_eq!(arrived(&mut upstream).0.id, 2);
    nothing_arrived(&mut upstream);
    assert_pending!(ann.poll());
    advance(667 * MS).await;
    assert_pending!(ann.poll());
    assert_eq!(arrived(&mut upstream).0.id, 1);
    assert_eq!(waiting(&layer.handle()), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_head_is_not_moved_behind_later_calls() {
    let layer = callers_of_an_organisation().build().unwrap();
    let (service, mut upstream) = asked(&layer);
    admitted(&service, &mut upstream, Ask::of("ann", 10, 0)).used(10, 0);
    let mut small = start(&service, Ask::of("ann", 1, 0).id(1));
    let mut large = start(&service, Ask::of("ann", 10, 0).id(2));
    assert_pending!(small.poll());
    assert_pending!(large.poll());
    admitted(&service, &mut upstream, Ask::of("bob", 10, 0)).used(10, 0);
    admitted(&service, &mut upstream, Ask::of("cid", 10, 0)).used(20, 0);
    let mut dan = start(&service, Ask::of("dan", 1, 0).id(3));
    assert_pending!(dan.poll());
    // Ann's first call has room in its own limit and now waits for the organisation's; the second stays.
    advance(SECOND).await;
    assert_pending!(small.poll());
    assert_pending!(large.poll());
    assert_eq!(waiting(&layer.handle()), [1, 2]);
    advance(2_667 * MS).await;
    for call in [&mut dan, &mut small, &mut large] {
        assert_pending!(call.poll());
    }
    assert_eq!(arrived(&mut upstream).0.id, 3);
    advance(334 * MS).await;
    for call in [&mut small, &mut large] {
        assert_pending!(call.poll());
    }
    assert_eq!(arrived(&mut upstream).0.id, 1);
    nothing_arrived(&mut upstream);
}
