//! The task that settles calls: one for a layer, not one for a call.
//!
//! A call ends where nobody can wait: in a drop. So what it has used goes into a bounded channel, and one task takes it to
//! the store: up to [`AT_ONCE`] scripts at a time, each with what waits then, up to [`TOGETHER`] calls. In what order they
//! come there makes no difference: each call is of an id of its own, which is settled once, and what is given back or
//! charged besides is only added up.
//!
//! So a call is settled a round trip after it has ended, unless more than 2,048 end in one; of those that end together, the
//! last is settled after as many round trips as there are times 2,048 of them. With a store 10 ms away that is 200,000 per
//! second: what a node can decide is less. And the more wait, the fewer scripts does it take for each.
//!
//! While the store is away, one after the other looks for it, and the others wait for as long as it takes; then they go on
//! as many at a time as ever. What the server answers with an error is tried a few times more, and takes no other's place
//! in between.
//!
//! What finds no room in the channel is not settled, nor what the server always answers with an error: the store gives back
//! what such calls had reserved when they have run out. It is counted.

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
use tower_llm_core::{ConfigError, Keyed};

use super::{
    later::Later,
    redis::Scripts,
    work::{PAUSE, Tried, Work},
};
use crate::{
    key_state::{KeyState, left_of_leases},
    store::{Leasing, Settlement, Terms, Verdict},
};

/// Jobs that may wait: those of a minute's outage at a few hundred calls per second. As many may wait to be tried again.
const WAITING: usize = 20_000;

/// Scripts that may be on their way at once: few beside the calls that may wait for one server's answers.
const AT_ONCE: usize = 32;

/// Calls that one script settles at most: a millisecond or two, in which the server does nothing else.
const TOGETHER: usize = 64;

/// The way to the task; it ends when this is gone and all is settled.
#[derive(Debug)]
pub(super) struct Settler {
    jobs: Sender<Job>,
    forsaken: Sender<Forsaken>,
    unsettled: Arc<AtomicU64>,
}

pub(super) enum Job {
    Settle(Settlement),
    Adjust(Vec<Terms>),
    /// A cell whose leases end then.
    ClearAt(Weak<Keyed<KeyState>>, Instant),
}

/// A lease that nobody waits for any more.
type Forsaken = (Leasing, Arc<[Terms]>);

/// The task.
///
/// It begins what comes until as much as may be is on its way. When one finds the store away, `look_at` is set: then
/// nothing is begun but at that time one thing, which sets it anew, until the store has answered any.
struct Task {
    scripts: Scripts,
    // `None` once all is in that ever comes.
    jobs: Option<Receiver<Job>>,
    // Taken at any time, also while the store is away: each has a place among those that wait for it until it is seen to,
    // and without a place nobody can look for the store.
    forsaken: Option<Receiver<Forsaken>>,
    unsettled: Arc<AtomicU64>,
    running: FuturesUnordered<Running<Tried>>,
    /// Leases that nobody waits for. Not among what is running: they were sent before they came here, and the number of
    /// those that wait for a server is bounded.
    undoing: FuturesUnordered<Running<Option<Vec<Terms>>>>,
    /// What is to be tried again.
    failed: Later<Work>,
    /// KeyStates whose leases end, each once.
    leases: Later<Weak<Keyed<KeyState>>>,
    look_at: Option<Instant>,
}

type Running<T> = Pin<Box<dyn Future<Output = T> + Send>>;

// === impl Settler ===

impl Settler {
    pub(super) fn start(scripts: Scripts) -> Result<Self, ConfigError> {
        let runtime = Handle::try_current().map_err(|_| {
            let reason = "limits are shared by a task, which needs a tokio runtime";
            ConfigError::new("shared", "outside a runtime", reason)
        })?;
        let (sender, jobs) = mpsc::channel(WAITING);
        let (sender_of_forsaken, forsaken) = mpsc::channel(WAITING);
        let unsettled = Arc::default();
        let task = Task {
            scripts,
            jobs: Some(jobs),
            forsaken: Some(forsaken),
            unsettled: Arc::clone(&unsettled),
            running: FuturesUnordered::new(),
            undoing: FuturesUnordered::new(),
            failed: Later::new(),
            leases: Later::new(),
            look_at: None,
        };
        runtime.spawn(task.run());
        Ok(Self {
            jobs: sender,
            forsaken: sender_of_forsaken,
            unsettled,
        })
    }

