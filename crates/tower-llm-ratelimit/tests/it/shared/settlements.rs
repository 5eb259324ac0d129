//! Calls that wait for other calls of their process to be settled, with shared limits.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

use std::{convert::Infallible, time::Duration};

use crate::shared::support::{Prompt, Setup};
use futures_util::future::join_all;
use tokio::time::sleep;
use tower::{Layer, ServiceExt, service_fn};
use tower_llm_core::{Call, Completion, Guard, Outcome, Usage, Watch};
use tower_llm_ratelimit::{Limit, RateLimitLayer, RateLimited};

scenarios!(calls_are_served_by_what_others_use_and_not_by_what_they_reserve,);

/// Every call has used twenty tokens when it is answered.
#[derive(Clone, Copy, Debug)]
struct Twenty;

impl<R> Watch<R> for Twenty {
    type Out<G: Guard> = R;

    fn watch<G: Guard>(&self, _: Option<&Call>, response: R, mut guard: G) -> R {
        let mut completion = Completion::new(Outcome::Success);
        completion.usage = Some(Usage::new(10, 10));
        guard.end(&completion);
        response
    }
}

async fn calls_are_served_by_what_others_use_and_not_by_what_they_reserve(setup: &mut Setup) {
    let redis = setup.redis().await;
    let builder = RateLimitLayer::for_callers()
        .limit(Limit::tokens(1_000).per_minute())
        .max_waiting(100)
        .max_wait(Duration::from_secs(30))
        .watch(Twenty)
        .shared(setup.shared(&redis, 1));
    let layer = builder.build().unwrap();
    let service = layer.layer(service_fn(|_: Prompt| async {
        sleep(Duration::from_millis(5)).await;
        Ok::<_, Infallible>(())
    }));
    let calls = (0..80).map(|_| service.clone().oneshot(Prompt::of(100)));
    let outcomes = join_all(calls).await;
    let served = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    println!("{}: {served} of 80 calls are served", setup.mode);
    assert!((40..=50).contains(&served), "{served}");
    let stats = &layer.handle().stats()[0];
    assert_eq!((stats.consumed, stats.waiting), (20 * served as u64, 0));
    for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        let refused: &RateLimited = error.downcast_ref().unwrap();
        // By the store: until enough of the usage is forgotten.
        assert!(
            refused.retry_after() > Some(Duration::from_secs(30)),
            "{error}"
        );
    }
}
