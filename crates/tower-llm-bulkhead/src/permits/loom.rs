//! Every interleaving of a few threads, up to a bound of preemptions.
//!
//! Loom's own cfg would change tokio too, hence another:
//! `RUSTFLAGS="--cfg bulkhead_loom" cargo test -p tower-llm-bulkhead --lib --target-dir target/loom`

use std::{
    future::poll_fn,
    sync::{Arc as StdArc, atomic::AtomicUsize as StdAtomicUsize, atomic::Ordering::Relaxed},
    task::Wake,
};

use ::loom::{
    future::block_on,
    model::Builder,
    sync::{Arc, atomic::AtomicUsize},
    thread,
};

use super::*;
use crate::Priority;

/// Permits, with a separate count of admitted calls in loom's atomics, so that other threads run while a call holds a
/// permit.
struct Watched {
    permits: SharedPermits,
    most: usize,
    inside: AtomicUsize,
}

impl Watched {
    fn new(limit: usize) -> Arc<Self> {
        Self::up_to(limit, limit)
    }

    /// `limit` permits now, and `most` at any time: an admitted call may not see a newer limit that admitted another.
    fn up_to(limit: usize, most: usize) -> Arc<Self> {
        Arc::new(Self {
            permits: shared(Permits::new(limit)),
            most,
            inside: AtomicUsize::new(0),
        })
    }

    fn enter(&self) {
        let inside = self.inside.fetch_add(1, Relaxed) + 1;
        assert!(inside <= self.most, "{inside} inside");
    }

    fn try_enter(&self) -> bool {
        let is_in = self.permits.try_acquire(1);
        if is_in {
            self.enter();
        }
        is_in
    }

    fn leave(&self) {
        self.inside.fetch_sub(1, Relaxed);
        self.permits.release(1, Overtook::default());
    }

    /// Waits for a permit, as long as it takes: without a wake-up, loom finds that no thread can go on.
    fn wait(&self) {
        if !self.try_enter() {
            let mut ticket = None;
            block_on(poll_fn(|cx| {
                let Some(ticket) = ticket else {
                    return match join_up_to(&self.permits, usize::MAX, cx.waker()) {
                        Joined::Admitted(_) => Poll::Ready(()),
                        Joined::Waiting(new) => {
                            ticket = Some(new);
                            Poll::Pending
                        }
                        Joined::Full(_) => unreachable!("no queue is that long"),
                    };
                };
                let polled = self.permits.poll_ticket(&ANONYMOUS, ticket, cx.waker());
                polled.map(|granted| {
                    granted.expect("no call is evicted");
                })
            }));
            self.enter();
        }
    }

    /// No call holds a permit or waits, and the next one is admitted.
    fn assert_idle(&self) {
        assert_eq!(self.permits.in_use().0, 0);
        assert_eq!(self.permits.waiting(), [0; 3]);
        assert!(self.try_enter(), "it stayed closed");
        self.leave();
    }
}

const ANONYMOUS: Tenant = Tenant {
    priority: Priority::Normal,
    caller: None,
};

fn shared(permits: Permits) -> SharedPermits {
    StdArc::new(Keyed::keyless(permits))
}

fn join_up_to(permits: &SharedPermits, max_waiting: usize, waker: &Waker) -> Joined {
    let wanted = Wanted {
        max_waiting,
        ..Wanted::default()
    };
    Permits::join(permits, &wanted, waker)
}

#[derive(Default)]
struct Wakes(StdAtomicUsize);

