//! How the responses of branches are read.

use tower_llm_core::HttpBody;

use crate::{ByOutcome, Ripeness};

/// How the responses of branches are read: when each counts, and what it then means.
#[derive(Clone, Debug)]
pub struct Reading<W = HttpBody, C = ByOutcome> {
    pub(crate) ripen: W,
    pub(crate) ripeness: Ripeness,
    pub(crate) classify: C,
}
