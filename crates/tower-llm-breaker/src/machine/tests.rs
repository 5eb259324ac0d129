//! What each input leads to from each state, as tables.

use super::*;
use crate::{BreakerLayer, clock::Clock, verdict::Verdict};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const OPEN_FOR: Duration = Duration::from_secs(30);
const RAMP: Duration = Duration::from_secs(100);
const FAILED: Verdict = Verdict::Failure { retry_after: None };

const STATES: [State; 8] = [
    State::Closed,
    State::Ramping,
    State::Open,
    State::Throttled,
    State::HalfOpen,
    State::ForcedOpen,
    State::Disabled,
    State::MetricsOnly,
];

/// A machine, its settings, and the time.
struct Tried {
    machine: Machine,
    config: Config,
    now: Instant,
    has_room: bool,
}

impl Tried {
    fn new(ramp: Option<Duration>) -> Self {
        let builder = BreakerLayer::builder().success_threshold(1);
        let mut config = builder.open_for(OPEN_FOR).config;
        config.advanced.jitter = 0.0;
        config.advanced.ramp = ramp;
        let now = Instant::now();
        config.clock = Clock::new(now);
        Self {
            machine: Machine::new(State::Closed),
            config,
            now,
            has_room: true,
        }
    }

    /// A machine in `state`, whose end, if it has one, is a minute or more away.
    fn in_state(state: State) -> Self {
        let mut tried = Self::new(Some(RAMP));
        match state {
            State::Closed => {}
            State::Open => {
                tried.on(Input::Open(tried.now + 60 * SECOND));
            }
            State::Throttled => {
                tried.on(Input::Throttled(tried.pass(), Some(60 * SECOND)));
            }
            State::HalfOpen | State::Ramping => {
                tried.on(Input::Open(tried.now + SECOND));
                tried.now += SECOND;
                let probe = tried.call().expect("a probe");
                let verdict = match state {
                    State::Ramping => Verdict::Success,
                    _ => Verdict::Neutral,
                };
                tried.on(Input::ProbeEnded(probe, verdict));
            }
            forced => {
                tried.on(Input::Force(forced));
            }
        }
        assert_eq!(tried.machine.word.state, state);
        tried
    }

    fn on(&mut self, input: Input) -> Transition {
        let mut may_open = || self.has_room;
        self.machine
            .on(input, self.now, &self.config, &mut may_open)
    }

    fn call(&mut self) -> Result<Pass, Status> {
        self.on(Input::Call)
            .admission
            .expect("an answer to the call")
    }

    /// A call that was admitted in the present generation.
    fn pass(&self) -> Pass {
        Pass::of(self.machine.word)
    }

    fn status(&self) -> (State, Option<u64>) {
        let status = self.machine.status(self.now, &self.config);
        (status.state, status.left.map(|left| left.as_secs()))
    }
}

fn letter(state: State) -> char {
    match state {
        State::Closed => 'C',
        State::Ramping => 'R',
        State::Open => 'O',
        State::Throttled => 'T',
        State::HalfOpen => 'H',
        State::ForcedOpen => 'F',
        State::Disabled => 'D',
        State::MetricsOnly => 'M',
    }
}

/// The state that `input` leads to from each of [`STATES`]. It gets the pass of a call, which may have been admitted a
/// generation before.
fn from_each(is_late: bool, has_room: bool, input: &dyn Fn(Pass, Instant) -> Input) -> String {
    let after = STATES.map(|state| {
        let mut tried = Tried::in_state(state);
        let pass = tried.pass();
        tried.machine.word.generation += u32::from(is_late);
        tried.has_room = has_room;
        let before = tried.machine.word.generation;
        let transition = tried.on(input(pass, tried.now));
        let word = tried.machine.word;
        let begins = |report: &EventKind| match report {
            EventKind::Transition { generation, .. } => *generation == word.generation,
            _ => false,
        };
        let is_reported = transition.reports.iter().any(begins);
        assert!(word.generation == before || is_reported, "{state:?}");
        letter(word.state)
    });
    after.iter().collect()
}

