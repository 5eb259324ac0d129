//! The task that settles calls: one per layer, not one per call.
//!
//! A call may end in a drop, which cannot wait. So what it used goes into a bounded channel, and one task sends it to the
//! store: up to [`MAX_IN_FLIGHT`] scripts at a time, each with up to [`MAX_BATCH`] waiting calls. Their order does not matter:
//! each call has its own id, which is settled once, and refunds and charges are only added up.
//!
//! So a call is settled one round trip after its end, unless more than 2,048 calls end within one round trip: each further
//! 2,048 calls take another. With a round trip of 10 ms that is 200,000 calls per second, which is more than a node can
//! decide.
//!
//! While the store is unavailable, one job at a time tries it, and the others wait until it has recovered. A job that the
//! server answers with an error is tried a few more times; between the attempts it does not count against [`MAX_IN_FLIGHT`].
//!
//! A job that finds the channel full is not settled, nor is one that the server always answers with an error. The store
//! refunds such reservations when they expire. Both are counted.

use std::{
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::{
    runtime::Handle,
    sync::mpsc::{self, Receiver, Sender},
    time::{Instant, sleep_until},
};
use tower_llm_core::ConfigError;

use super::{
    redis::Scripts,
    schedule::Schedule,
    work::{PAUSE, Tried, Work},
};
use crate::shared::backend::{LeaseHolder, Leasing, Settlement, Terms, Verdict};

/// Maximum number of waiting jobs: those of a minute's outage at a few hundred calls per second. As many may wait for
/// another attempt.
const MAX_WAITING: usize = 20_000;

/// Maximum number of scripts in flight: few compared to the calls that may wait for one server.
const MAX_IN_FLIGHT: usize = 32;

/// Maximum number of calls that one script settles: a millisecond or two, in which the server does nothing else.
const MAX_BATCH: usize = 64;

/// The connection to the task, which ends when this is dropped and everything is settled.
#[derive(Debug)]
pub(super) struct Settler {
    jobs: Sender<Job>,
    dropped: Sender<DroppedRequest>,
    unsettled: Arc<AtomicU64>,
}

pub(super) enum Job {
    Settle(Settlement),
    Adjust(Vec<Terms>),
    /// A key whose leases end at that time.
    ClearAt(Weak<dyn LeaseHolder>, Instant),
}

/// A lease request that was dropped before it was answered.
type DroppedRequest = (Leasing, Arc<[Terms]>);

/// The task.
///
/// It starts jobs as they arrive, up to the maximum in flight. If a job finds the store unavailable, it sets `retry_at`.
/// Then only one job is started, at that time; it sets `retry_at` again, until the store answers a job.
struct Task {
    scripts: Scripts,
    // `None` once the channel is closed and empty.
    jobs: Option<Receiver<Job>>,
    // Received at any time, also while the store is unavailable: each occupies one of the connection's pending calls until
    // it is handled, and the store cannot be tried without one.
    dropped: Option<Receiver<DroppedRequest>>,
    unsettled: Arc<AtomicU64>,
    running: FuturesUnordered<Running<Tried>>,
    /// Dropped lease requests. Not counted as running: they were sent before they arrived here, and the number of pending
    /// calls of a server is bounded.
    undoing: FuturesUnordered<Running<Option<Vec<Terms>>>>,
    /// Jobs to try again.
    failed: Schedule<Work>,
    /// Keys whose leases end, each once.
    leases: Schedule<Weak<dyn LeaseHolder>>,
    retry_at: Option<Instant>,
}

type Running<T> = Pin<Box<dyn Future<Output = T> + Send>>;

// === impl Settler ===

impl Settler {
    pub(super) fn start(scripts: Scripts) -> Result<Self, ConfigError> {
        let runtime = Handle::try_current().map_err(|_| {
            let reason = "limits are shared by a task, which needs a tokio runtime";
            ConfigError::new("shared", "outside a runtime", reason)
        })?;
        let (sender, jobs) = mpsc::channel(MAX_WAITING);
        let (dropped_sender, dropped) = mpsc::channel(MAX_WAITING);
        let unsettled = Arc::default();
        let task = Task {
            scripts,
            jobs: Some(jobs),
            dropped: Some(dropped),
            unsettled: Arc::clone(&unsettled),
            running: FuturesUnordered::new(),
            undoing: FuturesUnordered::new(),
            failed: Schedule::new(),
            leases: Schedule::new(),
            retry_at: None,
        };
        runtime.spawn(task.run());
        Ok(Self {
            jobs: sender,
            dropped: dropped_sender,
            unsettled,
        })
    }

    /// Returns whether there was room for the job.
    pub(super) fn send(&self, job: Job) -> bool {
        self.sent(self.jobs.try_send(job).is_ok())
    }

    pub(super) fn await_dropped(&self, leasing: Leasing, terms: Arc<[Terms]>) {
        self.sent(self.dropped.try_send((leasing, terms)).is_ok());
    }

    /// Counts a job that was not sent, because there is no room or the runtime is shutting down.
    fn sent(&self, was_sent: bool) -> bool {
        if !was_sent {
            self.unsettled.fetch_add(1, Ordering::Relaxed);
        }
        was_sent
    }

    /// How many jobs did not reach the store, or may not have reached it.
    pub(super) fn unsettled(&self) -> u64 {
        self.unsettled.load(Ordering::Relaxed)
    }
}

// === impl Task ===

impl Task {
    async fn run(mut self) {
        while !self.is_over() {
            let now = Instant::now();
            let takes_jobs = self.takes_jobs(now);
            let wake_at = self.wake_at(now);
            let together = if self.retries_at().is_some() {
                1
            } else {
                MAX_BATCH
            };
            let (mut taken, mut dropped) = (Vec::new(), Vec::new());
            // In random order, so that neither new jobs nor failed ones wait for all of the others.
            tokio::select! {
                Some(tried) = self.running.next() => self.tried(tried),
                Some(undone) = self.undoing.next() => self.undo(undone),
                () = receive(&mut self.dropped, &mut dropped, MAX_BATCH), if self.dropped.is_some() => {
                    self.undo_all(dropped);
                }
                () = receive(&mut self.jobs, &mut taken, together), if takes_jobs => self.accept(taken),
                () = sleep_until(wake_at.unwrap_or(now)), if wake_at.is_some() => self.wake(),
            }
        }
    }

    fn accept(&mut self, jobs: Vec<Job>) {
        if jobs.is_empty() {
            // Everything that was sent has been received.
            self.jobs = None;
        }
        let mut settlements = Vec::new();
        for job in jobs {
            match job {
                Job::Settle(settlement) => settlements.push(settlement),
                Job::Adjust(terms) => self.begin(Work::adjust(terms)),
                Job::ClearAt(key, at) => {
                    self.leases.push(at, key);
                    // Removes keys that were evicted since, which would hold memory until their lease ends.
                    self.leases.prune(|key| key.strong_count() > 0);
                }
            }
        }
        if !settlements.is_empty() {
            self.begin(Work::settle(settlements));
        }
    }

    fn undo_all(&mut self, dropped: Vec<DroppedRequest>) {
        if dropped.is_empty() {
            self.dropped = None;
        }
        for (leasing, terms) in dropped {
            self.undoing.push(Box::pin(undone(leasing, terms)));
        }
    }

    fn begin(&mut self, work: Work) {
        if let Some(at) = &mut self.retry_at {
            *at = Instant::now() + PAUSE;
        }
        let scripts = self.scripts.clone();
        self.running.push(Box::pin(work.tried(scripts)));
    }

    /// Starts a job that failed before; while the store is unavailable, only one of its settlements, because the outcome of
    /// the attempt may remain unknown.
    fn begin_again(&mut self, now: Instant, work: Work) {
        if self.retries_at().is_none() {
            return self.begin(work);
        }
        let (one, others) = work.one();
        if let Some(others) = others {
            self.failed.push_first(now, others);
        }
        self.begin(one);
    }

    /// Handles the result of an attempt.
    fn tried(&mut self, tried: Tried) {
        let now = Instant::now();
        match tried {
            Tried::StoreUnavailable(_) | Tried::Unknown => {
                // If an attempt is scheduled already, its time stands.
                self.retry_at.get_or_insert(now + PAUSE);
            }
            Tried::Done(_) | Tried::Failed(..) | Tried::GivenUp => self.retry_at = None,
        }
        match tried {
            Tried::Done(unknown) => self.lost(unknown),
            // The layer was dropped, so nothing waits for the store any longer.
            Tried::StoreUnavailable(work) if self.is_closed() => self.lost(work.len()),
            // The same job tries again.
            Tried::StoreUnavailable(work) => self.failed.push_first(now, work),
            Tried::Failed(work, pause) => {
                for work in work {
                    self.try_at(now + pause, work);
                }
            }
            // The last attempt is always with a single settlement.
            Tried::GivenUp | Tried::Unknown => self.lost(1),
        }
    }

    /// Gives back the grant of a dropped lease request.
    fn undo(&mut self, undone: Option<Vec<Terms>>) {
        match undone {
            Some(terms) if terms.is_empty() => {}
            Some(terms) => self.try_at(Instant::now(), Work::adjust(terms)),
            None => self.lost(1),
        }
    }

    fn try_at(&mut self, at: Instant, work: Work) {
        if self.failed.len() < MAX_WAITING {
            self.failed.push(at, work);
        } else {
            self.lost(work.len());
        }
    }

    /// Starts one job that is due.
    fn wake(&mut self) {
        let now = Instant::now();
        if !self.may_begin(now) {
            return;
        }
        // Leases first, because other processes can use what is left of them.
        if let Some(key) = self.leases.pop(now) {
            let Some(key_state) = key.upgrade() else {
                return;
            };
            let (left, again_at) = key_state.end_leases();
            if let Some(at) = again_at {
                self.leases.push(at, key);
            }
            if !left.is_empty() {
                self.begin(Work::adjust(left));
            }
        } else if let Some(work) = self.failed.pop(now) {
            self.begin_again(now, work);
        }
    }

    fn lost(&self, settlements: u64) {
        self.unsettled.fetch_add(settlements, Ordering::Relaxed);
    }

    fn is_closed(&self) -> bool {
        self.jobs.as_ref().is_none_or(Receiver::is_closed)
    }

    fn is_over(&self) -> bool {
        let has_all = self.jobs.is_none() && self.dropped.is_none();
        let is_done = self.running.is_empty() && self.undoing.is_empty();
        has_all && is_done && self.failed.is_empty()
    }

    /// When to try the store next, while it is unavailable and jobs wait for it.
    fn retries_at(&self) -> Option<Instant> {
        self.retry_at.filter(|_| !self.is_closed())
    }

    fn may_begin(&self, now: Instant) -> bool {
        self.running.len() < MAX_IN_FLIGHT && self.retries_at().is_none_or(|at| at <= now)
    }

    fn takes_jobs(&self, now: Instant) -> bool {
        // Failed jobs try the store as long as there are any, so that new ones need not be received.
        let is_needed = self.retries_at().is_none() || self.failed.is_empty();
        self.jobs.is_some() && is_needed && self.may_begin(now)
    }

    /// When the next job is due; `None` if nothing is scheduled.
    fn wake_at(&self, now: Instant) -> Option<Instant> {
        if self.running.len() >= MAX_IN_FLIGHT {
            return None;
        }
        let retries_at = self.retries_at().filter(|&at| at > now);
        let due = [self.leases.first_at(), self.failed.first_at()];
        retries_at.or_else(|| due.into_iter().flatten().min())
    }
}

/// Waits for jobs and receives those that wait; returns none if the channel is closed.
async fn receive<T>(jobs: &mut Option<Receiver<T>>, taken: &mut Vec<T>, most: usize) {
    if let Some(jobs) = jobs {
        jobs.recv_many(taken, most).await;
    }
}

/// The terms that give back an unneeded grant; `None` if it is not known whether the terms of the request were applied.
async fn undone(leasing: Leasing, terms: Arc<[Terms]>) -> Option<Vec<Terms>> {
    let back: Vec<_> = match leasing.await {
        Ok(Verdict::Granted(grants)) => {
            let grants = terms.iter().zip(grants);
            grants.map(|(terms, grant)| terms.undo(grant)).collect()
        }
        // What was left of earlier leases was still given back.
        Ok(Verdict::Blocked { .. }) => Vec::new(),
        Err(error) if !error.may_have_run => terms.iter().map(Terms::without_need).collect(),
        Err(_) => return terms.iter().all(Terms::is_empty).then(Vec::new),
    };
    let has_any = back.iter().any(|terms| !terms.is_empty());
    Some(back.into_iter().filter(|_| has_any).collect())
}

#[cfg(test)]
mod tests {
    use tower_llm_redis::Redis;

    use super::*;

    #[tokio::test]
    async fn a_job_without_room_is_counted() {
        let redis = Redis::builder("redis://127.0.0.1:1").build().unwrap();
        let settler = Settler::start(Scripts::of(redis)).unwrap();
        // The task does not run meanwhile on this thread.
        for _ in 0..MAX_WAITING + 3 {
            settler.send(Job::Adjust(Vec::new()));
        }
        assert_eq!(settler.unsettled(), 3);
    }
}
