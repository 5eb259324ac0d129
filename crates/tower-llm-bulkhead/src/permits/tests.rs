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
    when_woken: fn(&Permits),
    when_dropped: fn(&Permits),
    permits: SharedPermits,
}

impl Wake for Runs {
    fn wake(self: Arc<Self>) {
        (self.when_woken)(&self.permits);
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        (self.when_dropped)(&self.permits);
    }
}

const ANONYMOUS: Tenant = Tenant {
    priority: Priority::Normal,
    caller: None,
};

fn shared(limit: usize) -> SharedPermits {
    Arc::new(Keyed::keyless(Permits::new(limit)))
}

fn join_up_to(permits: &SharedPermits, max_waiting: usize, waker: &Waker) -> Joined {
    let wanted = Wanted {
        max_waiting,
        ..Wanted::default()
    };
    Permits::join(permits, &wanted, waker)
}

/// Permits that are all taken.
fn in_use(limit: usize) -> SharedPermits {
    let permits = shared(limit);
    for _ in 0..limit {
        assert!(permits.try_acquire(1));
    }
    assert!(!permits.try_acquire(1));
    permits
}

#[track_caller]
fn join(permits: &SharedPermits, waker: &Waker) -> u64 {
    match join_up_to(permits, usize::MAX, waker) {
        Joined::Waiting(ticket) => ticket,
        joined => panic!("{joined:?}"),
    }
}

fn counts(permits: &Permits) -> (usize, usize, u64) {
    let waiting = permits.waiting().iter().sum();
    (permits.in_use().0, waiting, permits.refused())
}

#[test]
fn exactly_the_limit_is_admitted() {
    let permits = in_use(3);
    assert_eq!(counts(&permits), (3, 0, 0));
    permits.release(1, Overtook::default());
    assert!(permits.try_acquire(1));
    assert!(!permits.try_acquire(1));
}

/// The lane of the head was out of the order because of its key, so the light call behind it was not considered.
#[test]
fn a_light_call_behind_one_that_its_key_blocks_goes_when_the_global_limit_is_raised() {
    let all = Arc::new(GlobalPermits::new(2));
    let permits = Arc::new(Keyed::keyless(Permits::within(3, Arc::clone(&all))));
    assert!(permits.try_acquire(2));
    let heavy = Wanted {
        weight: 2,
        ..Wanted::default()
    };
    let joined = Permits::join(&permits, &heavy, Waker::noop());
    assert!(matches!(joined, Joined::Waiting(_)));
    let light = join(&permits, Waker::noop());
    all.set_limit(3);
    let polled = permits.poll_ticket(&ANONYMOUS, light, Waker::noop());
    assert!(matches!(polled, Poll::Ready(Ok(overtook)) if overtook.is_some()));
    assert_eq!(all.in_use(), (2, 3));
}

#[test]
fn a_call_that_joins_finds_a_permit_that_became_free_just_before() {
    let permits = in_use(1);
    permits.release(1, Overtook::default());
    for max_waiting in [0, 1] {
        assert_eq!(
            join_up_to(&permits, max_waiting, Waker::noop()),
            Joined::Admitted(Overtook::default())
        );
        assert_eq!(counts(&permits), (1, 0, 0));
        permits.release(1, Overtook::default());
    }
    assert!(permits.try_acquire(1));
}

#[test]
fn a_queue_of_length_zero_leaves_no_trace() {
    let permits = in_use(1);
    assert_eq!(
        join_up_to(&permits, 0, Waker::noop()),
        Joined::Full(LimitOf::Key)
    );
    assert_eq!(counts(&permits), (1, 0, 1));
    permits.release(1, Overtook::default());
    assert!(permits.try_acquire(1));
}

#[test]
fn a_waker_may_use_the_permits_it_is_woken_for() {
    let permits = in_use(1);
    let waker = Waker::from(Arc::new(Runs {
        when_woken: |permits| assert_eq!(counts(permits), (1, 0, 0)),
        when_dropped: |permits| permits.release(1, Overtook::default()),
        permits: Arc::clone(&permits),
    }));
    let ticket = join(&permits, &waker);
    drop(waker);
    in_time(move || {
        permits.release(1, Overtook::default());
        assert!(
            permits
                .poll_ticket(&ANONYMOUS, ticket, Waker::noop())
                .is_ready()
        );
        assert_eq!(counts(&permits), (0, 0, 0));
    });
}

