//! Every interleaving of a few threads, up to a bound of preemptions.
//!
//! Loom's own cfg would change tokio too, hence another:
//! `RUSTFLAGS="--cfg breaker_loom" cargo test -p tower-llm-breaker --lib --target-dir target/loom loom`

use std::{sync::Arc as StdArc, time::Duration};

use ::loom::{model::Builder, sync::Arc, thread};

use super::*;
use crate::{BreakerBuilder, BreakerLayer, clock::Clock, events::Events, verdict::Verdict};

const OPEN_FOR: Duration = Duration::from_secs(30);
const LEASE: Duration = Duration::from_secs(60);
const FAILURE: Verdict = Verdict::Failure { retry_after: None };

/// A circuit, and the start of its clock.
struct Tried {
    circuit: Circuit,
    epoch: Instant,
}

/// Opened by one failure, for 30 s.
fn touchy() -> BreakerBuilder {
    patient().failure_threshold(1)
}

fn patient() -> BreakerBuilder {
    BreakerLayer::builder()
        .failure_ratio(1.0)
        .window_calls(10)
        .open_for(OPEN_FOR)
        .success_threshold(1)
        .advanced(|advanced| advanced.probe_lease(LEASE).jitter(0.0))
}

fn group(builder: &BreakerBuilder, epoch: Instant) -> StdArc<Group> {
    let mut config = builder.config.clone();
    config.check().expect("good settings");
    config.clock = Clock::new(epoch);
    let events = StdArc::new(Events::new());
    StdArc::new(Group::new(Scope::Key, StdArc::new(config), events))
}

impl Tried {
    fn new(builder: &BreakerBuilder) -> Arc<Self> {
        let epoch = Instant::now();
        Self::of(group(builder, epoch), epoch)
    }

    fn of(group: StdArc<Group>, epoch: Instant) -> Arc<Self> {
        let circuit = Circuit::new(group, Some(Key::new("k")));
        Arc::new(Self { circuit, epoch })
    }

    /// A circuit that has opened once.
    fn open(builder: &BreakerBuilder) -> Arc<Self> {
        let tried = Self::new(builder);
        tried.record(tried.admit(0).expect("it is closed"), FAILURE, 0);
        assert_eq!(tried.state(0), State::Open);
        tried
    }

    fn at(&self, second: u64) -> Instant {
        self.epoch + Duration::from_secs(second)
    }

    fn admit(&self, second: u64) -> Option<Pass> {
        let admitted = self.circuit.admit(self.at(second));
        if admitted.is_err() {
            self.circuit.count_refused();
        }
        admitted.ok()
    }

    fn record(&self, pass: Pass, verdict: Verdict, second: u64) {
        let mut now = Now::at(Some(self.at(second)));
        self.circuit.record(pass, verdict, &mut now);
    }

    fn state(&self, second: u64) -> State {
        self.circuit.status(self.at(second)).state
    }

    /// Calls and failures that count.
    fn counts(&self, second: u64) -> (u64, u64) {
        let stats = self.circuit.stats(self.at(second));
        (stats.calls, stats.failures)
    }

    fn generation(&self) -> u32 {
        self.circuit.word.load().generation
    }

    fn refused(&self) -> u64 {
        self.circuit.stats(self.epoch).refused
    }

    fn stale(&self) -> u64 {
        self.circuit.stats(self.epoch).stale
    }

    fn reset(&self) {
        self.circuit
            .change(Input::Restart(State::Closed), self.epoch);
    }

    fn probes(&self, second: u64) -> usize {
        self.circuit.stats(self.at(second)).probes
    }
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

fn spawn<T: 'static>(
    tried: &Arc<Tried>,
    run: impl FnOnce(&Tried) -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let tried = Arc::clone(tried);
    thread::spawn(move || run(&tried))
}

// === admit, record, trip ===

