//! The events in a stack of all layers: a cache, and two retries, around the provider's.

use futures_util::poll;
use tower_llm_stack::{
    FanoutLayer,
    fanout::{Delay, FanoutBuilder},
};

use super::*;

fn whole(answers: impl IntoIterator<Item = Behavior>) -> Layers {
    Layers::with_cache(answers).fanout(FanoutLayer::retry(2))
}

/// With a second branch after a second.
fn hedged(answers: impl IntoIterator<Item = Behavior>) -> Layers {
    let hedge: FanoutBuilder = FanoutLayer::hedge(Delay::fixed(Duration::from_secs(1)));
    Layers::with_cache(answers).fanout(hedge)
}

/// Calls again, and returns how many calls the provider had by then.
async fn calls_after_another(layers: &Layers) -> u64 {
    read(&layers.stack()).await;
    layers.stand().providers.stats()[0].admitted
}

const EVENTS: usize = 4;

fn seen() -> Taken {
    taken(1, ESTIMATED_INPUT + output_seen(EVENTS))
}

#[tokio::test(start_paused = true)]
async fn a_cached_answer_has_no_branch() {
    let layers = whole([]);
    read(&layers.stack()).await;
    assert_eq!(calls_after_another(&layers).await, 1);
    let stand = layers.stand();
    assert_eq!(stand.of_caller(), taken(2, USED.tokens));
    assert_eq!(stand.of_provider(), USED);
    assert_eq!(stand.branches(), (1, 1));
    assert_eq!(stand.verdicts(), verdicts(1, 0));
}

