//! The permits of a key, those of all keys together, and the queue for them.
//!
//! A permit that is free is taken by one compare-and-swap and given back by one subtraction: a semaphore that keeps
//! its waiters in a mutex costs more than everything else this crate does. Only when calls wait does a lock come
//! in:
//!
//! - While the queue is not empty, it is *closed*, which is a bit in the word that counts what is taken. Nobody takes a
//!   permit past those who wait, and whoever gives one back sees it.
//! - While it is set, permits are taken only under the lock. Whoever gives one back subtracts first and then, under
//!   the lock, hands free permits to those whose tenant it is. Whoever joins sets it first and then, under the same
//!   lock, looks for a free permit once more. Both change the same word, so one of the two sees the other.
//!
//! With a limit over all keys there are two such words, and one queue for all keys. The bit is in the word of all keys,
//! which is taken last and given back last, so that the above holds for it. What was taken of a key is given back if
//! there is no room in all: somebody may have gone to the queue for that, so the queue is looked after then, too.
//!
//! Wakers are woken and dropped with the lock free. They run code that is not ours: one may be the last that holds a
//! task, and the task a future that waits here too.

mod counter;
mod queue;

use std::{
    mem, ptr,
    sync::{
        Arc, Mutex as StdMutex, MutexGuard as StdMutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Poll, Waker},
};

#[cfg(not(all(test, bulkhead_loom)))]
use std::sync::{Mutex, MutexGuard};

#[cfg(all(test, bulkhead_loom))]
use ::loom::sync::{Mutex, MutexGuard};

use tokio::time::Instant;
use tower_llm_core::{Evictable, Keyed};

use self::{
    counter::Counter,
    queue::{LaneId, Queue, Room},
};
use crate::{
    Adaptive, LimitOf,
    adaptive::{Aimd, Sign},
    priority::ByPriority,
};

pub(crate) use self::{counter::MAX_LIMIT, queue::Tenant};

/// The permits of one key.
#[derive(Debug)]
pub(crate) struct Permits {
    counter: Counter,
    queue: Queues,
    refused: AtomicU64,
    /// The limit if these permits were made anew.
    made_with: usize,
    /// The limit that somebody has set, or else the same.
    set_to: AtomicUsize,
    // Boxed: most have none.
    adaptive: Option<Box<Follows>>,
}

/// How a limit follows what calls meet.
#[derive(Debug)]
struct Follows {
    rules: Adaptive,
    // Locked where a call observer something, never on admission.
    aimd: StdMutex<Aimd>,
}

/// The permits of all keys together.
#[derive(Debug)]
pub(crate) struct GlobalPermits {
    counter: Counter,
    queue: Mutex<Queue<Shared>>,
    refused: AtomicU64,
}

/// Where calls wait.
#[derive(Debug)]
enum Queues {
    Own(Mutex<Queue<Shared>>),
    Common(Arc<GlobalPermits>),
}

pub(crate) type Shared = Arc<Keyed<Permits>>;

/// What a call needs a permit for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) weight: u32,
    pub(crate) tenant: Tenant,
    /// How many calls of its class may wait for its key.
    pub(crate) max_waiting: usize,
}

/// That a call which waits has to go, so that another caller's may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Evicted;

/// What became of an attempt to join the queue.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// A permit became free just now, and is taken.
    Admitted,
    /// In the queue, with this ticket.
    Waiting(u64),
    /// There is no room in the queue.
    Full(LimitOf),
}

impl Default for Wanted {
    /// One permit, for nobody in particular.
    fn default() -> Self {
        Self {
            weight: 1,
            tenant: Tenant::default(),
            max_waiting: usize::MAX,
        }
    }
}