#[test]
fn a_call_arrives_while_another_opens_the_circuit() {
    check(|| {
        let tried = Tried::new(&touchy());
        let failed = tried.admit(0).unwrap();
        let comes = spawn(&tried, |tried| {
            let pass = tried.admit(0);
            if let Some(pass) = pass {
                tried.record(pass, Verdict::Success, 0);
            }
            pass
        });
        tried.record(failed, FAILURE, 0);
        // Later calls are refused.
        assert_eq!(tried.admit(0), None);
        let pass = comes.join().unwrap();
        assert_eq!(tried.state(0), State::Open);
        assert!(pass.is_none_or(|pass| pass.generation() == 0));
        assert_eq!((tried.generation(), tried.counts(0)), (1, (0, 0)));
        assert_eq!(tried.refused(), 1 + u64::from(pass.is_none()));
    });
}

#[test]
fn failures_at_once_open_the_circuit_once() {
    check(|| {
        let tried = Tried::new(&touchy());
        let passes = [(); 3].map(|()| tried.admit(0).unwrap());
        let others = [passes[0], passes[1]]
            .map(|pass| spawn(&tried, move |tried| tried.record(pass, FAILURE, 0)));
        tried.record(passes[2], FAILURE, 0);
        for other in others {
            other.join().unwrap();
        }
        assert_eq!((tried.state(0), tried.generation()), (State::Open, 1));
        // The first opening: another one would be longer.
        assert_eq!(tried.counts(0), (0, 0));
        let shut = tried.circuit.admit(tried.at(0)).unwrap_err();
        assert_eq!(shut.left, Some(OPEN_FOR));
    });
}

#[test]
fn the_later_of_two_pauses_at_once_wins() {
    check(|| {
        let tried = Tried::new(&touchy());
        let passes = [(); 2].map(|()| tried.admit(0).unwrap());
        let until = |seconds| Verdict::Throttled {
            retry_after: Some(Duration::from_secs(seconds)),
        };
        let other = spawn(&tried, move |tried| tried.record(passes[0], until(5), 0));
        tried.record(passes[1], until(9), 0);
        other.join().unwrap();
        assert_eq!(
            (tried.state(8), tried.state(9)),
            (State::Throttled, State::Closed)
        );
        assert_eq!(tried.generation(), 0);
    });
}

/// A failure during a pause was lost.
#[test]
fn a_pause_and_a_failure_at_once_both_count() {
    for seconds in [5, 60] {
        check(move || {
            let tried = Tried::new(&touchy());
            let passes = [(); 2].map(|()| tried.admit(0).unwrap());
            let throttled = Verdict::Throttled {
                retry_after: Some(Duration::from_secs(seconds)),
            };
            let other = spawn(&tried, move |tried| tried.record(passes[0], throttled, 0));
            tried.record(passes[1], FAILURE, 0);
            other.join().unwrap();
            let end = seconds.max(OPEN_FOR.as_secs());
            assert_eq!(
                (tried.state(end - 1), tried.state(end)),
                (State::Open, State::HalfOpen)
            );
            // The first opening: another one would be longer.
            assert_eq!(tried.generation(), 1);
        });
    }
}

#[test]
fn no_call_is_lost_of_those_counted_at_once() {
    for builder in windows(patient()) {
        check(move || {
            let tried = Tried::new(&builder);
            let passes = [(); 3].map(|()| tried.admit(0).unwrap());
            // Both are the first after a long rest.
            let other = spawn(&tried, move |tried| {
                tried.record(passes[0], Verdict::Success, 100);
                tried.record(passes[1], Verdict::Success, 100);
            });
            tried.record(passes[2], Verdict::Success, 100);
            other.join().unwrap();
            assert_eq!(tried.counts(100), (3, 0));
        });
    }
}

