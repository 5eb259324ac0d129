use proptest::{prelude::*, sample::Index};

use super::*;

fn caller(name: &str) -> Option<Caller> {
    Some(Caller::named(name))
}

fn join(queue: &mut Queue, name: &str, now: u64) -> Position {
    queue.join(caller(name), Amounts::NONE, now)
}

fn poll(queue: &mut Queue, position: Position, now: u64) -> Polled {
    queue.poll(position, Waker::noop(), now)
}

/// Serves all calls, all of which are polled in time; returns them in order.
fn serve(queue: &mut Queue, now: u64) -> Vec<Position> {
    let mut served = Vec::new();
    while let Some(head) = queue.head(now) {
        queue.leave(head, Leaves::Served, now);
        served.push(head);
    }
    served
}

#[test]
fn callers_take_turns_and_the_calls_of_each_keep_their_order() {
    let mut queue = Queue::default();
    let flood: Vec<_> = (0..5).map(|_| join(&mut queue, "many", 0)).collect();
    let few: Vec<_> = (0..2).map(|_| join(&mut queue, "few", 0)).collect();
    let one = join(&mut queue, "one", 0);
    let order = [
        flood[0], few[0], one, flood[1], few[1], flood[2], flood[3], flood[4],
    ];
    assert_eq!(serve(&mut queue, 0), order);
    assert!(queue.is_empty() && queue.ids.is_empty() && queue.turns.is_empty());
}

#[test]
fn a_caller_that_returns_at_once_does_not_go_before_others() {
    let mut queue = Queue::default();
    let patient = [0; 3].map(|_| join(&mut queue, "patient", 0));
    let mut order = Vec::new();
    let mut hasty = join(&mut queue, "hasty", 0);
    for _ in 0..6 {
        let head = queue.head(0).unwrap();
        queue.leave(head, Leaves::Served, 0);
        order.push(head);
        if head == hasty {
            hasty = join(&mut queue, "hasty", 0);
        }
    }
    let of_patient: Vec<_> = order.into_iter().step_by(2).collect();
    assert_eq!(of_patient, patient);
}

#[test]
fn calls_that_leave_unserved_do_not_move_their_caller_back() {
    let mut queue = Queue::default();
    join(&mut queue, "other", 0);
    let gone: Vec<_> = (0..50).map(|_| join(&mut queue, "ann", 0)).collect();
    for position in gone {
        queue.leave(position, Leaves::Unserved, 0);
    }
    let ann = join(&mut queue, "ann", 0);
    let others: Vec<_> = (0..3).map(|_| join(&mut queue, "other", 0)).collect();
    assert_eq!(serve(&mut queue, 0)[1..3], [ann, others[0]]);
}

#[test]
fn a_stalled_call_is_skipped_until_it_is_polled_again() {
    let mut queue = Queue::default();
    let [first, second, third] = [0; 3].map(|_| join(&mut queue, "ann", 0));
    assert_eq!(poll(&mut queue, first, 0), Polled::Try);
    assert!(queue.sleep(first, 50));
    let until_nanos = 50 + PATIENCE_NANOS;
    let looks = Polled::Look { until_nanos };
    for position in [second, third] {
        assert_eq!(poll(&mut queue, position, 0), looks);
        assert!(queue.sleep(position, until_nanos));
    }
    assert_eq!(poll(&mut queue, second, until_nanos - 1), Polled::Sleep);
    // The first should have been polled at 50: the next polled call replaces it as head.
    assert_eq!(poll(&mut queue, second, until_nanos), Polled::Try);
    assert!(queue.is_full(2, until_nanos) && !queue.is_full(3, until_nanos));
    // It was only late.
    assert_eq!(poll(&mut queue, first, until_nanos), Polled::Try);
    assert!(queue.is_full(3, until_nanos));
    let due = until_nanos + PATIENCE_NANOS;
    assert_eq!(
        poll(&mut queue, third, until_nanos),
        Polled::Look { until_nanos: due }
    );
}

#[test]
fn a_call_that_is_woken_while_it_tries_does_not_sleep() {
    let mut queue = Queue::default();
    let first = join(&mut queue, "ann", 0);
    assert_eq!(poll(&mut queue, first, 0), Polled::Try);
    assert!(queue.wake_head(1).is_some());
    assert!(!queue.sleep(first, 50));
    assert_eq!(poll(&mut queue, first, 2), Polled::Try);
    assert!(queue.sleep(first, 50));
    assert_eq!(poll(&mut queue, first, 49), Polled::Sleep);
}

#[test]
fn only_the_head_that_leaves_wakes_another() {
    let mut queue = Queue::default();
    let [first, second, third] = [0; 3].map(|_| join(&mut queue, "ann", 0));
    for position in [first, second, third] {
        poll(&mut queue, position, 0);
        queue.sleep(position, 100);
    }
    assert!(queue.leave(second, Leaves::Unserved, 1).is_none());
    assert!(queue.leave(first, Leaves::Served, 1).is_some());
    assert_eq!(poll(&mut queue, third, 1), Polled::Try);
}

#[test]
fn ahead_is_what_goes_first() {
    let mut queue = Queue::default();
    let mut estimate = Amounts::NONE;
    estimate = estimate.plus(&crate::pricing::tests::request());
    for _ in 0..10 {
        queue.join(caller("many"), estimate, 0);
    }
    let ahead = |queue: &Queue, name| queue.ahead(caller(name).as_ref()).of(crate::Unit::Requests);
    assert_eq!(ahead(&queue, "many"), 10);
    assert_eq!(ahead(&queue, "new"), 1);
    queue.join(caller("new"), estimate, 0);
    assert_eq!(ahead(&queue, "new"), 3);
}

proptest! {
    /// Between two calls of one caller, each other waiting caller is served once.
    #[test]
    fn no_caller_is_served_twice_before_another_that_waits(
        steps in prop::collection::vec((any::<bool>(), 0..4_usize, any::<Index>()), 1..200)
    ) {
        let names = ["a", "b", "c", "d"];
        let mut queue = Queue::default();
        let mut waiting: [Vec<Position>; 4] = Default::default();
        // How often others were served since a waiting caller was.
        let mut passed = [[0_u32; 4]; 4];
        for (joins, of, index) in steps {
            if joins {
                let position = join(&mut queue, names[of], 0);
                if waiting[of].is_empty() {
                    passed[of] = [0; 4];
                }
                waiting[of].push(position);
            } else if index.index(4) == 0 && !waiting[of].is_empty() {
                let at = index.index(waiting[of].len());
                queue.leave(waiting[of].remove(at), Leaves::Unserved, 0);
            } else if let Some(head) = queue.head(0) {
                let of = waiting.iter().position(|calls| calls.contains(&head)).unwrap();
                prop_assert_eq!(waiting[of].remove(0), head, "a caller's calls keep their order");
                queue.leave(head, Leaves::Served, 0);
                passed[of] = [0; 4];
                for other in 0..4 {
                    if other != of && !waiting[other].is_empty() {
                        passed[other][of] += 1;
                        prop_assert!(passed[other][of] <= 1, "{passed:?}");
                    }
                }
            }
            let left: usize = waiting.iter().map(Vec::len).sum();
            prop_assert_eq!(queue.len(), left);
        }
    }
}
