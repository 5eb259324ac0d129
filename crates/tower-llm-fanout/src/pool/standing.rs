//! Whether a target should be passed over for a while.
//!
//! A target that fails fast has nothing in flight and a low latency, so a policy that looks at these alone sends it all
//! traffic. linkerd2-proxy records a failure as a latency of 5 s, or of the retry-after if that is longer (#4537). Calls to
//! models take as long as that when all is well, so here a failure ranks its target behind the others for that time.

use std::time::Duration;

use tokio::time::Instant;
use tower_llm_core::{Completion, Outcome, Subject};

/// How long a target ranks behind the others after a failure.
const PENALTY: Duration = Duration::from_secs(5);
/// The longest time of a provider that is believed.
const MAX_PENALTY: Duration = Duration::from_secs(300);
/// The same after its own layers have refused a call: it was not sent, and a permit or token may be free any time.
const REFUSED: Duration = Duration::from_secs(1);

/// How a target ranks; the worse, the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    Good,
    /// It failed before, and a call that may show that it has recovered was sent a moment ago.
    Probed,
    /// It failed, and ranks behind for this time.
    Penalised(Duration),
}

/// What the latest calls to a target say about it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Record {
    /// No success since the last failure.
    failing: bool,
    /// When a call was sent there although it was failing, unless one has ended since.
    probed_at: Option<Instant>,
    penalty: Option<Penalty>,
}

/// Why, and until when, a target ranks behind.
#[derive(Clone, Copy, Debug)]
struct Penalty {
    until: Instant,
    /// The provider stated the time: a success does not end it.
    is_stated: bool,
}

/// What the end of a call says about its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Success,
    /// Nothing: the caller or its request decided it.
    Neutral,
    /// A layer of the target did not send it.
    Refused,
    /// The provider failed, and states a time or does not.
    Failure(Option<Duration>),
}

impl End {
    /// `owns_credential`: the target's account is named, so a refused credential is not the caller's.
    pub(crate) fn of(completion: &Completion, owns_credential: bool) -> Self {
        match completion.outcome {
            Outcome::Success => Self::Success,
            Outcome::Throttled { retry_after } | Outcome::Overloaded { retry_after } => {
                Self::Failure(retry_after)
            }
            Outcome::Failed(_) | Outcome::Exhausted => Self::Failure(None),
            Outcome::ClientError
                if owns_credential && completion.subject == Some(Subject::Credential) =>
            {
                Self::Failure(None)
            }
            Outcome::Refused => Self::Refused,
            _ => Self::Neutral,
        }
    }
}

impl Record {
    /// A call is sent.
    pub(crate) fn dispatched(&mut self, now: Instant) {
        if self.failing {
            self.probed_at = Some(now);
        }
    }

    /// A call has ended.
    pub(crate) fn ended(&mut self, end: End, now: Instant) {
        self.probed_at = None;
        let (time, is_stated) = match end {
            End::Neutral => return,
            End::Success => {
                self.failing = false;
                let lasts = |penalty: &Penalty| penalty.is_stated && penalty.until > now;
                self.penalty = self.penalty.filter(lasts);
                return;
            }
            End::Refused => (REFUSED, false),
            End::Failure(None) => (PENALTY, false),
            End::Failure(Some(time)) => (time.clamp(PENALTY, MAX_PENALTY), true),
        };
        self.failing |= end != End::Refused;
        let until = now + time;
        if self.penalty.is_none_or(|penalty| penalty.until < until) {
            self.penalty = Some(Penalty { until, is_stated });
        }
    }

    /// The target ranks with the best, at any time.
    pub(crate) fn is_clean(&self) -> bool {
        !self.failing && self.penalty.is_none()
    }

    pub(crate) fn standing(&self, now: Instant) -> Standing {
        let left = |until: Instant| until.saturating_duration_since(now);
        let left_of_penalty = self.penalty.map(|penalty| left(penalty.until));
        // A probe that takes longer holds up no other.
        let left_of_probe = self.probed_at.map(|at| left(at + PENALTY));
        match (left_of_penalty, left_of_probe) {
            (Some(left), _) if !left.is_zero() => Standing::Penalised(left),
            (_, Some(left)) if !left.is_zero() => Standing::Probed,
            _ => Standing::Good,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_failure_ranks_a_target_behind_for_five_seconds_and_then_admits_one_probe() {
        let (mut record, start) = (Record::default(), Instant::now());
        record.dispatched(start);
        assert_eq!(record.standing(start), Standing::Good);
        record.ended(End::Failure(None), start);
        assert_eq!(record.standing(start), Standing::Penalised(5 * SECOND));

        let over = start + 5 * SECOND;
        assert_eq!(record.standing(over), Standing::Good);
        record.dispatched(over);
        assert_eq!(record.standing(over), Standing::Probed);
        record.ended(End::Success, over);
        record.dispatched(over);
        assert_eq!(record.standing(over), Standing::Good);
    }

    #[test]
    fn a_probe_that_leaves_or_takes_long_admits_another() {
        let (mut record, start) = (Record::default(), Instant::now());
        record.ended(End::Failure(None), start);
        let over = start + 5 * SECOND;
        record.dispatched(over);
        assert_eq!(record.standing(over + 5 * SECOND), Standing::Good);
        assert_eq!(record.standing(over + 4 * SECOND), Standing::Probed);
        record.ended(End::Neutral, over);
        assert_eq!(record.standing(over), Standing::Good);
    }

    #[test]
    fn a_success_ends_a_penalty_unless_the_provider_stated_it() {
        let (mut record, start) = (Record::default(), Instant::now());
        record.ended(End::Failure(None), start);
        record.ended(End::Success, start);
        assert_eq!(record.standing(start), Standing::Good);

        record.ended(End::Failure(Some(30 * SECOND)), start);
        record.ended(End::Success, start);
        record.ended(End::Failure(None), start);
        assert_eq!(record.standing(start), Standing::Penalised(30 * SECOND));
        assert!(!record.is_clean());
        record.ended(End::Success, start + 30 * SECOND);
        assert!(record.is_clean());
    }

    #[test]
    fn a_stated_time_counts_from_five_seconds_to_five_minutes() {
        let start = Instant::now();
        for (stated, counts) in [(1, 5), (60, 60), (4_000, 300)] {
            let mut record = Record::default();
            record.ended(End::Failure(Some(stated * SECOND)), start);
            let expected = Standing::Penalised(counts * SECOND);
            assert_eq!(record.standing(start), expected);
        }
    }

    #[test]
    fn a_refused_credential_counts_only_if_it_is_the_targets_own() {
        let mut completion = Completion::new(Outcome::ClientError);
        completion.subject = Some(Subject::Credential);
        assert_eq!(End::of(&completion, true), End::Failure(None));
        assert_eq!(End::of(&completion, false), End::Neutral);
    }
}