/// A waker may hold the last reference to a task, and the task a future that waits here.
#[test]
fn a_waker_may_use_the_permits_when_it_is_dropped() {
    let leaves: [(fn(&Permits, u64), usize); 2] = [
        (
            |permits, ticket| permits.leave(&Wanted::default(), ticket),
            0,
        ),
        // Permits that a replaced waker releases go to the waiting call.
        (
            |permits, ticket| {
                assert!(
                    permits
                        .poll_ticket(&ANONYMOUS, ticket, Waker::noop())
                        .is_pending()
                )
            },
            1,
        ),
    ];
    for (leave, in_flight) in leaves {
        let permits = in_use(1);
        let waker = Waker::from(Arc::new(Runs {
            when_woken: |_| {},
            when_dropped: |permits| permits.release(1, Overtook::default()),
            permits: Arc::clone(&permits),
        }));
        let ticket = join(&permits, &waker);
        drop(waker);
        in_time(move || {
            leave(&permits, ticket);
            assert_eq!(counts(&permits), (in_flight, 0, 0));
        });
    }
}

#[test]
fn a_waker_that_panics_loses_no_permit() {
    let permits = in_use(1);
    let waker = Waker::from(Arc::new(Runs {
        when_woken: |_| panic!("as it was told"),
        when_dropped: |_| {},
        permits: Arc::clone(&permits),
    }));
    let first = join(&permits, &waker);
    let second = join(&permits, Waker::noop());
    assert!(catch_unwind(AssertUnwindSafe(|| permits.release(1, Overtook::default()))).is_err());
    assert!(
        permits
            .poll_ticket(&ANONYMOUS, first, Waker::noop())
            .is_ready()
    );
    assert_eq!(counts(&permits), (1, 1, 0));
    permits.release(1, Overtook::default());
    assert!(
        permits
            .poll_ticket(&ANONYMOUS, second, Waker::noop())
            .is_ready()
    );
    permits.release(1, Overtook::default());
    assert_eq!(counts(&permits), (0, 0, 0));
}

/// Runs `test`, which may deadlock.
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

/// A model of permits, without regard to speed or threads.
struct Model {
    limit: usize,
    /// Permits that are held and may be released.
    held: usize,
    /// Calls that were granted a permit and have not taken it yet.
    given: Vec<u64>,
    waiting: VecDeque<u64>,
    refused: u64,
}

impl Model {
    fn in_use(&self) -> usize {
        self.held + self.given.len()
    }

    fn hand_over(&mut self) {
        while self.in_use() < self.limit
            && let Some(next) = self.waiting.pop_front()
        {
            self.given.push(next);
        }
    }
}

proptest! {
    #[test]
    fn permits_do_as_the_model_does(limit in 1..4_usize, steps in vec(step(), 0..200)) {
        let permits = shared(limit);
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
                    let free = model.in_use() < limit && model.waiting.is_empty();
                    prop_assert_eq!(permits.try_acquire(1), free);
                    model.held += usize::from(free);
                }
                Step::Join { max_waiting } => {
                    let wakes = Arc::<Wakes>::default();
                    let joined = join_up_to(&permits, max_waiting, &Waker::from(Arc::clone(&wakes)));
                    if model.in_use() < limit {
                        prop_assert!(matches!(joined, Joined::Admitted(_)));
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
                    let polled = permits.poll_ticket(&ANONYMOUS, *ticket, &Waker::from(Arc::clone(wakes)));
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
                    permits.leave(&Wanted::default(), ticket);
                    model.waiting.retain(|waiting| *waiting != ticket);
                    if !waited {
                        model.given.retain(|given| *given != ticket);
                        model.hand_over();
                    }
                }
                Step::Release if model.held > 0 => {
                    permits.release(1, Overtook::default());
                    model.held -= 1;
                    model.hand_over();
                }
                Step::CountRefused => {
                    permits.count_refused();
                    model.refused += 1;
                }
                Step::Poll(_) | Step::Leave(_) | Step::Release => {}
            }
            let expected = (model.in_use(), model.waiting.len(), model.refused);
            prop_assert_eq!(counts(&permits), expected);
            prop_assert!(model.in_use() <= limit);
            for (ticket, wakes) in &tickets {
                let woken = usize::from(model.given.contains(ticket));
                prop_assert_eq!(wakes.count(), woken, "ticket {}", ticket);
            }
        }
    }
}
