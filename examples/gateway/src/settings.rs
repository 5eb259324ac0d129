//! What can be set, by flag or by environment.

use std::{convert::Infallible, ffi::OsString, fmt, net::SocketAddr, str::FromStr, time::Duration};

use clap::{CommandFactory, FromArgMatches, Parser};

/// A gateway in front of language models: the tower-llm stack as a service.
///
/// With no upstream set it answers from an embedded simulated provider, so that it runs with no key and no network.
/// Once a base URL or a key of any provider is set, the others are reached at their official addresses.
#[derive(Clone, Debug, Parser)]
#[command(name = "gateway", version)]
pub struct Settings {
    /// Where to listen; port 0 takes a free one.
    #[arg(
        long,
        env = "GATEWAY_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:8080"
    )]
    pub listen: SocketAddr,

    /// Answers everything from the embedded simulated provider, whatever upstreams are set.
    #[arg(long, env = "GATEWAY_SIMULATE")]
    pub simulate: bool,

    /// Largest request body that is taken.
    #[arg(long, env = "GATEWAY_MAX_BODY_BYTES", value_name = "BYTES", default_value_t = 10 * 1024 * 1024, value_parser = at_least_one)]
    pub max_body_bytes: usize,

    /// How many connections callers may have open at once; more wait to be accepted.
    #[arg(long, env = "GATEWAY_MAX_CONNECTIONS", value_name = "CONNECTIONS", default_value_t = 1024, value_parser = at_least_one)]
    pub max_connections: usize,

    /// How long a caller may stand still: in a request's header, in its body, or in taking what is written to it.
    #[arg(long, env = "GATEWAY_CALLER_TIMEOUT", value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub caller_timeout: Duration,

    /// How long streams may go on after SIGTERM or SIGINT; then they are cut.
    #[arg(long, env = "GATEWAY_SHUTDOWN_DEADLINE", value_name = "SECONDS", default_value = "30", value_parser = seconds_or_zero)]
    pub shutdown_deadline: Duration,

    /// Where the upstreams are, and with which keys.
    #[command(flatten)]
    pub upstreams: UpstreamSettings,

    /// How many calls run at once.
    #[command(flatten)]
    pub bulkhead: BulkheadSettings,

    /// How long a call may take.
    #[command(flatten)]
    pub timeout: TimeoutSettings,
}

/// Base URLs and keys, by the names that the providers' own clients use. One that is empty counts as not set.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Upstreams")]
pub struct UpstreamSettings {
    /// OpenAI, or what speaks its dialect; with the `/v1` at its end [official: `https://api.openai.com/v1`].
    #[arg(long, env = "OPENAI_BASE_URL", value_name = "URL")]
    pub openai_base_url: Option<String>,
    /// Sent in place of the caller's; prefer the environment, a command line is seen by others.
    #[arg(
        long,
        env = "OPENAI_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    pub openai_api_key: Option<Secret>,

    /// Anthropic [official: `https://api.anthropic.com`].
    #[arg(long, env = "ANTHROPIC_BASE_URL", value_name = "URL")]
    pub anthropic_base_url: Option<String>,
    /// Sent in place of the caller's.
    #[arg(
        long,
        env = "ANTHROPIC_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    pub anthropic_api_key: Option<Secret>,

    /// Gemini [official: `https://generativelanguage.googleapis.com`].
    #[arg(long, env = "GOOGLE_GEMINI_BASE_URL", value_name = "URL")]
    pub gemini_base_url: Option<String>,
    /// Sent in place of the caller's.
    #[arg(
        long,
        env = "GEMINI_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    pub gemini_api_key: Option<Secret>,

    /// Azure OpenAI; there is no official address.
    #[arg(long, env = "AZURE_OPENAI_ENDPOINT", value_name = "URL")]
    pub azure_endpoint: Option<String>,
    /// Sent in place of the caller's.
    #[arg(
        long,
        env = "AZURE_OPENAI_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    pub azure_api_key: Option<Secret>,
}

