//! A merged call in flight, and which of its callers polls it.
//!
//! The call is a future that no caller owns: the poll of any caller that waits for it drives it. So no task is needed, and a
//! caller that leaves takes nothing with it.
//!
//! # Who polls
//!
//! The call is polled with a waker of the flight's own. When that wakes, one caller is woken, the *driver*: a body of a
//! thousand frames would wake five hundred callers a thousand times otherwise. A caller becomes the driver when it polls and
//! there is none. A driver that leaves, or has its answer, hands over: another caller is woken, and polls.
//!
//! A driver that is not polled any more, though it has not left, would stop the call for all. So each caller that waits and is
//! no driver looks after the call once in [`PATROL`]: if the call was woken and not polled since, it becomes the driver. So do
//! the calls that wait for a batch to end, since all callers of that may have stopped.
//!
//! # Locks
//!
//! In this order: the call's (`work`), the layer's state, the driver. The call is polled with nothing but the first locked,
//! which is never waited for: a caller that finds it taken returns `Pending`, and the one that holds it looks at `is_woken`
//! again when it has let go, and wakes the driver.

use std::{
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, PoisonError, TryLockError},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use crate::sync::{AtomicBool, Mutex, MutexGuard, Ordering, fence};

/// How often a caller that waits looks whether the call is still polled by another one.
pub(crate) const PATROL: Duration = Duration::from_secs(1);

/// What is done for a batch, from its assembly to its last answer.
pub(crate) type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A merged call in flight.
pub(crate) struct Flight {
    /// Of its key, in the layer's state.
    pub(crate) lane: usize,
    /// `None` once the call has ended.
    work: Mutex<Option<Work>>,
    is_woken: AtomicBool,
    is_abandoned: AtomicBool,
    has_ended: AtomicBool,
    driver: Mutex<Option<Driver>>,
}

struct Driver {
    call: u64,
    waker: Waker,
}

/// How a caller waits for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attends {
    /// It is woken when the call is.
    AsDriver,
    /// The same, since the driver has not polled.
    InsteadOfAnother,
    /// It is woken when it has its answer.
    AsPassenger,
}

/// What came of driving a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Driven {
    /// It has nothing new.
    Idle,
    /// It was polled: callers may have answers.
    Polled,
    /// It has ended, by this poll.
    Ended,
    /// It has ended by a panic, in this poll.
    Panicked,
}

impl Flight {
    pub(crate) fn new(lane: usize, work: Work) -> Self {
        Self {
            lane,
            work: Mutex::new(Some(work)),
            is_woken: AtomicBool::new(true),
            is_abandoned: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            driver: Mutex::new(None),
        }
    }

    /// Polls the call once if it may have something.
    ///
    /// If it is woken meanwhile, the driver is woken, and polls next. A call that wakes itself so holds up no thread.
    pub(crate) fn drive(self: &Arc<Self>) -> Driven {
        // Of two callers, one finds the lock free or the other finds `is_woken` set: neither is sure without the fences, which
        // order the release of the lock before the look at the flag, and the flag before the try.
        fence(Ordering::SeqCst);
        if !self.is_woken.load(Ordering::Acquire) {
            return Driven::Idle;
        }
        let mut work = match self.work.try_lock() {
            Ok(work) => work,
            // Its holder looks at `is_woken` again when it is done.
            Err(TryLockError::WouldBlock) => return Driven::Idle,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        };
        // Swapped, not stored: what woke the call must be visible to it.
        self.is_woken.swap(false, Ordering::AcqRel);
        let Some(call) = work.as_mut() else {
            return Driven::Idle;
        };
        let waker = Waker::from(Arc::clone(self));
        let polled = catch_unwind(AssertUnwindSafe(|| {
            call.as_mut().poll(&mut Context::from_waker(&waker))
        }));
        match polled {
            Ok(Poll::Pending) => drop(work),
            Ok(Poll::Ready(())) => {
                self.end(work);
                return Driven::Ended;
            }
            Err(_) => {
                self.end(work);
                return Driven::Panicked;
            }
        }
        fence(Ordering::SeqCst);
        if self.is_abandoned.load(Ordering::Acquire) && self.abandon() == Driven::Ended {
            return Driven::Ended;
        }
        if self.is_woken.load(Ordering::Acquire) {
            self.wake_driver();
        }
        Driven::Polled
    }

    /// Drops the call. A panic meanwhile says nothing to the caller whose poll this is.
    fn end(&self, mut work: MutexGuard<'_, Option<Work>>) {
        let call = work.take();
        drop(work);
        let _ = catch_unwind(AssertUnwindSafe(|| drop(call)));
        self.has_ended.store(true, Ordering::Release);
    }

    /// Drops the call: all callers have left. It is dropped by the thread that polls it, if there is one.
    pub(crate) fn abandon(&self) -> Driven {
        self.is_abandoned.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        let work = match self.work.try_lock() {
            Ok(work) => work,
            // Its holder looks at `is_abandoned` when it is done.
            Err(TryLockError::WouldBlock) => return Driven::Idle,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        };
        if work.is_none() {
            return Driven::Idle;
        }
        self.end(work);
        Driven::Ended
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// Whether the call was woken, and not polled since.
    pub(crate) fn is_woken(&self) -> bool {
        self.is_woken.load(Ordering::Acquire)
    }

    /// Makes `call` the driver, to be woken by `waker`, if there is none or it `takes_over`.
    pub(crate) fn attend(&self, call: u64, waker: &Waker, takes_over: bool) -> Attends {
        // Cloned and dropped outside of the lock: a waker's drop may drop a task, and with it another caller.
        let new = Driver {
            call,
            waker: waker.clone(),
        };
        let mut driver = self.driver();
        let is_anothers = driver.as_ref().is_some_and(|driver| driver.call != call);
        let (attends, old) = match (is_anothers, takes_over) {
            (true, false) => (Attends::AsPassenger, Some(new)),
            (true, true) => (Attends::InsteadOfAnother, driver.replace(new)),
            (false, _) => (Attends::AsDriver, driver.replace(new)),
        };
        drop(driver);
        drop(old);
        attends
    }

    /// `call` waits no more; returns whether there is no driver now, and the waker that it had as the driver.
    pub(crate) fn hand_over(&self, call: u64) -> (bool, Option<Waker>) {
        let mut driver = self.driver();
        let left = driver.take_if(|driver| driver.call == call);
        (driver.is_none(), left.map(|driver| driver.waker))
    }

    /// Without a driver, the next caller that polls finds the flag.
    fn wake_driver(&self) {
        let waker = self.driver().as_ref().map(|driver| driver.waker.clone());
        waker.into_iter().for_each(Waker::wake);
    }

    fn driver(&self) -> MutexGuard<'_, Option<Driver>> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Flight {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, Ordering::Release);
        self.wake_driver();
    }
}

impl fmt::Debug for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flight").finish_non_exhaustive()
    }
}
