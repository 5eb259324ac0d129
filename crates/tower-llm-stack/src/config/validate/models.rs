//! Checks models.

use std::collections::{BTreeMap, HashSet};

use http::{HeaderName, Uri};
use regex::Regex;
use tower_llm_fanout::FanoutBuilder;

use super::Problems;
use crate::config::{
    CascadeConfig, EnsembleConfig, HedgeConfig, JudgeConfig, ModelConfig, Problem, StickyKey,
    Strategy, TargetConfig, parse,
};

/// The targets by name.
type Targets = BTreeMap<String, TargetConfig>;

impl Problems {
    pub(super) fn model(&mut self, table: &str, name: &str, model: &ModelConfig, all: &Targets) {
        self.not_empty(table, "", Some(name));
        self.targets(table, model, all);
        self.duration(table, "deadline", model.deadline);
        if let Some(budget) = model.budget {
            let is_allowed = (0.0..=1.0).contains(&budget);
            self.number(table, "budget", budget, is_allowed, "from 0 to 1");
        }
        self.at_most(
            table,
            "retries",
            Some(model.retries.into()),
            (999, "at most 999"),
        );
        self.used(table, model);
        match model.hedge {
            Some(HedgeConfig::Delay(delay)) => self.duration(table, "hedge.delay", Some(delay)),
            Some(HedgeConfig::Percent(percent)) => {
                let is_allowed = percent > 0.0 && percent < 100.0;
                self.number(
                    table,
                    "hedge.percent",
                    percent,
                    is_allowed,
                    "over 0 and under 100",
                );
            }
            None => self.add_if(
                model.strategy == Strategy::Hedge,
                table,
                "hedge",
                Problem::Missing,
            ),
        }
        if let Some(StickyKey::Header(header)) = &model.sticky_key
            && header.parse::<HeaderName>().is_err()
        {
            self.invalid(table, "sticky_key.header", "is not the name of a header");
        }
        match &model.cascade {
            Some(cascade) => self.cascade(&format!("{table}.cascade"), cascade, all),
            None => {
                let is_missing = model.strategy == Strategy::Cascade;
                self.add_if(is_missing, table, "cascade", Problem::Missing);
            }
        }
        match &model.ensemble {
            Some(ensemble) => {
                let table = format!("{table}.ensemble");
                self.ensemble(&table, ensemble, model.targets.len(), all);
            }
            None => {
                let is_missing = model.strategy == Strategy::Ensemble;
                self.add_if(is_missing, table, "ensemble", Problem::Missing);
            }
        }
        self.model_layers(table, model);
    }

    /// Builds what the model's calls are sent with.
    fn model_layers(&mut self, table: &str, model: &ModelConfig) {
        let fanout = model.fanout().and_then(FanoutBuilder::build);
        self.built(table, "strategy", fanout);
        let failover = model.failover().and_then(FanoutBuilder::build);
        self.built(table, "retries", failover);
        self.built(table, "sticky_key", model.pick());
        if let Some(ensemble) = &model.ensemble {
            let (targets, deadline) = (model.targets.len(), model.deadline);
            let layer = ensemble.layer(targets, deadline, (), ()).build();
            self.built(table, "ensemble.max_providers", layer);
        }
    }

    fn targets(&mut self, table: &str, model: &ModelConfig, all: &Targets) {
        self.add_if(model.targets.is_empty(), table, "targets", Problem::Empty);
        let mut seen = HashSet::new();
        for name in &model.targets {
            self.target_name(table, "targets", name, all);
            let value = name.clone();
            self.add_if(
                !seen.insert(name),
                table,
                "targets",
                Problem::Duplicate { value },
            );
        }
        let known = || {
            let targets = model.targets.iter();
            targets.filter_map(|name| Some((name, all.get(name)?)))
        };
        let with_dialect = known().filter_map(|(name, target)| Some((name, target.dialect()?)));
        let mut dialects = with_dialect;
        if let Some((first, dialect)) = dialects.next()
            && let Some((other, _)) = dialects.find(|(_, other)| *other != dialect)
        {
            let targets = (first.clone(), other.clone());
            self.add(table, "targets", Problem::MixedDialects { targets });
        } else if let Some(why) = mixed_credentials(known().map(|(_, target)| target)) {
            self.invalid(table, "targets", why);
        }
        if model.strategy == Strategy::Cheapest {
            for (name, _) in known().filter(|(_, target)| target.price.is_none()) {
                self.add(&format!("targets.{name}"), "price", Problem::Missing);
            }
        }
    }

    fn target_name(&mut self, table: &str, setting: &str, name: &str, all: &Targets) {
        if !all.contains_key(name) {
            let problem = Problem::UnknownName {
                value: name.to_owned(),
                nearest: parse::nearest(name, all.keys().map(String::as_str)),
            };
            self.add(table, setting, problem);
        }
    }

