//! Settings that few services need.

use std::time::Duration;

/// Settings that few services need; see [`BreakerBuilder::advanced`](crate::BreakerBuilder::advanced).
///
/// | setting | default |
/// |---|---|
/// | [`open_factor`](Self::open_factor) | 2 |
/// | [`jitter`](Self::jitter) | 0.1 |
/// | [`max_retry_after`](Self::max_retry_after) | an hour |
/// | [`exhausted_for`](Self::exhausted_for) | 15 min |
/// | [`probe_lease`](Self::probe_lease) | 60 s |
/// | [`first_token_is_success`](Self::first_token_is_success) | no |
/// | [`ramp`](Self::ramp), [`max_open_ratio`](Self::max_open_ratio) | none |
#[derive(Clone, Debug)]
#[must_use = "it does nothing until it is returned to the builder"]
pub struct Advanced {
    pub(crate) open_factor: f64,
    pub(crate) jitter: f64,
    pub(crate) max_retry_after: Duration,
    pub(crate) exhausted_for: Duration,
    pub(crate) probe_lease: Duration,
    pub(crate) first_token_is_success: bool,
    pub(crate) ramp: Option<Duration>,
    pub(crate) max_open_ratio: Option<f64>,
}

const MINUTE: Duration = Duration::from_secs(60);

impl Default for Advanced {
    fn default() -> Self {
        Self {
            open_factor: 2.0,
            jitter: 0.1,
            max_retry_after: 60 * MINUTE,
            exhausted_for: 15 * MINUTE,
            probe_lease: MINUTE,
            first_token_is_success: false,
            ramp: None,
            max_open_ratio: None,
        }
    }
}

impl Advanced {
    /// Sets the factor by which each opening lasts longer than the one before; 1 to 1,000. It restarts when the circuit has
    /// stayed closed for as long as [`open_for`](crate::BreakerBuilder::open_for).
    pub fn open_factor(mut self, factor: f64) -> Self {
        self.open_factor = factor;
        self
    }

    /// Extends each opening by a random time up to this ratio of it, so that not all calls return at once; 0 to 1.
    pub fn jitter(mut self, ratio: f64) -> Self {
        self.jitter = ratio;
        self
    }

    /// Sets the longest time to wait that is accepted from the provider.
    pub fn max_retry_after(mut self, time: Duration) -> Self {
        self.max_retry_after = time;
        self
    }

    /// Sets how long a circuit is open when money or a quota is used up, or when the credential is refused three times in a
    /// row.
    pub fn exhausted_for(mut self, time: Duration) -> Self {
        self.exhausted_for = time;
        self
    }

    /// Sets how long a probe may take, waits in inner layers included, before another one is admitted beside it, so that a probe
    /// that never ends does not block the circuit. Its result still counts if it ends later and the circuit has not changed.
    pub fn probe_lease(mut self, time: Duration) -> Self {
        self.probe_lease = time;
        self
    }

    /// Counts a probe as a success at its first content token instead of at its end, which may be minutes away. If it fails
    /// later, that counts like the failure of any call. Off unless set.
    pub fn first_token_is_success(mut self, is_success: bool) -> Self {
        self.first_token_is_success = is_success;
        self
    }

    /// Admits calls gradually when a circuit closes: a tenth of them at first, all of them after `time`.
    pub fn ramp(mut self, time: Duration) -> Self {
        self.ramp = Some(time);
        self
    }

    /// Keeps a circuit closed if failures would open it while more than this ratio of the layer's circuits of its scope
    /// would then be open; 0 to 1. Only circuits whose calls have succeeded, failed or been slow count. Use it for pools:
    /// if all members fail, some must still be called.
    ///
    /// Manual control, a 429 with a time, exhausted accounts and failed probes open a circuit in any case. An open circuit
    /// counts until it closes. It also stops counting if it gets no probe after its time for as long as the window or
    /// [`max_open_for`](crate::BreakerBuilder::max_open_for), whichever is longer; with the next probe it counts again.
    ///
    /// If processes share circuits (feature `redis`), each applies its own ratio. A circuit that another process has opened counts
    /// here too; it opens here if the ratio allows it, and stays closed otherwise. Circuits of accounts open in any case.
    pub fn max_open_ratio(mut self, ratio: f64) -> Self {
        self.max_open_ratio = Some(ratio);
        self
    }
}
