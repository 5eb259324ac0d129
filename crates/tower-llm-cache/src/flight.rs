//! One upstream call, shared by all callers that ask the same meanwhile.
//!
//! A flight keeps what has come of its answer in a log. Each participant reads the log by an index of its own, so that a late
//! one starts with the first frame and a slow one loses nothing. None of them owns the upstream: the poll of *any*
//! participant drives it, one step at a time. A caller that leaves, or reads slowly, or not at all, so holds up no other, and
//! no task is needed.
//!
//! # Who polls the upstream
//!
//! The upstream is polled with a waker of the flight's own. When it wakes, all participants that wait are woken. The first
//! one that polls takes the driver's lock and clears `is_woken`, so the others do not poll an upstream that has nothing for
//! them. A participant that finds the lock taken returns `Pending`: its waker is in the log already. The one that holds the
//! lock wakes all that wait after it let go of it, not before, or, if the upstream had nothing, checks `is_woken` once more.
//!
//! # Locks
//!
//! In this order: the driver's, the table's shard (or that of the [claims](crate::items)), the log. A step is noted while the driver's lock is held, or two
//! participants could note two steps the wrong way round. Wakers run outside of all locks.

mod account;
mod log;
#[cfg(all(test, cache_loom))]
mod loom;
mod participant;
mod sync;
mod table;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::{Arc, PoisonError, TryLockError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::task::{ArcWake, waker_ref};
use http::response::Parts;
use http_body::Frame;
use tokio::time::Instant;
use tower_llm_core::{BoxError, Completion, Failure, Outcome};

pub(crate) use self::{
    account::Account,
    log::{Head, Recorded},
    participant::Participant,
    table::{FlightKey, Flights, Join},
};
use self::{
    log::Log,
    sync::{AtomicBool, Mutex, MutexGuard, Ordering, fence},
};
use crate::{coding::is_readable, error::FlightFailed};

/// The upstream of a flight: first the response headers, then frames, then the end.
pub(crate) trait Drive: Send {
    fn poll_step(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Step>;

    /// The end, if the last frame is known to have been the last: its readers may not ask for more.
    fn end(&self) -> Option<End>;

    /// Drops the upstream; returns how that ends the call.
    fn give_up(self: Pin<Box<Self>>) -> End;
}

/// How a call has ended.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) completion: Completion,
    /// Nothing that belongs to the answer can have been missed.
    pub(crate) is_certain: bool,
    pub(crate) is_event_stream: bool,
}

/// What has come from upstream.
#[derive(Debug)]
pub(crate) enum Step {
    Head(Box<Parts>),
    Frame(Frame<Bytes>),
    /// A clean end, and the verdict on the whole.
    End(End),
    /// The call broke off: the error for its callers, and how the call ended.
    Failed(BoxError, Completion),
}

/// Is told of the whole answer, before it leaves the table of flights.
pub(crate) trait Recorder: Send + Sync {
    fn record(&self, answer: &Recorded, end: &End);

    /// No more callers join. May be called more than once; never while the table or the log is locked.
    fn closed(&self) {}
}

/// What a new flight needs.
pub(crate) struct Start {
    pub(crate) upstream: Pin<Box<dyn Drive>>,
    pub(crate) recorder: Box<dyn Recorder>,
    /// The most bytes that are held, of an answer that is read at different speeds.
    pub(crate) max_recording: usize,
    /// How long nothing may come before callers no longer join.
    pub(crate) max_silence: Duration,
    /// How long a task reads the answer for no caller.
    pub(crate) max_unattended: Duration,
    /// Whether a task reads the answer to its end when the last caller has left.
    pub(crate) finishes: bool,
}

/// A call, what has come of it, and its participants.
pub(crate) struct Flight {
    key: FlightKey,
    table: Arc<Flights>,
    /// `None` once the call has ended, or was given up.
    driver: Mutex<Option<Pin<Box<dyn Drive>>>>,
    is_woken: AtomicBool,
    /// The log has an end, so a reader may have read all. Spares the lock on every frame before.
    has_ended: AtomicBool,
    log: Mutex<Log>,
    max_silence: Duration,
    max_unattended: Duration,
    finishes: bool,
    recorder: Box<dyn Recorder>,
}

impl End {
    /// That of a call that brought nothing, or whose answer is not to be stored.
    pub(crate) fn without_answer(outcome: Outcome) -> Self {
        Self {
            completion: Completion::new(outcome),
            is_certain: false,
            is_event_stream: false,
        }
    }

