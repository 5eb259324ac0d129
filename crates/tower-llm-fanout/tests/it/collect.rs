//! Answers that are kept: maps, ensembles and votes.

use std::{sync::Arc, sync::Mutex, time::Duration};

use tokio::time::Instant;
use tower_layer::Layer;
use tower_llm_core::{Completion, Failure, Outcome, Unary};
use tower_llm_fanout::{FanoutLayer, Item, NoBranches, NoQuorum, TooFewAnswers};
use tower_service::Service;

use crate::support::{Ask, MS, Numbered, Script, ask, fails, never, ok};

const FAILED: Outcome = Outcome::Failed(Failure::Status);

#[tokio::test(start_paused = true)]
async fn a_map_of_a_thousand_accounts_for_every_item_in_order() {
    let faulty = |id: usize| id % 20 == 7;
    let provider = Numbered::new(move |id| match faulty(id) {
        true => fails(FAILED, 5 * MS),
        // Later items are faster: the order of answers is not that of the items.
        false => ok(
            u32::try_from(id).unwrap(),
            Duration::from_millis(1_010 - id as u64),
        ),
    });
    let layer = FanoutLayer::map(50).watch(Unary).build().unwrap();
    let items: Vec<Ask> = (0..1_000).map(Ask::numbered).collect();
    let collected = layer.layer(provider.clone()).call(items).await.unwrap();
    assert_eq!(collected.good(), 950);
    for (id, item) in collected.items().iter().enumerate() {
        match item {
            Item::Done(answer) => assert!(!faulty(id) && *answer as usize == id),
            Item::Failed(error) => {
                assert!(faulty(id));
                assert_eq!(Completion::of_error(&**error).outcome, FAILED);
            }
            other => panic!("{id}: {other:?}"),
        }
    }
    assert_eq!((provider.sent(), provider.most_at_once()), (1_000, 50));
}

#[tokio::test(start_paused = true)]
async fn a_map_that_fails_fast_says_what_it_gave_up_and_what_never_started() {
    let provider = Numbered::new(|id| match id {
        0 => ok(0, MS),
        1 => fails(FAILED, 5 * MS),
        _ => never(),
    });
    let layer = FanoutLayer::map(3)
        .fail_fast(true)
        .watch(Unary)
        .build()
        .unwrap();
    let items: Vec<Ask> = (0..6).map(Ask::numbered).collect();
    let began_at = Instant::now();
    let collected = layer.layer(provider.clone()).call(items).await.unwrap();
    assert_eq!(began_at.elapsed(), 5 * MS);
    assert!(matches!(
        collected.items(),
        [
            Item::Done(0),
            Item::Failed(_),
            Item::Cancelled,
            Item::Cancelled,
            Item::NotStarted,
            Item::NotStarted
        ]
    ));
    assert_eq!(provider.sent(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_map_whose_time_is_up_keeps_what_it_has() {
    let provider = Numbered::new(|id| match id {
        0 => ok(0, 10 * MS),
        _ => never(),
    });
    let layer = FanoutLayer::map(2)
        .deadline(100 * MS)
        .min_attempt(MS)
        .watch(Unary)
        .build()
        .unwrap();
    let items: Vec<Ask> = (0..4).map(Ask::numbered).collect();
    let collected = layer.layer(provider).call(items).await.unwrap();
    let [done, late, later, unsent] = collected.items() else {
        panic!("{collected:?}");
    };
    assert!(matches!(done, Item::Done(0)));
    for late in [late, later] {
        assert!(
            matches!(late, Item::DeadlineExceeded | Item::Failed(_)),
            "{late:?}"
        );
    }
    assert!(matches!(unsent, Item::NotStarted));
}

#[tokio::test(start_paused = true)]
async fn an_empty_list_is_an_error_and_one_item_is_a_list() {
    let layer = FanoutLayer::map(2).watch(Unary).build().unwrap();
    let provider = Script::new([ok(7, MS)]);
    let error = layer
        .layer(provider.clone())
        .call(Vec::new())
        .await
        .unwrap_err();
    assert!(error.is::<NoBranches>());
    assert_eq!(provider.sent(), 0);
    let one = layer.layer(provider).call(vec![ask()]).await.unwrap();
    assert!(matches!(one.items(), [Item::Done(7)]));
}

#[tokio::test(start_paused = true)]
async fn an_ensemble_keeps_what_is_good_and_needs_enough_of_it() {
    let steps = || [ok(1, 30 * MS), fails(FAILED, 10 * MS), ok(3, 20 * MS)];
    let layer = |min_ok| {
        let builder = FanoutLayer::several(3).min_ok(min_ok);
        builder.watch(Unary).build().unwrap()
    };
    let collected = layer(2)
        .layer(Script::new(steps()))
        .call(ask())
        .await
        .unwrap();
    assert!(matches!(
        collected.items(),
        [Item::Done(1), Item::Failed(_), Item::Done(3)]
    ));
    let error = layer(3)
        .layer(Script::new(steps()))
        .call(ask())
        .await
        .unwrap_err();
    assert!(error.is::<TooFewAnswers>());
    assert_eq!(Completion::of_error(&*error).outcome, FAILED);
}

#[tokio::test(start_paused = true)]
async fn a_quorum_is_reached_by_answers_that_say_the_same() {
    let steps = [ok(10, 10 * MS), ok(21, 20 * MS), ok(12, 30 * MS), never()];
    let provider = Script::new(steps);
    let seen = Arc::new(Mutex::new(0));
    let calls = Arc::clone(&seen);
    let tens = move |answer: &u32| {
        *calls.lock().unwrap() += 1;
        answer / 10
    };
    let layer = FanoutLayer::quorum(4, 2, tens)
        .watch(Unary)
        .build()
        .unwrap();
    let began_at = Instant::now();
    let answer = layer.layer(provider.clone()).call(ask()).await.unwrap();
    // The first of those that agree.
    assert_eq!((answer, began_at.elapsed()), (10, 30 * MS));
    assert_eq!(provider.ends()[3], Outcome::Superseded);
    assert!(*seen.lock().unwrap() >= 3);
}

#[tokio::test(start_paused = true)]
async fn without_a_quorum_the_call_fails_with_the_most_votes() {
    let provider = Script::new([ok(1, MS), ok(2, MS), fails(FAILED, MS)]);
    let layer = FanoutLayer::majority(3, |answer: &u32| *answer)
        .watch(Unary)
        .build()
        .unwrap();
    let error = layer.layer(provider).call(ask()).await.unwrap_err();
    assert!(error.is::<NoQuorum>());
    assert_eq!(
        error.to_string(),
        "at most 1 branches agree, and 2 are needed"
    );
}
