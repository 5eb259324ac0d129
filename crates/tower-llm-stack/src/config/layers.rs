//! The layers that the settings ask for. [`Config::validate`](super::Config::validate) builds the same ones, so what it accepts can be
//! built.

use std::time::Duration;

use tower_llm_core::{ConfigError, KeyBy};
use tower_llm_fanout::{Budget, Delay, EnsembleBuilder, FanoutBuilder, FanoutLayer, Pick};
use tower_llm_ratelimit::{Limit, LimitBuilder};
use tower_llm_timeout::TimeoutLayer;

use super::{
    EnsembleConfig, HedgeConfig, ModelConfig, StickyKey, Strategy, TargetConfig, TimeoutConfig,
};

/// A stream's first token, unless set: providers queue calls for up to two minutes.
const FIRST_TOKEN: Duration = Duration::from_secs(120);

const IDLE: Duration = Duration::from_secs(60);

/// What a hedge may fail over besides, as a ratio of calls.
const FAILOVER_RATIO: f64 = 0.2;

impl TargetConfig {
    /// Returns the limits of the account, per minute.
    #[must_use]
    pub fn limits(&self) -> Vec<Limit> {
        type Of = fn(u64) -> LimitBuilder;
        let limits: [(Option<u64>, Of); 4] = [
            (self.rpm, Limit::requests),
            (self.tpm, Limit::tokens),
            (self.itpm, Limit::input_tokens),
            (self.otpm, Limit::output_tokens),
        ];
        let limits = limits.into_iter();
        limits
            .filter_map(|(amount, of)| Some(of(amount?).per_minute()))
            .collect()
    }

    /// Returns whether it has a credential of its own. If not, the caller's passes.
    #[must_use]
    pub fn has_credential(&self) -> bool {
        self.api_key_env.is_some() || self.api_key_file.is_some() || self.oauth.is_some()
    }
}

impl TryFrom<&TimeoutConfig> for TimeoutLayer {
    type Error = ConfigError;

    fn try_from(timeouts: &TimeoutConfig) -> Result<Self, ConfigError> {
        let longest = timeouts.total.max(timeouts.total_streamed);
        Self::builder()
            .first_token(timeouts.first_token.unwrap_or(FIRST_TOKEN.min(longest)))
            .idle(timeouts.idle.unwrap_or(IDLE.min(longest)))
            .total(timeouts.total)
            .total_streamed(timeouts.total_streamed)
            .build()
    }
}

impl ModelConfig {
    /// Starts the layer that sends a call to several targets. For `cascade`, add what an answer [means](FanoutBuilder::classify);
    /// for `ensemble`, see [`EnsembleConfig::layer`].
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the budget is no ratio. A valid configuration has none.
    pub fn fanout(&self) -> Result<FanoutBuilder, ConfigError> {
        let retries = self.retries as usize;
        let builder = match self.strategy {
            Strategy::Race => FanoutLayer::race(self.targets.len()),
            Strategy::Cascade => FanoutLayer::cascade(self.targets.len()),
            Strategy::Hedge => self.hedge(retries)?,
            _ => FanoutLayer::failover(retries),
        };
        self.bounded(builder)
    }

    /// Starts the layer of calls that need one answer of one target, whatever the strategy is.
    ///
    /// # Errors
    ///
    /// As for [`fanout`](Self::fanout).
    pub fn failover(&self) -> Result<FanoutBuilder, ConfigError> {
        self.bounded(FanoutLayer::failover(self.retries as usize))
    }

    fn hedge(&self, retries: usize) -> Result<FanoutBuilder, ConfigError> {
        let (delay, ratio) = match self.hedge {
            Some(HedgeConfig::Delay(delay)) => (Delay::fixed(delay), 0.1),
            Some(HedgeConfig::Percent(percent)) => {
                (Delay::slowest(percent / 100.0), percent / 100.0)
            }
            None => (Delay::slowest(0.05), 0.05),
        };
        // Besides the hedges, which their delay bounds, some calls may fail over.
        let budget = Budget::new((ratio + FAILOVER_RATIO).min(1.0))?;
        let hedge = FanoutLayer::hedge(delay).branches(retries.max(1).saturating_add(1));
        Ok(hedge.budget(budget))
    }

    fn bounded(&self, mut builder: FanoutBuilder) -> Result<FanoutBuilder, ConfigError> {
        if let Some(ratio) = self.budget {
            builder = builder.budget(Budget::new(ratio)?);
        }
        if let Some(deadline) = self.deadline {
            builder = builder.deadline(deadline);
        }
        Ok(builder)
    }

    /// Returns which target a call goes to first.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if `sticky_key` is not the name of a header. A valid configuration has none.
    pub fn pick(&self) -> Result<Pick, ConfigError> {
        Ok(match self.strategy {
            Strategy::RoundRobin => Pick::round_robin(),
            Strategy::Weighted => Pick::weighted(),
            Strategy::LeastBusy => Pick::least_in_flight(),
            Strategy::Latency => Pick::latency(),
            Strategy::Cheapest => Pick::cheapest(),
            Strategy::Sticky => Pick::sticky(match &self.sticky_key {
                Some(StickyKey::Header(name)) => {
                    let wrong = |_| ConfigError::new("sticky_key", name, "it is no header's name");
                    KeyBy::header(name.parse().map_err(wrong)?)
                }
                _ => KeyBy::caller(),
            }),
            _ => Pick::in_order(),
        })
    }
}

impl EnsembleConfig {
    /// Starts the layer that sends a call to several of so many `targets`, and has `judge` make one answer of theirs.
    ///
    /// `deadline` is that of the model.
    pub fn layer<J, A>(
        &self,
        targets: usize,
        deadline: Option<Duration>,
        judge: J,
        ask: A,
    ) -> EnsembleBuilder<J, A> {
        let candidates = self.max_providers.unwrap_or(targets).min(targets);
        let mut ensemble = FanoutLayer::ensemble(candidates, judge, ask)
            .min_ok(self.min_ok)
            .fail_fast(self.fail_fast);
        if let Some(time) = self.timeout.into_iter().chain(deadline).min() {
            ensemble = ensemble.deadline(time);
        }
        match self.timeout {
            Some(time) => ensemble.judge_timeout(time),
            None => ensemble,
        }
    }
}
