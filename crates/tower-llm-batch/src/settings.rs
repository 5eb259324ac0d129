//! The settings of a layer, and their checks.

use std::{sync::Arc, time::Duration};

use tower_llm_core::ConfigError;

use crate::{Batcher, layer::BatchLayer, shared::Shared};

/// Builds a [`BatchLayer`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct BatchBuilder<Bt> {
    batcher: Bt,
    settings: Settings,
}

/// What becomes of a batch whose callers have all left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Abandoned {
    /// It is dropped, which closes the upstream call.
    #[default]
    Drop,
    /// A task reads it to its end. Providers bill most calls once they have begun, and HTTP/1 closes the connection of a call
    /// that is dropped. Outside of a runtime of tokio, the batch is dropped.
    Finish,
}

/// The checked settings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) max_items: u64,
    pub(crate) max_tokens: u64,
    pub(crate) window: Duration,
    pub(crate) max_in_flight: usize,
    pub(crate) max_waiting: usize,
    pub(crate) max_wait: Duration,
    pub(crate) max_split_calls: usize,
    pub(crate) call_time: Duration,
    pub(crate) abandoned: Abandoned,
}

impl<Bt> BatchBuilder<Bt> {
    pub(crate) const fn new(batcher: Bt) -> Self {
        Self {
            batcher,
            settings: Settings {
                max_items: 2_048,
                max_tokens: 300_000,
                window: Duration::ZERO,
                max_in_flight: 1,
                max_waiting: 1_000,
                max_wait: Duration::from_secs(30),
                max_split_calls: 32,
                call_time: Duration::from_secs(1),
                abandoned: Abandoned::Drop,
            },
        }
    }

    /// Sets how many items a batch has at most; 2,048 unless set. Calls that are larger alone are sent alone.
    pub fn max_items(mut self, items: u64) -> Self {
        self.settings.max_items = items;
        self
    }

    /// Sets how many tokens a batch has at most; 300,000 unless set. Calls that are larger alone are sent alone.
    pub fn max_tokens(mut self, tokens: u64) -> Self {
        self.settings.max_tokens = tokens;
        self
    }

    /// Sets how long a batch stays open from its oldest call on, at most a day; zero unless set.
    ///
    /// At zero, a call is sent at once if fewer than [`max_in_flight`](Self::max_in_flight) batches of its key are in flight.
    /// The calls that come meanwhile are gathered and sent together. This adds no latency, and batches grow with the load. A
    /// longer window makes larger batches of sparse calls, at the price of that wait for each.
    pub fn window(mut self, window: Duration) -> Self {
        self.settings.window = window;
        self
    }

    /// Sets how many batches of one key may be in flight; one unless set.
    pub fn max_in_flight(mut self, batches: usize) -> Self {
        self.settings.max_in_flight = batches;
        self
    }

    /// Sets how many calls of one key and priority may wait; 1,000 unless set. Further calls are refused.
    ///
    /// A call waits until a poll of it, or of another call of its key, sends it.
    pub fn max_waiting(mut self, calls: usize) -> Self {
        self.settings.max_waiting = calls;
        self
    }

    /// Sets how long a call may wait until it is sent; 30 s unless set, at most a day. Then it is refused.
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.settings.max_wait = wait;
        self
    }

    /// Sets how many more calls may be made for a batch that is rejected because of a request in it; 32 unless set.
    ///
    /// A rejected batch is sent again in halves, one after the other, until the requests at fault are alone. One of them among
    /// `n` takes at most `2 log2(n)` calls. When no more calls may be made, the rejection is the answer to all requests that
    /// are left. At zero, that is all of the batch.
    pub fn max_split_calls(mut self, calls: usize) -> Self {
        self.settings.max_split_calls = calls;
        self
    }

    /// Sets how long an upstream call may take, until the layer has seen some; 1 s unless set.
    ///
    /// A batch is closed early enough for the earliest [deadline](crate::Terms::deadline) in it. The longest of the last 16
    /// calls counts.
    pub fn expected_call_time(mut self, time: Duration) -> Self {
        self.settings.call_time = time;
        self
    }

    /// Sets what becomes of a batch whose callers have all left; it is dropped unless set.
    pub fn abandoned(mut self, abandoned: Abandoned) -> Self {
        self.settings.abandoned = abandoned;
        self
    }
}

impl<Bt: Batcher> BatchBuilder<Bt> {
    /// Builds the layer.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming the setting, if `max_items`, `max_tokens`, `max_in_flight`, `max_waiting`, `max_wait` or
    /// `expected_call_time` is zero, or a time is over a day.
    pub fn build(self) -> Result<BatchLayer<Bt>, ConfigError> {
        let settings = self.settings;
        check_nonzero("max_items", settings.max_items)?;
        check_nonzero("max_tokens", settings.max_tokens)?;
        ConfigError::check_nonzero("max_in_flight", settings.max_in_flight)?;
        ConfigError::check_nonzero("max_waiting", settings.max_waiting)?;
        ConfigError::check_duration("max_wait", settings.max_wait)?;
        ConfigError::check_duration("expected_call_time", settings.call_time)?;
        if !settings.window.is_zero() {
            ConfigError::check_duration("window", settings.window)?;
        }
        Ok(BatchLayer {
            shared: Arc::new(Shared::new(self.batcher, settings)),
        })
    }
}

fn check_nonzero(field: &'static str, value: u64) -> Result<(), ConfigError> {
    match value {
        0 => Err(ConfigError::new(field, value, "it must be at least one")),
        _ => Ok(()),
    }
}
