use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    task::Wake,
    thread,
    time::Duration,
};

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::Priority;

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

impl Wakes {
    fn count(&self) -> usize {
        self.0.load(Relaxed)
    }
}

/// Runs a closure when it is woken, and one when it is dropped.
struct Runs {
    when_woken: fn(&Places),
    when_dropped: fn(&Places),
    places: Shared,
}

impl Wake for Runs {
    fn wake(self: Arc<Self>) {
        (self.when_woken)(&self.places);
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        (self.when_dropped)(&self.places);
    }
}

const NOBODY: Turn = Turn {
    priority: Priority::Normal,
    caller: None,
};

fn shared(limit: usize) -> Shared {
    Arc::new(Keyed::keyless(Places::new(limit)))
}

fn join_up_to(places: &Shared, max_waiting: usize, waker: &Waker) -> Joined {
    Places::join(places, &Wanted::default(), max_waiting, waker)
}

/// Places that are all taken.
fn taken(limit: usize) -> Shared {
    let places = shared(limit);
    for _ in 0..limit {
        assert!(places.try_acquire(1));
    }
    assert!(!places.try_acquire(1));
    places
}

#[track_caller]
fn join(places: &Shared, waker: &Waker) -> u64 {
    match join_up_to(places, usize::MAX, waker) {
        Joined::Waiting(ticket) => ticket,
        joined => panic!("{joined:?}"),
    }
}

fn counts(places: &Places) -> (usize, usize, u64) {
    let waiting = places.waiting().iter().sum();
    (places.taken().0, waiting, places.refused())
}

#[test]
fn so_many_places_and_no_more() {
    let places = taken(3);
    assert_eq!(counts(&places), (3, 0, 0));
    places.release(1);
    assert!(places.try_acquire(1));
    assert!(!places.try_acquire(1));
}

#[test]
fn whoever_joins_finds_a_place_that_became_free_just_before() {
    let places = taken(1);
    places.release(1);
    for max_waiting in [0, 1] {
        assert_eq!(
            join_up_to(&places, max_waiting, Waker::noop()),
            Joined::Admitted
        );
        assert_eq!(counts(&places), (1, 0, 0));
        places.release(1);
    }
    assert!(places.try_acquire(1));
}

#[test]
fn a_full_queue_of_none_leaves_no_trace() {
    let places = taken(1);
    assert_eq!(
        join_up_to(&places, 0, Waker::noop()),
        Joined::Full(LimitOf::Key)
    );
    assert_eq!(counts(&places), (1, 0, 1));
    places.release(1);
    assert!(places.try_acquire(1));
}

#[test]
fn a_waker_may_use_the_places_it_is_woken_for() {
    let places = taken(1);
    let waker = Waker::from(Arc::new(Runs {
        when_woken: |places| assert_eq!(counts(places), (1, 0, 0)),
        when_dropped: |places| places.release(1),
        places: Arc::clone(&places),
    }));
    let ticket = join(&places, &waker);
    drop(waker);
    in_time(move || {
        places.release(1);
        assert!(
            places
                .poll_ticket(&NOBODY, ticket, Waker::noop())
                .is_ready()
        );
        assert_eq!(counts(&places), (0, 0, 0));
    });
}

/// A waker may be the last that holds a task, and the task a future that waits here.
#[test]
fn a_waker_may_use_the_places_when_it_is_dropped() {
    let leaves: [(fn(&Places, u64), usize); 2] = [
        (|places, ticket| assert!(places.leave(&NOBODY, ticket)), 0),
        // What its waker releases when it is replaced comes to the one who waits.
        (
            |places, ticket| {
                assert!(
                    places
                        .poll_ticket(&NOBODY, ticket, Waker::noop())
                        .is_pending()
                )
            },
            1,
        ),
    ];
    for (leave, in_flight) in leaves {
        let places = taken(1);
        let waker = Waker::from(Arc::new(Runs {
            when_woken: |_| {},
            when_dropped: |places| places.release(1),
            places: Arc::clone(&places),
        }));
        let ticket = join(&places, &waker);
        drop(waker);
        in_time(move || {
            leave(&places, ticket);
            assert_eq!(counts(&places), (in_flight, 0, 0));
        });
    }
}

#[test]
fn a_waker_that_panics_loses_no_place() {
    let places = taken(1);
    let waker = Waker::from(Arc::new(Runs {
        when_woken: |_| panic!("as it was told"),
        when_dropped: |_| {},
        places: Arc::clone(&places),
    }));
    let first = join(&places, &waker);
    let second = join(&places, Waker::noop());
    assert!(catch_unwind(AssertUnwindSafe(|| places.release(1))).is_err());
    assert!(places.poll_ticket(&NOBODY, first, Waker::noop()).is_ready());
    assert_eq!(counts(&places), (1, 1, 0));
    places.release(1);
    assert!(
        places
            .poll_ticket(&NOBODY, second, Waker::noop())
            .is_ready()
    );
    places.release(1);
    assert_eq!(counts(&places), (0, 0, 0));
}

