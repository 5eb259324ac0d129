//! Several calls for one: retries, within the caller's limit and around it, and branches.

use tower::Layer;
use tower_llm_stack::{FanoutLayer, fanout::RipeBody};

use super::*;

mod retry_inside {
    use super::*;

    /// Two failures and a success, between the caller's limit and the provider's.
    async fn event() -> Stand {
        // One permit: it must be free before the next attempt needs it.
        let layers = Layers::with_room(100, 100, 1, [failure(), failure()]);
        let layers = layers.fanout(FanoutLayer::retry(2));
        read(&layers.stack()).await;
        layers.stand()
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_charged_once() {
        let stand = event().await;
        assert_eq!(stand.of_caller(), USED);
        assert_eq!(stand.callers.stats()[0].admitted, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_charged_for_each_attempt() {
        let stand = event().await;
        assert_eq!(stand.of_provider(), taken(3, USED.tokens));
        assert_eq!(stand.providers.stats()[0].admitted, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn each_attempt_holds_a_permit() {
        let stand = event().await;
        assert_eq!(stand.places_held(), 0);
        assert_eq!(stand.bulkhead.stats()[0].refused, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_circuit_counts_each_attempt() {
        assert_eq!(event().await.verdicts(), verdicts(1, 2));
    }
}

mod retry_outside {
    use super::*;

    /// Two failures and a success, around the whole stack: each attempt is a call.
    async fn event() -> Stand {
        let layers = Layers::with_room(100, 100, 1, [failure(), failure()]);
        let retries =
            retry::Retry::new(Twice::new(|request| Some(request.clone())), layers.stack());
        read(&Client::new(retries)).await;
        layers.stand()
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_charged_for_each_attempt() {
        assert_eq!(event().await.of_caller(), taken(3, USED.tokens));
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_charged_for_each_attempt() {
        assert_eq!(event().await.of_provider(), taken(3, USED.tokens));
    }

    #[tokio::test(start_paused = true)]
    async fn each_attempt_holds_a_permit() {
        let stand = event().await;
        assert_eq!(stand.places_held(), 0);
        assert_eq!(stand.bulkhead.stats()[0].refused, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_circuit_counts_each_attempt() {
        assert_eq!(event().await.verdicts(), verdicts(1, 2));
    }
}

mod branch {
    use super::*;

    /// Two branches in flight, of which one answers in a second and the other never.
    async fn event() -> (Stand, impl Future<Output = Response<Body>>) {
        let winner = answer().head_delay(Duration::from_secs(1));
        let layers = Layers::new([Fault::NoAnswer.into(), winner]);
        let layers = layers.fanout(FanoutLayer::race(2));
        let mut call = Box::pin(layers.stack().oneshot(request()).map(Result::unwrap));
        assert!(poll!(&mut call).is_pending());
        (layers.stand(), call)
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_charged_once() {
        let (stand, call) = event().await;
        assert_eq!(stand.of_caller(), RESERVED_OF_CALLER);
        call.await.into_body().collect().await.unwrap();
        assert_eq!(stand.of_caller(), USED);
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_charged_for_each_branch() {
        let (stand, call) = event().await;
        call.await.into_body().collect().await.unwrap();
        let both = taken(2, USED.tokens + ESTIMATED_INPUT);
        assert_eq!(stand.of_provider(), both);
        assert_eq!(stand.providers.stats()[0].admitted, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn each_branch_holds_a_permit_and_the_losers_is_free_before_the_winner_returns() {
        let (stand, call) = event().await;
        assert_eq!(stand.places_held(), 2);
        let winner = call.await;
        assert_eq!(stand.places_held(), 1);
        winner.into_body().collect().await.unwrap();
        assert_eq!(stand.places_held(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn each_branch_has_its_own_verdict() {
        let (stand, call) = event().await;
        call.await.into_body().collect().await.unwrap();
        // The loser counts nothing.
        assert_eq!(stand.verdicts(), verdicts(1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_leaves_pays_for_every_branch_and_frees_them() {
        let (stand, call) = event().await;
        drop(call);
        assert_eq!(stand.places_held(), 0);
        assert_eq!(stand.of_caller(), INPUT);
        assert_eq!(stand.of_provider(), taken(2, 2 * ESTIMATED_INPUT));
        assert_eq!(stand.verdicts(), NEITHER);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_before_the_content_is_each_layers_but_not_the_callers() {
        let broken: Behavior = Fault::ErrorAfter(1, InBand::Overloaded).into();
        let layers = Layers::new([broken, answer()]).fanout(FanoutLayer::failover(1));
        read(&layers.stack()).await;
        let stand = layers.stand();
        assert_eq!(stand.of_caller(), USED);
        assert_eq!(stand.providers.stats()[0].admitted, 2);
        assert_eq!(stand.verdicts(), verdicts(1, 1));
    }
}

/// Three votes on one call, around a cache.
#[tokio::test(start_paused = true)]
async fn a_cache_answers_each_vote_by_itself() {
    let layers = Layers::with_cache([answer(), answer(), answer()]);
    let vote = FanoutLayer::quorum(3, 3, |_: &Response<RipeBody<Body>>| ());
    let vote = vote.build().unwrap();
    let vote = layer_fn(move |attempts: Attempts| boxed(vote.layer(attempts)));
    let client = layers.stack_with(vote, layers.model().service());
    read(&client).await;
    let sent = || layers.stand().providers.stats()[0].admitted;
    assert_eq!(sent(), 3);
    read(&client).await;
    assert_eq!(sent(), 3, "the second time, each vote is found");
}

fn failure() -> Behavior {
    Fault::Status(500).into()
}

/// Retries twice after any 500.
struct Twice<A> {
    attempts: usize,
    clone: fn(&Request<A>) -> Option<Request<A>>,
}

impl<A> Twice<A> {
    fn new(clone: fn(&Request<A>) -> Option<Request<A>>) -> Self {
        let attempts = 0;
        Self { attempts, clone }
    }
}

impl<A> Clone for Twice<A> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

impl<A> retry::Policy<Request<A>, Response<Body>, BoxError> for Twice<A> {
    type Future = future::Ready<()>;

    fn retry(
        &mut self,
        _: &mut Request<A>,
        result: &mut Result<Response<Body>, BoxError>,
    ) -> Option<future::Ready<()>> {
        let has_failed = result.as_ref().unwrap().status() == StatusCode::INTERNAL_SERVER_ERROR;
        self.attempts += 1;
        (has_failed && self.attempts <= 2).then(|| future::ready(()))
    }

    fn clone_request(&mut self, request: &Request<A>) -> Option<Request<A>> {
        (self.clone)(request)
    }
}
