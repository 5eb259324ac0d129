//! How single settings are written.

use std::{convert::Infallible, fmt, str::FromStr, time::Duration};

use super::{BreakerMode, CacheCompletions, CacheStatus, SharedLimitsBy};

/// A value that is never shown: a key, or something with one in it.
#[derive(Clone)]
pub struct Secret(String);

/// Tiers and their requests; at least one.
#[derive(Clone, Debug)]
pub struct Tiers(pub(crate) Vec<(String, u64)>);

impl Secret {
    /// The value: for the header it goes into, and nothing else.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.trim().to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl FromStr for Tiers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut tiers: Vec<(String, u64)> = Vec::new();
        for tier in text.split(',') {
            let (name, requests) = tier
                .split_once(':')
                .ok_or("it must look like free:100,pro:1000")?;
            let name = name.trim();
            if name.is_empty() {
                return Err("each tier must have a name".to_owned());
            }
            if tiers.iter().any(|(other, _)| other == name) {
                return Err(format!("the tier {name} is listed twice"));
            }
            let requests = amount(requests.trim()).map_err(|error| format!("{name}: {error}"))?;
            tiers.push((name.to_owned(), requests));
        }
        Ok(Self(tiers))
    }
}

/// On or off, in any of the words that people use for it.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "on" | "yes" | "y" | "t" => Ok(true),
        "0" | "false" | "off" | "no" | "n" | "f" => Ok(false),
        _ => Err("it must be on or off".to_owned()),
    }
}

pub(super) fn breaker_mode(text: &str) -> Result<BreakerMode, String> {
    match text.to_ascii_lowercase().replace('_', "-").as_str() {
        "metrics-only" => Ok(BreakerMode::MetricsOnly),
        text => match switch(text) {
            Ok(true) => Ok(BreakerMode::On),
            Ok(false) => Ok(BreakerMode::Off),
            Err(_) => Err("it must be on, off or metrics-only".to_owned()),
        },
    }
}

pub(super) fn cache_completions(text: &str) -> Result<CacheCompletions, String> {
    match text.to_ascii_lowercase().as_str() {
        "all" => Ok(CacheCompletions::All),
        "deterministic" => Ok(CacheCompletions::Deterministic),
        text => match switch(text) {
            Ok(false) => Ok(CacheCompletions::Off),
            // `on` does not say which.
            _ => Err("it must be all, deterministic or off".to_owned()),
        },
    }
}

pub(super) fn cache_status(text: &str) -> Result<CacheStatus, String> {
    match text.to_ascii_lowercase().as_str() {
        "plain" => Ok(CacheStatus::Plain),
        "key" => Ok(CacheStatus::Key),
        text => match switch(text) {
            Ok(true) => Ok(CacheStatus::Plain),
            Ok(false) => Ok(CacheStatus::Off),
            Err(_) => Err("it must be off, plain or key".to_owned()),
        },
    }
}

pub(super) fn shared_limits(text: &str) -> Result<SharedLimitsBy, String> {
    match text.to_ascii_lowercase().as_str() {
        "script" => Ok(SharedLimitsBy::Script),
        "lease" => Ok(SharedLimitsBy::Lease),
        _ => Err("it must be script or lease".to_owned()),
    }
}

pub(super) fn replicas(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least one".to_owned()),
        Ok(replicas) if replicas <= 10_000 => Ok(replicas),
        Ok(_) => Err("it must be at most 10000".to_owned()),
        Err(_) => Err("it must be a whole number".to_owned()),
    }
}

pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least one".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("it must be a whole number".to_owned()),
    }
}

/// What a limit allows.
pub(super) fn amount(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least one".to_owned()),
        // As many as a limit can be.
        Ok(amount) if amount <= 1 << 53 => Ok(amount),
        Ok(_) => Err("it must be at most 2^53".to_owned()),
        Err(_) => Err("it must be a whole number".to_owned()),
    }
}

pub(super) fn permits(text: &str) -> Result<usize, String> {
    let permits = at_least_one(text)?;
    // As many as the bulkhead can count.
    if u32::try_from(permits).is_err() {
        return Err("it must be at most 4294967295".to_owned());
    }
    Ok(permits)
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let duration = seconds_or_zero(text)?;
    if duration.is_zero() {
        return Err("it must be longer than zero".to_owned());
    }
    Ok(duration)
}

/// How long a cached answer is served, which may be longer than any deadline.
pub(super) fn ttl(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(0) => Err("it must be longer than zero".to_owned()),
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => Err("it must be a whole number of seconds".to_owned()),
    }
}

pub(super) fn seconds_or_zero(text: &str) -> Result<Duration, String> {
    const DAY: Duration = Duration::from_secs(86_400);
    let seconds: f64 = text
        .parse()
        .map_err(|_| "it must be a number of seconds".to_owned())?;
    if seconds.is_sign_negative() || seconds.is_nan() {
        return Err("it must not be negative".to_owned());
    }
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if duration <= DAY => Ok(duration),
        _ => Err("it must be at most a day, 86400".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_over_zero_and_at_most_a_day() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("86400"), Ok(Duration::from_secs(86_400)));
        for absurd in [
            "0",
            "-1",
            "-0",
            "nan",
            "inf",
            "1e30",
            "86401",
            "",
            "ten",
            "0.0000000001",
        ] {
            assert!(seconds(absurd).is_err(), "{absurd}");
        }
        assert_eq!(seconds_or_zero("0"), Ok(Duration::ZERO));
    }

    #[test]
    fn tiers_have_names_and_amounts() {
        let Tiers(tiers) = "free:100, pro:1000".parse().unwrap();
        let expected = [("free".to_owned(), 100), ("pro".to_owned(), 1_000)];
        assert_eq!(tiers, expected);
        for absurd in [
            "",
            "free",
            "free:",
            "free:0",
            ":100",
            "free:100,",
            "free:1,free:2",
        ] {
            assert!(absurd.parse::<Tiers>().is_err(), "{absurd}");
        }
    }

    #[test]
    fn switches_take_the_words_that_people_use() {
        for on in ["1", "true", "TRUE", "on", "On", "yes", "y", "t"] {
            assert_eq!(switch(on), Ok(true), "{on}");
            assert_eq!(breaker_mode(on), Ok(BreakerMode::On), "{on}");
        }
        for off in ["0", "false", "False", "off", "OFF", "no", "n", "f"] {
            assert_eq!(switch(off), Ok(false), "{off}");
            assert_eq!(breaker_mode(off), Ok(BreakerMode::Off), "{off}");
        }
        for mode in ["metrics-only", "metrics_only", "METRICS_ONLY"] {
            assert_eq!(breaker_mode(mode), Ok(BreakerMode::MetricsOnly), "{mode}");
        }
        for absurd in ["2", "perhaps", "onn", "", "metrics"] {
            assert!(switch(absurd).is_err(), "{absurd}");
            assert!(breaker_mode(absurd).is_err(), "{absurd}");
        }
    }
}