#[test]
fn each_input_leads_from_each_state_to_one() {
    type Make<'a> = &'a dyn Fn(Pass, Instant) -> Input;
    let call: Make<'_> = &|_, _| Input::Call;
    let tripped: Make<'_> = &|pass, _| Input::Tripped(pass, Reason::FailureRatio, None);
    let throttled: Make<'_> = &|pass, _| Input::Throttled(pass, Some(SECOND));
    let untimed: Make<'_> = &|pass, _| Input::Throttled(pass, None);
    let exhausted: Make<'_> = &|pass, _| Input::Exhausted(pass, Reason::Exhausted);
    let retry_after: Make<'_> = &|pass, _| Input::RetryAfter(pass, SECOND);
    let open: Make<'_> = &|_, now| Input::Open(now + SECOND);
    let restart: Make<'_> = &|_, _| Input::Restart(State::Closed);
    let force: Make<'_> = &|_, _| Input::Force(State::MetricsOnly);
    let (late, room) = (true, true);
    // From closed, ramping, open, throttled, half-open, forced open, disabled, metrics only.
    let rows = [
        ("a call", call, !late, room, "CROTHFDM"),
        ("trip", tripped, !late, room, "OOOOHFDM"),
        ("trip without room", tripped, !late, !room, "CROTHFDM"),
        ("late trip", tripped, late, room, "CROTHFDM"),
        ("429", throttled, !late, !room, "TTOTOFDM"),
        ("late 429", throttled, late, room, "CROTHFDM"),
        ("429 without a time", untimed, !late, room, "CROTHFDM"),
        ("spent", exhausted, !late, !room, "OOOOOFDM"),
        ("late spent", exhausted, late, room, "CROOHFDM"),
        ("retry-after", retry_after, !late, room, "CROTHFDM"),
        ("late retry-after", retry_after, late, room, "CROTHFDM"),
        ("manual trip", open, !late, !room, "OOOOOOOO"),
        ("close", restart, !late, room, "CCCCCCCC"),
        ("force", force, !late, room, "MMMMMMMM"),
    ];
    for (name, input, is_late, has_room, expected) in rows {
        assert_eq!(from_each(is_late, has_room, input), expected, "{name}");
    }
}

#[cfg(feature = "redis")]
#[test]
fn each_change_of_another_process_leads_from_each_state_to_one() {
    let open = |_, now| Input::Peer(PeerChange::Open(now + 90 * SECOND));
    let throttled = |_, now| Input::Peer(PeerChange::Throttled(now + 90 * SECOND));
    let closed = |_, _| Input::Peer(PeerChange::Closed);
    assert_eq!(from_each(false, true, &open), "OOOOOFDM");
    assert_eq!(from_each(false, false, &open), "CROTOFDM");
    assert_eq!(from_each(false, false, &throttled), "TTOTOFDM");
    assert_eq!(from_each(false, false, &closed), "CRRRRFDM");
}

#[test]
fn a_probe_decides_by_how_it_ends_unless_it_is_of_an_earlier_generation() {
    let rows = [
        (Verdict::Success, State::Closed),
        (FAILED, State::Open),
        (Verdict::Neutral, State::HalfOpen),
    ];
    for (verdict, state) in rows {
        let mut tried = Tried::new(None);
        tried.on(Input::Open(tried.now));
        let probe = tried.call().expect("a probe");
        let refused = tried.call().expect_err("the lease is in use");
        let wait = Some(OPEN_FOR / 10);
        assert_eq!((refused.state, refused.left), (State::HalfOpen, wait));

        let late = Pass::of(Word::first(State::Closed)).with_lease(probe.lease());
        let transition = tried.on(Input::ProbeEnded(late, verdict));
        assert!(transition.is_stale && !transition.has_counted);
        assert_eq!(tried.machine.word.state, State::HalfOpen);
        assert_eq!(tried.machine.probes.in_flight(tried.now), 1);

        let transition = tried.on(Input::ProbeEnded(probe, verdict));
        assert!(!transition.is_stale);
        assert_eq!(transition.has_counted, verdict != Verdict::Neutral);
        assert_eq!(tried.machine.word.state, state, "{verdict:?}");
        assert_eq!(tried.machine.probes.in_flight(tried.now), 0);
    }
}

