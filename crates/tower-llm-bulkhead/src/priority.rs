use std::{fmt, sync::Arc};

use tower_llm_core::{Described, Priority};

/// A number for each priority.
pub(crate) type ByPriority = [usize; Priority::COUNT];

/// How a layer chooses the priority of a call.
#[derive(Clone)]
pub(crate) struct PriorityBy(Option<Arc<dyn Fn(&dyn Described) -> Priority + Send + Sync>>);

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
