//! Alerts: thresholds that what was counted lately must keep.
//!
//! Plain code: a snapshot and the time go in, events come out. An alert is raised when its value has been over its bound for a
//! while, and resolved when it has been back beyond a second one for as long; in between nothing changes, so a value that swings
//! around its bound raises one alert and not a hundred.

use std::{borrow::Cow, collections::BTreeMap, fmt, time::Duration};

use serde::Serialize;
use tokio::time::Instant;
use tower_llm_core::ConfigError;

use crate::{RowSnapshot, Snapshot, Stats, times::seconds};

/// What an alert looks at: the calls of the last minute, unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Measure {
    /// [`Stats::success_ratio`].
    SuccessRatio,
    /// [`Stats::refused_ratio`].
    RefusedRatio,
    /// [`Stats::hit_ratio`], once a cache has served a call.
    HitRatio,
    /// Mean latency, in seconds.
    LatencyMean,
    /// 95th percentile of the latency, in seconds.
    LatencyP95,
    /// 99th percentile of the latency, in seconds.
    LatencyP99,
    /// 95th percentile of the time to the first token, in seconds.
    FirstTokenP95,
    /// [`Stats::cost_per_hour`], in dollars.
    CostPerHour,
    /// [`Stats::cost_per_call`], in dollars.
    CostPerCall,
    /// The ratio of calls whose cost is not known to those that were sent.
    UnpricedRatio,
    /// Calls in flight now.
    InFlight,
    /// A number of the service's own: [`MonitorHandle::set_gauge`](crate::MonitorHandle::set_gauge).
    Gauge(&'static str),
}

/// The side of a threshold that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
// Complete: a number has two sides.
pub enum Side {
    /// Larger values are wrong.
    Above,
    /// Smaller values are wrong.
    Below,
}

/// A bound on a [`Measure`].
#[derive(Clone, Debug, PartialEq)]
#[must_use = "a threshold does nothing until it is among alerts"]
pub struct Threshold {
    name: Cow<'static, str>,
    measure: Measure,
    side: Side,
    bound: f64,
    clears_at: f64,
    lasting: Duration,
    min_calls: u64,
    each_row: bool,
}

/// Thresholds, and which of them are exceeded.
#[derive(Clone, Debug, Default)]
pub struct Alerts {
    thresholds: Vec<Threshold>,
    /// By the number of the threshold.
    states: BTreeMap<(usize, Option<Subject>), State>,
}

/// The row that an alert is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[non_exhaustive]
pub struct Subject {
    /// Its provider.
    pub provider: Box<str>,
    /// Its operation.
    pub operation: Box<str>,
    /// Its model.
    pub model: Box<str>,
}

/// An alert that is raised.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Alert {
    /// The name of its threshold.
    pub name: Cow<'static, str>,
    /// What it looks at.
    pub measure: Measure,
    /// The row that it is about; `None` for all calls.
    pub subject: Option<Subject>,
    /// The side that is wrong.
    pub side: Side,
    /// The bound.
    pub bound: f64,
    /// The last value; `None` if there are too few calls to say.
    pub value: Option<f64>,
    /// How long it has been raised.
    #[serde(rename = "raised_seconds", serialize_with = "seconds")]
    pub raised: Duration,
}

/// An alert that was raised or resolved.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AlertEvent {
    /// What happened.
    pub change: Change,
    /// The alert.
    #[serde(flatten)]
    pub alert: Alert,
}

/// What happened to an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
// Complete: there is nothing between.
pub enum Change {
    /// It was raised.
    Raised,
    /// It was resolved.
    Resolved,
}

/// Where a threshold stands. None is kept while its value is right.
#[derive(Clone, Copy, Debug)]
enum State {
    /// Exceeded, not for long enough yet.
    Pending { since: Instant },
    Raised {
        at: Instant,
        value: Option<f64>,
        /// Since when the value has been back.
        back_since: Option<Instant>,
    },
}

// === impl Threshold ===

impl Threshold {
    fn new(measure: Measure, side: Side, bound: f64) -> Self {
        let clears_at = match side {
            Side::Above => bound * 0.9,
            Side::Below if bound <= 1.0 => bound + (1.0 - bound) * 0.1,
            Side::Below => bound * 1.1,
        };
        Self {
            name: measure.to_string().into(),
            measure,
            side,
            bound,
            clears_at,
            lasting: Duration::from_secs(60),
            min_calls: 20,
            each_row: false,
        }
    }

    /// Creates a threshold that `measure` must not exceed. It lasts 60 s, clears at 90 % of the bound, wants 20 calls, and is
    /// called as its measure, unless set otherwise.
    pub fn above(measure: Measure, bound: f64) -> Self {
        Self::new(measure, Side::Above, bound)
    }

    /// Creates a threshold that `measure` must not fall below. It lasts 60 s, clears a tenth of the way from the bound to 1 (for
    /// bounds over 1, a tenth above it), wants 20 calls, and is called as its measure, unless set otherwise.
    pub fn below(measure: Measure, bound: f64) -> Self {
        Self::new(measure, Side::Below, bound)
    }

