//! What the circuits of one scope have in common.

use std::sync::Arc;

use crate::{Scope, config::Config, ejection::Ejection, events::Events, window::Window};

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) scope: Scope,
    pub(crate) config: Arc<Config>,
    pub(crate) events: Arc<Events>,
    pub(crate) ejection: Ejection,
}

impl Group {
    pub(crate) fn new(scope: Scope, config: Arc<Config>, events: Arc<Events>) -> Self {
        let max_open_ratio = config.advanced.max_open_ratio;
        let max_open_ratio = max_open_ratio.filter(|_| is_of_failures(scope));
        let quiet_after = config.quiet_after().as_millis() as u64;
        Self {
            ejection: Ejection::new(max_open_ratio, quiet_after),
            scope,
            config,
            events,
        }
    }

    /// The window of failures, or of credential errors.
    pub(crate) fn failures(&self) -> Window {
        match self.config.failure_ratio {
            Some(_) if is_of_failures(self.scope) => self.window(),
            _ => Window::run_only(),
        }
    }

    /// The window of slow calls, if these are counted.
    pub(crate) fn slow(&self) -> Option<Window> {
        let slow = self.config.slow.filter(|_| is_of_failures(self.scope));
        slow.map(|_| self.window())
    }

    fn window(&self) -> Window {
        Window::new(self.config.over, self.config.clock)
    }
}

/// Whether failures open the circuits; if not, a single call does that shows enough, or credential errors in a row.
fn is_of_failures(scope: Scope) -> bool {
    !matches!(scope, Scope::Account | Scope::AccountAndModel)
}