#[test]
fn no_call_is_lost_if_two_count_in_two_buckets() {
    check(|| {
        let tried = Tried::new(&patient().window(Duration::from_secs(10)));
        let passes = [(); 3].map(|()| tried.admit(0).unwrap());
        tried.record(passes[2], FAILURE, 0);
        let other = spawn(&tried, move |tried| {
            tried.record(passes[0], Verdict::Success, 3)
        });
        tried.record(passes[1], Verdict::Success, 4);
        other.join().unwrap();
        assert_eq!(tried.counts(9), (3, 1));
        assert_eq!(tried.counts(10), (2, 0));
    });
}

fn windows(builder: BreakerBuilder) -> [BreakerBuilder; 2] {
    let by_time = builder.clone().window(Duration::from_secs(10));
    [builder, by_time]
}

// === a window full of good calls ===

/// A circuit whose window is full of `calls` good calls, and which opens after two failures in a row.
fn clean(builder: BreakerBuilder, calls: usize) -> Arc<Tried> {
    let tried = Tried::new(&builder.failure_threshold(2));
    for _ in 0..calls {
        tried.record(tried.admit(0).expect("it is closed"), Verdict::Success, 0);
    }
    assert!(tried.circuit.failures.is_clean(Pass::default()));
    tried
}

#[test]
fn a_failure_beside_a_success_that_takes_no_lock_counts() {
    check(|| {
        let tried = clean(patient().window_calls(2), 2);
        let [good, bad, next] = [(); 3].map(|()| tried.admit(0).unwrap());
        let other = spawn(&tried, move |tried| tried.record(bad, FAILURE, 0));
        tried
            .circuit
            .succeeded(good, &mut Now::at(Some(tried.epoch)));
        other.join().unwrap();
        assert_eq!(tried.counts(0), (2, 1));
        assert!(!tried.circuit.failures.is_clean(Pass::default()));
        tried
            .circuit
            .succeeded(next, &mut Now::at(Some(tried.epoch)));
        let counts = tried.counts(0);
        // The failure was the earlier one, or the later one.
        assert!([(2, 0), (2, 1)].contains(&counts), "{counts:?}");
    });
}

/// If the run were counted after the window, a success could find the window clean again before the run of an earlier
/// failure was counted, and would not end it.
#[test]
fn a_success_that_takes_no_lock_ends_a_run_of_failures() {
    // The run alone is clean too, after a success.
    let [by_count, run_alone] = [patient().window_calls(2), patient().without_failure_ratio()];
    for builder in [by_count, run_alone] {
        check(move || {
            let tried = clean(builder.clone(), 2);
            let [bad, good, better, last, failed] = [(); 5].map(|()| tried.admit(0).unwrap());
            let succeeds = |tried: &Tried, pass| {
                let mut now = Now::at(Some(tried.epoch));
                tried.circuit.succeeded(pass, &mut now);
            };
            let fails = spawn(&tried, move |tried| tried.record(bad, FAILURE, 0));
            let others = spawn(&tried, move |tried| {
                succeeds(tried, good);
                succeeds(tried, better);
            });
            fails.join().unwrap();
            others.join().unwrap();
            succeeds(&tried, last);
            tried.record(failed, FAILURE, 0);
            assert_eq!(tried.state(0), State::Closed);
        });
    }
}

/// Between the emptying of the window and the new word, a call may fill the window again.
#[test]
fn a_late_success_is_stale_although_the_window_was_clean() {
    check(|| {
        let tried = clean(patient().window_calls(1), 1);
        let [late, later] = [(); 2].map(|()| tried.admit(0).unwrap());
        let other = spawn(&tried, move |tried| {
            let mut now = Now::at(Some(tried.epoch));
            tried.circuit.succeeded(late, &mut now);
        });
        tried.reset();
        let stale = tried.stale();
        tried
            .circuit
            .succeeded(later, &mut Now::at(Some(tried.epoch)));
        assert!(tried.stale() > stale);
        other.join().unwrap();
        assert_eq!(tried.counts(0), (0, 0));
    });
}

// === probes ===