impl Wake for Wakes {
    fn wake(self: StdArc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    check_to(3, model);
}

/// With fewer preemptions where three threads do much: more would take hours.
fn check_to(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

#[track_caller]
fn join(permits: &SharedPermits, waker: &Waker) -> u64 {
    match join_up_to(permits, usize::MAX, waker) {
        Joined::Waiting(ticket) => ticket,
        joined => panic!("{joined:?}"),
    }
}

fn spawn(
    watched: &Arc<Watched>,
    run: impl FnOnce(&Watched) + Send + 'static,
) -> thread::JoinHandle<()> {
    let watched = Arc::clone(watched);
    thread::spawn(move || run(&watched))
}

#[test]
fn never_more_than_the_limit_are_admitted() {
    check(|| {
        let watched = Watched::new(1);
        let try_once = |watched: &Watched| {
            if watched.try_enter() {
                watched.leave();
            }
        };
        let threads = [spawn(&watched, try_once), spawn(&watched, try_once)];
        try_once(&watched);
        for thread in threads {
            thread.join().unwrap();
        }
        watched.assert_idle();
    });
}

#[test]
fn two_calls_arrive_while_one_ends() {
    check(|| {
        let watched = Watched::new(1);
        assert!(watched.try_enter());
        let in_and_out = |watched: &Watched| {
            watched.wait();
            watched.leave();
        };
        let threads = [spawn(&watched, in_and_out), spawn(&watched, in_and_out)];
        watched.leave();
        for thread in threads {
            thread.join().unwrap();
        }
        watched.assert_idle();
    });
}

#[test]
fn three_calls_for_two_permits() {
    check(|| {
        let watched = Watched::new(2);
        let in_and_out = |watched: &Watched| {
            watched.wait();
            watched.leave();
        };
        let threads = [spawn(&watched, in_and_out), spawn(&watched, in_and_out)];
        in_and_out(&watched);
        for thread in threads {
            thread.join().unwrap();
        }
        watched.assert_idle();
    });
}

#[test]
fn no_wake_up_is_lost_between_joining_and_releasing() {
    check(|| {
        let watched = Watched::new(1);
        assert!(watched.try_enter());
        let leaving = spawn(&watched, Watched::leave);
        let wakes = StdArc::<Wakes>::default();
        let joined = join_up_to(&watched.permits, 1, &Waker::from(StdArc::clone(&wakes)));
        leaving.join().unwrap();
        match joined {
            Joined::Admitted(_) => {}
            Joined::Waiting(ticket) => {
                assert_eq!(wakes.0.load(Relaxed), 1);
                assert!(
                    watched
                        .permits
                        .poll_ticket(&ANONYMOUS, ticket, Waker::noop())
                        .is_ready()
                );
            }
            Joined::Full(_) => panic!("there was room"),
        }
        watched.enter();
        watched.leave();
        watched.assert_idle();
    });
}

#[test]
fn a_permit_for_a_call_that_leaves_the_queue_goes_to_the_next() {
    check(|| {
        let watched = Watched::new(1);
        assert!(watched.try_enter());
        let first = join(&watched.permits, Waker::noop());
        let wakes = StdArc::<Wakes>::default();
        let second = join(&watched.permits, &Waker::from(StdArc::clone(&wakes)));
        let leaving = spawn(&watched, Watched::leave);
        // As a dropped ticket does.
        watched.permits.leave(&Wanted::default(), first);
        leaving.join().unwrap();
        assert_eq!(wakes.0.load(Relaxed), 1);
        assert!(
            watched
                .permits
                .poll_ticket(&ANONYMOUS, second, Waker::noop())
                .is_ready()
        );
        watched.enter();
        watched.leave();
        watched.assert_idle();
    });
}

#[test]
fn the_last_call_leaves_the_queue_while_a_permit_is_freed_and_another_wants_it() {
    check(|| {
        let watched = Watched::new(1);
        assert!(watched.try_enter());
        let ticket = join(&watched.permits, Waker::noop());
        let leaving = spawn(&watched, Watched::leave);
        let wanting = spawn(&watched, |watched| {
            watched.wait();
            watched.leave();
        });
        watched.permits.leave(&Wanted::default(), ticket);
        leaving.join().unwrap();
        wanting.join().unwrap();
        watched.assert_idle();
    });
}

#[test]
fn two_calls_that_end_hand_over_two_permits() {
    check(|| {
        let watched = Watched::new(2);
        assert!(watched.try_enter() && watched.try_enter());
        let tickets = [(); 2].map(|()| join(&watched.permits, Waker::noop()));
        let leaving = spawn(&watched, Watched::leave);
        watched.leave();
        leaving.join().unwrap();
        for ticket in tickets {
            assert!(
                watched
                    .permits
                    .poll_ticket(&ANONYMOUS, ticket, Waker::noop())
                    .is_ready()
            );
            watched.enter();
        }
        assert!(!watched.try_enter());
        watched.leave();
        watched.leave();
        watched.assert_idle();
    });
}

#[test]
fn refusing_leaves_the_permits_open() {
    check(|| {
        let watched = Watched::new(1);
        assert!(watched.try_enter());
        let shed = |watched: &Watched| match join_up_to(&watched.permits, 0, Waker::noop()) {
            Joined::Admitted(_) => {
                watched.enter();
                watched.leave();
            }
            Joined::Waiting(_) => panic!("there is no queue"),
            Joined::Full(_) => {}
        };
        let threads = [spawn(&watched, shed), spawn(&watched, shed)];
        watched.leave();
        for thread in threads {
            thread.join().unwrap();
        }
        watched.assert_idle();
    });
}

/// A release happens before the next admission: the next call sees what the last one did.
#[test]
fn the_next_call_sees_what_the_last_one_did() {
    check(|| {
        let watched = Watched::new(1);
        let done = Arc::new(::loom::cell::Cell::new(0));
        assert!(watched.try_enter());
        let next = thread::spawn({
            let (watched, done) = (Arc::clone(&watched), Arc::clone(&done));
            move || {
                watched.wait();
                assert_eq!(done.get(), 1);
                watched.leave();
            }
        });
        done.set(1);
        watched.leave();
        next.join().unwrap();
        watched.assert_idle();
    });
}

// === limits that change ===

#[test]
fn a_raised_limit_admits_waiting_calls() {
    check(|| {
        let watched = Watched::up_to(1, 2);
        assert!(watched.try_enter());
        // No call ends: without the new permit, this one would never be woken.
        let waiting = spawn(&watched, Watched::wait);
        watched.permits.set_limit(2);
        waiting.join().unwrap();
        assert_eq!(watched.permits.in_use(), (2, 2));
        watched.leave();
        watched.leave();
        watched.assert_idle();
    });
}

#[test]
fn a_limit_is_raised_while_one_call_ends_and_two_arrive() {
    check_to(2, || {
        let watched = Watched::up_to(1, 2);
        assert!(watched.try_enter());
        let in_and_out = |watched: &Watched| {
            watched.wait();
            watched.leave();
        };
        let threads = [
            spawn(&watched, in_and_out),
            spawn(&watched, |watched| watched.permits.set_limit(2)),
        ];
        watched.leave();
        in_and_out(&watched);
        for thread in threads {
            thread.join().unwrap();
        }
        watched.assert_idle();
    });
}

#[test]
fn a_lowered_limit_holds_for_every_later_call() {
    check(|| {
        let permits = shared(Permits::new(2));
        assert!(permits.try_acquire(1));
        let lowering = thread::spawn({
            let permits = StdArc::clone(&permits);
            move || {
                permits.set_limit(1);
                // The earlier call still holds its permit, so nothing admits this one.
                assert!(!permits.try_acquire(1), "by the old limit");
            }
        });
        let by_either = permits.try_acquire(1);
        lowering.join().unwrap();
        assert!(!permits.try_acquire(1));
        permits.release(1, Overtook::default());
        assert_eq!(permits.try_acquire(1), !by_either);
        permits.release(1, Overtook::default());
        assert_eq!(permits.in_use(), (0, 0));
        assert!(permits.try_acquire(1));
        assert!(!permits.try_acquire(1));
    });
}

// === a limit of all keys ===

/// Two keys, with a separate count of the admitted calls of each.
struct Pair {
    keys: [SharedPermits; 2],
    all: StdArc<GlobalPermits>,
    inside: [AtomicUsize; 2],
}

impl Pair {
    fn new(limits: [usize; 2], all: usize) -> Arc<Self> {
        let all = StdArc::new(GlobalPermits::new(all));
        Arc::new(Self {
            keys: limits.map(|limit| shared(Permits::within(limit, StdArc::clone(&all)))),
            all,
            inside: Default::default(),
        })
    }

    fn enter(&self, key: usize) {
        let inside = self.inside[key].fetch_add(1, Relaxed) + 1;
        assert!(inside <= self.keys[key].limit(), "{inside} inside {key}");
        let inside = self.inside[0].load(Relaxed) + self.inside[1].load(Relaxed);
        assert!(inside <= self.all.limit(), "{inside} inside");
    }

    fn leave(&self, key: usize) {
        self.inside[key].fetch_sub(1, Relaxed);
        self.keys[key].release(1, Overtook::default());
    }

    fn wait(&self, key: usize) {
        let permits = &self.keys[key];
        if !permits.try_acquire(1) {
            let mut ticket = None;
            block_on(poll_fn(|cx| {
                let Some(ticket) = ticket else {
                    return match join_up_to(permits, usize::MAX, cx.waker()) {
                        Joined::Admitted(_) => Poll::Ready(()),
                        Joined::Waiting(new) => {
                            ticket = Some(new);
                            Poll::Pending
                        }
                        Joined::Full(_) => unreachable!("no queue is that long"),
                    };
                };
                let polled = permits.poll_ticket(&ANONYMOUS, ticket, cx.waker());
                polled.map(|granted| {
                    granted.expect("no call is evicted");
                })
            }));
        }
        self.enter(key);
    }

    fn in_and_out(pair: &Arc<Self>, key: usize) -> thread::JoinHandle<()> {
        let pair = Arc::clone(pair);
        thread::spawn(move || {
            pair.wait(key);
            pair.leave(key);
        })
    }

    fn assert_idle(&self) {
        assert_eq!((self.all.in_use(), self.all.waiting()), ((0, 0), 0));
        for permits in &self.keys {
            assert_eq!(permits.in_use(), (0, 0));
            assert!(permits.try_acquire(1), "it stayed closed");
            permits.release(1, Overtook::default());
        }
    }
}

#[test]
fn three_calls_of_two_keys_for_one_global_permit() {
    check_to(2, || {
        let pair = Pair::new([1, 1], 1);
        let threads = [Pair::in_and_out(&pair, 0), Pair::in_and_out(&pair, 1)];
        pair.wait(0);
        pair.leave(0);
        for thread in threads {
            thread.join().unwrap();
        }
        pair.assert_idle();
    });
}

#[test]
fn a_call_whose_key_is_full_blocks_no_other_key() {
    check(|| {
        let pair = Pair::new([1, 1], 2);
        pair.wait(0);
        let waiting = Pair::in_and_out(&pair, 0);
        let other = Pair::in_and_out(&pair, 1);
        // No call ends before the other is admitted.
        other.join().unwrap();
        pair.leave(0);
        waiting.join().unwrap();
        pair.assert_idle();
    });
}

#[test]
fn permits_taken_of_a_key_and_given_back_wake_a_call_that_waits_for_the_key() {
    check(|| {
        let pair = Pair::new([1, 1], 1);
        pair.wait(1);
        let once = thread::spawn({
            let pair = Arc::clone(&pair);
            move || {
                if pair.keys[0].try_acquire(1) {
                    pair.enter(0);
                    pair.leave(0);
                }
            }
        });
        let waiting = Pair::in_and_out(&pair, 0);
        pair.leave(1);
        once.join().unwrap();
        waiting.join().unwrap();
        pair.assert_idle();
    });
}

#[test]
fn a_raised_global_limit_admits_waiting_calls() {
    check(|| {
        let pair = Pair::new([1, 1], 1);
        pair.wait(0);
        let waiting = Pair::in_and_out(&pair, 1);
        pair.all.set_limit(2);
        waiting.join().unwrap();
        pair.leave(0);
        pair.assert_idle();
    });
}

#[test]
fn refusing_by_the_global_limit_leaves_no_trace() {
    check(|| {
        let pair = Pair::new([1, 1], 1);
        pair.wait(0);
        let shed = thread::spawn({
            let pair = Arc::clone(&pair);
            move || match join_up_to(&pair.keys[1], 0, Waker::noop()) {
                Joined::Admitted(_) => {
                    pair.enter(1);
                    pair.leave(1);
                }
                Joined::Waiting(_) => panic!("there is no queue"),
                Joined::Full(_) => {}
            }
        });
        let waiting = Pair::in_and_out(&pair, 1);
        pair.leave(0);
        shed.join().unwrap();
        waiting.join().unwrap();
        pair.assert_idle();
    });
}

/// A light call overtakes a heavy one, and ends while another call does: the heavy call is served by the last of both.
#[test]
fn a_heavy_call_is_served_when_the_one_that_overtook_it_has_ended() {
    ::loom::model(|| {
        let permits = shared(Permits::new(2));
        assert!(permits.try_acquire(1));
        let wakes = StdArc::<Wakes>::default();
        let heavy = Wanted {
            weight: 2,
            ..Wanted::default()
        };
        let waker = Waker::from(StdArc::clone(&wakes));
        let Joined::Waiting(ticket) = Permits::join(&permits, &heavy, &waker) else {
            panic!("there is no room for it");
        };
        let Joined::Admitted(overtook) = join_up_to(&permits, 1, Waker::noop()) else {
            panic!("there is room for it");
        };
        assert!(overtook.is_some());
        let leaving = {
            let permits = StdArc::clone(&permits);
            thread::spawn(move || permits.release(1, Overtook::default()))
        };
        permits.release(1, overtook);
        leaving.join().unwrap();
        assert_eq!(wakes.0.load(Relaxed), 1);
        let polled = permits.poll_ticket(&ANONYMOUS, ticket, Waker::noop());
        assert_eq!(polled, Poll::Ready(Ok(Overtook::default())));
        permits.release(2, Overtook::default());
        assert_eq!(permits.in_use(), (0, 0));
        assert!(permits.try_acquire(2), "it stayed closed");
        permits.release(2, Overtook::default());
    });
}