#[tokio::test(start_paused = true)]
async fn followers_share_all_branches_of_a_call() {
    let layers = whole([Fault::Status(500).into()]);
    let client = layers.stack();
    future::join(read(&client), read(&client)).await;
    let stand = layers.stand();
    assert_eq!(stand.of_caller(), taken(2, USED.tokens));
    assert_eq!(stand.of_provider(), taken(2, USED.tokens));
    assert_eq!(stand.branches(), (1, 2));
    assert_eq!(stand.verdicts(), verdicts(1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_losing_branch_frees_its_permit_first_and_the_winner_is_cached() {
    let layers = hedged([Fault::NoAnswer.into()]);
    let response = layers.stack().oneshot(request()).await.unwrap();
    let stand = layers.stand();
    assert_eq!(stand.places_held(), 1);
    response.into_body().collect().await.unwrap();
    assert_eq!(stand.places_held(), 0);
    assert_eq!(stand.of_caller(), USED);
    assert_eq!(stand.of_provider(), taken(2, USED.tokens + ESTIMATED_INPUT));
    assert_eq!(stand.branches(), (1, 2));
    assert_eq!(stand.verdicts(), verdicts(1, 0));
    assert_eq!(calls_after_another(&layers).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_retry_is_each_inner_layers_and_once_the_callers() {
    let layers = whole([Fault::Status(500).into(), Fault::Status(500).into()]);
    read(&layers.stack()).await;
    let stand = layers.stand();
    assert_eq!(stand.of_caller(), USED);
    assert_eq!(stand.of_provider(), taken(3, USED.tokens));
    assert_eq!(stand.places_held(), 0);
    assert_eq!(stand.verdicts(), verdicts(1, 2));
    assert_eq!(
        calls_after_another(&layers).await,
        3,
        "the answer is cached"
    );
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_before_the_body_ends_all_branches() {
    let layers = hedged([Fault::NoAnswer.into(), Fault::NoAnswer.into()]);
    let mut call = layers.stack().oneshot(request());
    assert!(poll!(&mut call).is_pending());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(poll!(&mut call).is_pending());
    let stand = layers.stand();
    assert_eq!(stand.places_held(), 2);
    drop(call);
    assert_eq!(stand.places_held(), 0);
    assert_eq!(stand.of_caller(), INPUT);
    assert_eq!(stand.of_provider(), taken(2, 2 * ESTIMATED_INPUT));
    assert_eq!(stand.verdicts(), NEITHER);
    assert_eq!(calls_after_another(&layers).await, 3, "nothing is cached");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_inside_the_body_pays_for_what_was_seen() {
    let layers = whole([answer().fault(Fault::StallAfter(EVENTS))]);
    let response = layers.stack().oneshot(request()).await.unwrap();
    let mut body = response.into_body();
    for _ in 0..EVENTS {
        body.frame().await.unwrap().unwrap();
    }
    let stand = layers.stand();
    assert_eq!(stand.places_held(), 1);
    drop(body);
    assert_eq!(stand.places_held(), 0);
    assert_eq!(stand.of_caller(), seen());
    assert_eq!(stand.of_provider(), seen());
    assert_eq!(stand.verdicts(), NEITHER);
    assert_eq!(calls_after_another(&layers).await, 2, "nothing is cached");
}

/// A refusal is not sent again, and costs nothing.
#[tokio::test(start_paused = true)]
async fn a_refusal_has_one_branch_and_is_refunded() {
    let open = whole([]);
    open.stand().breaker.trip(&model(), Duration::from_secs(60));
    let full = Layers::with_room(100, 100, 1, [Fault::NoAnswer.into()]);
    let full = full.cached().fanout(FanoutLayer::retry(2));
    let used_up = Layers::with_room(100, 1, 100, [Fault::NoAnswer.into()]);
    let used_up = used_up.cached().fanout(FanoutLayer::retry(2));
    let mut held = Vec::new();
    for layers in [&full, &used_up] {
        // Another request: this one would be followed.
        let other = request().map(|_| REQUEST.replace("forty", "sixty").into());
        let mut call = layers.stack().oneshot(other);
        assert!(poll!(&mut call).is_pending());
        held.push(call);
    }
    for (layers, by, caller) in [
        (&open, "breaker", NOTHING),
        (&full, "bulkhead", RESERVED_OF_CALLER),
        (&used_up, "ratelimit", RESERVED_OF_CALLER),
    ] {
        assert_eq!(refused_by(&layers.stack()).await, by);
        let stand = layers.stand();
        assert_eq!(stand.of_caller(), caller, "{by}");
        // A call in flight is not counted yet.
        assert_eq!(stand.branches(), (1, 1), "{by}");
        assert_eq!(stand.verdicts(), NEITHER, "{by}");
    }
    drop(held);
}

/// Before its content, a stream with an error is sent again, unseen; after it, the error is the answer.
#[tokio::test(start_paused = true)]
async fn an_error_inside_the_stream_is_a_failure_and_is_not_cached() {
    for (events, branches, failures) in [(1, 2, verdicts(1, 1)), (EVENTS, 1, verdicts(0, 1))] {
        let fault = Fault::ErrorAfter(events, InBand::ServerError);
        let layers = whole([answer().fault(fault)]);
        read(&layers.stack()).await;
        let stand = layers.stand();
        assert_eq!(stand.branches(), (1, branches), "{events}");
        assert_eq!(stand.verdicts(), failures, "{events}");
        assert_eq!(stand.places_held(), 0, "{events}");
        let is_good = branches == 2;
        assert_eq!(stand.of_caller(), if is_good { USED } else { seen() });
        // The good answer is cached, the error is not.
        assert_eq!(calls_after_another(&layers).await, 2, "{events}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_cut_is_a_failure_and_is_not_cached() {
    let layers = whole([answer().fault(Fault::CutAfter(EVENTS))]);
    read(&layers.stack()).await;
    let stand = layers.stand();
    assert_eq!(stand.of_caller(), seen());
    assert_eq!(stand.of_provider(), seen());
    assert_eq!(stand.places_held(), 0);
    assert_eq!(stand.branches(), (1, 1), "its content was passed on");
    assert_eq!(stand.verdicts(), verdicts(0, 1));
    assert_eq!(calls_after_another(&layers).await, 2);
}
