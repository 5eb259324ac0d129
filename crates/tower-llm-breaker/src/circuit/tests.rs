//! Tests against a slow and obvious breaker: a list of all ended calls, searched each time.

use std::{sync::Arc, time::Duration};

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::*;
use crate::{BreakerLayer, Force, clock::Clock, events::Events, verdict::Verdict};

#[derive(Clone, Debug)]
struct Settings {
    over: Over,
    minimum_calls: usize,
    failure_ratio: Option<f64>,
    failure_threshold: Option<u32>,
    open_for: u64,
    open_factor: u32,
    max_open_for: u64,
    max_retry_after: u64,
    probes: usize,
    probe_lease: u64,
    success_threshold: u32,
    initial_state: Option<Force>,
}

/// Times are in milliseconds.
#[derive(Clone, Copy, Debug)]
enum Over {
    Calls(usize),
    Time(u64),
}

const EXHAUSTED_FOR: u64 = 20_000;

#[derive(Clone, Copy, Debug)]
enum Step {
    Call,
    /// Ends the call of that index among the calls in flight.
    End(usize, Verdict),
    Advance(u64),
    /// Advances to the end of the current state, or to a millisecond before it.
    AdvanceToEnd(u64),
    Trip(u64),
    Reset,
    Force(Force),
}