/// Places by provider.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Bulkhead")]
pub struct BulkheadSettings {
    /// Calls of each provider that has no number of its own.
    #[arg(long = "bulkhead-default-concurrent", env = "BULKHEAD_DEFAULT_CONCURRENT", value_name = "CALLS", default_value_t = 100, value_parser = places)]
    pub default_concurrent: usize,
    /// Calls of OpenAI.
    #[arg(long = "bulkhead-openai-concurrent", env = "BULKHEAD_OPENAI_CONCURRENT", value_name = "CALLS", value_parser = places)]
    pub openai_concurrent: Option<usize>,
    /// Calls of Anthropic.
    #[arg(long = "bulkhead-anthropic-concurrent", env = "BULKHEAD_ANTHROPIC_CONCURRENT", value_name = "CALLS", value_parser = places)]
    pub anthropic_concurrent: Option<usize>,
    /// Calls of Gemini.
    #[arg(long = "bulkhead-gemini-concurrent", env = "BULKHEAD_GEMINI_CONCURRENT", value_name = "CALLS", value_parser = places)]
    pub gemini_concurrent: Option<usize>,
    /// Calls of Azure OpenAI.
    #[arg(long = "bulkhead-azure-concurrent", env = "BULKHEAD_AZURE_CONCURRENT", value_name = "CALLS", value_parser = places)]
    pub azure_concurrent: Option<usize>,
    /// Calls of each provider that may wait for a place; with 0 one that finds none is refused at once.
    #[arg(
        long = "bulkhead-default-queue",
        env = "BULKHEAD_DEFAULT_QUEUE",
        value_name = "CALLS",
        default_value_t = 100
    )]
    pub default_queue: usize,
    /// Longest wait for a place.
    #[arg(long = "bulkhead-default-timeout", env = "BULKHEAD_DEFAULT_TIMEOUT", value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub default_timeout: Duration,
}

/// Deadlines. One that is not set is its default, or the total if that is shorter.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Timeout")]
pub struct TimeoutSettings {
    /// Until the first content token of a stream [default: 120].
    #[arg(long = "timeout-first-token", env = "TIMEOUT_FIRST_TOKEN", value_name = "SECONDS", value_parser = seconds)]
    pub first_token: Option<Duration>,
    /// Between two frames, once the first token has come [default: 60].
    #[arg(long = "timeout-idle", env = "TIMEOUT_IDLE", value_name = "SECONDS", value_parser = seconds)]
    pub idle: Option<Duration>,
    /// For a whole call, to the end of its body.
    #[arg(long = "timeout-total", env = "TIMEOUT_TOTAL", value_name = "SECONDS", default_value = "600", value_parser = seconds)]
    pub total: Duration,
}

/// A string that is not shown.
#[derive(Clone)]
pub struct Secret(String);

impl Settings {
    /// Reads flags alone, without the program's name and without the environment: for tests.
    ///
    /// # Errors
    ///
    /// What is wrong with them, naming flag and value.
    pub fn from_flags<I>(flags: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator,
        I::Item: Into<OsString> + Clone,
    {
        let command = Self::command()
            .no_binary_name(true)
            .mut_args(|arg| arg.env(None::<&'static str>));
        Self::from_arg_matches(&command.try_get_matches_from(flags)?)
    }
}

impl UpstreamSettings {
    /// Whether nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let urls = [
            &self.openai_base_url,
            &self.anthropic_base_url,
            &self.gemini_base_url,
            &self.azure_endpoint,
        ];
        let keys = [
            &self.openai_api_key,
            &self.anthropic_api_key,
            &self.gemini_api_key,
            &self.azure_api_key,
        ];
        urls.into_iter()
            .flatten()
            .map(String::as_str)
            .chain(keys.into_iter().flatten().map(Secret::expose))
            .all(str::is_empty)
    }
}

impl Secret {
    /// What it is: for the header it goes into, and nothing else.
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

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least one".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("it must be a whole number".to_owned()),
    }
}

fn places(text: &str) -> Result<usize, String> {
    let places = at_least_one(text)?;
    // As many as the bulkhead can count.
    if u32::try_from(places).is_err() {
        return Err("it must be at most 4294967295".to_owned());
    }
    Ok(places)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let duration = seconds_or_zero(text)?;
    if duration.is_zero() {
        return Err("it must be longer than zero".to_owned());
    }
    Ok(duration)
}

fn seconds_or_zero(text: &str) -> Result<Duration, String> {
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
    fn keys_are_not_shown() {
        let settings = Settings::from_flags(["--openai-api-key", "sk-hidden"]).unwrap();
        assert!(!format!("{settings:?}").contains("hidden"));
    }

    #[test]
    fn an_empty_name_counts_as_not_set() {
        let flags = ["--openai-base-url", "", "--gemini-api-key", ""];
        assert!(Settings::from_flags(flags).unwrap().upstreams.is_empty());
        let flags = ["--azure-endpoint", "http://127.0.0.1:1"];
        assert!(!Settings::from_flags(flags).unwrap().upstreams.is_empty());
    }
}
