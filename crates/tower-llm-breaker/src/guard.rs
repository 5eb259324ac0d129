//! An admitted call, until its end.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::response::Parts;
use tokio::time::Instant;
use tower_llm_core::{Completion, Guard, Keyed};

use crate::{
    clock::Now,
    route::{Passes, Route},
    timing::Timing,
};

/// The guard of an admitted call: counts how it ends, once.
#[derive(Debug)]
pub struct BreakerGuard {
    pub(crate) route: Arc<Keyed<Route>>,
    pub(crate) passes: Passes,
    /// Boxed to keep the guard of other calls small.
    pub(crate) timing: Option<Box<Timing>>,
}

impl BreakerGuard {
    /// The same as [`Guard::response_headers`], for a call that is timed.
    #[cold]
    fn timed_headers(&mut self) {
        let now = Instant::now();
        if self
            .timing
            .as_mut()
            .is_some_and(|timing| timing.response_headers(now))
        {
            self.became_slow(now);
        }
    }

    fn became_slow(&self, now: Instant) {
        let mut now = Now::at(Some(now));
        self.route.record_slow(&self.passes, true, &mut now);
    }
}

impl Guard for BreakerGuard {
    fn response_headers(&mut self, _: Option<&mut Parts>) {
        if self.timing.is_some() {
            self.timed_headers();
        }
    }

    fn first_token(&mut self, at: Instant) {
        if let Some(timing) = &mut self.timing {
            timing.first_token();
            if timing.is_slow() {
                return;
            }
        }
        self.route.first_token(&mut self.passes, at);
    }

    fn follows_content(&self) -> bool {
        self.timing.is_some()
    }

    fn content(&mut self, seen: Option<u64>) {
        if let Some(timing) = &mut self.timing {
            timing.frame(seen);
        }
    }

    fn pending(&mut self, cx: &mut Context<'_>) {
        if let Some(timing) = &mut self.timing
            && let Poll::Ready(now) = timing.poll_slow(cx)
        {
            self.became_slow(now);
        }
    }

    fn end(&mut self, completion: &Completion) {
        let mut now = Now::at(completion.ended_at);
        let mut is_slow = false;
        if let Some(timing) = &mut self.timing {
            if let Some(is_slow) = timing.ended(completion.outcome) {
                self.route.record_slow(&self.passes, is_slow, &mut now);
            }
            is_slow = timing.is_slow();
        }
        self.route
            .record(&self.passes, completion, is_slow, &mut now);
    }
}
