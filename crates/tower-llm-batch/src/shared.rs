//! The state that all services of a layer share.

use std::{
    fmt,
    future::poll_fn,
    sync::{Arc, PoisonError},
    task::Poll,
};

use tokio::{
    runtime::Handle,
    time::{Instant, timeout},
};
use tower_llm_core::BoxError;

use crate::{
    after::After,
    batcher::{Batcher, Terms},
    error::{BatchFailed, BatchFull},
    flight::{Driven, Flight, PATROL},
    queue::Queue,
    settings::{Abandoned, Settings},
    sync::Mutex,
};

/// The queue of a batcher.
pub(crate) type QueueOf<Bt> =
    Queue<<Bt as Batcher>::Key, <Bt as Batcher>::Request, <Bt as Batcher>::Response>;

/// What is left to do with it unlocked.
pub(crate) type AfterOf<Bt> =
    After<<Bt as Batcher>::Key, <Bt as Batcher>::Request, <Bt as Batcher>::Response>;

/// A batcher, its calls and their settings.
pub(crate) struct Shared<Bt: Batcher> {
    pub(crate) batcher: Bt,
    pub(crate) settings: Settings,
    queue: Mutex<QueueOf<Bt>>,
}

impl<Bt: Batcher> Shared<Bt> {
    pub(crate) fn new(batcher: Bt, settings: Settings) -> Self {
        Self {
            batcher,
            settings,
            queue: Mutex::new(Queue::new(settings)),
        }
    }

    /// Runs `change` with the queue locked, and what that leaves to do with it unlocked.
    pub(crate) fn queue<T>(
        &self,
        change: impl FnOnce(&mut QueueOf<Bt>, &mut AfterOf<Bt>) -> T,
    ) -> T {
        let mut after = After::new();
        // Of the user's code, only a comparison of keys runs in it, before anything is changed.
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut queue, &mut after);
        drop(queue);
        after.finish();
        changed
    }

    /// Adds a call to the queue of its key.
    pub(crate) fn join(
        &self,
        request: Bt::Request,
        terms: Terms<Bt::Key>,
    ) -> Result<u64, BatchFull> {
        let terms = terms.shared();
        let mut request = Some(request);
        let now = Instant::now();
        self.queue(|queue, _| queue.join(&mut request, &terms, now))
    }

    /// Polls the call of a flight, if it may have something new; returns whether it was.
    pub(crate) fn drive(&self, flight: &Arc<Flight>) -> bool {
        let driven = flight.drive();
        self.note(flight, driven)
    }

    /// Drops the call of a flight whose callers have all left, or has a task read it to its end.
    pub(crate) fn abandon(self: &Arc<Self>, flight: Arc<Flight>) {
        if self.settings.abandoned == Abandoned::Finish
            && let Ok(runtime) = Handle::try_current()
        {
            let shared = Arc::clone(self);
            runtime.spawn(async move { shared.finish(&flight).await });
            return;
        }
        let driven = flight.abandon();
        self.note(&flight, driven);
    }

    /// Reads a call to its end.
    async fn finish(&self, flight: &Arc<Flight>) {
        /// No call has this number.
        const TASK: u64 = u64::MAX;
        let mut polled = poll_fn(|cx| {
            flight.attend(TASK, cx.waker(), true);
            self.drive(flight);
            match flight.has_ended() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        });
        // A call that waits may drive it, too: then the end wakes that one.
        while timeout(PATROL, &mut polled).await.is_err() {}
    }

    fn note(&self, flight: &Arc<Flight>, driven: Driven) -> bool {
        let failed = match driven {
            Driven::Idle => return false,
            Driven::Polled => return true,
            Driven::Ended => BatchFailed::no_answer,
            Driven::Panicked => BatchFailed::panicked,
        };
        self.queue(|queue, after| queue.ended(flight, failed, after));
        true
    }

    /// Gives calls their answers.
    pub(crate) fn deliver(&self, calls: &[u64], results: Vec<Result<Bt::Response, BoxError>>) {
        self.queue(|queue, after| queue.deliver(calls, results, after));
    }
}

impl<Bt: Batcher> fmt::Debug for Shared<Bt> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
