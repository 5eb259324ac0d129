//! The permits of a key, those of all keys together, and the queue for them.
//!
//! A free permit is taken by one compare-and-swap and given back by one subtraction; a semaphore with its waiters in a
//! mutex would cost more than everything else in this crate. A lock is needed only while calls wait:
//!
//! - While the queue is not empty, the counter is *closed*, which is a bit in the word that counts what is in use. No call
//!   takes permits ahead of those that wait, and a call that gives permits back sees the bit.
//! - While it is closed, permits are taken only under the lock. A call that gives permits back subtracts first and then, under
//!   the lock, serves the queue. A call that joins closes the counter first and then, under the same lock, tries once more.
//!   Both change the same word, so one of the two sees the other.
//!
//! With a limit for all keys there are two such words, and one queue for all keys. The bit is in the word of all keys,
//! which is taken last and given back last, so that the above holds for it. If a key has room but the limit for all keys
//! does not, what was taken from the key is given back. Another call may have joined the queue because of that, so the
//! queue is served then too.
//!
//! Wakers are woken and dropped without the lock, because they run foreign code: a waker may hold the last reference to a
//! task, and that task a future that waits here too.

mod counter;
mod lane;
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
    queue::{LaneId, Queue, Room, Served},
};
use crate::{
    Adaptive, LimitOf,
    adaptive::{Aimd, Sign},
    priority::ByPriority,
};

pub(crate) use self::{
    counter::MAX_LIMIT,
    queue::{Overtook, Tenant},
};

/// The permits of one key.
#[derive(Debug)]
pub(crate) struct Permits {
    counter: Counter,
    queue: Queues,
    refused: AtomicU64,
    /// The limit that these permits were created with.
    made_with: usize,
    /// The limit that was set since, or else the same.
    set_to: AtomicUsize,
    // Boxed: most have none.
    adaptive: Option<Box<Follows>>,
}

/// An adaptive limit.
#[derive(Debug)]
struct Follows {
    rules: Adaptive,
    // Locked when a call reports, never on admission.
    aimd: StdMutex<Aimd>,
}

/// The permits of all keys together.
#[derive(Debug)]
pub(crate) struct GlobalPermits {
    counter: Counter,
    queue: Mutex<Queue<SharedPermits>>,
    refused: AtomicU64,
}

/// The queue of a key.
#[derive(Debug)]
enum Queues {
    // Boxed: only calls that wait look at it.
    Own(Box<Mutex<Queue<SharedPermits>>>),
    Common(Arc<GlobalPermits>),
}

pub(crate) type SharedPermits = Arc<Keyed<Permits>>;

/// What a waiting call needs.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) weight: u32,
    pub(crate) tenant: Tenant,
    /// How many calls of its priority may wait for its key.
    pub(crate) max_waiting: usize,
}

/// A waiting call was refused so that another caller's can wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Evicted;

/// The result of joining the queue.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// A permit became free just now and is taken.
    Admitted(Overtook),
    /// In the queue, with this ticket.
    Waiting(u64),
    /// There is no room in the queue.
    Full(LimitOf),
}

impl Default for Wanted {
    /// One permit, for a call without a caller.
    fn default() -> Self {
        Self {
            weight: 1,
            tenant: Tenant::default(),
            max_waiting: usize::MAX,
        }
    }
}

