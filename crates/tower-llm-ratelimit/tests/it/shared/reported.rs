//! Provider headers with shared limits: each process applies the reports on its own.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::shared::support::{PATIENCE, Setup, eventually};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use tokio::{task::JoinSet, time::timeout};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_core::{BoxError, Call, Dialect, Operation, Provider};
use tower_llm_ratelimit::{Limit, RateLimitLayer};

scenarios!(concurrent_store_calls_do_not_exceed_the_providers_remaining_budget);

fn chat() -> http::Request<()> {
    let call = Call::builder(Provider::OPENAI, Operation::CHAT)
        .dialect(Dialect::OpenAi)
        .model("a-model")
        .build();
    http::Request::builder().extension(call).body(()).unwrap()
}

/// Calls checked the provider's budget before they asked the store, and charged it only afterwards.
async fn concurrent_store_calls_do_not_exceed_the_providers_remaining_budget(setup: &mut Setup) {
    let redis = setup.redis().await;
    let layer = RateLimitLayer::for_providers()
        .limit(Limit::requests(1_000).per_hour())
        .shared(setup.shared(&redis, 2))
        .build()
        .unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let service = layer.layer(service_fn({
        let sent = Arc::clone(&sent);
        move |_: http::Request<()>| {
            let is_first = sent.fetch_add(1, Ordering::Relaxed) == 0;
            async move {
                if !is_first {
                    pending::<()>().await;
                }
                let response = http::Response::builder()
                    .header("x-ratelimit-limit-requests", "10")
                    .header("x-ratelimit-remaining-requests", "1")
                    .header("x-ratelimit-reset-requests", "9m0s")
                    .body(Full::new(Bytes::from_static(b"{}")));
                Ok::<_, BoxError>(response.unwrap())
            }
        }
    }));
    let first = service.clone().oneshot(chat()).await.unwrap();
    first.into_body().collect().await.unwrap();

    let mut calls = JoinSet::new();
    for _ in 0..50 {
        calls.spawn(service.clone().oneshot(chat()));
    }
    // All but the one for which there is room; that one is never answered.
    for _ in 0..49 {
        let ended = timeout(PATIENCE, calls.join_next()).await.expect("refused");
        assert!(ended.unwrap().unwrap().is_err());
    }
    eventually("one call is sent", async || {
        sent.load(Ordering::Relaxed) == 2
    })
    .await;
}