    /// That of a call that is dropped before its response headers.
    pub(crate) fn dropped(drop: impl FnOnce()) -> Self {
        Self {
            completion: Completion::of_drop(drop),
            is_certain: false,
            is_event_stream: false,
        }
    }
}

impl Flight {
    fn new(key: FlightKey, table: Arc<Flights>, start: Start) -> Self {
        Self {
            key,
            table,
            driver: Mutex::new(Some(start.upstream)),
            is_woken: AtomicBool::new(true),
            has_ended: AtomicBool::new(false),
            log: Mutex::new(Log::new(start.max_recording)),
            max_silence: start.max_silence,
            max_unattended: start.max_unattended,
            finishes: start.finishes,
            recorder: start.recorder,
        }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        // Each change of the log is whole before anything in it could panic.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the upstream, which was asked, has had nothing for too long. A slow reader is not a silent upstream: what has woken
    /// the flight, and was not asked for yet, may be anything.
    fn is_silent(&self, now: Instant) -> bool {
        !self.is_woken.load(Ordering::Acquire) && self.log().silent_for(now) >= self.max_silence
    }

    /// Polls the upstream for `reader` if it may have something; returns what the reader then reads in the log, or `None` if that
    /// has not changed.
    fn drive<T>(self: &Arc<Self>, reader: usize, read: impl Fn(&mut Log) -> T) -> Option<T> {
        loop {
            // Of two participants, one finds the lock free or the other finds `is_woken` set: neither is sure without the fence,
            // which orders the release of the lock before the look at the flag, and the flag before the try.
            fence(Ordering::SeqCst);
            if !self.is_woken.load(Ordering::Acquire) {
                return None;
            }
            let mut driver = match self.driver.try_lock() {
                Ok(driver) => driver,
                // Its holder looks at `is_woken` again when it is done.
                Err(TryLockError::WouldBlock) => return None,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            };
            let is_first =
                self.is_woken
                    .compare_exchange(true, false, Ordering::AcqRel, Ordering::Acquire);
            if is_first.is_err() {
                continue;
            }
            let upstream = driver.as_mut()?;
            let waker = waker_ref(self);
            let polled = catch_unwind(AssertUnwindSafe(|| {
                upstream
                    .as_mut()
                    .poll_step(&mut Context::from_waker(&waker))
            }));
            let waiting = |log: &mut Log| log.waiting(Some(reader));
            let (found, waiting) = match polled {
                Ok(Poll::Pending) => {
                    self.log().note_silence();
                    continue;
                }
                // The reader reads while the log is locked for the step.
                Ok(Poll::Ready(step)) => {
                    let read_on = |log: &mut Log| (Ok(read(log)), waiting(log));
                    self.advance(&mut driver, step, read_on)
                }
                Err(panic) => {
                    let mut completion = driver.take().map_or_else(
                        || Completion::new(Outcome::Abandoned),
                        |upstream| upstream.give_up().completion,
                    );
                    if completion.outcome == Outcome::Abandoned {
                        completion.outcome = Outcome::Failed(Failure::Panic);
                    }
                    let failed = Step::Failed(FlightFailed::panicked().into(), completion);
                    (Err(panic), self.apply(failed, waiting))
                }
            };
            drop(driver);
            waiting.into_iter().for_each(Waker::wake);
            return Some(found.unwrap_or_else(|panic| resume_unwind(panic)));
        }
    }

    /// Notes what the upstream has brought, drops it at the end, and gives what `then` makes of the log.
    ///
    /// The driver's lock is held meanwhile: the next step, which another participant may fetch, comes after this one.
    fn advance<T>(
        self: &Arc<Self>,
        driver: &mut Option<Pin<Box<dyn Drive>>>,
        step: Step,
        then: impl FnOnce(&mut Log) -> T,
    ) -> T {
        let end = match (&step, &driver) {
            (Step::Frame(_), Some(upstream)) => upstream.end(),
            _ => None,
        };
        let has_ended = end.is_some() || matches!(step, Step::End(_) | Step::Failed(..));
        if has_ended {
            // Closed before its callers hear of the end.
            *driver = None;
        }
        // There may be more at once.
        self.is_woken.store(!has_ended, Ordering::Release);
        match end {
            Some(end) => {
                self.apply(step, |_| {});
                self.apply(Step::End(end), then)
            }
            None => self.apply(step, then),
        }
    }

    /// Notes a step, and gives what `then` makes of the log with it.
    fn apply<T>(self: &Arc<Self>, step: Step, then: impl FnOnce(&mut Log) -> T) -> T {
        let mut log;
        match step {
            Step::Head(head) => {
                // Callers that come after a failure, or an answer that cannot be read, start afresh.
                if !head.status.is_success() || !is_readable(&head.headers) {
                    self.close();
                }
                log = self.log();
                log.head(*head);
            }
            Step::Frame(frame) => {
                log = self.log();
                if log.frame(frame) {
                    drop(log);
                    self.close();
                    log = self.log();
                }
            }
            Step::End(end) => {
                self.record(&end);
                // Stored first: a caller that finds no flight finds the answer.
                self.close();
                log = self.log();
                log.end(end.completion);
                self.has_ended.store(true, Ordering::Release);
            }
            Step::Failed(error, completion) => {
                self.close();
                log = self.log();
                log.fail(error.into(), completion);
                self.has_ended.store(true, Ordering::Release);
            }
        }
        then(&mut log)
    }

    fn close(self: &Arc<Self>) {
        self.table.remove(self);
        self.recorder.closed();
    }

    /// Drops the upstream: the last participant has left. Returns how that ends the call.
    ///
    /// Many clients stop reading at a stream's terminal marker. What came until then is a whole answer.
    fn give_up(&self) -> Completion {
        self.recorder.closed();
        let mut driver = self.driver.lock().unwrap_or_else(PoisonError::into_inner);
        let upstream = driver.take();
        drop(driver);
        let Some(upstream) = upstream else {
            // Not reached: a call without an upstream has ended.
            return Completion::new(Outcome::Abandoned);
        };
        let mut end = End::without_answer(Outcome::Abandoned);
        // What the drop reports is for this call, and in its end. The guards around are those of one caller.
        Completion::of_drop(|| end = upstream.give_up());
        if end.is_certain {
            self.record(&end);
        }
        end.completion
    }

    fn record(&self, end: &End) {
        let recorded = self.log().recorded();
        if let Some(recorded) = recorded {
            self.recorder.record(&recorded, end);
        }
    }
}

/// Wakes every participant that waits: one of them alone might never poll again.
impl ArcWake for Flight {
    fn wake_by_ref(flight: &Arc<Self>) {
        flight.is_woken.store(true, Ordering::Release);
        // They wait again with their next poll.
        let waiting = flight.log().waiting(None);
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl fmt::Debug for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flight").finish_non_exhaustive()
    }
}