    /// Whether there was room for it.
    pub(super) fn send(&self, job: Job) -> bool {
        self.sent(self.jobs.try_send(job).is_ok())
    }

    pub(super) fn await_forsaken(&self, leasing: Leasing, terms: Arc<[Terms]>) {
        self.sent(self.forsaken.try_send((leasing, terms)).is_ok());
    }

    /// Counts what was not: there is no room, or the runtime is shutting down.
    fn sent(&self, was_sent: bool) -> bool {
        if !was_sent {
            self.unsettled.fetch_add(1, Ordering::Relaxed);
        }
        was_sent
    }

    /// How often something did not come to the store, or nobody knows whether it did.
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
            let together = if self.looks_at().is_some() {
                1
            } else {
                TOGETHER
            };
            let (mut taken, mut forsaken) = (Vec::new(), Vec::new());
            // In no order: neither what is new nor what failed before is to wait for all of the other.
            tokio::select! {
                Some(tried) = self.running.next() => self.tried(tried),
                Some(undone) = self.undoing.next() => self.undo(undone),
                () = some(&mut self.forsaken, &mut forsaken, TOGETHER), if self.forsaken.is_some() => {
                    self.see_to(forsaken);
                }
                () = some(&mut self.jobs, &mut taken, together), if takes_jobs => self.accept(taken),
                () = sleep_until(wake_at.unwrap_or(now)), if wake_at.is_some() => self.wake(),
            }
        }
    }

    fn accept(&mut self, jobs: Vec<Job>) {
        if jobs.is_empty() {
            // All that was sent is here.
            self.jobs = None;
        }
        let mut settlements = Vec::new();
        for job in jobs {
            match job {
                Job::Settle(settlement) => settlements.push(settlement),
                Job::Adjust(terms) => self.begin(Work::adjust(terms)),
                Job::ClearAt(key, at) => {
                    self.leases.push(at, key);
                    // KeyStates that were evicted since: each would keep its memory until its lease ends.
                    self.leases.prune(|key| key.strong_count() > 0);
                }
            }
        }
        if !settlements.is_empty() {
            self.begin(Work::settle(settlements));
        }
    }

    fn see_to(&mut self, forsaken: Vec<Forsaken>) {
        if forsaken.is_empty() {
            self.forsaken = None;
        }
        for (leasing, terms) in forsaken {
            self.undoing.push(Box::pin(undone(leasing, terms)));
        }
    }

    fn begin(&mut self, work: Work) {
        if let Some(at) = &mut self.look_at {
            *at = Instant::now() + PAUSE;
        }
        let scripts = self.scripts.clone();
        self.running.push(Box::pin(work.tried(scripts)));
    }

    /// Begins what failed before: of many settlements, while the store is away, only one. For whatever looks for the store,
    /// in the end nobody may know whether it was settled.
    fn begin_again(&mut self, now: Instant, work: Work) {
        if self.looks_at().is_none() {
            return self.begin(work);
        }
        let (one, others) = work.one();
        if let Some(others) = others {
            self.failed.push_first(now, others);
        }
        self.begin(one);
    }

    /// Sees to what came of one.
    fn tried(&mut self, tried: Tried) {
        let now = Instant::now();
        match tried {
            Tried::StoreUnavailable(_) | Tried::Unknown => {
                // Who looks for it already has said when the next one does.
                self.look_at.get_or_insert(now + PAUSE);
            }
            Tried::Done(_) | Tried::Failed(..) | Tried::GivenUp => self.look_at = None,
        }
        match tried {
            Tried::Done(unknown) => self.lost(unknown),
            // Nobody is left who would wait for the store.
            Tried::StoreUnavailable(work) if self.is_closed() => self.lost(work.len()),
            // The same looks again.
            Tried::StoreUnavailable(work) => self.failed.push_first(now, work),
            Tried::Failed(work, pause) => {
                for work in work {
                    self.try_at(now + pause, work);
                }
            }
            // What is tried for the last time is by itself.
            Tried::GivenUp | Tried::Unknown => self.lost(1),
        }
    }

    /// Gives back what a lease has granted that nobody waited for.
    fn undo(&mut self, undone: Option<Vec<Terms>>) {
        match undone {
            Some(terms) if terms.is_empty() => {}
            Some(terms) => self.try_at(Instant::now(), Work::adjust(terms)),
            None => self.lost(1),
        }
    }

    fn try_at(&mut self, at: Instant, work: Work) {
        if self.failed.len() < WAITING {
            self.failed.push(at, work);
        } else {
            self.lost(work.len());
        }
    }

    /// Begins one thing whose time has come.
    fn wake(&mut self) {
        let now = Instant::now();
        if !self.may_begin(now) {
            return;
        }
        // Leases first: others want what is left of them.
        if let Some(key) = self.leases.pop(now) {
            let Some(of_cell) = key.upgrade() else {
                return;
            };
            let (left, again_at) = left_of_leases(&of_cell);
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
        let has_all = self.jobs.is_none() && self.forsaken.is_none();
        let is_done = self.running.is_empty() && self.undoing.is_empty();
        has_all && is_done && self.failed.is_empty()
    }

    /// When the store is to be looked for, while it is away and somebody waits for it.
    fn looks_at(&self) -> Option<Instant> {
        self.look_at.filter(|_| !self.is_closed())
    }

    fn may_begin(&self, now: Instant) -> bool {
        self.running.len() < AT_ONCE && self.looks_at().is_none_or(|at| at <= now)
    }

    fn takes_jobs(&self, now: Instant) -> bool {
        // What has failed looks for the store, as long as there is any of it: so not all that comes has to wait in here.
        let is_needed = self.looks_at().is_none() || self.failed.is_empty();
        self.jobs.is_some() && is_needed && self.may_begin(now)
    }

    /// When there is next something to begin; `None` if that depends on something else.
    fn wake_at(&self, now: Instant) -> Option<Instant> {
        if self.running.len() >= AT_ONCE {
            return None;
        }
        let looks_at = self.looks_at().filter(|&at| at > now);
        let due = [self.leases.first_at(), self.failed.first_at()];
        looks_at.or_else(|| due.into_iter().flatten().min())
    }
}