#[test]
fn exactly_the_probes_are_admitted() {
    for probes in [1, 2] {
        check(move || {
            let tried = Tried::open(&touchy().probes(probes));
            let others = [(); 2].map(|()| spawn(&tried, |tried| tried.admit(30)));
            let mut passed = usize::from(tried.admit(30).is_some());
            for other in others {
                passed += usize::from(other.join().unwrap().is_some());
            }
            assert_eq!((passed, tried.probes(30)), (probes, probes));
            assert_eq!((tried.state(30), tried.generation()), (State::HalfOpen, 2));
            assert_eq!(tried.refused(), 3 - probes as u64);
        });
    }
}

#[test]
fn a_probe_is_given_back_while_other_calls_arrive() {
    check(|| {
        let tried = Tried::open(&touchy());
        let probe = tried.admit(30).unwrap();
        let comes = spawn(&tried, |tried| tried.admit(30));
        tried.record(probe, Verdict::Neutral, 30);
        let came = comes.join().unwrap();
        let next = tried.admit(30);
        assert_eq!([came, next].into_iter().flatten().count(), 1);
        assert_eq!(tried.probes(30), 1);
    });
}

#[test]
fn a_probe_decides_and_a_late_failure_does_not() {
    for builder in windows(touchy()) {
        check(move || {
            let tried = Tried::new(&builder);
            let [late, failed] = [(); 2].map(|()| tried.admit(0).unwrap());
            tried.record(failed, FAILURE, 0);
            let probe = tried.admit(30).unwrap();
            let other = spawn(&tried, move |tried| tried.record(late, FAILURE, 30));
            tried.record(probe, Verdict::Success, 30);
            other.join().unwrap();
            assert_eq!((tried.state(30), tried.generation()), (State::Closed, 3));
            assert_eq!((tried.counts(30), tried.stale()), ((0, 0), 1));
        });
    }
}

#[test]
fn the_first_of_a_good_and_a_bad_probe_decides() {
    check(|| {
        let tried = Tried::open(&touchy().probes(2));
        let [good, bad] = [(); 2].map(|()| tried.admit(30).unwrap());
        let other = spawn(&tried, move |tried| tried.record(bad, FAILURE, 30));
        tried.record(good, Verdict::Success, 30);
        other.join().unwrap();
        assert!(matches!(tried.state(30), State::Closed | State::Open));
        assert_eq!((tried.generation(), tried.stale()), (3, 1));
        assert_eq!(tried.counts(30), (0, 0));
    });
}

#[test]
fn a_lease_runs_out_while_its_probe_is_given_back() {
    check(|| {
        let tried = Tried::open(&touchy());
        let late = tried.admit(30).unwrap();
        let comes = spawn(&tried, |tried| tried.admit(90));
        tried.record(late, Verdict::Neutral, 90);
        // Its lease was free for exactly one probe.
        let probe = comes.join().unwrap().unwrap();
        assert_eq!((tried.probes(90), tried.admit(90)), (1, None));
        tried.record(probe, Verdict::Success, 90);
        assert_eq!(tried.state(90), State::Closed);
    });
}

// === transitions and late outcomes ===

/// A call of the ending generation counts in it or not at all.
#[test]
fn an_outcome_while_a_generation_ends_does_not_count_in_the_next() {
    let [by_count, by_time] = windows(patient());
    // No failure with a window by time: searching its buckets would only add interleavings.
    let cases = [
        (by_count.clone(), Verdict::Success),
        (by_count, FAILURE),
        (by_time, Verdict::Success),
    ];
    for (builder, verdict) in cases {
        check(move || {
            let tried = Tried::new(&builder);
            let late = tried.admit(0).unwrap();
            let other = spawn(&tried, move |tried| tried.record(late, verdict, 0));
            tried.reset();
            let pass = tried.admit(0).unwrap();
            assert_eq!(tried.counts(0), (0, 0));
            tried.record(pass, Verdict::Success, 0);
            assert_eq!(tried.counts(0), (1, 0));
            other.join().unwrap();
            assert_eq!(tried.counts(0), (1, 0));
        });
    }
}

