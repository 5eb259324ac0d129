//! What the types of a configuration cannot check.

mod models;
mod targets;

use std::time::Duration;

use super::{Config, InvalidConfig, Problem, SettingError};

impl Config {
    /// Checks the settings against each other.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`] with everything that is wrong.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        let mut problems = Problems(Vec::new());
        for (name, target) in &self.targets {
            problems.target(&format!("targets.{name}"), name, target);
        }
        for (name, model) in &self.models {
            problems.model(&format!("models.{name}"), name, model, &self.targets);
        }
        InvalidConfig::check(problems.0)
    }
}

/// Collects what is wrong.
struct Problems(Vec<SettingError>);

impl Problems {
    fn add(&mut self, table: &str, setting: &str, problem: Problem) {
        let dot = if setting.is_empty() { "" } else { "." };
        let setting = format!("{table}{dot}{setting}");
        self.0.push(SettingError::new(setting, problem));
    }

    fn add_if(&mut self, is_wrong: bool, table: &str, setting: &str, problem: Problem) {
        if is_wrong {
            self.add(table, setting, problem);
        }
    }

    fn not_zero(&mut self, table: &str, setting: &str, value: Option<u64>) {
        self.add_if(value == Some(0), table, setting, Problem::Zero);
    }

    fn at_most(
        &mut self,
        table: &str,
        setting: &str,
        value: Option<u64>,
        (most, allowed): (u64, &'static str),
    ) {
        let Some(value) = value.filter(|value| *value > most) else {
            return;
        };
        let value = value.to_string();
        self.add(table, setting, Problem::OutOfRange { value, allowed });
    }

    /// More than zero, and at most a day.
    fn duration(&mut self, table: &str, setting: &str, value: Option<Duration>) {
        const DAY: Duration = Duration::from_secs(86_400);
        let Some(value) = value else { return };
        let is_wrong = value.is_zero() || value > DAY;
        let problem = Problem::OutOfRange {
            value: format!("{value:?}"),
            allowed: "longer than zero and at most a day",
        };
        self.add_if(is_wrong, table, setting, problem);
    }

    fn not_empty(&mut self, table: &str, setting: &str, value: Option<&str>) {
        let is_empty = value.is_some_and(|value| value.trim().is_empty());
        self.add_if(is_empty, table, setting, Problem::Empty);
    }

    fn number(
        &mut self,
        table: &str,
        setting: &str,
        value: f64,
        is_allowed: bool,
        allowed: &'static str,
    ) {
        let problem = Problem::OutOfRange {
            value: value.to_string(),
            allowed,
        };
        self.add_if(!is_allowed, table, setting, problem);
    }

    /// What is built of the settings, when the checks by setting find nothing wrong in their table.
    fn built<T, E: ToString>(&mut self, table: &str, setting: &str, built: Result<T, E>) {
        let is_told = |told: &SettingError| {
            let rest = told.setting().strip_prefix(table);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if let Err(error) = built
            && !self.0.iter().any(is_told)
        {
            self.invalid(table, setting, error);
        }
    }

    fn invalid(&mut self, table: &str, setting: &str, reason: impl ToString) {
        let reason = reason.to_string();
        self.add(table, setting, Problem::Invalid { reason });
    }
}
