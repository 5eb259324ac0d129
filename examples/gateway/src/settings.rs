//! What can be set, by flag or by environment.

use std::{convert::Infallible, ffi::OsString, fmt, net::SocketAddr, str::FromStr, time::Duration};

use clap::{CommandFactory, FromArgMatches, Parser};

use crate::AllowPaths;

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

    /// Who may use the gateway, and for what.
    #[command(flatten)]
    pub access: AccessSettings,

    /// Where the upstreams are, and with which keys.
    #[command(flatten)]
    pub upstreams: UpstreamSettings,

    /// How many requests and tokens per time.
    #[command(flatten)]
    pub ratelimit: RateLimitSettings,

    /// When a provider is not called any more.
    #[command(flatten)]
    pub breaker: BreakerSettings,

    /// How many calls run at once.
    #[command(flatten)]
    pub bulkhead: BulkheadSettings,

    /// How long a call may take.
    #[command(flatten)]
    pub timeout: TimeoutSettings,
}

/// Who may use the gateway, and for what.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Access")]
pub struct AccessSettings {
    /// Keys that callers must send to the gateway, in the header in which their client sends a provider's key. Required once
    /// a provider's key is set: without it every call is then answered with 401. `none` lets everybody use the gateway.
    /// Prefer the environment: other users of the machine can see a command line.
    #[arg(
        long = "keys",
        env = "GATEWAY_KEYS",
        value_name = "KEY,..",
        hide_env_values = true
    )]
    pub keys: Option<Secret>,
    /// Paths that callers may use with a configured provider key, beside inference and lists of models, such as
    /// `/v1/files/*,/v1/batches`. A `/*` at the end allows everything below; every method is allowed.
    #[arg(
        long = "allow-paths",
        env = "GATEWAY_ALLOW_PATHS",
        value_name = "PATH,.."
    )]
    pub allow_paths: Option<AllowPaths>,
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