    /// Sets the name.
    pub fn named(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets how long the value must be wrong before the alert is raised, and right before it is resolved; zero for at once.
    pub fn lasting(mut self, time: Duration) -> Self {
        self.lasting = time;
        self
    }

    /// Sets the value at which it is right again, which is on the right side of the bound, or the bound.
    pub fn clears_at(mut self, value: f64) -> Self {
        self.clears_at = value;
        self
    }

    /// Sets how many calls of the last minute it takes to judge; fewer are right. A gauge needs none.
    pub fn min_calls(mut self, calls: u64) -> Self {
        self.min_calls = calls;
        self
    }

    /// Looks at each provider, operation and model for itself, and not at all calls together.
    pub fn each_row(mut self) -> Self {
        self.each_row = true;
        self
    }

    fn check(&self) -> Result<(), ConfigError> {
        let is_ratio = matches!(
            self.measure,
            Measure::SuccessRatio
                | Measure::RefusedRatio
                | Measure::HitRatio
                | Measure::UnpricedRatio
        );
        if !self.bound.is_finite() || self.bound < 0.0 {
            return Err(ConfigError::new(
                "bound",
                self.bound,
                "it must be a number, zero or more",
            ));
        }
        if is_ratio && self.bound > 1.0 {
            return Err(ConfigError::new(
                "bound",
                self.bound,
                "a ratio is at most 1",
            ));
        }
        let is_right = match self.side {
            Side::Above => self.clears_at <= self.bound,
            Side::Below => self.clears_at >= self.bound,
        };
        if !is_right || !self.clears_at.is_finite() {
            let reason = "it must be on the right side of the bound";
            return Err(ConfigError::new("clears_at", self.clears_at, reason));
        }
        if self.lasting > Duration::from_secs(86_400) {
            return Err(ConfigError::new(
                "lasting",
                self.lasting,
                "it must be at most a day",
            ));
        }
        if self.each_row && matches!(self.measure, Measure::Gauge(_)) {
            return Err(ConfigError::new(
                "each_row",
                true,
                "a gauge is not about calls",
            ));
        }
        Ok(())
    }

    fn is_wrong(&self, value: f64) -> bool {
        match self.side {
            Side::Above => value > self.bound,
            Side::Below => value < self.bound,
        }
    }

    fn is_clear(&self, value: f64) -> bool {
        match self.side {
            Side::Above => value <= self.clears_at,
            Side::Below => value >= self.clears_at,
        }
    }
}

// === impl Alerts ===

impl Alerts {
    /// Creates alerts with these thresholds.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming the setting, if a bound is negative or not a number, or over 1 for a ratio; if `clears_at` is on the
    /// wrong side of it; if `lasting` is over a day; or if a gauge is to be judged by row.
    pub fn new(thresholds: impl IntoIterator<Item = Threshold>) -> Result<Self, ConfigError> {
        let thresholds: Vec<Threshold> = thresholds.into_iter().collect();
        thresholds.iter().try_for_each(Threshold::check)?;
        Ok(Self {
            thresholds,
            states: BTreeMap::new(),
        })
    }

    /// The usual thresholds: success below 95 %, p95 above 1 s, p99 above 5 s, hit ratio below 80 %, cost of a call above
    /// 0.50 dollars, and the gauge `memory_ratio` above 0.9.
    ///
    /// Answers of large models take longer than a second: set what suits yours.
    #[must_use]
    pub fn usual() -> Vec<Threshold> {
        vec![
            Threshold::below(Measure::SuccessRatio, 0.95),
            Threshold::above(Measure::LatencyP95, 1.0),
            Threshold::above(Measure::LatencyP99, 5.0),
            Threshold::below(Measure::HitRatio, 0.8),
            Threshold::above(Measure::CostPerCall, 0.5),
            Threshold::above(Measure::Gauge("memory_ratio"), 0.9),
        ]
    }

    /// Judges a snapshot as of `now`; returns what has changed.
    pub fn on(&mut self, snapshot: &Snapshot, now: Instant) -> Vec<AlertEvent> {
        let mut events = Vec::new();
        for (number, threshold) in self.thresholds.iter().enumerate() {
            let states = &mut self.states;
            let mut judge = |subject: Option<Subject>, value: Option<f64>| {
                let state = states.remove(&(number, subject.clone()));
                let (next, change) = next(state, threshold, value, now);
                if let Some(change) = change {
                    let raised = state.map_or(Duration::ZERO, |state| state.raised(now));
                    let alert = threshold.alert(subject.clone(), value, raised);
                    events.push(AlertEvent { change, alert });
                }
                if let Some(next) = next {
                    states.insert((number, subject), next);
                }
            };
            if threshold.each_row {
                for row in &snapshot.rows {
                    let value = threshold.value(&row.summary, snapshot);
                    judge(Some(Subject::of(row)), value);
                }
            } else {
                judge(None, threshold.value(&snapshot.total, snapshot));
            }
        }
        events
    }

