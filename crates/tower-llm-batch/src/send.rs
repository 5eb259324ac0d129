//! What is done for a batch, from its assembly to its last answer.

use std::{future::Future, sync::Arc};

use tokio::time::Instant;
use tower_llm_core::{BoxError, Completion, Oneshot, Outcome, Unsent};
use tower_service::Service;

use crate::{
    batcher::{Batcher, Scattered},
    error::BatchFailed,
    queue::Taken,
    shared::Shared,
};

/// Calls that are sent together.
struct Group<Bt: Batcher> {
    calls: Vec<u64>,
    requests: Vec<Bt::Request>,
    /// Their answers if no more calls may be made; none if they were not sent yet.
    rejections: Vec<Result<Bt::Response, BoxError>>,
}

impl<Bt: Batcher> Group<Bt> {
    /// Leaves out the calls that have left.
    fn retain_waiting(&mut self, shared: &Shared<Bt>) {
        let waiting = shared.queue(|queue, _| queue.are_waiting(&self.calls));
        let (mut calls, mut requests) = (waiting.iter(), waiting.iter());
        let mut rejections = waiting.iter();
        self.calls.retain(|_| calls.next() == Some(&true));
        self.requests.retain(|_| requests.next() == Some(&true));
        self.rejections.retain(|_| rejections.next() == Some(&true));
    }

    fn split(mut self, rejections: Vec<Result<Bt::Response, BoxError>>) -> (Self, Self) {
        self.rejections = rejections;
        let half = self.calls.len().div_ceil(2);
        let second = Self {
            calls: self.calls.split_off(half),
            requests: self.requests.split_off(half),
            rejections: self.rejections.split_off(half),
        };
        (self, second)
    }
}

/// Sends a batch. If a request in it may be at fault, its halves are sent one after the other, and so on.
pub(crate) async fn batch<S, Bt>(shared: Arc<Shared<Bt>>, inner: S, taken: Taken<Bt::Request>)
where
    Bt: Batcher,
    S: Service<Bt::Batch, Response = Bt::Reply> + Clone,
    S::Error: Into<BoxError>,
{
    let mut groups = vec![Group::<Bt> {
        calls: taken.calls,
        requests: taken.requests,
        rejections: Vec::new(),
    }];
    let mut calls_left = shared.settings.max_split_calls;
    while let Some(mut group) = groups.pop() {
        group.retain_waiting(&shared);
        if group.calls.is_empty() {
            continue;
        }
        if !group.rejections.is_empty() {
            if calls_left == 0 {
                shared.deliver(&group.calls, group.rejections);
                continue;
            }
            calls_left -= 1;
            shared.queue(|queue, _| queue.counts.split_calls += 1);
        }
        let started = Instant::now();
        let scattered = send(&shared.batcher, inner.clone(), &mut group.requests).await;
        shared.queue(|queue, _| queue.called(started.elapsed()));
        match scattered {
            Scattered::Split(rejections) if group.calls.len() > 1 => {
                let (first, second) = group.split(rejections);
                groups.extend([second, first]);
            }
            Scattered::Each(results) | Scattered::Split(results) => {
                shared.deliver(&group.calls, results);
            }
        }
    }
}

/// Sends a request that is not merged.
pub(crate) fn alone<S, Bt>(
    shared: Arc<Shared<Bt>>,
    inner: S,
    request: Bt::Request,
) -> impl Future<Output = Result<Bt::Response, BoxError>>
where
    Bt: Batcher,
    S: Service<Bt::Batch, Response = Bt::Reply>,
    S::Error: Into<BoxError>,
{
    let unsent = Unsent::new();
    async move {
        drop(unsent);
        let scattered = send(&shared.batcher, inner, &mut [request]).await;
        let (Scattered::Each(results) | Scattered::Split(results)) = scattered;
        let result = results.into_iter().next();
        result.unwrap_or_else(|| Err(BatchFailed::no_answer().into()))
    }
}

/// Makes one upstream call; returns a result for each request.
fn send<S, Bt>(
    batcher: &Bt,
    inner: S,
    requests: &mut [Bt::Request],
) -> impl Future<Output = Scattered<Bt::Response>>
where
    Bt: Batcher,
    S: Service<Bt::Batch, Response = Bt::Reply>,
    S::Error: Into<BoxError>,
{
    let unsent = Unsent::new();
    let sent = requests.len();
    async move {
        let (batch, plan) = batcher.assemble(requests);
        let sending = Oneshot::new(inner, batch);
        drop(unsent);
        let reply = match sending.await.map_err(Into::into) {
            Ok(reply) => reply,
            Err(error) => {
                let is_callers_fault =
                    Completion::of_error(&*error).outcome == Outcome::ClientError;
                return match is_callers_fault {
                    true => Scattered::rejected(sent, error),
                    false => Scattered::failed(sent, error),
                };
            }
        };
        let scattered = batcher.scatter(plan, reply).await;
        let (Scattered::Each(results) | Scattered::Split(results)) = &scattered;
        match results.len() {
            results if results != sent => Scattered::Split(BatchFailed::copies(sent, || {
                BatchFailed::wrong_number(results, sent)
            })),
            _ => scattered,
        }
    }
}
