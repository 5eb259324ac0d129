//! The task that writes records.

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::{Instant, sleep, sleep_until};

use super::{
    Record, Sink,
    queue::{BATCH, Queue},
};

/// How long records wait for a batch, and a batch that could not be written for the next try.
const PERIOD: Duration = Duration::from_secs(1);

/// Takes records out of the queue and writes them to a sink; from [`MonitorHandle::recorder`](crate::MonitorHandle::recorder).
///
/// Nothing is written until [`run`](Self::run) is polled. Drop that future, and records queue again until another recorder runs;
/// what it was writing may be lost.
#[derive(Debug)]
#[must_use = "nothing is written until it runs"]
pub struct Recorder<S> {
    queue: Arc<Queue>,
    sink: S,
    now: fn() -> SystemTime,
    batch: Vec<Record>,
}

impl<S: Sink> Recorder<S> {
    pub(crate) fn new(queue: Arc<Queue>, sink: S, now: fn() -> SystemTime) -> Self {
        Self {
            queue,
            sink,
            now,
            batch: Vec::with_capacity(BATCH),
        }
    }

    /// Writes records until `shutdown` is ready, and then what is in the queue; returns the sink.
    ///
    /// After `shutdown`, a batch that cannot be written is dropped, with all that wait behind it.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> S {
        let mut shutdown = pin!(shutdown);
        let queue = Arc::clone(&self.queue);
        let mut until = Instant::now() + PERIOD;
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                () = sleep_until(until) => {}
                // It may be that of a batch that was written since.
                () = queue.full_batch.notified() => if !queue.has_batch() {
                    continue;
                }
            }
            while self.fill() {
                while !self.write().await {
                    tokio::select! {
                        biased;
                        () = &mut shutdown => return self.finish().await,
                        () = sleep(PERIOD) => {}
                    }
                }
                if !queue.has_batch() {
                    break;
                }
            }
            until = Instant::now() + PERIOD;
        }
        self.finish().await
    }

    /// Writes all there is, until a write fails.
    async fn finish(mut self) -> S {
        while self.fill() {
            if !self.write().await {
                let mut dropped = self.batch.len() as u64;
                while self.queue.pop().is_some() {
                    dropped += 1;
                }
                self.queue.dropped.fetch_add(dropped, Relaxed);
                break;
            }
        }
        self.sink
    }

    /// Fills the batch; returns whether there is anything to write.
    fn fill(&mut self) -> bool {
        if self.batch.is_empty() {
            // A date for instants, which have none.
            let (now, date) = (Instant::now(), (self.now)());
            while self.batch.len() < BATCH
                && let Some((mut identity, ended)) = self.queue.pop()
            {
                let ended_at = date - now.saturating_duration_since(ended.at);
                let since_1970 = ended_at.duration_since(UNIX_EPOCH).unwrap_or_default();
                let millis = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
                let id = self.queue.id(&mut identity);
                self.batch
                    .push(ended.into_record(id, identity.call.as_ref(), millis));
            }
        }
        !self.batch.is_empty()
    }

    /// Writes the batch; returns whether that succeeded.
    async fn write(&mut self) -> bool {
        match self.sink.write(&self.batch).await {
            Ok(()) => {
                self.queue
                    .written
                    .fetch_add(self.batch.len() as u64, Relaxed);
                self.batch.clear();
                true
            }
            Err(error) => {
                self.queue.failed_writes.fetch_add(1, Relaxed);
                #[cfg(feature = "tracing")]
                tracing::warn!(%error, "records cannot be written");
                #[cfg(not(feature = "tracing"))]
                drop(error);
                false
            }
        }
    }
}
