//! The task that stores answers in Redis: no caller waits for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::{
    runtime::Handle,
    sync::{
        mpsc::{self, Receiver, Sender},
        oneshot,
    },
};
use tower_llm_redis::Redis;

use super::{envelope::Codec, names::Names, removals::Removals};
use crate::{key::CacheKey, shared::Counters};

/// Maximum number of answers that wait.
const WAITING: usize = 4_096;
/// Maximum size of the answers that wait or are being sent.
const WAITING_BYTES: usize = 64 << 20;
/// Maximum number of answers that are being sent.
const AT_ONCE: usize = 32;

/// The connection to the task, which ends when this is dropped and everything is stored.
pub(super) struct Writer {
    work: Sender<Work>,
    waiting_bytes: Arc<AtomicUsize>,
    counters: Arc<Counters>,
}

/// An answer to be stored.
pub(super) struct Job {
    pub(super) key: CacheKey,
    pub(super) record: Bytes,
    pub(super) stored_at_ms: u64,
    pub(super) ttl: Duration,
    /// The epoch of removals in which it was stored.
    pub(super) since: u64,
}

enum Work {
    Store(Job, BytesPermit),
    /// Answers when all that is being sent has arrived.
    Settle(oneshot::Sender<()>),
}

/// A part of `WAITING_BYTES`.
struct BytesPermit(Arc<AtomicUsize>, usize);

/// What the task needs for each answer.
struct Task {
    redis: Redis,
    names: Names,
    codec: Arc<Codec>,
    removals: Arc<Removals>,
    counters: Arc<Counters>,
}

impl Writer {
    pub(super) fn start(
        runtime: &Handle,
        redis: Redis,
        names: Names,
        codec: Arc<Codec>,
        removals: Arc<Removals>,
        counters: Arc<Counters>,
    ) -> Self {
        let (work, receiver) = mpsc::channel(WAITING);
        let task = Task {
            redis,
            names,
            codec,
            removals,
            counters: Arc::clone(&counters),
        };
        runtime.spawn(async move { task.run(receiver).await });
        Self {
            work,
            waiting_bytes: Arc::default(),
            counters,
        }
    }

    /// Queues an answer, if there is room.
    pub(super) fn send(&self, job: Job) {
        let permit = BytesPermit::take(&self.waiting_bytes, job.record.len());
        let sent =
            permit.is_some_and(|permit| self.work.try_send(Work::Store(job, permit)).is_ok());
        if !sent {
            count(&self.counters.shared_not_stored);
        }
    }

    /// Waits until all that was queued before has been sent and answered, or was dropped.
    pub(super) async fn settled(&self) {
        let (sender, settled) = oneshot::channel();
        // The task has ended with its runtime: nothing is being sent.
        if self.work.send(Work::Settle(sender)).await.is_ok() {
            let _ = settled.await;
        }
    }
}

impl BytesPermit {
    fn take(all: &Arc<AtomicUsize>, bytes: usize) -> Option<Self> {
        // Dropped below if there are too many, which gives them back.
        let permit = Self(Arc::clone(all), bytes);
        let before = all.fetch_add(bytes, Ordering::AcqRel);
        (before.saturating_add(bytes) <= WAITING_BYTES).then_some(permit)
    }
}

impl Drop for BytesPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::AcqRel);
    }
}

impl Task {
    async fn run(&self, mut work: Receiver<Work>) {
        let mut sending = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(()) = sending.next() => {}
                next = work.recv(), if sending.len() < AT_ONCE => match next {
                    Some(Work::Store(job, permit)) => sending.push(self.store(job, permit)),
                    Some(Work::Settle(settled)) => {
                        while sending.next().await.is_some() {}
                        let _ = settled.send(());
                    }
                    None => break,
                },
            }
        }
        while sending.next().await.is_some() {}
    }

    async fn store(&self, job: Job, _permit: BytesPermit) {
        let name = self.names.of(&job.key);
        let write = || {
            let record = &job.record;
            self.codec.write(&name, record, job.stored_at_ms, job.ttl)
        };
        let value = if self.removals.concern(&job.key, job.since) {
            None
        } else {
            write()
        };
        let is_stored = match value {
            Some(value) => self.redis.set(name, value, job.ttl).await.is_ok(),
            None => false,
        };
        count(if is_stored {
            &self.counters.shared_stored
        } else {
            &self.counters.shared_not_stored
        });
    }
}

fn count(counter: &std::sync::atomic::AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