    /// Settings of strategies other than the model's.
    fn used(&mut self, table: &str, model: &ModelConfig) {
        for (setting, is_set, strategy, needs) in [
            (
                "hedge",
                model.hedge.is_some(),
                Strategy::Hedge,
                "`strategy = \"hedge\"`",
            ),
            (
                "sticky_key",
                model.sticky_key.is_some(),
                Strategy::Sticky,
                "`strategy = \"sticky\"`",
            ),
            (
                "cascade",
                model.cascade.is_some(),
                Strategy::Cascade,
                "`strategy = \"cascade\"`",
            ),
            (
                "ensemble",
                model.ensemble.is_some(),
                Strategy::Ensemble,
                "`strategy = \"ensemble\"`",
            ),
        ] {
            let is_unused = is_set && model.strategy != strategy;
            self.add_if(is_unused, table, setting, Problem::Unused { needs });
        }
    }

    fn cascade(&mut self, table: &str, cascade: &CascadeConfig, all: &Targets) {
        self.not_zero(table, "min_prompt_tokens", cascade.min_prompt_tokens);
        self.not_zero(table, "max_prompt_tokens", cascade.max_prompt_tokens);
        if let (Some(min), Some(max)) = (cascade.min_prompt_tokens, cascade.max_prompt_tokens) {
            let problem = Problem::OutOfRange {
                value: min.to_string(),
                allowed: "at most `max_prompt_tokens`",
            };
            self.add_if(min > max, table, "min_prompt_tokens", problem);
        }
        for reason in &cascade.finish_reasons {
            self.not_empty(table, "finish_reasons", Some(reason));
        }
        self.regex(table, "regex", cascade.regex.as_deref());
        self.judge(table, cascade.judge.as_ref(), all);
        let has_rule = cascade.max_prompt_tokens.is_some()
            || !cascade.finish_reasons.is_empty()
            || cascade.regex.is_some()
            || cascade.judge.is_some();
        // Every answer of the first target would be good enough.
        self.add_if(!has_rule, table, "", Problem::Empty);
    }

    fn ensemble(&mut self, table: &str, ensemble: &EnsembleConfig, targets: usize, all: &Targets) {
        self.duration(table, "timeout", ensemble.timeout);
        let providers = ensemble.max_providers.unwrap_or(targets).min(targets);
        self.add_if(
            ensemble.max_providers == Some(0),
            table,
            "max_providers",
            Problem::Zero,
        );
        let min_ok = ensemble.min_ok;
        let problem = Problem::OutOfRange {
            value: min_ok.to_string(),
            allowed: "from 1 to the number of targets that are asked",
        };
        let is_wrong = min_ok == 0 || targets > 0 && providers > 0 && min_ok > providers;
        self.add_if(is_wrong, table, "min_ok", problem);
        match (&ensemble.judge, ensemble.majority) {
            (Some(_), true) => {
                let with = "majority";
                self.add(table, "judge", Problem::Conflict { with });
            }
            (None, false) => self.add(table, "majority", Problem::Missing),
            _ => {}
        }
        self.judge(table, ensemble.judge.as_ref(), all);
        self.regex(table, "extract", ensemble.extract.as_deref());
        let needs = "`majority = true`";
        let is_unused = ensemble.extract.is_some() && !ensemble.majority;
        self.add_if(is_unused, table, "extract", Problem::Unused { needs });
    }

    fn judge(&mut self, table: &str, judge: Option<&JudgeConfig>, all: &Targets) {
        let Some(judge) = judge else { return };
        match judge.target.is_empty() {
            true => self.add(table, "judge.target", Problem::Missing),
            false => self.target_name(table, "judge.target", &judge.target, all),
        }
        self.add_if(
            judge.model.trim().is_empty(),
            table,
            "judge.model",
            Problem::Missing,
        );
        self.not_empty(table, "judge.prompt", judge.prompt.as_deref());
        // Elsewhere, a server may need none.
        let is_official = |target: &&TargetConfig| target.base_url.is_none();
        let target = all.get(&judge.target).filter(is_official);
        if target.is_some_and(|target| !target.has_credential()) {
            let why = "has no credential of its own, and a judge's calls have no caller's";
            self.invalid(table, "judge.target", why);
        }
    }

    fn regex(&mut self, table: &str, setting: &str, pattern: Option<&str>) {
        if let Some(Err(error)) = pattern.map(Regex::new) {
            // The last line of the error says what is wrong; those before it draw the pattern.
            let error = error.to_string();
            let what = error.lines().last().unwrap_or_default();
            let what = what.trim_start_matches("error: ");
            self.invalid(
                table,
                setting,
                format_args!("is not a regular expression: {what}"),
            );
        }
    }
}

/// Why targets cannot take each other's calls: a caller's own credential is for one provider, and with one of a target's own it is
/// not sent.
fn mixed_credentials<'a>(targets: impl Iterator<Item = &'a TargetConfig>) -> Option<&'static str> {
    let (keyed, passing): (Vec<_>, Vec<_>) = targets.partition(|target| target.has_credential());
    let place = |target: &TargetConfig| {
        let url = target.base_url().and_then(|url| url.parse::<Uri>().ok());
        let host = url.and_then(|url| url.host().map(str::to_owned));
        (target.provider.clone(), host)
    };
    let first = passing.first().map(|target| place(target));
    if !keyed.is_empty() && !passing.is_empty() {
        Some(
            "some have a credential of their own and some pass the caller's on: give all or none of them one",
        )
    } else if passing.iter().any(|target| Some(place(target)) != first) {
        Some(
            "they are at several providers, and would each get the caller's own credential: give each one of its own",
        )
    } else {
        None
    }
}
