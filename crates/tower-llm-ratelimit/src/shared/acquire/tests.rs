//! How calls are admitted by a store, which is in memory: the time is tokio's, and paused.

use std::{borrow::Cow, convert::Infallible, future::pending};

use futures_util::future::join_all;
use tokio::time::{advance, timeout};
use tower::{Layer, ServiceExt, service_fn};
use tower_llm_core::{
    BoxError, Call, Completion, Described, Guard, Operation, Outcome, Provider, Unary, Usage, Watch,
};

use super::*;
use crate::{Limit, RateLimitLayer, RateLimited, shared::memory::MemoryStore};

const SECOND: Duration = Duration::from_secs(1);

/// A call of so many tokens, all of them input.
#[derive(Clone, Debug)]
struct Prompt(Call);

impl Prompt {
    fn of(tokens: u64) -> Self {
        let call = Call::builder(Provider::OPENAI, Operation::CHAT).input_tokens(tokens);
        Self(call.max_output_tokens(0).build())
    }
}

impl Described for Prompt {
    fn call(&self) -> Option<Cow<'_, Call>> {
        Some(Cow::Borrowed(&self.0))
    }
}

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

/// A process that shares a hundred tokens per minute with others.
fn process<W>(store: &MemoryStore, watch: W) -> RateLimitLayer<W> {
    let builder = RateLimitLayer::for_callers()
        .limit(Limit::tokens(100).per_minute())
        .max_waiting(10)
        .in_memory(store.clone())
        .watch(watch);
    builder.build().unwrap()
}

async fn call<W>(layer: &RateLimitLayer<W>, tokens: u64) -> Result<(), BoxError>
where
    W: Watch<(), Out<Reservation> = ()>,
{
    let service = layer.layer(service_fn(|_: Prompt| async { Ok::<_, Infallible>(()) }));
    service.oneshot(Prompt::of(tokens)).await
}

/// The answer to the second request arrives first: it is blocked by a call of which nothing is known yet.
#[tokio::test(start_paused = true)]
async fn a_call_that_is_blocked_by_one_that_asked_before_waits_until_that_is_settled() {
    let store = MemoryStore::new().grants_late_by(Duration::from_millis(10));
    let layer = process(&store, Twenty);
    let outcomes = join_all([call(&layer, 100), call(&layer, 80)]).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    let stats = &layer.handle().stats()[0];
    assert_eq!((stats.consumed, stats.refused, stats.waiting), (40, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_only_other_processes_block_is_refused_with_the_stores_time() {
    let store = MemoryStore::new();
    let [one, other] = [process(&store, Unary), process(&store, Unary)];
    call(&one, 100).await.unwrap();
    let error = call(&other, 1).await.unwrap_err();
    let refused: &RateLimited = error.downcast_ref().unwrap();
    // A window of a minute has forgotten its first slice after 65 seconds.
    assert_eq!(refused.retry_after(), Some(65 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_while_it_asks_leaves_nothing() {
    let store = MemoryStore::new().grants_late_by(SECOND);
    let layer = process(&store, Unary);
    let dropped = timeout(SECOND / 2, call(&layer, 100)).await;
    dropped.unwrap_err();
    call(&layer, 100).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn calls_within_a_lease_do_not_ask() {
    let store = MemoryStore::new().lease_for(5 * SECOND);
    let layer = process(&store, Unary);
    // A lease is an eighth of the share of two processes: six tokens.
    for (tokens, asked) in [(1, 1), (5, 1), (1, 2), (20, 3)] {
        call(&layer, tokens).await.unwrap();
        assert_eq!(store.asked(), asked, "{tokens}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_a_lease_goes_back_when_it_ends() {
    let store = MemoryStore::new().lease_for(SECOND);
    let [one, other] = [process(&store, Unary), process(&store, Unary)];
    call(&one, 1).await.unwrap();
    call(&other, 95).await.unwrap_err();
    // The lease ends, and the task that gives it back runs.
    advance(SECOND).await;
    tokio::task::yield_now().await;
    call(&other, 99).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_call_in_flight_holds_what_it_claimed() {
    let store = MemoryStore::new();
    let [one, other] = [process(&store, Unary), process(&store, Unary)];
    let service = one.layer(service_fn(|_: Prompt| pending::<Result<(), Infallible>>()));
    let mut stuck = Box::pin(service.oneshot(Prompt::of(60)));
    timeout(SECOND, stuck.as_mut()).await.unwrap_err();
    call(&other, 41).await.unwrap_err();
    call(&other, 40).await.unwrap();
    drop(stuck);
    // It may have reached the provider: its input is charged.
    call(&other, 1).await.unwrap_err();
}
