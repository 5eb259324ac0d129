//! What a call demands of its limits.

use std::sync::Arc;

use tower_llm_core::{Caller, Keyed};

use crate::{
    checked_limit::CheckedLimit, output_lengths::OutputLengths, pricing::Estimate, tier::Tier,
};

/// What a call demands of its limits.
#[derive(Clone, Debug)]
pub(crate) struct Demand {
    pub(crate) estimate: Estimate,
    pub(crate) tier: Tier,
    /// Where the length of its output is observed.
    pub(crate) observed: Option<Arc<Keyed<OutputLengths>>>,
    /// The caller; not read before the call is blocked.
    pub(crate) caller: Option<Caller>,
}

impl Demand {
    /// What the call reserves of one limit.
    pub(crate) fn amount(&self, checked: &CheckedLimit) -> u64 {
        self.estimate.reserved.of(checked.limit.unit())
    }

    /// How much of a limit must be available; `None` if the call uses none of it.
    pub(crate) fn needed(&self, checked: &CheckedLimit) -> Option<u64> {
        self.estimate.needed(checked.limit.unit())
    }
}
