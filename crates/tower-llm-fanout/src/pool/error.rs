//! No target can take a call.

use std::{error::Error, fmt, time::Duration};

use tower_llm_core::{Availability, Refusal, RefusalKind};

use super::target::Seen;

/// No target of a pool can take the call now. Nothing was sent.
///
/// It is a [`Refusal`]: as [`RefusalKind::RateLimited`] if only [limits](crate::Target::limit) are in the way, else as
/// [`RefusalKind::Unavailable`]. The text of the message may change.
#[derive(Clone, Debug)]
pub struct NoTarget {
    targets: usize,
    refusal: Refusal,
}

/// What is in the way of the targets that were looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct InTheWay {
    targets: usize,
    limits: usize,
    never: usize,
    earliest: Option<Duration>,
}

impl InTheWay {
    /// A target cannot take the call.
    pub(crate) fn add(&mut self, seen: Seen) {
        self.targets += 1;
        self.limits += usize::from(seen.kind == RefusalKind::RateLimited);
        match seen.availability {
            Availability::Never => self.never += 1,
            Availability::After(time) => {
                let earliest = self.earliest.map_or(time, |earliest| earliest.min(time));
                self.earliest = Some(earliest);
            }
            Availability::Now | Availability::Unknown => {}
        }
    }

    pub(crate) fn into_error(self) -> NoTarget {
        let all = |some: usize| some > 0 && some == self.targets;
        let kind = match all(self.limits) {
            true => RefusalKind::RateLimited,
            false => RefusalKind::Unavailable,
        };
        let refusal = Refusal::new(kind, "fanout");
        let refusal = match self.earliest {
            Some(time) => refusal.after(time),
            None if all(self.never) => refusal.never(),
            None => refusal,
        };
        NoTarget {
            targets: self.targets,
            refusal,
        }
    }
}

impl NoTarget {
    /// Time until the first target could take the call; `None` if that is not known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.refusal.retry_after()
    }

    /// How many targets the pool has.
    #[must_use]
    pub fn targets(&self) -> usize {
        self.targets
    }
}

impl fmt::Display for NoTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.targets, self.retry_after()) {
            (0, _) => f.write_str("the pool has no targets"),
            (targets, Some(time)) => write!(
                f,
                "none of {targets} targets can take the call, the first one can in {time:?}"
            ),
            (targets, None) => write!(f, "none of {targets} targets can take the call"),
        }
    }
}

impl Error for NoTarget {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}