/// The window is emptied before the new generation admits calls: emptied after that, it would lose this one.
#[test]
fn a_call_of_a_generation_that_is_just_beginning_counts() {
    for builder in windows(patient()) {
        check(move || {
            let tried = Tried::new(&builder);
            let other = spawn(&tried, |tried| {
                let pass = tried.admit(0).unwrap();
                tried.record(pass, Verdict::Success, 0);
                pass.generation()
            });
            tried.reset();
            let generation = other.join().unwrap();
            assert_eq!(tried.counts(0), (u64::from(generation), 0));
        });
    }
}

/// A late failure overwrote the run of failures of the next generation.
#[test]
fn a_late_failure_does_not_break_the_run_of_the_next_generation() {
    for builder in [patient(), patient().without_failure_ratio()] {
        check(move || {
            let tried = Tried::new(&builder.clone().failure_threshold(2));
            let late = tried.admit(0).unwrap();
            let other = spawn(&tried, move |tried| tried.record(late, FAILURE, 0));
            tried.reset();
            let [first, second] = [(); 2].map(|()| tried.admit(0).unwrap());
            tried.record(first, FAILURE, 0);
            other.join().unwrap();
            assert_eq!(tried.state(0), State::Closed);
            tried.record(second, FAILURE, 0);
            assert_eq!(tried.state(0), State::Open);
        });
    }
}

// === groups ===

/// Two circuits of four, and both have one more failure.
fn two_fail(ratio: f64, members: usize) -> usize {
    let builder = touchy().advanced(|advanced| advanced.max_open_ratio(ratio));
    let epoch = Instant::now();
    let group = group(&builder, epoch);
    let others: Vec<_> = (2..members)
        .map(|_| Tried::of(StdArc::clone(&group), epoch))
        .collect();
    let tried = [(); 2].map(|()| Tried::of(StdArc::clone(&group), epoch));
    // Only circuits that have counted a call are members of the group.
    for one in others.iter().chain(&tried) {
        one.record(one.admit(0).expect("it is closed"), Verdict::Success, 0);
    }
    let fails = |tried: &Tried| tried.record(tried.admit(0).expect("it is closed"), FAILURE, 0);
    let other = spawn(&tried[1], fails);
    fails(&tried[0]);
    other.join().expect("it ends");
    drop(others);
    tried
        .iter()
        .filter(|tried| tried.state(0) == State::Open)
        .count()
}

/// One circuit of three is opened manually while it counts its first call.
#[test]
fn a_circuit_that_joins_its_group_while_it_opens_counts_as_open() {
    check(|| {
        let builder = touchy().advanced(|advanced| advanced.max_open_ratio(0.5));
        let epoch = Instant::now();
        let group = group(&builder, epoch);
        let [enters, other, fails] = [(); 3].map(|()| Tried::of(StdArc::clone(&group), epoch));
        for one in [&other, &fails] {
            one.record(one.admit(0).unwrap(), Verdict::Success, 0);
        }
        let pass = enters.admit(0).unwrap();
        let counts = spawn(&enters, move |tried| {
            tried.record(pass, Verdict::Success, 0)
        });
        let until = enters.at(0) + OPEN_FOR;
        enters.circuit.change(Input::Open(until), enters.at(0));
        counts.join().unwrap();
        fails.record(fails.admit(0).unwrap(), FAILURE, 0);
        // The second of three may not open, the first of two may.
        let is_open = fails.state(0) == State::Open;
        let has_joined = enters.circuit.has_joined.load(Ordering::Relaxed) == 1;
        assert_eq!(is_open, !has_joined);
    });
}

#[test]
fn if_one_may_open_one_does() {
    check(|| assert_eq!(two_fail(0.5, 2), 1));
}

/// An opened circuit counted twice for a moment, and kept another closed.
#[test]
fn if_two_may_open_both_do() {
    check(|| assert_eq!(two_fail(0.5, 4), 2));
}