/// Requests and tokens per time. What is not set is not limited.
///
/// A provider's limits are for all of the gateway's calls to it together, of all models and callers.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Rate limit")]
pub struct RateLimitSettings {
    /// Requests to OpenAI per minute.
    #[arg(long = "ratelimit-openai-rpm", env = "RATELIMIT_OPENAI_RPM", value_name = "REQUESTS", value_parser = amount)]
    pub openai_rpm: Option<u64>,
    /// Tokens of OpenAI per minute, input and output.
    #[arg(long = "ratelimit-openai-tpm", env = "RATELIMIT_OPENAI_TPM", value_name = "TOKENS", value_parser = amount)]
    pub openai_tpm: Option<u64>,
    /// Requests to Anthropic per minute.
    #[arg(long = "ratelimit-anthropic-rpm", env = "RATELIMIT_ANTHROPIC_RPM", value_name = "REQUESTS", value_parser = amount)]
    pub anthropic_rpm: Option<u64>,
    /// Tokens of Anthropic per minute, input and output.
    #[arg(long = "ratelimit-anthropic-tpm", env = "RATELIMIT_ANTHROPIC_TPM", value_name = "TOKENS", value_parser = amount)]
    pub anthropic_tpm: Option<u64>,
    /// Input tokens of Anthropic per minute; what its prompt cache had does not count.
    #[arg(long = "ratelimit-anthropic-itpm", env = "RATELIMIT_ANTHROPIC_ITPM", value_name = "TOKENS", value_parser = amount)]
    pub anthropic_itpm: Option<u64>,
    /// Output tokens of Anthropic per minute.
    #[arg(long = "ratelimit-anthropic-otpm", env = "RATELIMIT_ANTHROPIC_OTPM", value_name = "TOKENS", value_parser = amount)]
    pub anthropic_otpm: Option<u64>,
    /// Requests to Gemini per minute.
    #[arg(long = "ratelimit-gemini-rpm", env = "RATELIMIT_GEMINI_RPM", value_name = "REQUESTS", value_parser = amount)]
    pub gemini_rpm: Option<u64>,
    /// Tokens of Gemini per minute, input and output.
    #[arg(long = "ratelimit-gemini-tpm", env = "RATELIMIT_GEMINI_TPM", value_name = "TOKENS", value_parser = amount)]
    pub gemini_tpm: Option<u64>,
    /// Requests to Azure OpenAI per minute.
    #[arg(long = "ratelimit-azure-rpm", env = "RATELIMIT_AZURE_RPM", value_name = "REQUESTS", value_parser = amount)]
    pub azure_rpm: Option<u64>,
    /// Tokens of Azure OpenAI per minute, input and output.
    #[arg(long = "ratelimit-azure-tpm", env = "RATELIMIT_AZURE_TPM", value_name = "TOKENS", value_parser = amount)]
    pub azure_tpm: Option<u64>,
    /// Whether to keep to what the providers' responses tell of their limits, for each model apart.
    #[arg(
        long = "ratelimit-learn",
        env = "RATELIMIT_LEARN",
        value_name = "BOOL",
        default_value_t = true,
        action = clap::ArgAction::Set
    )]
    pub learn: bool,
    /// Calls that may wait for a provider's limit; with 0 one that is over it is refused at once.
    #[arg(
        long = "ratelimit-queue",
        env = "RATELIMIT_QUEUE",
        value_name = "CALLS",
        default_value_t = 100
    )]
    pub queue: usize,
    /// Longest wait for a provider's limit; a call that would have to wait longer is refused at once.
    #[arg(long = "ratelimit-timeout", env = "RATELIMIT_TIMEOUT", value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub timeout: Duration,

    /// Requests of each caller per minute. Callers are told apart by the keys they send; where the gateway sends one of
    /// its own nobody checks theirs, so these limits share fairly and fence nobody in.
    #[arg(long = "ratelimit-caller-rpm", env = "RATELIMIT_CALLER_RPM", value_name = "REQUESTS", value_parser = amount)]
    pub caller_rpm: Option<u64>,
    /// Tokens of each caller per minute, input and output.
    #[arg(long = "ratelimit-caller-tpm", env = "RATELIMIT_CALLER_TPM", value_name = "TOKENS", value_parser = amount)]
    pub caller_tpm: Option<u64>,
    /// Requests of each caller per hour by tier, such as `free:100,pro:1000,enterprise:10000`; the first is that of
    /// callers who are not listed.
    #[arg(
        long = "ratelimit-tiers",
        env = "RATELIMIT_TIERS",
        value_name = "TIER:REQUESTS,.."
    )]
    pub tiers: Option<Tiers>,
    /// Which callers are in other tiers, by the keys that they send; prefer the environment.
    #[arg(
        long = "ratelimit-caller-tiers",
        env = "RATELIMIT_CALLER_TIERS",
        value_name = "KEY:TIER,..",
        hide_env_values = true
    )]
    pub caller_tiers: Option<Secret>,
}

/// Tiers and their requests; at least one.
#[derive(Clone, Debug)]
pub struct Tiers(pub(crate) Vec<(String, u64)>);

/// When the circuits of a provider open and close: the way to it, each model, each account.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Circuit breaker")]
pub struct BreakerSettings {
    /// Whether circuits open, or only report in the log when they would.
    #[arg(
        long = "breaker",
        env = "BREAKER",
        value_name = "MODE",
        value_enum,
        default_value = "on"
    )]
    pub mode: BreakerMode,
    /// Ratio of failures at which a circuit opens, 0 to 1.
    #[arg(
        long = "breaker-failure-ratio",
        env = "BREAKER_FAILURE_RATIO",
        value_name = "RATIO",
        default_value_t = 0.5
    )]
    pub failure_ratio: f64,
    /// How long a call counts after its end.
    #[arg(long = "breaker-window", env = "BREAKER_WINDOW", value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub window: Duration,
    /// Minimum number of calls in the window before the failure ratio is judged.
    #[arg(long = "breaker-minimum-calls", env = "BREAKER_MINIMUM_CALLS", value_name = "CALLS", default_value_t = 10, value_parser = at_least_one)]
    pub minimum_calls: usize,
    /// Failures in a row at which a circuit opens, whatever their ratio; 0 switches this off.
    #[arg(
        long = "breaker-failure-threshold",
        env = "BREAKER_FAILURE_THRESHOLD",
        value_name = "FAILURES",
        default_value_t = 5
    )]
    pub failure_threshold: u32,
    /// Probes that must succeed to close a circuit.
    #[arg(
        long = "breaker-success-threshold",
        env = "BREAKER_SUCCESS_THRESHOLD",
        value_name = "PROBES",
        default_value_t = 2
    )]
    pub success_threshold: u32,
    /// How long a circuit is open the first time; doubled each time after. A provider may ask for more.
    #[arg(long = "breaker-timeout", env = "BREAKER_TIMEOUT", value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub open_for: Duration,
    /// Maximum time that a circuit is open.
    #[arg(long = "breaker-max-timeout", env = "BREAKER_MAX_TIMEOUT", value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub max_open_for: Duration,
}

