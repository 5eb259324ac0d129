//! How the responses of branches are read.

use tower_llm_core::{Call, HttpBody};

use crate::{ByOutcome, Ripen, Ripeness};

/// How the responses of branches are read: when each counts, and what it then means.
#[derive(Clone, Debug)]
pub struct Reading<W = HttpBody, C = ByOutcome> {
    pub(crate) ripen: W,
    pub(crate) ripeness: Ripeness,
    pub(crate) classify: C,
}

impl<W, C> Reading<W, C> {
    /// Waits until `response` counts.
    pub(crate) fn ripen<R>(&self, call: Option<&Call>, response: R) -> W::Ripening
    where
        W: Ripen<R>,
    {
        self.ripen.ripen(call, response, self.ripeness)
    }
}
