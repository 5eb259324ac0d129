//! One caller's part in a batch.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::time::{Instant, Sleep, sleep_until};
use tower_llm_core::{BoxError, Unsent};
use tower_service::Service;

use crate::{
    Batcher,
    flight::{Flight, PATROL, Work},
    queue::{Found, Left, Taken},
    send,
    shared::Shared,
};

/// Waits for a call's answer; sends the next batch of its key, and drives the batch that it is in, as far as it falls to it.
///
/// Dropping it leaves the batch.
pub(crate) struct Ticket<S, Bt: Batcher> {
    shared: Arc<Shared<Bt>>,
    inner: S,
    id: u64,
    // Created when the call waits for the first time: a call that is sent at once needs none.
    timer: Option<Pin<Box<Sleep>>>,
    /// A call in flight that this one drives, although it is not in it: all that are have stopped.
    looks_after: Option<Arc<Flight>>,
    is_over: bool,
}

impl<S, Bt: Batcher> Ticket<S, Bt> {
    pub(crate) fn new(shared: Arc<Shared<Bt>>, inner: S, id: u64) -> Self {
        Self {
            shared,
            inner,
            id,
            timer: None,
            looks_after: None,
            is_over: false,
        }
    }

    /// Ready at `at`, or to look after the calls in flight before.
    fn poll_timer(&mut self, at: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        let patrol = Instant::now() + PATROL;
        let at = at.map_or(patrol, |at| at.min(patrol));
        let timer = match &mut self.timer {
            Some(timer) => {
                // It is left as it is if it ends no later: a timer is moved at a cost, and this is polled often.
                if timer.is_elapsed() || timer.deadline() > at {
                    timer.as_mut().reset(at);
                }
                timer
            }
            None => self.timer.insert(Box::pin(sleep_until(at))),
        };
        timer.as_mut().poll(cx)
    }
}

impl<S, Bt> Ticket<S, Bt>
where
    Bt: Batcher,
    S: Service<Bt::Batch, Response = Bt::Reply> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bt::Response, BoxError>> {
        assert!(!self.is_over, "polled after it was ready");
        if let Some(flight) = &self.looks_after {
            flight.attend(self.id, cx.waker(), false);
            self.shared.drive(flight);
        }
        // A call that wakes itself is polled again when this one is.
        let mut has_driven = false;
        let mut patrols = self.timer.as_ref().is_some_and(|timer| timer.is_elapsed());
        loop {
            let waker = cx.waker().clone();
            let found = self
                .shared
                .queue(|queue, after| queue.look(self.id, waker, after));
            match found {
                Found::Done(result) => {
                    self.is_over = true;
                    self.stop_looking_after();
                    return Poll::Ready(result);
                }
                Found::Due => {
                    self.send();
                    has_driven = false;
                    continue;
                }
                Found::Flying(flight) => {
                    let takes_over = patrols && flight.is_woken();
                    let drives = flight.attend(self.id, cx.waker(), takes_over);
                    if !has_driven && self.shared.drive(&flight) {
                        has_driven = true;
                        continue;
                    }
                    if drives {
                        return Poll::Pending;
                    }
                    ready!(self.poll_timer(None, cx));
                }
                Found::Waiting(until) => {
                    if patrols && !has_driven && self.look_after_another(cx) {
                        has_driven = true;
                        continue;
                    }
                    ready!(self.poll_timer(Some(until), cx));
                }
            }
            patrols = true;
        }
    }

    /// Takes the next batch, of which this call need not be a part. No poll is made for it yet.
    fn send(&self) {
        let (shared, inner) = (Arc::clone(&self.shared), self.inner.clone());
        let mut start = Some(|taken: Taken<Bt::Request>| -> Work {
            let unsent = Unsent::new();
            Box::pin(async move {
                drop(unsent);
                send::batch(shared, inner, taken).await;
            })
        });
        self.shared
            .queue(|queue, after| queue.take(self.id, &mut start, after));
    }

    /// Drives a call that this one waits behind, if nothing else does; returns whether there was one.
    fn look_after_another(&mut self, cx: &mut Context<'_>) -> bool {
        let flights = self.shared.queue(|queue, _| queue.flights_before(self.id));
        let Some(stopped) = flights.into_iter().find(|flight| flight.is_woken()) else {
            return false;
        };
        self.stop_looking_after();
        stopped.attend(self.id, cx.waker(), true);
        self.shared.drive(&stopped);
        self.looks_after = Some(stopped);
        true
    }
}

impl<S, Bt: Batcher> Ticket<S, Bt> {
    fn stop_looking_after(&mut self) {
        if let Some(flight) = self.looks_after.take() {
            self.shared
                .queue(|queue, after| queue.hand_over(Some(&flight), self.id, after));
        }
    }
}

impl<S, Bt: Batcher> Drop for Ticket<S, Bt> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        self.stop_looking_after();
        let left = self
            .shared
            .queue(|queue, after| queue.leave(self.id, after));
        match left {
            // Reported by the drop.
            Left::Waiting => drop(Unsent::new()),
            Left::Last(flight) => self.shared.abandon(flight),
            Left::Other => {}
        }
    }
}