#[test]
fn a_state_lasts_to_its_last_millisecond() {
    let throttled_ramp = || {
        let mut tried = Tried::in_state(State::Ramping);
        tried.on(Input::Throttled(tried.pass(), Some(60 * SECOND)));
        tried
    };
    let throttled_to_its_end = || {
        let mut tried = Tried::in_state(State::Ramping);
        tried.on(Input::Throttled(tried.pass(), Some(RAMP)));
        tried
    };
    // Its length, and what follows for how many seconds.
    let rows = [
        (Tried::in_state(State::Open), 60, (State::HalfOpen, None)),
        (Tried::in_state(State::Throttled), 60, (State::Closed, None)),
        (Tried::in_state(State::Ramping), 100, (State::Closed, None)),
        (throttled_ramp(), 60, (State::Ramping, Some(40))),
        (throttled_to_its_end(), 100, (State::Closed, None)),
    ];
    for (mut tried, seconds, after) in rows {
        let before = tried.machine.word;
        let end = tried.now + seconds * SECOND;
        tried.now = end - MS;
        assert_eq!(tried.status().0, before.state);
        tried.now = end;
        assert_eq!(tried.status(), after, "{before:?}");
        // A call makes it so, and is told the same as one that only looks.
        let looked = tried.machine.refusal(tried.now, &tried.config);
        assert_eq!(looked, tried.call().err());
        assert_eq!(tried.status(), after, "{before:?}");
        let is_new = before.state == State::Open;
        let generation = tried.machine.word.generation;
        assert_eq!(generation, before.generation + u32::from(is_new));
    }
}

#[test]
fn a_look_is_told_what_a_call_would_be() {
    for state in STATES {
        let mut tried = Tried::in_state(state);
        for _ in 0..30 {
            let looked = tried.machine.refusal(tried.now, &tried.config);
            assert_eq!(looked, tried.call().err(), "{state:?}");
            tried.now += SECOND;
        }
    }
}

#[test]
fn openings_grow_until_it_has_stayed_closed_for_the_first_one() {
    let mut tried = Tried::new(None);
    let trip = |tried: &mut Tried| {
        tried.on(Input::Tripped(tried.pass(), Reason::FailureRatio, None));
        tried.status().1
    };
    assert_eq!(trip(&mut tried), Some(30));
    for (seconds, expected) in [(30, 60), (60, 120), (120, 240), (240, 300), (300, 300)] {
        tried.now += seconds * SECOND;
        let probe = tried.call().expect("a probe");
        tried.on(Input::ProbeEnded(probe, FAILED));
        assert_eq!(tried.status().1, Some(expected));
    }
    for (closed_for, expected) in [(OPEN_FOR - MS, Some(300)), (OPEN_FOR, Some(30))] {
        tried.now += 300 * SECOND;
        let probe = tried.call().expect("a probe");
        tried.on(Input::ProbeEnded(probe, Verdict::Success));
        tried.now += closed_for;
        assert_eq!(trip(&mut tried), expected);
    }
}

#[test]
fn each_change_is_reported_once_in_order() {
    let mut tried = Tried::new(None);
    let transition = |from, to, reason, duration, generation| EventKind::Transition {
        from,
        to,
        reason,
        duration,
        generation,
    };
    use State::{Closed, HalfOpen, Open};
    let pass = tried.pass();
    let tripped = Input::Tripped(pass, Reason::ConsecutiveFailures, None);
    let opened = transition(Closed, Open, Reason::ConsecutiveFailures, Some(OPEN_FOR), 1);
    tried.has_room = false;
    let reason = Reason::ConsecutiveFailures;
    let kept_closed = EventKind::KeptClosed { reason };
    assert_eq!(tried.on(tripped).reports, [kept_closed]);
    assert_eq!(tried.on(tripped).reports, []);
    tried.has_room = true;
    assert_eq!(tried.on(tripped).reports, [opened]);
    assert_eq!(tried.on(tripped).reports, []);
    let longer = Input::Open(tried.now + 60 * SECOND);
    let extended = EventKind::Extended {
        state: Open,
        reason: Reason::Manual,
        duration: 60 * SECOND,
    };
    assert_eq!(tried.on(longer).reports, [extended]);
    assert_eq!(tried.on(longer).reports, []);
    tried.now += 60 * SECOND;
    let half_open = transition(Open, HalfOpen, Reason::Elapsed, None, 2);
    let called = tried.on(Input::Call);
    assert_eq!(called.reports, [half_open]);
    let probe = called.admission.and_then(Result::ok).expect("a probe");
    let closed = transition(HalfOpen, Closed, Reason::ProbesSucceeded, None, 3);
    let ended = tried.on(Input::ProbeEnded(probe, Verdict::Success));
    assert_eq!(ended.reports, [closed]);
}
