//! What an answer means for the rest of the call.

use std::time::Duration;

use tower_llm_core::{BoxError, Completion, Outcome, Subject, Usage};

/// What the answer of one branch means for the rest of the call.
///
/// The values are those of gRPC's retry and hedging policies (gRFC A6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It is the answer.
    Accept,
    /// It is the answer, and a bad one: no other branch would do better.
    Fatal,
    /// Another branch may do better, and may start now.
    Soft,
    /// Another branch may do better. At the same target it must not start before this time; another target can be tried now.
    ///
    /// A time beyond [`max_retry_after`](crate::FanoutBuilder::max_retry_after) rules the target out for this call.
    SoftAfter(Duration),
    /// No other branch may start. Those in flight may do better.
    SoftNoMore,
}

/// What has arrived of one branch: its answer, or why there is none.
#[derive(Debug)]
#[non_exhaustive]
pub struct Arrived<T> {
    /// The response, as far as it must have arrived to count, or the error.
    pub result: Result<T, BoxError>,
    /// How the branch ended, by what has arrived of it.
    pub outcome: Outcome,
    /// What the provider's error concerns, if it says so.
    pub subject: Option<Subject>,
    /// What the provider says about another try, in `x-should-retry`.
    pub should_retry: Option<bool>,
    /// What it has used, as far as is known.
    pub usage: Option<Usage>,
}

/// Decides what an answer means. Implemented for closures.
pub trait Classify<T>: Clone {
    /// Returns the verdict on an answer.
    fn classify(&self, arrived: &Arrived<T>) -> Verdict;
}

/// Decides by the [`Outcome`].
///
/// | outcome | verdict |
/// |---|---|
/// | `Success` | accept |
/// | `ClientError` | fatal; with a refused credential, another target may do better |
/// | `Throttled`, `Overloaded` | soft, after the time that the provider asks for |
/// | `Exhausted`, `Refused` | another target may do better; this one is not tried again |
/// | `Failed` | soft |
/// | `Abandoned`, `Superseded` | fatal: the provider gave the call up |
///
/// `x-should-retry` goes first: `true` makes an error soft, and with `false` only another target may be tried.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByOutcome;

/// A wait that no call makes: only another target may do better.
pub(crate) const ELSEWHERE: Verdict = Verdict::SoftAfter(Duration::MAX);

// === impl Arrived ===

impl<T> Arrived<T> {
    /// An answer, or an error, with this outcome.
    pub const fn new(result: Result<T, BoxError>, outcome: Outcome) -> Self {
        Self {
            result,
            outcome,
            subject: None,
            should_retry: None,
            usage: None,
        }
    }

    /// The same, having used this.
    pub(crate) const fn using(mut self, used: Usage) -> Self {
        self.usage = Some(used);
        self
    }

    /// The error that came instead of a response, for a call with this estimate of its input.
    pub(crate) fn error(error: BoxError, input_tokens: u64) -> Self {
        let completion = Completion::of_error(&*error);
        let arrived = Self {
            subject: completion.subject,
            ..Self::new(Err(error), completion.outcome)
        };
        arrived.using(completion.used(input_tokens))
    }
}

// === impl Classify ===

impl<T, F> Classify<T> for F
where
    F: Fn(&Arrived<T>) -> Verdict + Clone,
{
    fn classify(&self, arrived: &Arrived<T>) -> Verdict {
        self(arrived)
    }
}

impl<T> Classify<T> for ByOutcome {
    fn classify(&self, arrived: &Arrived<T>) -> Verdict {
        let verdict = by_outcome(arrived);
        match (verdict, arrived.should_retry) {
            (Verdict::Fatal, Some(true)) => Verdict::Soft,
            (Verdict::Soft | Verdict::SoftAfter(_), Some(false)) => ELSEWHERE,
            _ => verdict,
        }
    }
}

fn by_outcome<T>(arrived: &Arrived<T>) -> Verdict {
    let after = |time: Option<Duration>| time.map_or(Verdict::Soft, Verdict::SoftAfter);
    match arrived.outcome {
        Outcome::Success => Verdict::Accept,
        Outcome::ClientError if arrived.subject == Some(Subject::Credential) => ELSEWHERE,
        Outcome::Throttled { retry_after } | Outcome::Overloaded { retry_after } => {
            after(retry_after)
        }
        Outcome::Failed(_) => Verdict::Soft,
        // The target's own layers have refused it; what they wait for is theirs to say.
        Outcome::Exhausted | Outcome::Refused => ELSEWHERE,
        // `Abandoned` and `Superseded` among them: the provider gave the call up.
        _ => Verdict::Fatal,
    }
}
