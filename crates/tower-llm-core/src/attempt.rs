use std::{sync::Arc, time::Duration};

use crate::{Outcome, Usage};

/// One of the calls that a layer has made for a call: a branch of a fan-out.
///
/// Such a layer puts them into the extensions of its response, as `Arc<[Attempt]>`, for the layers around it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attempt {
    /// Where it went, if that has a name.
    pub target: Option<Arc<str>>,
    /// When it started, since the call began.
    pub started: Duration,
    /// When it answered or was given up, since the call began; `None` while it is in flight.
    pub ended: Option<Duration>,
    /// How it ended, by what had arrived when it answered; `None` while it is in flight.
    pub outcome: Option<Outcome>,
    /// What it had used by then, as far as is known: as reported, or else by the estimate of its input and the output that was
    /// seen. `None` for a stream that counts before its end, and for typed responses, which do not say.
    pub usage: Option<Usage>,
}

impl Attempt {
    /// Creates one that has started, and is in flight.
    #[must_use]
    pub const fn started(target: Option<Arc<str>>, started: Duration) -> Self {
        Self {
            target,
            started,
            ended: None,
            outcome: None,
            usage: None,
        }
    }
}