fn settings() -> impl Strategy<Value = Settings> {
    let over = prop_oneof![
        (1..=12_usize).prop_map(Over::Calls),
        select(vec![100, 1_000, 10_000]).prop_map(Over::Time),
    ];
    let thresholds = (
        1..=12_usize,
        option::of(select(vec![0.0, 0.1, 0.3, 0.5, 1.0])),
        option::of(1..=4_u32),
    );
    let times = (1..=5_000_u64, 1..=3_u32, 1..=4_u64, 1..=30_000_u64);
    let probing = (1..=3_usize, 1..=10_000_u64, 1..=3_u32);
    let initial_state = prop_oneof![4 => Just(None), 1 => Just(Some(Force::MetricsOnly))];
    (over, thresholds, times, probing, initial_state).prop_map(
        |(over, thresholds, times, probing, initial_state)| {
            let (minimum_calls, failure_ratio, failure_threshold) = thresholds;
            let (open_for, open_factor, most, max_retry_after) = times;
            let (probes, probe_lease, success_threshold) = probing;
            Settings {
                over,
                minimum_calls: match over {
                    Over::Calls(calls) => minimum_calls.min(calls),
                    Over::Time(_) => minimum_calls,
                },
                failure_ratio,
                failure_threshold,
                open_for,
                open_factor,
                max_open_for: open_for * most,
                max_retry_after,
                probes,
                probe_lease,
                success_threshold,
                initial_state,
            }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let retry_after = || option::weighted(0.3, (1..=40_000_u64).prop_map(Duration::from_millis));
    let verdict = prop_oneof![
        6 => Just(Verdict::Success),
        8 => retry_after().prop_map(|retry_after| Verdict::Failure { retry_after }),
        2 => Just(Verdict::Neutral),
        1 => retry_after().prop_map(|retry_after| Verdict::Throttled { retry_after }),
        1 => Just(Verdict::Exhausted),
    ];
    let force = select(vec![Force::Open, Force::Disabled, Force::MetricsOnly]);
    prop_oneof![
        30 => Just(Step::Call),
        30 => (0..8_usize, verdict).prop_map(|(index, verdict)| Step::End(index, verdict)),
        8 => select(vec![1, 9, 10, 99, 100, 999, 1_000, 5_000]).prop_map(Step::Advance),
        2 => (1..=20_000_u64).prop_map(Step::Advance),
        8 => (0..=1_u64).prop_map(Step::AdvanceToEnd),
        1 => (1..=10_000_u64).prop_map(Step::Trip),
        1 => Just(Step::Reset),
        1 => force.prop_map(Step::Force),
    ]
}

/// What a circuit should do by its documentation, without regard to speed.
struct Reference {
    settings: Settings,
    now: u64,
    state: State,
    /// When it ends, of a state that does.
    until: u64,
    generation: u32,
    /// Calls of this generation that have ended: when, and whether badly.
    ended: Vec<(u64, bool)>,
    /// Leases of probes in flight: their numbers and ends.
    leases: Vec<(u32, u64)>,
    successes: u32,
    openings: u32,
    /// The latest time that the provider named with one of the failures that count.
    not_before: u64,
    closed_since: Option<u64>,
    calls: u32,
    refused: u64,
}

#[derive(Clone, Copy, Debug)]
struct Ticket {
    number: u32,
    generation: u32,
    is_probe: bool,
}

impl Reference {
    fn new(settings: Settings) -> Self {
        let state = match settings.initial_state {
            Some(_) => State::MetricsOnly,
            None => State::Closed,
        };
        Self {
            settings,
            now: 0,
            state,
            until: 0,
            generation: 0,
            ended: Vec::new(),
            leases: Vec::new(),
            successes: 0,
            openings: 0,
            not_before: 0,
            closed_since: None,
            calls: 0,
            refused: 0,
        }
    }

    fn advance(&mut self, time: u64) {
        self.now += time;
        // "Open up to its last millisecond, and half-open from then on."
        if self.now >= self.until {
            match self.state {
                State::Open => self.go(State::HalfOpen, 0),
                // "Then it is what it was before."
                State::Throttled => self.state = State::Closed,
                _ => {}
            }
        }
        let now = self.now;
        self.leases.retain(|&(_, until)| until > now);
    }

    fn go(&mut self, state: State, until: u64) {
        if state == State::Open {
            self.leave_closed();
        }
        (self.state, self.until) = (state, until);
        self.generation += 1;
        self.ended.clear();
        self.leases.clear();
        self.successes = 0;
        self.not_before = 0;
    }

    /// It starts again if it has stayed closed for as long as the first opening.
    fn leave_closed(&mut self) {
        let since = self.closed_since.take();
        if since.is_some_and(|since| self.now - since >= self.settings.open_for) {
            self.openings = 0;
        }
    }

    fn call(&mut self) -> Option<Ticket> {
        let may_pass = match self.state {
            State::Closed | State::Disabled | State::MetricsOnly => true,
            State::HalfOpen => self.leases.len() < self.settings.probes,
            _ => false,
        };
        if !may_pass {
            self.refused += 1;
            return None;
        }
        self.calls += 1;
        let is_probe = self.state == State::HalfOpen;
        if is_probe {
            self.leases
                .push((self.calls, self.now + self.settings.probe_lease));
        }
        Some(Ticket {
            number: self.calls,
            generation: self.generation,
            is_probe,
        })
    }

    fn end(&mut self, ticket: Ticket, verdict: Verdict) {
        self.leases.retain(|&(number, _)| number != ticket.number);
        let is_current = ticket.generation == self.generation;
        let is_by_hand = matches!(
            self.state,
            State::ForcedOpen | State::Disabled | State::MetricsOnly
        );
        // Any call may extend a timed state; only calls of the current generation open one.
        let is_timed = matches!(self.state, State::Open | State::Throttled);
        let is_heard = !is_by_hand && (is_current || is_timed);
        match verdict {
            Verdict::Throttled {
                retry_after: Some(time),
            } => {
                let time = (time.as_millis() as u64).min(self.settings.max_retry_after);
                let until = self.now + time;
                match self.state {
                    _ if !is_heard => {}
                    State::Closed => (self.state, self.until) = (State::Throttled, until),
                    State::Throttled => self.until = self.until.max(until),
                    _ => self.open(until),
                }
            }
            Verdict::Exhausted if is_heard => self.open(self.now + EXHAUSTED_FOR),
            Verdict::Failure {
                retry_after: Some(time),
            } if !is_current && !ticket.is_probe && self.state == State::Open => {
                self.open(self.now + self.capped(time));
            }
            Verdict::Success | Verdict::Failure { .. } if !is_current => {}
            Verdict::Success if ticket.is_probe => {
                self.successes += 1;
                if self.successes == self.settings.success_threshold {
                    self.closed_since = Some(self.now);
                    self.go(State::Closed, 0);
                }
            }
            Verdict::Failure { retry_after } if ticket.is_probe => self.fail(retry_after),
            Verdict::Success => self.count(false),
            Verdict::Failure { retry_after } => {
                self.count(true);
                let until = self.now + retry_after.map_or(0, |time| self.capped(time));
                self.not_before = self.not_before.max(until);
                if self.is_bad_enough() && self.state != State::MetricsOnly {
                    self.fail(retry_after);
                }
            }
            _ => {}
        }
    }

    fn count(&mut self, is_bad: bool) {
        if self.is_counting() {
            self.ended.push((self.now, is_bad));
        }
    }

    fn is_counting(&self) -> bool {
        matches!(
            self.state,
            State::Closed | State::Throttled | State::MetricsOnly
        )
    }

    /// The calls that count, and how many of them were bad.
    fn counts(&self) -> (u64, u64) {
        let counts: Vec<_> = match self.settings.over {
            Over::Calls(calls) => self.ended.iter().rev().take(calls).collect(),
            Over::Time(time) => {
                let tenth = |at| at / (time / 10);
                let counts = |(at, _): &&(u64, bool)| tenth(self.now) < tenth(*at) + 10;
                self.ended.iter().filter(counts).collect()
            }
        };
        let bad = counts.iter().filter(|(_, is_bad)| *is_bad).count();
        (counts.len() as u64, bad as u64)
    }

    fn is_bad_enough(&self) -> bool {
        let in_a_row = self
            .ended
            .iter()
            .rev()
            .take_while(|(_, is_bad)| *is_bad)
            .count();
        let (calls, failures) = self.counts();
        let is_judged = calls >= self.settings.minimum_calls as u64;
        let most = self.settings.failure_threshold;
        let ratio = self.settings.failure_ratio.filter(|_| is_judged);
        self.is_counting()
            && (most.is_some_and(|most| in_a_row >= most as usize)
                || ratio.is_some_and(|ratio| failures as f64 / calls as f64 >= ratio))
    }

    /// Opens for failures, for longer each time.
    fn fail(&mut self, retry_after: Option<Duration>) {
        self.leave_closed();
        let Settings {
            open_for,
            open_factor,
            max_open_for,
            ..
        } = self.settings;
        let mut time = open_for;
        for _ in 0..self.openings {
            time = (time * u64::from(open_factor)).min(max_open_for);
        }
        self.openings += 1;
        let asked = retry_after.map_or(0, |time| self.capped(time));
        let until = self.now + time.max(asked);
        self.open(until.max(self.not_before));
    }

    fn capped(&self, time: Duration) -> u64 {
        (time.as_millis() as u64).min(self.settings.max_retry_after)
    }

    /// The later of two times wins.
    fn open(&mut self, until: u64) {
        match self.state {
            State::Open => self.until = self.until.max(until),
            State::Throttled => self.go(State::Open, self.until.max(until)),
            _ => self.go(State::Open, until),
        }
    }

    fn reset(&mut self) {
        let state = Self::new(self.settings.clone()).state;
        (self.openings, self.closed_since) = (0, None);
        self.go(state, 0);
    }
}

fn circuit(settings: &Settings) -> (Circuit, Instant) {
    let ms = Duration::from_millis;
    let mut builder = BreakerLayer::builder()
        .minimum_calls(settings.minimum_calls)
        .open_for(ms(settings.open_for))
        .max_open_for(ms(settings.max_open_for))
        .probes(settings.probes)
        .success_threshold(settings.success_threshold)
        .advanced(|advanced| {
            advanced
                .open_factor(f64::from(settings.open_factor))
                .max_retry_after(ms(settings.max_retry_after))
                .exhausted_for(ms(EXHAUSTED_FOR))
                .probe_lease(ms(settings.probe_lease))
                .jitter(0.0)
        });
    builder = match settings.over {
        Over::Calls(calls) => builder.window_calls(calls),
        Over::Time(time) => builder.window(ms(time)),
    };
    builder = match settings.failure_ratio {
        Some(ratio) => builder.failure_ratio(ratio),
        None => builder.without_failure_ratio(),
    };
    builder = match settings.failure_threshold {
        Some(failures) => builder.failure_threshold(failures),
        None => builder.without_failure_threshold(),
    };
    if let Some(force) = settings.initial_state {
        builder = builder.initial_state(force);
    }
    let mut config = builder.config;
    config.check().expect("good settings");
    let epoch = Instant::now();
    config.clock = Clock::new(epoch);
    let (circuit, _) = of(config);
    (circuit, epoch)
}

/// A circuit of its own, and its events.
fn of(config: Config) -> (Circuit, Arc<Events>) {
    let events = Arc::new(Events::new());
    let group = Group::new(Scope::Key, Arc::new(config), Arc::clone(&events));
    let circuit = Circuit::new(Arc::new(group), Some(Key::new("k")));
    (circuit, events)
}

/// What can be observed of both.
#[derive(Debug, PartialEq)]
struct Seen {
    state: State,
    duration: Option<Duration>,
    counts: (u64, u64),
    probes: usize,
    refused: u64,
}

impl Seen {
    fn of(circuit: &Circuit, now: Instant) -> Self {
        let stats = circuit.stats(now);
        Self {
            state: stats.state,
            duration: stats.remaining,
            counts: (stats.calls, stats.failures),
            probes: stats.probes,
            refused: stats.refused,
        }
    }

    fn of_reference(reference: &Reference) -> Self {
        let is_timed = matches!(reference.state, State::Open | State::Throttled);
        Self {
            state: reference.state,
            duration: is_timed.then(|| Duration::from_millis(reference.until - reference.now)),
            // Without a failure ratio they are not counted.
            counts: match reference.settings.failure_ratio {
                Some(_) => reference.counts(),
                None => (0, 0),
            },
            probes: reference.leases.len(),
            refused: reference.refused,
        }
    }
}

fn agrees(settings: &Settings, steps: &[Step]) {
    let (circuit, epoch) = circuit(settings);
    let mut reference = Reference::new(settings.clone());
    let mut in_flight: Vec<(Pass, Ticket)> = Vec::new();
    for (number, &step) in steps.iter().enumerate() {
        let now = epoch + Duration::from_millis(reference.now);
        match step {
            Step::Call => {
                let admitted = circuit.admit(now);
                let ticket = reference.call();
                match (admitted, ticket) {
                    (Ok(pass), Some(ticket)) => {
                        assert_eq!(pass.is_probe(), ticket.is_probe, "{number}");
                        in_flight.push((pass, ticket));
                    }
                    (Err(shut), None) => {
                        circuit.count_refused();
                        assert_eq!(shut.state, reference.state, "{number}");
                    }
                    (admitted, ticket) => panic!("{number}: {admitted:?}, {ticket:?}"),
                }
            }
            Step::End(index, verdict) if index < in_flight.len() => {
                let (pass, ticket) = in_flight.swap_remove(index);
                circuit.record(pass, verdict, &mut Now::at(Some(now)));
                reference.end(ticket, verdict);
            }
            Step::End(..) => {}
            Step::Advance(time) => reference.advance(time),
            Step::AdvanceToEnd(before) => {
                let left = reference.until.saturating_sub(reference.now);
                reference.advance(left.saturating_sub(before));
            }
            Step::Trip(time) => {
                circuit.change(Input::Open(now + Duration::from_millis(time)), now);
                reference.open(reference.now + time);
            }
            Step::Reset => {
                circuit.change(Input::Restart(circuit.config().initial_state), now);
                reference.reset();
            }
            Step::Force(force) => {
                circuit.change(Input::Force(force.state()), now);
                let state = match force {
                    Force::Open => State::ForcedOpen,
                    Force::Disabled => State::Disabled,
                    Force::MetricsOnly => State::MetricsOnly,
                };
                reference.go(state, 0);
            }
        }
        let now = epoch + Duration::from_millis(reference.now);
        let expected = Seen::of_reference(&reference);
        assert_eq!(Seen::of(&circuit, now), expected, "{number}: {step:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_circuit_does_what_a_slow_and_obvious_one_does(
        settings in settings(),
        steps in vec(step(), 1..250),
    ) {
        agrees(&settings, &steps);
    }
}

// === changes of other processes ===

#[cfg(feature = "redis")]
mod observed {
    use super::*;
    use crate::{
        BreakerBuilder, EventReceiver, Reason, events::EventKind, machine::PeerChange as Change,
    };

    const SECOND: Duration = Duration::from_secs(1);

    /// A circuit that the provider has paused for 10 s, when, and what happens to it from then on.
    fn paused(builder: BreakerBuilder) -> (Circuit, Instant, EventReceiver) {
        let (circuit, events) = of(builder.config);
        let events = events.subscribe();
        let now = Instant::now();
        let retry_after = Some(10 * SECOND);
        let pass = circuit.admit(now).expect("it is closed");
        let throttled = Verdict::Throttled { retry_after };
        circuit.record(pass, throttled, &mut Now::at(Some(now)));
        (circuit, now, events)
    }

    fn open_for(time: Duration, now: Instant) -> Change {
        let until = now + time;
        Change::Open(until)
    }

    /// Its state, and for how many seconds.
    fn status(circuit: &Circuit, now: Instant) -> (State, Option<u64>) {
        let status = circuit.status(now);
        let duration = status.left;
        // Ends are whole milliseconds, the first that are not too early.
        (status.state, duration.map(|duration| duration.as_secs()))
    }

    /// It stayed paused for the longer of both times, and then admitted all calls.
    #[test]
    fn a_circuit_opened_elsewhere_is_open_until_both_times_have_passed_and_then_half_open() {
        for (seconds, longer) in [(5, 10), (20, 20)] {
            let (circuit, now, _) =
                paused(BreakerLayer::builder().advanced(|advanced| advanced.jitter(0.0)));
            circuit.change(Input::Peer(open_for(seconds * SECOND, now)), now);
            assert_eq!(status(&circuit, now), (State::Open, Some(longer.into())));
            let after = now + (longer + 1) * SECOND;
            assert!(circuit.admit(after).expect("a probe").is_probe());
            assert_eq!(circuit.admit(after).unwrap_err().state, State::HalfOpen);
        }
    }

    #[test]
    fn a_pause_from_elsewhere_extends_a_pause() {
        let (circuit, now, _) =
            paused(BreakerLayer::builder().advanced(|advanced| advanced.jitter(0.0)));
        let until = now + 20 * SECOND;
        circuit.change(Input::Peer(Change::Throttled(until)), now);
        assert_eq!(status(&circuit, now), (State::Throttled, Some(20)));
        assert_eq!(status(&circuit, now + 21 * SECOND), (State::Closed, None));
    }

    /// The pause was extended to the opening of the other process.
    #[test]
    fn if_too_many_are_open_a_pause_is_not_changed() {
        let (circuit, now, mut events) =
            paused(BreakerLayer::builder().advanced(|advanced| advanced.max_open_ratio(0.5)));
        let before = status(&circuit, now);
        events.try_recv().expect("it was paused");
        for _ in 0..2 {
            circuit.change(Input::Peer(open_for(40 * SECOND, now)), now);
            assert_eq!(status(&circuit, now), before);
        }
        // Reported once.
        let reason = Reason::Shared;
        let kept = events.try_recv().expect("it was kept closed").kind;
        assert_eq!(kept, EventKind::KeptClosed { reason });
        assert!(events.try_recv().is_err());
    }

    /// What one process published comes back.
    #[test]
    fn receiving_the_same_change_again_changes_nothing() {
        let (circuit, now, mut events) =
            paused(BreakerLayer::builder().advanced(|advanced| advanced.jitter(0.0)));
        circuit.change(Input::Peer(open_for(20 * SECOND, now)), now);
        let until = now + 20 * SECOND;
        let (word, late) = (circuit.word.load(), 10 * Duration::from_millis(1));
        while events.try_recv().is_ok() {}
        for _ in 0..2 {
            circuit.change(Input::Peer(open_for(20 * SECOND + late, now)), now);
            circuit.change(Input::Peer(Change::Throttled(until)), now);
        }
        assert_eq!(circuit.word.load(), word);
        assert!(events.try_recv().is_err());
    }
}
