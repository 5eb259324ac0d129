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

/// Places, and who is inside, counted apart: by loom's atomics, so that others run while somebody is.
struct Watched {
    places: Places,
    inside: AtomicUsize,
}

impl Watched {
    fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            places: Places::new(limit),
            inside: AtomicUsize::new(0),
        })
    }

    fn enter(&self) {
        let inside = self.inside.fetch_add(1, Relaxed) + 1;
        assert!(inside <= self.places.limit(), "{inside} inside");
    }

    fn try_enter(&self) -> bool {
        let is_in = self.places.try_acquire();
        if is_in {
            self.enter();
        }
        is_in
    }

    fn leave(&self) {
        self.inside.fetch_sub(1, Relaxed);
        self.places.release();
    }

    /// Waits for a place, as long as it takes: without a wake-up, loom finds that nobody can go on.
    fn wait(&self) {
        if !self.try_enter() {
            let mut ticket = None;
            block_on(poll_fn(|cx| {
                let Some(ticket) = ticket else {
                    return match self.places.join(usize::MAX, cx.waker()) {
                        Joined::Admitted => Poll::Ready(()),
                        Joined::Waiting(new) => {
                            ticket = Some(new);
                            Poll::Pending
                        }
                        Joined::Full => unreachable!("no queue is that long"),
                    };
                };
                self.places.poll_ticket(ticket, cx.waker())
            }));
            self.enter();
        }
    }

    /// Nobody is inside or waits, and the next one gets in.
    fn assert_idle(&self) {
        assert_eq!(self.places.in_flight(), 0);
        assert_eq!(self.places.waiting(), 0);
        assert!(self.try_enter(), "it stayed closed");
        self.leave();
    }
}

#[derive(Default)]
struct Wakes(StdAtomicUsize);

impl Wake for Wakes {
    fn wake(self: StdArc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[track_caller]
fn join(places: &Places, waker: &Waker) -> u64 {
    match places.join(usize::MAX, waker) {
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
fn never_more_than_the_limit_get_in() {
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
fn two_who_want_in_and_one_who_leaves() {
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
fn three_for_two_places() {
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
        let joined = watched.places.join(1, &Waker::from(StdArc::clone(&wakes)));
        leaving.join().unwrap();
        match joined {
            Joined::Admitted => {}
            Joined::Waiting(ticket) => {
                assert_eq!(wakes.0.load(Relaxed), 1);
                assert!(watched.places.poll_ticket(ticket, Waker::noop()).is_ready());
            }
            Joined::Full => panic!("there was room"),
        }
        watched.enter();
        watched.leave();
        watched.assert_idle();
    });
}

#[test]
fn a_place_for_one_who_leaves_the_queue_goes_to_the_next() {
    check(|| {
        let watched = Watched::new(1);
        assert!(watched.try_enter());
        let first = join(&watched.places, Waker::noop());
        let wakes = StdArc::<Wakes>::default();
        let second = join(&watched.places, &Waker::from(StdArc::clone(&wakes)));
        let leaving = spawn(&watched, Watched::leave);
        // As a dropped ticket does.
        if !watched.places.leave(first) {
            watched.places.release();
        }
        leaving.join().unwrap();
        assert_eq!(wakes.0.load(Relaxed), 1);
        assert!(watched.places.poll_ticket(second, Waker::noop()).is_ready());
        watched.enter();
        watched.leave();
        watched.assert_idle();
    });
}

#[test]
fn the_last_one_leaves_the_queue_while_a_place_comes_and_another_wants_it() {
    check(|| {
        let watched = Watched::new(1);
        assert!(watched.try_enter());
        let ticket = join(&watched.places, Waker::noop());
        let leaving = spawn(&watched, Watched::leave);
        let wanting = spawn(&watched, |watched| {
            watched.wait();
            watched.leave();
        });
        if !watched.places.leave(ticket) {
            watched.places.release();
        }
        leaving.join().unwrap();
        wanting.join().unwrap();
        watched.assert_idle();
    });
}

#[test]
fn two_who_leave_hand_over_two_places() {
    check(|| {
        let watched = Watched::new(2);
        assert!(watched.try_enter() && watched.try_enter());
        let tickets = [(); 2].map(|()| join(&watched.places, Waker::noop()));
        let leaving = spawn(&watched, Watched::leave);
        watched.leave();
        leaving.join().unwrap();
        for ticket in tickets {
            assert!(watched.places.poll_ticket(ticket, Waker::noop()).is_ready());
            watched.enter();
        }
        assert!(!watched.try_enter());
        watched.leave();
        watched.leave();
        watched.assert_idle();
    });
}

#[test]
fn shedding_leaves_the_places_open() {
    check(|| {
        let watched = Watched::new(1);
        assert!(watched.try_enter());
        let shed = |watched: &Watched| match watched.places.join(0, Waker::noop()) {
            Joined::Admitted => {
                watched.enter();
                watched.leave();
            }
            Joined::Waiting(_) => panic!("there is no queue"),
            Joined::Full => {}
        };
        let threads = [spawn(&watched, shed), spawn(&watched, shed)];
        watched.leave();
        for thread in threads {
            thread.join().unwrap();
        }
        watched.assert_idle();
    });
}

/// The one who comes out happens before the one who then goes in: what it did inside is seen.
#[test]
fn what_was_done_inside_is_seen_by_the_next() {
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
