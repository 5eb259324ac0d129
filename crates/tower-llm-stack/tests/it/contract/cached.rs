//! Responses that cost no call of their own.

use super::*;

mod cached_answer {
    use super::*;

    /// A call, and the same again.
    async fn event() -> Stand {
        let layers = Layers::with_cache([]);
        let client = layers.stack();
        read(&client).await;
        read(&client).await;
        layers.stand()
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_charged_a_request_and_no_tokens() {
        assert_eq!(event().await.of_caller(), taken(2, USED.tokens));
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_charged_nothing() {
        assert_eq!(event().await.of_provider(), USED);
    }

    #[tokio::test(start_paused = true)]
    async fn no_permit_is_used() {
        let layers = Layers::with_cache([]);
        let client = layers.stack();
        read(&client).await;
        layers
            .stand()
            .bulkhead
            .set_limit(&Key::new("openai"), 1)
            .unwrap();
        // The only permit is in use.
        let other = Request::post("/v1/chat/completions")
            .body("{}".into())
            .unwrap();
        let holder = client.clone().oneshot(other).await.unwrap();
        read(&client).await;
        drop(holder);
        assert_eq!(layers.stand().bulkhead.stats()[0].refused, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_circuit_counts_nothing() {
        assert_eq!(event().await.verdicts(), verdicts(1, 0));
    }
}

mod follower_of_a_call_in_flight {
    use super::*;

    /// Two calls at once, both read to their end.
    async fn event() -> Stand {
        let layers = Layers::with_cache([]);
        let client = layers.stack();
        future::join(read(&client), read(&client)).await;
        layers.stand()
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_charged_a_request_and_no_tokens() {
        assert_eq!(event().await.of_caller(), taken(2, USED.tokens));
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_charged_once() {
        assert_eq!(event().await.of_provider(), USED);
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_holds_no_permit() {
        let layers = Layers::with_cache([answer().head_delay(Duration::from_secs(1))]);
        let client = layers.stack();
        let mut calls = [client.clone().oneshot(request()), client.oneshot(request())];
        for call in &mut calls {
            assert!(poll!(call).is_pending());
        }
        assert_eq!(layers.stand().places_held(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_circuit_counts_one_call() {
        assert_eq!(event().await.verdicts(), verdicts(1, 0));
    }

    /// The follower has cost nothing, and the call it waited for continues.
    #[tokio::test(start_paused = true)]
    async fn a_follower_dropped_before_a_response_is_refunded() {
        let layers = Layers::with_cache([answer().head_delay(Duration::from_secs(1))]);
        let client = layers.stack();
        let mut leader = client.clone().oneshot(request());
        assert!(poll!(&mut leader).is_pending());
        let mut follower = client.oneshot(request());
        assert!(poll!(&mut follower).is_pending());
        drop(follower);
        assert_eq!(layers.stand().of_caller(), RESERVED_OF_CALLER);
        leader.await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(layers.stand().of_caller(), USED);
    }

    /// The leader is charged for what it saw, and the call continues for its followers.
    #[tokio::test(start_paused = true)]
    async fn a_follower_outlives_a_dropped_leader() {
        let layers = Layers::with_cache([answer().head_delay(Duration::from_secs(1))]);
        let client = layers.stack();
        let mut leader = client.clone().oneshot(request());
        assert!(poll!(&mut leader).is_pending());
        let mut follower = client.oneshot(request());
        assert!(poll!(&mut follower).is_pending());
        drop(leader);
        let followed = follower.await.unwrap().into_body().collect().await.unwrap();
        assert!(followed.to_bytes().ends_with(b"data: [DONE]\n\n"));
        assert_eq!(layers.stand().of_provider(), USED);
        assert_eq!(layers.stand().verdicts(), verdicts(1, 0));
    }
}

mod batch_of_embeddings_that_is_stored_in_part {
    use super::*;

    /// A provider that charges seven tokens an input.
    fn provider() -> Attempts {
        boxed(service_fn(|request: Request<RequestBody>| async move {
            let body: serde_json::Value =
                serde_json::from_slice(request.body().as_bytes().unwrap()).unwrap();
            let inputs = body["input"].as_array().unwrap().len();
            let items =
                (0..inputs).map(|index| serde_json::json!({"index": index, "embedding": [1]}));
            let answer = serde_json::json!({
                "data": items.collect::<Vec<_>>(),
                "usage": {"prompt_tokens": 7 * inputs, "total_tokens": 7 * inputs},
            });
            Ok::<_, BoxError>(Response::new(Full::new(Bytes::from(answer.to_string()))))
        }))
    }

    async fn ask(client: &Client, input: &str) {
        let request = Request::post("/v1/embeddings");
        let body = format!(r#"{{"model":"m","input":{input}}}"#);
        let response = client.clone().oneshot(request.body(body.into()).unwrap());
        response.await.unwrap().into_body().collect().await.unwrap();
    }

    async fn event() -> Stand {
        let layers = Layers::with_cache([]);
        let client = layers.stack_over(provider());
        ask(&client, r#"["one","two"]"#).await;
        ask(&client, r#"["two","three","one"]"#).await;
        ask(&client, r#"["three","three"]"#).await;
        layers.stand()
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_limit_is_charged_what_was_sent() {
        assert_eq!(event().await.of_caller(), taken(3, 3 * 7));
    }

    #[tokio::test(start_paused = true)]
    async fn the_providers_limit_is_charged_the_same() {
        assert_eq!(event().await.of_provider(), taken(2, 3 * 7));
    }

    #[tokio::test(start_paused = true)]
    async fn no_permit_stays_taken_and_the_circuit_counts_two_calls() {
        let stand = event().await;
        assert_eq!(stand.places_held(), 0);
        assert_eq!(stand.verdicts(), verdicts(2, 0));
    }

    /// A call that waits for the items of others, and leaves, has cost nothing; one that has sent some of them has.
    #[tokio::test(start_paused = true)]
    async fn a_call_that_has_sent_nothing_is_refunded_if_it_leaves() {
        let layers = Layers::with_cache([]);
        let never = service_fn(|_: Request<RequestBody>| {
            future::pending::<Result<Response<Full<Bytes>>, BoxError>>()
        });
        let client = layers.stack_over(boxed(never));
        let mut calls = [r#"["one"]"#, r#"["one","one"]"#, r#"["one","two"]"#]
            .map(|input| Box::pin(ask(&client, input)));
        let mut requests = Vec::new();
        for call in &mut calls {
            assert!(poll!(call).is_pending());
            requests.push(layers.stand().of_caller().requests);
        }
        assert_eq!(requests, [1, 2, 3]);
        let [first, waits, sends] = calls;
        drop(waits);
        assert_eq!(layers.stand().of_caller().requests, 2);
        drop(sends);
        assert_eq!(layers.stand().of_caller().requests, 2);
        drop(first);
        assert_eq!(layers.stand().of_caller().requests, 2);
    }
}