    /// Whether an alert of each name is raised.
    #[cfg(feature = "metrics")]
    pub(crate) fn by_name(&self) -> Vec<(&str, bool)> {
        let is_raised = |number: usize| {
            let mut states = self.states.iter().filter(|((of, _), _)| *of == number);
            states.any(|(_, state)| matches!(state, State::Raised { .. }))
        };
        let thresholds = self.thresholds.iter().enumerate();
        thresholds
            .map(|(number, threshold)| (&*threshold.name, is_raised(number)))
            .collect()
    }

    /// The alerts that are raised.
    #[must_use]
    pub fn raised(&self, now: Instant) -> Vec<Alert> {
        let raised = self.states.iter().filter_map(|((number, subject), state)| {
            let State::Raised { value, .. } = state else {
                return None;
            };
            let threshold = &self.thresholds[*number];
            Some(threshold.alert(subject.clone(), *value, state.raised(now)))
        });
        raised.collect()
    }
}

impl Threshold {
    fn alert(&self, subject: Option<Subject>, value: Option<f64>, raised: Duration) -> Alert {
        Alert {
            name: self.name.clone(),
            measure: self.measure,
            subject,
            side: self.side,
            bound: self.bound,
            value,
            raised,
        }
    }

    /// `None` if there is too little to judge by.
    fn value(&self, summary: &crate::Summary, snapshot: &Snapshot) -> Option<f64> {
        if let Measure::Gauge(name) = self.measure {
            return snapshot.gauges.get(name).copied();
        }
        if self.measure == Measure::InFlight {
            #[expect(clippy::cast_precision_loss, reason = "no service has 2^52 calls")]
            return Some(summary.in_flight as f64);
        }
        let enough = summary.recent.calls >= self.min_calls;
        enough.then(|| self.measure.of(&summary.recent, &summary.since_start))?
    }
}

impl Measure {
    fn of(self, recent: &Stats, since_start: &Stats) -> Option<f64> {
        let seconds =
            |times: &crate::Times, time: Duration| (times.count > 0).then_some(time.as_secs_f64());
        let (latency, first_token) = (&recent.latency, &recent.first_token);
        match self {
            Self::SuccessRatio => recent.success_ratio(),
            Self::RefusedRatio => recent.refused_ratio(),
            Self::HitRatio => {
                let has_cache = since_start.cache_hits + since_start.cache_followers > 0;
                recent.hit_ratio().filter(|_| has_cache)
            }
            Self::LatencyMean => seconds(latency, latency.mean),
            Self::LatencyP95 => seconds(latency, latency.p95),
            Self::LatencyP99 => seconds(latency, latency.p99),
            Self::FirstTokenP95 => seconds(first_token, first_token.p95),
            Self::CostPerHour => recent.cost_per_hour(),
            Self::CostPerCall => recent.cost_per_call(),
            Self::UnpricedRatio => recent.unpriced_ratio(),
            Self::InFlight | Self::Gauge(_) => None,
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SuccessRatio => "success_ratio",
            Self::RefusedRatio => "refused_ratio",
            Self::HitRatio => "hit_ratio",
            Self::LatencyMean => "latency_mean",
            Self::LatencyP95 => "latency_p95",
            Self::LatencyP99 => "latency_p99",
            Self::FirstTokenP95 => "first_token_p95",
            Self::CostPerHour => "cost_per_hour",
            Self::CostPerCall => "cost_per_call",
            Self::UnpricedRatio => "unpriced_ratio",
            Self::InFlight => "in_flight",
            Self::Gauge(name) => name,
        })
    }
}

impl Subject {
    fn of(row: &RowSnapshot) -> Self {
        Self {
            provider: row.provider.clone(),
            operation: row.operation.clone(),
            model: row.model.clone(),
        }
    }
}

// === impl State ===

impl State {
    fn raised(&self, now: Instant) -> Duration {
        match self {
            Self::Pending { .. } => Duration::ZERO,
            Self::Raised { at, .. } => now.saturating_duration_since(*at),
        }
    }
}

/// The state after a value, and what has changed.
fn next(
    state: Option<State>,
    threshold: &Threshold,
    value: Option<f64>,
    now: Instant,
) -> (Option<State>, Option<Change>) {
    let has_lasted = |since: Instant| now.saturating_duration_since(since) >= threshold.lasting;
    let is_wrong = value.is_some_and(|value| threshold.is_wrong(value));
    match state {
        None | Some(State::Pending { .. }) if !is_wrong => (None, None),
        None | Some(State::Pending { .. }) => {
            let since = match state {
                Some(State::Pending { since }) => since,
                _ => now,
            };
            if !has_lasted(since) {
                return (Some(State::Pending { since }), None);
            }
            let raised = State::Raised {
                at: now,
                value,
                back_since: None,
            };
            (Some(raised), Some(Change::Raised))
        }
        Some(State::Raised { at, back_since, .. }) => {
            // Without calls there is nothing wrong.
            let is_clear = value.is_none_or(|value| threshold.is_clear(value));
            let back_since = is_clear.then(|| back_since.unwrap_or(now));
            if back_since.is_some_and(has_lasted) {
                return (None, Some(Change::Resolved));
            }
            let raised = State::Raised {
                at,
                value,
                back_since,
            };
            (Some(raised), None)
        }
    }
}
