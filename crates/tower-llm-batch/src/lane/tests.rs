use super::*;

fn lane() -> Lane<&'static str> {
    Lane::new(Limits {
        items: 10,
        tokens: 100,
    })
}

const AT_ONCE: Window = Window {
    length: Duration::ZERO,
    call_time: Duration::from_secs(1),
};

fn join(lane: &mut Lane<&'static str>, id: u64, priority: Priority, items: u64, tokens: u64) {
    let now = Instant::now();
    let call = Waiting {
        request: "",
        items,
        tokens,
        arrived: now,
        deadline: None,
        until: now + Duration::from_secs(30),
    };
    lane.join(Place { priority, id }, call);
}

fn taken(lane: &mut Lane<&'static str>, now: Instant) -> Vec<u64> {
    let calls = lane.take(now).calls;
    calls.iter().map(|(place, _)| place.id).collect()
}

#[test]
fn an_empty_lane_is_never_due() {
    let lane = lane();
    assert!(!lane.is_due(AT_ONCE, Instant::now()));
    assert_eq!(lane.closes_at(AT_ONCE), None);
}

#[test]
fn sums_do_not_overflow() {
    let mut lane = lane();
    let now = Instant::now();
    (0..3).for_each(|id| join(&mut lane, id, Priority::Normal, u64::MAX, u64::MAX));
    assert!(lane.is_due(AT_ONCE, now));
    for id in 0..3 {
        assert_eq!(taken(&mut lane, now), [id]);
    }
    assert_eq!(lane.len(), 0);
}

#[test]
fn a_call_that_does_not_fit_is_not_overtaken() {
    let mut lane = lane();
    let now = Instant::now();
    join(&mut lane, 0, Priority::Normal, 6, 0);
    join(&mut lane, 1, Priority::Normal, 5, 0);
    join(&mut lane, 2, Priority::Batch, 1, 0);
    assert_eq!(taken(&mut lane, now), [0]);
    assert_eq!(taken(&mut lane, now), [1, 2]);
}

#[test]
fn calls_that_have_waited_for_too_long_are_not_taken() {
    let mut lane = lane();
    join(&mut lane, 0, Priority::Normal, 1, 0);
    let next = lane.take(Instant::now() + Duration::from_secs(31));
    assert_eq!(
        (next.calls.len(), next.expired.len(), lane.len()),
        (0, 1, 0)
    );
}
