use std::{fmt, sync::Arc};

use tower_llm_core::Described;

/// The order of waiting calls: all calls of a higher priority go before any of a lower one.
///
/// While calls of a higher priority wait, those of a lower priority wait too, up to their
/// [`max_wait`](crate::BulkheadBuilder::max_wait).
// Complete: operators tell three priorities apart, and each costs every key a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A user waits for the answer.
    Interactive,
    /// The default.
    #[default]
    Normal,
    /// Work without a deadline.
    Batch,
}

/// A number for each priority.
pub(crate) type ByPriority = [usize; 3];

/// How a layer chooses the priority of a call.
#[derive(Clone)]
pub(crate) struct PriorityBy(Option<Arc<dyn Fn(&dyn Described) -> Priority + Send + Sync>>);

impl Priority {
    /// The index of its number in [`ByPriority`].
    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

impl PriorityBy {
    /// All calls are [`Priority::Normal`].
    pub(crate) const NORMAL: Self = Self(None);

    pub(crate) fn custom<F>(choose: F) -> Self
    where
        F: Fn(&dyn Described) -> Priority + Send + Sync + 'static,
    {
        Self(Some(Arc::new(choose)))
    }

    pub(crate) fn of(&self, request: &dyn Described) -> Priority {
        self.0
            .as_ref()
            .map_or(Priority::Normal, |choose| choose(request))
    }
}

impl fmt::Debug for PriorityBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Custom" } else { "Normal" })
    }
}
