//! Models: what callers ask for.

use std::time::Duration;

use serde::Deserialize;

use super::duration;

/// What callers ask for: which targets serve it, and in which way.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
#[non_exhaustive]
pub struct ModelConfig {
    /// How a target is chosen; `failover` unless set.
    pub strategy: Strategy,
    /// The targets, by name. `cascade` takes them in this order, and so does `failover` if their `priority` is the same.
    pub targets: Vec<String>,
    /// Extra attempts for all reasons together; 2 unless set. The calls that `race`, `cascade` and `ensemble` are made of are
    /// none of them.
    pub retries: u32,
    /// Extra calls per call, on average, from 0 to 1; the budget's default unless set.
    pub budget: Option<f64>,
    /// Time for all attempts together; no limit unless set.
    #[serde(deserialize_with = "duration::optional")]
    pub deadline: Option<Duration>,
    /// When the second call starts, with the strategy `hedge`.
    pub hedge: Option<HedgeConfig>,
    /// What sends a call to the same target again, with the strategy `sticky`; the caller unless set.
    pub sticky_key: Option<StickyKey>,
    /// Which answers are good enough, with the strategy `cascade`.
    pub cascade: Option<CascadeConfig>,
    /// How answers become one, with the strategy `ensemble`.
    pub ensemble: Option<EnsembleConfig>,
}

/// How a target is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Strategy {
    /// In order: the next target if one fails.
    #[default]
    Failover,
    /// In turn.
    RoundRobin,
    /// In turn, by weight.
    Weighted,
    /// The target with the fewest calls in flight.
    LeastBusy,
    /// The target that answers fastest.
    Latency,
    /// The same target for the same key.
    Sticky,
    /// The target with the lowest price.
    Cheapest,
    /// A second call if the first one is slow.
    Hedge,
    /// All targets at once; the first answer wins.
    Race,
    /// In order, until an answer is good enough.
    Cascade,
    /// All targets at once; one answer is made of theirs.
    Ensemble,
}

/// When a hedge starts its second call.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HedgeConfig {
    /// After this time.
    #[serde(deserialize_with = "duration::required")]
    Delay(Duration),
    /// After a time that makes at most this percentage of extra calls.
    Percent(f64),
}

/// What sends a call to the same target again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StickyKey {
    /// The caller.
    #[default]
    Caller,
    /// The value of a request header.
    Header(String),
}

/// Which answers of a cascade are good enough. An answer that any rule rejects is followed by a call to the next target; that of
/// the last target is taken as it is, and so is one that a judge fails to judge.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
#[non_exhaustive]
pub struct CascadeConfig {
    /// The first answer to a shorter prompt is taken.
    pub min_prompt_tokens: Option<u64>,
    /// A longer prompt goes to the last target at once.
    pub max_prompt_tokens: Option<u64>,
    /// An answer with one of these finish reasons is rejected: the provider's own, or `stop`, `length`, `tool_calls` and
    /// `content_filter` for what all providers have.
    pub finish_reasons: Vec<String>,
    /// An answer whose text matches is rejected.
    pub regex: Option<String>,
    /// A model that accepts or rejects answers.
    pub judge: Option<JudgeConfig>,
}

/// How the answers of an ensemble become one: by a judge, or by majority.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
#[non_exhaustive]
pub struct EnsembleConfig {
    /// Targets that are asked, at least two; all unless set.
    pub max_providers: Option<usize>,
    /// Time for all answers, and then for the judge; the answers that have come by then are used. No limit unless set.
    #[serde(deserialize_with = "duration::optional")]
    pub timeout: Option<Duration>,
    /// Whether one failure fails the call; `false` unless set.
    pub fail_fast: bool,
    /// Answers that are needed; 1 unless set.
    pub min_ok: usize,
    /// A model that chooses among the answers. If it fails, the first answer is taken, in the order of the targets.
    pub judge: Option<JudgeConfig>,
    /// Whether the answer that most targets gave is taken; the first of them, in the order of the targets, if several are as
    /// frequent.
    pub majority: bool,
    /// What of an answer is its vote: the regular expression's first group, or else its whole match; all of the answer
    /// unless set. An answer without a match has no vote. Case and the white space around a vote do not count.
    pub extract: Option<String>,
}

/// A model that judges answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
#[non_exhaustive]
pub struct JudgeConfig {
    /// The target that is asked.
    pub target: String,
    /// The model, as the target names it.
    pub model: String,
    /// The instructions to the judge; a text of the gateway's own unless set.
    pub prompt: Option<String>,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            targets: Vec::new(),
            retries: 2,
            budget: None,
            deadline: None,
            hedge: None,
            sticky_key: None,
            cascade: None,
            ensemble: None,
        }
    }
}

impl Default for EnsembleConfig {
    fn default() -> Self {
        Self {
            max_providers: None,
            timeout: None,
            fail_fast: false,
            min_ok: 1,
            judge: None,
            majority: false,
            extract: None,
        }
    }
}
