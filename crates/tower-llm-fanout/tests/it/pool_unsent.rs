//! Branches that their targets refuse, calls that are sent once, and the time of targets that are unavailable.

use std::time::Duration;

use tokio::time::Instant;
use tower::ServiceExt;
use tower_llm_core::{Availability, Outcome, Unary};
use tower_llm_fanout::{AllFailed, Budget, FanoutLayer, Item, Pick, Pool};

use crate::{
    pool_support::{Behaves, FAILED, Prompt, Site, answers, ask, prompt, sites, typed},
    support::MS,
};

const SECOND: Duration = Duration::from_secs(1);

fn in_order(sites: &[Site]) -> Pool<Site> {
    let pool = Pool::builder().pick(Pick::in_order());
    let pool = pool.targets(sites.iter().map(Site::target));
    pool.build().unwrap()
}

/// A call of which the provider keeps something.
fn stored() -> Prompt {
    Prompt(prompt().0.to_builder().stored(true).build())
}

#[tokio::test(start_paused = true)]
async fn a_branch_that_its_target_refuses_uses_up_no_attempt() {
    let sites = sites::<5>();
    for refused in [0, 1, 3] {
        sites[refused].behave(Behaves::Refuses(SECOND));
    }
    sites[2].behave(Behaves::Fails(FAILED, MS));
    let pool = in_order(&sites);
    // Two attempts: one fails, one answers. Without a reserve, the budget pays for ten extra ones at most.
    let budget = Budget::with_reserve(1.0, 0.0).unwrap();
    let failover = typed(FanoutLayer::failover(1).budget(budget));
    assert_eq!(answers(&failover, &pool, 30).await, "e".repeat(30));
    assert_eq!(sites.each_ref().map(Site::count), [0, 0, 30, 0, 30]);
    let stats = failover.stats();
    assert_eq!(
        (stats.branches, stats.extra, stats.refused_by_budget),
        (150, 30, 0)
    );

    // Each target is tried once.
    sites[4].behave(Behaves::Refuses(SECOND));
    sites[2].behave(Behaves::Refuses(SECOND));
    ask(&failover, &pool).await.unwrap_err();
    assert_eq!(failover.stats().branches, 155);
}

#[tokio::test(start_paused = true)]
async fn a_race_goes_on_elsewhere_for_a_branch_that_is_refused() {
    let sites = sites::<4>();
    sites[0].behave(Behaves::Refuses(SECOND));
    sites[1].behave(Behaves::Hangs);
    sites[2].behave(Behaves::Hangs);
    let race = typed(FanoutLayer::race(3));
    assert_eq!(ask(&race, &in_order(&sites)).await.unwrap(), "d");
    assert_eq!(sites.each_ref().map(Site::in_flight), [0; 4]);

    // All candidates are there, and the one that was refused beside them.
    let several = FanoutLayer::several(3).watch(Unary).build().unwrap();
    for hanging in [1, 2] {
        sites[hanging].behave(Behaves::Answers(MS));
    }
    let collected = several.across(&in_order(&sites)).oneshot(prompt()).await;
    let collected = collected.unwrap();
    assert!(matches!(
        collected.items(),
        [Item::Failed(_), Item::Done(_), Item::Done(_), Item::Done(_)]
    ));
}

#[tokio::test(start_paused = true)]
async fn a_call_of_which_the_provider_keeps_something_is_sent_once() {
    let sites = sites::<3>();
    let pool = in_order(&sites);
    let race = typed(FanoutLayer::race(3));
    race.across(&pool).oneshot(stored()).await.unwrap();
    assert_eq!(sites.each_ref().map(Site::count), [1, 0, 0]);

    // It fails over before it is sent, and not after that.
    sites[0].behave(Behaves::Refuses(SECOND));
    sites[1].behave(Behaves::Fails(FAILED, MS));
    let failover = typed(FanoutLayer::failover(2));
    let error = failover.across(&pool).oneshot(stored()).await.unwrap_err();
    let attempts = AllFailed::find(&*error).unwrap().report().attempts();
    let outcomes: Vec<_> = attempts.iter().map(|one| one.outcome.unwrap()).collect();
    assert_eq!(outcomes, [Outcome::Refused, FAILED]);
    assert_eq!(sites.each_ref().map(Site::count), [1, 1, 0]);

    // Unless it may be sent again.
    let all = FanoutLayer::failover(2).eligible(|_| true);
    let answer = typed(all).across(&pool).oneshot(stored()).await;
    assert_eq!(answer.unwrap(), "c");
}

#[tokio::test(start_paused = true)]
async fn an_ensemble_passes_a_call_that_is_sent_once_wherever_it_goes() {
    let sites = sites::<3>();
    sites[0].behave(Behaves::Refuses(SECOND));
    let judge = Site::new("judge", Behaves::Answers(MS));
    let ask = |prompt: &Prompt, _: &[String]| Ok(prompt.clone());
    let layer = FanoutLayer::ensemble(3, judge.clone(), ask).watch(Unary);
    let service = layer.build().unwrap().across(&in_order(&sites));
    assert_eq!(service.oneshot(stored()).await.unwrap(), "b");
    assert_eq!(sites.each_ref().map(Site::count), [0, 1, 0]);
    assert_eq!(judge.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn targets_that_are_unavailable_get_no_part_of_the_time() {
    let sites = sites::<4>();
    sites[0].behave(Behaves::Hangs);
    let closed = |site: &Site| site.target().availability(|_| Availability::After(SECOND));
    let pool = Pool::builder().pick(Pick::in_order());
    let pool = pool.target(sites[0].target()).target(closed(&sites[1]));
    let pool = pool.target(closed(&sites[2])).target(sites[3].target());
    let pool = pool.build().unwrap();
    let failover = typed(FanoutLayer::failover(9).deadline(10 * SECOND));
    let began_at = Instant::now();
    assert_eq!(ask(&failover, &pool).await.unwrap(), "d");
    // Half of the time, and not a quarter.
    assert_eq!(began_at.elapsed(), 5 * SECOND + 10 * MS);
}