/// What circuits do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum BreakerMode {
    /// They open and close.
    On,
    /// They only report when they would open.
    MetricsOnly,
    /// Nothing.
    Off,
}

/// Concurrent calls by provider.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Bulkhead")]
pub struct BulkheadSettings {
    /// Concurrent calls to each provider without a limit of its own.
    #[arg(long = "bulkhead-default-concurrent", env = "BULKHEAD_DEFAULT_CONCURRENT", value_name = "CALLS", default_value_t = 100, value_parser = permits)]
    pub default_concurrent: usize,
    /// Concurrent calls to OpenAI.
    #[arg(long = "bulkhead-openai-concurrent", env = "BULKHEAD_OPENAI_CONCURRENT", value_name = "CALLS", value_parser = permits)]
    pub openai_concurrent: Option<usize>,
    /// Concurrent calls to Anthropic.
    #[arg(long = "bulkhead-anthropic-concurrent", env = "BULKHEAD_ANTHROPIC_CONCURRENT", value_name = "CALLS", value_parser = permits)]
    pub anthropic_concurrent: Option<usize>,
    /// Concurrent calls to Gemini.
    #[arg(long = "bulkhead-gemini-concurrent", env = "BULKHEAD_GEMINI_CONCURRENT", value_name = "CALLS", value_parser = permits)]
    pub gemini_concurrent: Option<usize>,
    /// Concurrent calls to Azure OpenAI.
    #[arg(long = "bulkhead-azure-concurrent", env = "BULKHEAD_AZURE_CONCURRENT", value_name = "CALLS", value_parser = permits)]
    pub azure_concurrent: Option<usize>,
    /// Concurrent calls to all providers together [default: no limit].
    #[arg(long = "bulkhead-global-concurrent", env = "BULKHEAD_GLOBAL_CONCURRENT", value_name = "CALLS", value_parser = permits)]
    pub global_concurrent: Option<usize>,
    /// Calls that may wait for each provider; with 0, a call over the limit is refused at once.
    #[arg(
        long = "bulkhead-default-queue",
        env = "BULKHEAD_DEFAULT_QUEUE",
        value_name = "CALLS",
        default_value_t = 100
    )]
    pub default_queue: usize,
    /// Maximum wait in the queue.
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
    /// Until the first content token of a stream that shows signs of life, such as events without content and comments
    /// [default: five times TIMEOUT_FIRST_TOKEN, at most TIMEOUT_TOTAL].
    #[arg(long = "timeout-first-token-max", env = "TIMEOUT_FIRST_TOKEN_MAX", value_name = "SECONDS", value_parser = seconds)]
    pub first_token_max: Option<Duration>,
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
                return Err(format!("{name} is there twice"));
            }
            let requests = amount(requests.trim()).map_err(|error| format!("{name}: {error}"))?;
            tiers.push((name.to_owned(), requests));
        }
        Ok(Self(tiers))
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

fn amount(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least one".to_owned()),
        // As many as a limit can be.
        Ok(amount) if amount <= 1 << 53 => Ok(amount),
        Ok(_) => Err("it must be at most 2^53".to_owned()),
        Err(_) => Err("it must be a whole number".to_owned()),
    }
}

fn permits(text: &str) -> Result<usize, String> {
    let permits = at_least_one(text)?;
    // As many as the bulkhead can count.
    if u32::try_from(permits).is_err() {
        return Err("it must be at most 4294967295".to_owned());
    }
    Ok(permits)
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
    fn keys_are_not_shown() {
        let settings = Settings::from_flags([
            "--openai-api-key",
            "sk-hidden",
            "--ratelimit-caller-tiers",
            "sk-hidden:pro",
        ])
        .unwrap();
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