impl GlobalPermits {
    /// `limit` permits, none in use. At most [`MAX_LIMIT`] of them.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            counter: Counter::new(limit),
            queue: Mutex::default(),
            refused: AtomicU64::new(0),
        }
    }

    /// Sets the limit, and serves the calls that it admits.
    pub(crate) fn set_limit(&self, limit: usize) {
        self.counter.set_limit(limit);
        lock(&self.queue).open_all();
        while let Some(waker) = hand_over(&self.queue, &self.counter, None) {
            waker.wake();
        }
    }

    pub(crate) fn limit(&self) -> usize {
        self.counter.limit()
    }

    /// The calls in flight, and what they weigh.
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
    /// `limit` permits, none in use. At most [`MAX_LIMIT`] of them.
    pub(crate) fn new(limit: usize) -> Self {
        Self::with_queue(limit, Queues::Own(Box::default()))
    }

    /// The same, with a limit for all keys besides.
    pub(crate) fn within(limit: usize, all: Arc<GlobalPermits>) -> Self {
        Self::with_queue(limit, Queues::Common(all))
    }

    fn with_queue(limit: usize, queue: Queues) -> Self {
        Self {
            counter: Counter::new(limit),
            queue,
            refused: AtomicU64::new(0),
            made_with: limit,
            set_to: AtomicUsize::new(limit),
            adaptive: None,
        }
    }

    /// Makes the limit adaptive, if there are rules.
    pub(crate) fn adaptive(mut self, rules: Option<Adaptive>) -> Self {
        let limit = self.limit();
        self.adaptive = rules.map(|rules| {
            let aimd = StdMutex::new(Aimd::new(rules, limit));
            Box::new(Follows { rules, aimd })
        });
        self
    }

    /// Whether [`try_acquire`](Self::try_acquire) would succeed now.
    pub(crate) fn is_open_for(&self, weight: u32) -> bool {
        let in_all = self.all().is_none_or(|all| all.counter.is_open_for(weight));
        in_all && self.counter.is_open_for(weight)
    }

    /// Takes permits if there is room and no call waits for them.
    pub(crate) fn try_acquire(&self, weight: u32) -> bool {
        match &self.queue {
            Queues::Own(_) => self.counter.try_take(weight),
            Queues::Common(all) => self.try_acquire_both(all, weight),
        }
    }

    fn try_acquire_both(&self, all: &GlobalPermits, weight: u32) -> bool {
        // Checked first, so that nothing is taken and given back while all permits are in use.
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

    /// Gives permits back, and serves the queue.
    pub(crate) fn release(&self, weight: u32, overtook: Overtook) {
        let is_closed = match &self.queue {
            Queues::Own(_) => self.counter.give_back(weight),
            Queues::Common(all) => {
                self.counter.give_back(weight);
                all.counter.give_back(weight)
            }
        };
        if overtook.is_some() {
            self.queue().ended(overtook);
        }
        if is_closed {
            self.serve_waiting();
        }
    }

    /// Joins the queue, unless there is room now. If `max_waiting` other calls of its priority wait for this key, one of them is
    /// evicted, or the call does not join.
    pub(crate) fn join(this: &SharedPermits, wanted: &Wanted, waker: &Waker) -> Joined {
        let waker = waker.clone();
        let mut queue = this.queue();
        let latch = this.latch();
        latch.close();
        if queue.is_empty() && take(latch, &this.counter, wanted.weight) == Room::Taken {
            latch.reopen();
            return Joined::Admitted(Overtook::default());
        }
        let Wanted {
            weight,
            tenant,
            max_waiting,
        } = wanted;
        let own = queue.join(this.lane(), || Arc::clone(this), tenant, *weight, waker);
        let mut is_admitted = false;
        // Other calls too, if permits that another attempt took and gave back are visible only now.
        let mut served = Vec::new();
        while let Some(next) = serve(&mut queue, latch) {
            is_admitted |= next.ticket == own;
            served.push(next);
        }
        let (mut left, mut evicted) = (None, None);
        let waiting = queue.waiting_in(this.lane())[tenant.priority.index()];
        let joined = if is_admitted {
            Joined::Admitted(queue.granted(own))
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
        reopen_if_empty(&queue, latch);
        drop(queue);
        drop(left);
        if let Some(waker) = evicted {
            waker.wake();
        }
        for Served { ticket, waker } in served {
            if ticket != own {
                waker.wake();
            }
        }
        joined
    }

    /// Whether the call with `ticket` was served or evicted; if not, `waker` is woken when it is.
    pub(crate) fn poll_ticket(
        &self,
        tenant: &Tenant,
        ticket: u64,
        waker: &Waker,
    ) -> Poll<Result<Overtook, Evicted>> {
        let mut queue = self.queue();
        let Some(kept) = queue.waker(self.lane(), tenant, ticket) else {
            return Poll::Ready(if queue.was_evicted(ticket) {
                Err(Evicted)
            } else {
                Ok(queue.granted(ticket))
            });
        };
        let replaced = (!kept.will_wake(waker)).then(|| mem::replace(kept, waker.clone()));
        drop(queue);
        drop(replaced);
        Poll::Pending
    }

    /// Leaves the queue. If the call had been served, its permits are given back.
    pub(crate) fn leave(&self, Wanted { weight, tenant, .. }: &Wanted, ticket: u64) {
        let mut queue = self.queue();
        if queue.was_evicted(ticket) {
            return;
        }
        let waker = queue.leave(self.lane(), tenant, ticket);
        let overtook = queue.granted(ticket);
        reopen_if_empty(&queue, self.latch());
        drop(queue);
        if waker.is_some() {
            drop(waker);
            // It may have blocked lighter calls.
            self.serve_waiting();
        } else {
            self.release(*weight, overtook);
        }
    }

    /// Counts a call that was refused.
    pub(crate) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        if let Some(all) = self.all() {
            all.refused.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Which limit `weight` exceeds.
    pub(crate) fn full_of(&self, weight: u32) -> LimitOf {
        self.full(&self.queue(), weight)
    }

    fn full(&self, queue: &Queue<SharedPermits>, weight: u32) -> LimitOf {
        let in_key =
            self.all().is_none() || queue.is_blocked(self.lane()) || !self.counter.has_room(weight);
        if in_key {
            LimitOf::Key
        } else {
            LimitOf::Global
        }
    }

    /// Sets the limit, and serves the calls that it admits.
    pub(crate) fn set_limit(&self, limit: usize) {
        let aimd = self.aimd();
        self.set_to.store(limit, Ordering::Relaxed);
        self.counter.set_limit(limit);
        if let Some(mut aimd) = aimd {
            aimd.reset(limit);
        }
        self.serve_waiting();
    }

    /// Adapts the limit to a sign.
    pub(crate) fn observe(&self, sign: Sign, now: Instant) {
        let Some(mut aimd) = self.aimd() else {
            return;
        };
        let before = self.limit();
        let limit = aimd.observe(sign, self.in_use().0, now);
        // Under the lock, so that limits are set in the order in which they were found.
        self.counter.set_limit(limit);
        drop(aimd);
        if limit > before {
            self.serve_waiting();
        }
    }

    /// The rules of an adaptive limit.
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

    /// The calls in flight, and what they weigh.
    pub(crate) fn in_use(&self) -> (usize, u64) {
        self.counter.in_use()
    }

    pub(crate) fn waiting(&self) -> ByPriority {
        self.queue().waiting_in(self.lane())
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The permits of all keys together, if these have a limit.
    pub(crate) fn all(&self) -> Option<&GlobalPermits> {
        match &self.queue {
            Queues::Own(_) => None,
            Queues::Common(all) => Some(all),
        }
    }

    /// Serves the queue, one call at a time, and wakes each without the lock.
    fn serve_waiting(&self) {
        while let Some(waker) = hand_over(self.mutex(), self.latch(), Some(self.lane())) {
            waker.wake();
        }
    }

    /// The counter that is closed while calls wait.
    fn latch(&self) -> &Counter {
        self.all().map_or(&self.counter, |all| &all.counter)
    }

    /// The address, which does not change while a call holds or waits for permits.
    fn lane(&self) -> LaneId {
        ptr::from_ref(self).addr()
    }

    fn mutex(&self) -> &Mutex<Queue<SharedPermits>> {
        match &self.queue {
            Queues::Own(queue) => queue,
            Queues::Common(all) => &all.queue,
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue<SharedPermits>> {
        lock(self.mutex())
    }
}

impl Evictable for Permits {
    fn is_evictable(&self) -> bool {
        // A call that holds or waits for permits holds a reference.
        self.set_to.load(Ordering::Relaxed) == self.made_with
    }
}

/// Serves the next call, which is to be woken. There may be room again in the key of `lane`.
fn hand_over(
    queue: &Mutex<Queue<SharedPermits>>,
    latch: &Counter,
    lane: Option<LaneId>,
) -> Option<Waker> {
    let mut queue = lock(queue);
    if let Some(lane) = lane {
        queue.open(lane);
    }
    let served = serve(&mut queue, latch);
    reopen_if_empty(&queue, latch);
    served.map(|served| served.waker)
}

fn serve(queue: &mut Queue<SharedPermits>, latch: &Counter) -> Option<Served> {
    queue.serve(
        latch.limit() as u64,
        |permits| (permits.counter.free(), latch.free()),
        |permits, weight| take(latch, &permits.counter, weight),
    )
}

/// Takes `weight` of a key and of all keys, together or not at all: under the queue's lock, with the latch closed.
fn take(latch: &Counter, key: &Counter, weight: u32) -> Room {
    if !key.take_in_turn(weight) {
        return Room::NotInKey;
    }
    if ptr::eq(latch, key) || latch.take_in_turn(weight) {
        return Room::Taken;
    }
    key.give_back(weight);
    Room::NotInAll
}

fn reopen_if_empty(queue: &Queue<SharedPermits>, latch: &Counter) {
    if queue.is_empty() {
        latch.reopen();
    }
}

fn lock(queue: &Mutex<Queue<SharedPermits>>) -> MutexGuard<'_, Queue<SharedPermits>> {
    // Only a waker's clone can panic while it is held, and leaves it as it was.
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

// Loom's types work only inside its models, so these tests replace the others.
#[cfg(all(test, bulkhead_loom))]
mod loom;
#[cfg(all(test, not(bulkhead_loom)))]
mod model;
#[cfg(all(test, not(bulkhead_loom)))]
mod tests;