/// Waits for jobs, and takes those that wait; none if there never will be any.
async fn some<T>(jobs: &mut Option<Receiver<T>>, taken: &mut Vec<T>, most: usize) {
    if let Some(jobs) = jobs {
        jobs.recv_many(taken, most).await;
    }
}

/// What gives back what a lease was granted and not needed; `None` if nobody knows what became of what went back with it.
async fn undone(leasing: Leasing, terms: Arc<[Terms]>) -> Option<Vec<Terms>> {
    let back: Vec<_> = match leasing.await {
        Ok(Verdict::Granted(grants)) => {
            let grants = terms.iter().zip(grants);
            grants.map(|(terms, grant)| terms.undo(grant)).collect()
        }
        // What was left of others' shares went back all the same.
        Ok(Verdict::Blocked { .. }) => Vec::new(),
        Err(away) if !away.may_have_run => terms.iter().map(Terms::without_need).collect(),
        Err(_) => return terms.iter().all(Terms::is_nothing).then(Vec::new),
    };
    let has_any = back.iter().any(|terms| !terms.is_nothing());
    Some(back.into_iter().filter(|_| has_any).collect())
}

#[cfg(test)]
mod tests {
    use tower_llm_redis::Redis;

    use super::*;

    #[tokio::test]
    async fn what_finds_no_room_is_counted() {
        let redis = Redis::builder("redis://127.0.0.1:1").build().unwrap();
        let settler = Settler::start(Scripts::of(redis)).unwrap();
        // On this thread the task does nothing meanwhile.
        for _ in 0..WAITING + 3 {
            settler.send(Job::Adjust(Vec::new()));
        }
        assert_eq!(settler.unsettled(), 3);
    }
}
