//! One caller's part in a batch.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use tower_llm_core::{BoxError, Unsent};
use tower_service::Service;

use crate::{
    Batcher,
    flight::{Attends, Flight, Work},
    queue::{Found, Left, Taken},
    send,
    shared::Shared,
    timer::Timer,
};

/// Waits for a call's answer; sends the next batch of its key, and drives the batch that it is in, as far as it falls to it.
///
/// Dropping it leaves the batch.
pub(crate) struct Ticket<S, Bt: Batcher> {
    shared: Arc<Shared<Bt>>,
    inner: S,
    id: u64,
    timer: Timer,
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
            timer: Timer::default(),
            looks_after: None,
            is_over: false,
        }
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
        if let Some(flight) = self.looks_after.take_if(|flight| !flight.has_ended()) {
            flight.attend(self.id, cx.waker(), false);
            self.shared.drive(&flight);
            self.looks_after = Some(flight);
        }
        // A call that wakes itself is polled again when this one is.
        let mut has_driven = false;
        let mut patrols = self.timer.has_fired();
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
                    let attends = self.attend(&flight, patrols, cx);
                    if !has_driven && self.shared.drive(&flight) {
                        has_driven = true;
                        continue;
                    }
                    if attends != Attends::AsPassenger {
                        return Poll::Pending;
                    }
                    ready!(self.timer.poll(None, cx));
                }
                Found::Waiting(until) => {
                    if patrols && !has_driven && self.look_after_another(cx) {
                        has_driven = true;
                        continue;
                    }
                    ready!(self.timer.poll(Some(until), cx));
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

    /// If it `patrols`, the call takes over a flight that was woken and not polled since.
    fn attend(&self, flight: &Flight, patrols: bool, cx: &mut Context<'_>) -> Attends {
        let takes_over = patrols && flight.is_woken();
        let attends = flight.attend(self.id, cx.waker(), takes_over);
        if attends == Attends::InsteadOfAnother {
            self.shared.queue(|queue, _| queue.counts.takeovers += 1);
        }
        attends
    }

    /// Drives a call that this one waits behind, if nothing else does; returns whether there was one.
    fn look_after_another(&mut self, cx: &mut Context<'_>) -> bool {
        let flights = self.shared.queue(|queue, _| queue.flights_before(self.id));
        let Some(stopped) = flights.into_iter().find(|flight| flight.is_woken()) else {
            return false;
        };
        self.stop_looking_after();
        self.attend(&stopped, true, cx);
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
