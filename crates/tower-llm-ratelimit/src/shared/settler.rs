//! The task that settles calls: one for a layer, not one for a call.
//!
//! A call ends where nobody can wait: in a drop. So what it has used goes into a bounded channel, and one task takes it to
//! the store. While that is away the task waits for it. What finds no room in the channel is not settled: the store gives
//! back what such calls had reserved when they have run out.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::mpsc::{self, Receiver, Sender},
    time::{Instant, sleep, timeout_at},
};
use tower_llm_core::{ConfigError, Keyed};

use super::redis::Scripts;
use crate::{
    cell::{Cell, left_of_shares},
    store::{Leasing, Settlement, Terms, Verdict},
};

/// Jobs that may wait: those of a minute's outage at a few hundred calls per second.
const WAITING: usize = 20_000;

/// How often the store is looked for while it is away.
const LOOK_FOR: Duration = Duration::from_millis(50);

/// The way to the task; it ends when this is gone and all is settled.
#[derive(Debug)]
pub(super) struct Settler(Sender<Job>);

pub(super) enum Job {
    Settle(Settlement),
    Adjust(Vec<Terms>),
    /// A lease that nobody waits for any more.
    Forsaken(Leasing, Arc<[Terms]>),
    /// A cell whose leases end then.
    ClearAt(Weak<Keyed<Cell>>, Instant),
}

struct Task {
    scripts: Scripts,
    jobs: Receiver<Job>,
    /// Cells whose leases end, by when; the number tells those of one instant apart.
    leases: BTreeMap<(Instant, u64), Weak<Keyed<Cell>>>,
    next_lease: u64,
}

impl Settler {
    pub(super) fn start(scripts: Scripts) -> Result<Self, ConfigError> {
        let runtime = Handle::try_current().map_err(|_| {
            let reason = "limits are shared by a task, which needs a tokio runtime";
            ConfigError::new("shared", "outside a runtime", reason)
        })?;
        let (sender, jobs) = mpsc::channel(WAITING);
        let task = Task {
            scripts,
            jobs,
            leases: BTreeMap::new(),
            next_lease: 0,
        };
        runtime.spawn(task.run());
        Ok(Self(sender))
    }

    pub(super) fn send(&self, job: Job) {
        // Full, or the runtime is shutting down: the store gives it back in time.
        let _ = self.0.try_send(job);
    }
}

impl Task {
    async fn run(mut self) {
        loop {
            let next_lease = self.leases.first_key_value().map(|(&(at, _), _)| at);
            // However many jobs wait: others want what is left of it.
            if next_lease.is_some_and(|at| at <= Instant::now()) {
                self.clear_first().await;
                continue;
            }
            let job = match next_lease {
                None => self.jobs.recv().await,
                Some(at) => match timeout_at(at, self.jobs.recv()).await {
                    Ok(job) => job,
                    Err(_) => {
                        self.clear_first().await;
                        continue;
                    }
                },
            };
            let Some(job) = job else { return };
            self.work(job).await;
        }
    }

    async fn work(&mut self, job: Job) {
        match job {
            Job::Settle(settlement) => self.settle(&settlement).await,
            Job::Adjust(terms) => self.adjust(&terms).await,
            Job::Forsaken(leasing, terms) => {
                if let Ok(Verdict::Granted(grants)) = leasing.await {
                    let grants = terms.iter().zip(grants);
                    let undone = grants.map(|(terms, grant)| terms.undo(grant));
                    self.adjust(&undone.collect::<Vec<_>>()).await;
                }
            }
            Job::ClearAt(cell, at) => {
                self.leases.insert((at, self.next_lease), cell);
                self.next_lease += 1;
            }
        }
    }

    /// Gives back what is left of the lease that ends first.
    async fn clear_first(&mut self) {
        if let Some((_, cell)) = self.leases.pop_first()
            && let Some(cell) = cell.upgrade()
        {
            let left = left_of_shares(&cell);
            if !left.is_empty() {
                self.adjust(&left).await;
            }
        }
    }

    async fn settle(&self, settlement: &Settlement) {
        let mut again = false;
        while let Err(error) = self.scripts.settle(settlement, again).await {
            // It may have run: what is still held tells.
            again |= error.may_have_run();
            if error.is_script() || !self.is_waited_for().await {
                return;
            }
        }
    }

    async fn adjust(&self, terms: &[Terms]) {
        while let Err(error) = self.scripts.lease(terms).await {
            // One that may have run is not sent again: it would be charged twice.
            let is_done = error.is_script() || error.may_have_run();
            if is_done || !self.is_waited_for().await {
                return;
            }
        }
    }

    /// Waits until it is worth trying again; `false` if nobody is left who would wait for the store.
    async fn is_waited_for(&self) -> bool {
        // Whether all of a Cluster is up is not asked: the limits lie on one node.
        sleep(LOOK_FOR).await;
        !self.jobs.is_closed()
    }
}