/// Runs `test`, which may wait for itself for ever.
fn in_time(test: impl FnOnce() + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    let test = thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match is_done.recv_timeout(Duration::from_secs(10)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("it waits for itself"),
        _ => test.join().expect("it passes"),
    }
}

// === against a model ===

#[derive(Clone, Debug)]
enum Step {
    TryAcquire,
    Join {
        max_waiting: usize,
    },
    /// Polls the ticket of that index, among those that are held.
    Poll(usize),
    /// Drops it.
    Leave(usize),
    Release,
    CountRefused,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::TryAcquire),
        4 => prop_oneof![0..4_usize, Just(usize::MAX)].prop_map(|max_waiting| Step::Join { max_waiting }),
        3 => (0..8_usize).prop_map(Step::Poll),
        2 => (0..8_usize).prop_map(Step::Leave),
        4 => Just(Step::Release),
        1 => Just(Step::CountRefused),
    ]
}

/// What places are, without a thought for speed or threads.
struct Model {
    limit: usize,
    /// Places that are held and may be released.
    held: usize,
    /// Who has been given a place and has not taken it up yet.
    given: Vec<u64>,
    waiting: VecDeque<u64>,
    refused: u64,
}

impl Model {
    fn taken(&self) -> usize {
        self.held + self.given.len()
    }

    fn hand_over(&mut self) {
        while self.taken() < self.limit
            && let Some(next) = self.waiting.pop_front()
        {
            self.given.push(next);
        }
    }
}

proptest! {
    #[test]
    fn places_do_as_the_model_does(limit in 1..4_usize, steps in vec(step(), 0..200)) {
        let places = shared(limit);
        let mut model = Model {
            limit,
            held: 0,
            given: vec![],
            waiting: VecDeque::new(),
            refused: 0,
        };
        let mut tickets: Vec<(u64, Arc<Wakes>)> = vec![];
        for step in steps {
            match step {
                Step::TryAcquire => {
                    let free = model.taken() < limit && model.waiting.is_empty();
                    prop_assert_eq!(places.try_acquire(1), free);
                    model.held += usize::from(free);
                }
                Step::Join { max_waiting } => {
                    let wakes = Arc::<Wakes>::default();
                    let joined = join_up_to(&places, max_waiting, &Waker::from(Arc::clone(&wakes)));
                    if model.taken() < limit {
                        prop_assert_eq!(joined, Joined::Admitted);
                        model.held += 1;
                    } else if model.waiting.len() >= max_waiting {
                        prop_assert_eq!(joined, Joined::Full(LimitOf::Key));
                        model.refused += 1;
                    } else {
                        let Joined::Waiting(ticket) = joined else {
                            return Err(TestCaseError::fail(format!("{joined:?}")));
                        };
                        model.waiting.push_back(ticket);
                        tickets.push((ticket, wakes));
                    }
                }
                Step::Poll(i) if i < tickets.len() => {
                    let (ticket, wakes) = &tickets[i];
                    let polled = places.poll_ticket(&NOBODY, *ticket, &Waker::from(Arc::clone(wakes)));
                    let given = model.given.iter().position(|given| given == ticket);
                    prop_assert_eq!(polled.is_ready(), given.is_some());
                    if let Some(given) = given {
                        model.given.remove(given);
                        model.held += 1;
                        tickets.remove(i);
                    }
                }
                Step::Leave(i) if i < tickets.len() => {
                    let (ticket, _) = tickets.remove(i);
                    let waited = model.waiting.contains(&ticket);
                    prop_assert_eq!(places.leave(&NOBODY, ticket), waited);
                    model.waiting.retain(|waiting| *waiting != ticket);
                    if !waited {
                        places.release(1);
                        model.given.retain(|given| *given != ticket);
                        model.hand_over();
                    }
                }
                Step::Release if model.held > 0 => {
                    places.release(1);
                    model.held -= 1;
                    model.hand_over();
                }
                Step::CountRefused => {
                    places.count_refused();
                    model.refused += 1;
                }
                Step::Poll(_) | Step::Leave(_) | Step::Release => {}
            }
            let expected = (model.taken(), model.waiting.len(), model.refused);
            prop_assert_eq!(counts(&places), expected);
            prop_assert!(model.taken() <= limit);
            for (ticket, wakes) in &tickets {
                let woken = usize::from(model.given.contains(ticket));
                prop_assert_eq!(wakes.count(), woken, "ticket {}", ticket);
            }
        }
    }
}
