//! Several calls for one: retries, within the caller's limit and around it, and branches.

use super::*;

mod retry_inside {
    use super::*;

    /// Two failures and a success, between the caller's limit and the provider's.
    async fn event() -> Stand {
        // One permit: it must be free before the next attempt needs it.
        let layers = Layers::with_room(100, 100, 1, [failure(), failure()]);
        let twice = Twice::new(RequestBody::try_clone_request);
        read(&layers.around(retry::RetryLayer::new(twice))).await;
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
        let race = layers.around(layer_fn(race));
        let mut call = Box::pin(race.oneshot(request()).map(Result::unwrap));
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

/// Calls twice at once, and returns the first response.
fn race(attempts: Attempts) -> Attempts {
    Attempts::new(service_fn(move |request: Request<RequestBody>| {
        let one = RequestBody::try_clone_request(&request).expect("it is held");
        let one = attempts.clone().oneshot(one);
        let other = attempts.clone().oneshot(request);
        async {
            // Dropping the rest of the other call ends it.
            match future::select(one, other).await {
                Either::Left((response, _)) | Either::Right((response, _)) => response,
            }
        }
    }))
}
