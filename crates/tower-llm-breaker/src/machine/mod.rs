//! The states of a circuit, as plain code: no lock, no clock, no circuit.
//!
//! ```text
//!                 failures                    time over
//!    Closed ─────────────────────▶ Open ───────────────────▶ HalfOpen
//!     ▲  ▲│ 429 with a time         ▲                          │  │
//!     │  │▼                         └─────── probe failed ─────┘  │
//!     │ Throttled                                                 │
//!     │                                                           │
//!     └──── Ramping, if there is a ramp ◀──── probes succeeded ───┘
//! ```
//!
//! Each transition begins a generation, except those to and from `Throttled` and the end of a ramp. The lock around a machine,
//! the windows and the events are the circuit's.

mod probes;
mod ramp;
mod step;
#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::time::Instant;

use self::{probes::Probes, ramp::Ramp, step::Step};
use crate::{
    State,
    config::Config,
    events::{EventKind, Reason},
    verdict::Verdict,
    word::{Pass, Word},
};

/// All of a circuit that changes together.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) word: Word,
    /// How often it has opened without staying closed in between.
    openings: u32,
    closed_at: Option<Instant>,
    pub(crate) probes: Probes,
    ramp: Ramp,
    /// The latest time that the provider named with one of the failures that count.
    not_before: Option<Instant>,
    /// Whether it was reported that too many other circuits are open.
    reported_kept_closed: bool,
    /// In metrics-only mode: when it would be half-open again.
    would_open_until: Option<Instant>,
}

/// What happens to a circuit. A duration is a time that the provider named.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Input {
    /// A call asks to be admitted.
    Call,
    /// An admitted call is not sent after all.
    NotSent(Pass),
    /// A probe has a first token, which counts as its success. From then on it counts like any other call.
    FirstToken(Pass),
    /// A probe has succeeded, failed or shown nothing; or a call has failed that had counted as a successful probe.
    ProbeEnded(Pass, Verdict),
    /// A call has failed, with a time.
    RetryAfter(Pass, Duration),
    /// The calls of the pass's generation have failed, or were slow, too often.
    Tripped(Pass, Reason, Option<Duration>),
    /// The provider has throttled a call.
    Throttled(Pass, Option<Duration>),
    /// Money or quota is used up for a long time, or a credential is refused.
    Exhausted(Pass, Reason),
    /// Manual: opens until then.
    Open(Instant),
    /// Manual: begins again in that state.
    Restart(State),
    /// Manual: holds that state.
    Force(State),
    /// Another process has changed its circuit.
    #[cfg(feature = "redis")]
    Peer(PeerChange),
}

/// The new state of a circuit in another process, and its end.
#[cfg(feature = "redis")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerChange {
    Closed,
    Open(Instant),
    Throttled(Instant),
}

/// What an [`Input`] has led to, besides the word.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Transition {
    /// Whether a call is admitted, or how it continues after its first token.
    pub(crate) admission: Option<Result<Pass, Status>>,
    /// What subscribers are told, in order.
    pub(crate) reports: Vec<EventKind>,
    /// Whether a probe has counted as a success or failure.
    pub(crate) has_counted: bool,
    /// Whether the input was about an earlier generation, and changed nothing.
    pub(crate) is_stale: bool,
}

/// A state, and how long it lasts or a refused call should wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) state: State,
    /// `None` if it has no end.
    pub(crate) left: Option<Duration>,
}

impl Machine {
    pub(crate) fn new(state: State) -> Self {
        Self {
            word: Word::first(state),
            openings: 0,
            closed_at: None,
            probes: Probes::default(),
            ramp: Ramp::default(),
            not_before: None,
            reported_kept_closed: false,
            would_open_until: None,
        }
    }

    /// Takes what happens at `now`.
    ///
    /// `may_open` says whether the other circuits leave room for one more that is open. It is asked only if failures, or
    /// another process, open this circuit otherwise.
    pub(crate) fn on(
        &mut self,
        input: Input,
        now: Instant,
        config: &Config,
        may_open: &mut dyn FnMut() -> bool,
    ) -> Transition {
        let mut step = Step {
            machine: self,
            now,
            config,
            may_open,
            transition: Transition::default(),
        };
        step.take(input);
        step.transition
    }

    /// The state at `now`, even if no call has come since the end of the last one.
    pub(crate) fn status(&self, now: Instant, config: &Config) -> Status {
        Status::of(self.word_at(now, config), now, config)
    }

    /// How it would refuse a call at `now`; `None` if it would admit one.
    pub(crate) fn refusal(&self, now: Instant, config: &Config) -> Option<Status> {
        let word = self.word_at(now, config);
        match word.state {
            State::Open | State::Throttled | State::ForcedOpen => {
                Some(Status::of(word, now, config))
            }
            State::HalfOpen if word == self.word => self.probes.refusal(now, config),
            State::Ramping => self.ramp.refusal(word, now, config),
            // Leases are free if it is half-open from now on.
            _ => None,
        }
    }

    /// The word at `now`, without the states that have ended by then.
    fn word_at(&self, now: Instant, config: &Config) -> Word {
        let word = self.word;
        let millis = config.clock.millis(now);
        match word.state {
            State::Open if word.is_over(millis) => word.next(State::HalfOpen, 0),
            // Counts are kept.
            State::Throttled if word.is_over(millis) => self.ramp.resumed(word, millis),
            State::Ramping if word.is_over(millis) => word.changed_to(State::Closed, 0),
            _ => word,
        }
    }
}

impl Status {
    pub(crate) fn of(word: Word, now: Instant, config: &Config) -> Self {
        let has_end = word.until > 0;
        Self {
            state: word.state,
            left: has_end.then(|| config.clock.left(word.until, now)),
        }
    }

    /// How long it refuses calls; an unknown time counts as the longest.
    pub(crate) fn lasts(self) -> Duration {
        self.left.unwrap_or(Duration::MAX)
    }
}