impl GlobalPermits {
    /// `limit` permits, none taken. At most [`MAX_LIMIT`] of them.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            counter: Counter::new(limit),
            queue: Mutex::default(),
            refused: AtomicU64::new(0),
        }
    }

    /// Sets the limit; whoever it lets in is let in.
    pub(crate) fn set_limit(&self, limit: usize) {
        self.counter.set_limit(limit);
        while let Some(waker) = hand_over(&self.queue, &self.counter, None) {
            waker.wake();
        }
    }

    pub(crate) fn limit(&self) -> usize {
        self.counter.limit()
    }

    /// How many calls there are, and what they weigh.
    pub(crate) fn in_use(&self) -> (usize, u64) {
        self.counter.in_use()
    }

    pub(crate) fn waiting(&self) -> usize {
        lock(&self.queue).waiting()
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Permits {
    /// `limit` permits, none taken. At most [`MAX_LIMIT`] of them.
    pub(crate) fn new(limit: usize) -> Self {
        Self::with_line(limit, Queues::Own(Mutex::default()))
    }

    /// The same within `all` permits.
    pub(crate) fn within(limit: usize, all: Arc<GlobalPermits>) -> Self {
        Self::with_line(limit, Queues::Common(all))
    }

    fn with_line(limit: usize, queue: Queues) -> Self {
        Self {
            counter: Counter::new(limit),
            queue,
            refused: AtomicU64::new(0),
            made_with: limit,
            set_to: AtomicUsize::new(limit),
            adaptive: None,
        }
    }

    /// With a limit that follows `rules`, if there are any.
    pub(crate) fn adaptive(mut self, rules: Option<Adaptive>) -> Self {
        let limit = self.limit();
        self.adaptive = rules.map(|rules| {
            let aimd = StdMutex::new(Aimd::new(rules, limit));
            Box::new(Follows { rules, aimd })
        });
        self
    }

    /// Takes them if there is room and nobody waits for them.
    pub(crate) fn try_acquire(&self, weight: u32) -> bool {
        match &self.queue {
            Queues::Own(_) => self.counter.try_take(weight),
            Queues::Common(all) => self.try_acquire_both(all, weight),
        }
    }

    fn try_acquire_both(&self, all: &GlobalPermits, weight: u32) -> bool {
        // Looked at first, so that where all are taken nothing is taken and given back.
        if !all.counter.is_open_for(weight) || !self.counter.try_take(weight) {
            return false;
        }
        let is_taken = all.counter.try_take(weight);
        if !is_taken {
            self.counter.give_back(weight);
            self.serve_waiting();
        }
        is_taken
    }

    /// Gives permits back, to those whose tenant it is if somebody waits.
    pub(crate) fn release(&self, weight: u32) {
        let is_closed = match &self.queue {
            Queues::Own(_) => self.counter.give_back(weight),
            Queues::Common(all) => {
                self.counter.give_back(weight);
                all.counter.give_back(weight)
            }
        };
        if is_closed {
            self.serve_waiting();
        }
    }

    /// Joins the queue, unless there is room now; or `max_waiting` others of its class wait for this key, and none of them
    /// has to go for it.
    pub(crate) fn join(this: &Shared, wanted: &Wanted, waker: &Waker) -> Joined {
        let waker = waker.clone();
        let mut queue = this.queue();
        let gate = this.gate();
        gate.close();
        if queue.is_empty() && take(gate, &this.counter, wanted.weight) == Room::Taken {
            gate.reopen();
            return Joined::Admitted;
        }
        let Wanted {
            weight,
            tenant,
            max_waiting,
        } = wanted;
        let own = queue.join(this.lane(), || Arc::clone(this), tenant, *weight, waker);
        let mut is_admitted = false;
        // Others, if what an attempt of somebody's took and gave back comes to light only now.
        let mut served = Vec::new();
        while let Some((ticket, waker)) = serve(&mut queue, gate) {
            is_admitted |= ticket == own;
            served.push((ticket, waker));
        }
        let (mut left, mut evicted) = (None, None);
        let waiting = queue.waiting_in(this.lane())[tenant.priority.index()];
        let joined = if is_admitted {
            Joined::Admitted
        } else if waiting > *max_waiting {
            this.count_refused();
            evicted = queue.evict(this.lane(), tenant);
            if evicted.is_some() {
                Joined::Waiting(own)
            } else {
                let full = Joined::Full(this.full(&queue, *weight));
                left = queue.leave(this.lane(), tenant, own);
                full
            }
        } else {
            Joined::Waiting(own)
        };
        reopen_if_empty(&queue, gate);
        drop(queue);
        drop(left);
        if let Some(waker) = evicted {
            waker.wake();
        }
        for (ticket, waker) in served {
            if ticket != own {
                waker.wake();
            }
        }
        joined
    }

    /// Whether the one with `ticket` has been given a permit or was pushed out; if not, `waker` is woken when it has.
    pub(crate) fn poll_ticket(
        &self,
        tenant: &Tenant,
        ticket: u64,
        waker: &Waker,
    ) -> Poll<Result<(), Evicted>> {
        let mut queue = self.queue();
        let Some(kept) = queue.waker(self.lane(), tenant, ticket) else {
            let was_evicted = queue.was_evicted(ticket);
            return Poll::Ready(if was_evicted { Err(Evicted) } else { Ok(()) });
        };
        let replaced = (!kept.will_wake(waker)).then(|| mem::replace(kept, waker.clone()));
        drop(queue);
        drop(replaced);
        Poll::Pending
    }

    /// Leaves the queue; `false` if a permit had been given already, which is then still taken.
    pub(crate) fn leave(&self, tenant: &Tenant, ticket: u64) -> bool {
        let mut queue = self.queue();
        if queue.was_evicted(ticket) {
            return true;
        }
        let waker = queue.leave(self.lane(), tenant, ticket);
        reopen_if_empty(&queue, self.gate());
        drop(queue);
        let has_left = waker.is_some();
        drop(waker);
        if has_left {
            // It may have held up lighter ones.
            self.serve_waiting();
        }
        has_left
    }

    /// Counts a call that was refused.
    pub(crate) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        if let Some(all) = self.all() {
            all.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Which limit keeps `weight` out.
    pub(crate) fn full_of(&self, weight: u32) -> LimitOf {
        self.full(&self.queue(), weight)
    }

    fn full(&self, queue: &Queue<Shared>, weight: u32) -> LimitOf {
        let in_key =
            self.all().is_none() || queue.is_blocked(self.lane()) || !self.counter.has_room(weight);
        if in_key {
            LimitOf::Key
        } else {
            LimitOf::Global
        }
    }

    /// Sets the limit; whoever it lets in is let in.
    pub(crate) fn set_limit(&self, limit: usize) {
        let aimd = self.aimd();
        self.set_to.store(limit, Ordering::Relaxed);
        self.counter.set_limit(limit);
        if let Some(mut aimd) = aimd {
            aimd.reset(limit);
        }
        self.serve_waiting();
    }

    /// Lets the limit follow a sign.
    pub(crate) fn observe(&self, sign: Sign, now: Instant) {
        let Some(mut aimd) = self.aimd() else {
            return;
        };
        let before = self.limit();
        let limit = aimd.observe(sign, self.in_use().0, now);
        // With the lock held, so that limits are set in the order they were found.
        self.counter.set_limit(limit);
        drop(aimd);
        if limit > before {
            self.serve_waiting();
        }
    }

    /// The rules that the limit follows, if it follows any.
    pub(crate) fn rules(&self) -> Option<&Adaptive> {
        self.adaptive.as_ref().map(|follows| &follows.rules)
    }

    fn aimd(&self) -> Option<StdMutexGuard<'_, Aimd>> {
        let follows = self.adaptive.as_ref()?;
        Some(follows.aimd.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn limit(&self) -> usize {
        self.counter.limit()
    }

    /// How many calls there are, and what they weigh.
    pub(crate) fn in_use(&self) -> (usize, u64) {
        self.counter.in_use()
    }

    pub(crate) fn waiting(&self) -> ByPriority {
        self.queue().waiting_in(self.lane())
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The permits of all keys, if there is a limit for them.
    pub(crate) fn all(&self) -> Option<&GlobalPermits> {
        match &self.queue {
            Queues::Own(_) => None,
            Queues::Common(all) => Some(all),
        }
    }

    /// Gives what is free to those whose tenant it is, one at a time, each woken with the lock free.
    fn serve_waiting(&self) {
        while let Some(waker) = hand_over(self.mutex(), self.gate(), Some(self.lane())) {
            waker.wake();
        }
    }

    /// The word that says whether somebody waits.
    fn gate(&self) -> &Counter {
        self.all().map_or(&self.counter, |all| &all.counter)
    }

    /// Where they are, which is where they stay while somebody holds them.
    fn lane(&self) -> LaneId {
        ptr::from_ref(self).addr()
    }

    fn mutex(&self) -> &Mutex<Queue<Shared>> {
        match &self.queue {
            Queues::Own(queue) => queue,
            Queues::Common(all) => &all.queue,
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue<Shared>> {
        lock(self.mutex())
    }
}

impl Evictable for Permits {
    fn is_evictable(&self) -> bool {
        // Whoever has a permit or waits for one holds these permits: nobody does.
        self.set_to.load(Ordering::Relaxed) == self.made_with
    }
}

/// Gives permits to the one whose tenant it is, who is to be woken. There may be room again in the key of `lane`.
fn hand_over(queue: &Mutex<Queue<Shared>>, gate: &Counter, lane: Option<LaneId>) -> Option<Waker> {
    let mut queue = lock(queue);
    if let Some(lane) = lane {
        queue.open(lane);
    }
    let served = serve(&mut queue, gate);
    reopen_if_empty(&queue, gate);
    served.map(|(_, waker)| waker)
}

fn serve(queue: &mut Queue<Shared>, gate: &Counter) -> Option<(u64, Waker)> {
    queue.serve(|permits, weight| take(gate, &permits.counter, weight))
}

/// Takes `weight` of a key and of all keys, together or not at all: under the queue's lock, with the gate closed.
fn take(gate: &Counter, key: &Counter, weight: u32) -> Room {
    if !key.take_in_turn(weight) {
        return Room::NotInKey;
    }
    if ptr::eq(gate, key) || gate.take_in_turn(weight) {
        return Room::Taken;
    }
    key.give_back(weight);
    Room::NotInAll
}

fn reopen_if_empty(queue: &Queue<Shared>, gate: &Counter) {
    if queue.is_empty() {
        gate.reopen();
    }
}

fn lock(queue: &Mutex<Queue<Shared>>) -> MutexGuard<'_, Queue<Shared>> {
    // Nothing that can panic runs while it is held but a waker's clone, which leaves it as it was.
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

// Loom's types work inside its models only, so that it is one or the other.
#[cfg(all(test, bulkhead_loom))]
mod loom;
#[cfg(all(test, not(bulkhead_loom)))]
mod model;
#[cfg(all(test, not(bulkhead_loom)))]
mod tests;
