//! The layers around each provider.

use std::time::Duration;

use super::values::{Secret, Tiers, amount, at_least_one, breaker_mode, permits, seconds, switch};

/// Limits for requests and tokens. What is not set is limited only by what providers report: see RATELIMIT_LEARN.
///
/// A provider's limits apply to all calls of the gateway to that provider together, whatever the model and the caller.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Rate limit")]
pub struct RateLimitSettings {
    /// OpenAI: requests per minute; no limit unless set.
    #[arg(long = "ratelimit-openai-rpm", env = "RATELIMIT_OPENAI_RPM", value_name = "REQUESTS", value_parser = amount)]
    pub openai_rpm: Option<u64>,
    /// OpenAI: tokens per minute, input and output; no limit unless set.
    #[arg(long = "ratelimit-openai-tpm", env = "RATELIMIT_OPENAI_TPM", value_name = "TOKENS", value_parser = amount)]
    pub openai_tpm: Option<u64>,
    /// Anthropic: requests per minute; no limit unless set.
    #[arg(long = "ratelimit-anthropic-rpm", env = "RATELIMIT_ANTHROPIC_RPM", value_name = "REQUESTS", value_parser = amount)]
    pub anthropic_rpm: Option<u64>,
    /// Anthropic: tokens per minute, input and output; no limit unless set.
    #[arg(long = "ratelimit-anthropic-tpm", env = "RATELIMIT_ANTHROPIC_TPM", value_name = "TOKENS", value_parser = amount)]
    pub anthropic_tpm: Option<u64>,
    /// Anthropic: input tokens per minute. Tokens read from its prompt cache do not count.
    #[arg(long = "ratelimit-anthropic-itpm", env = "RATELIMIT_ANTHROPIC_ITPM", value_name = "TOKENS", value_parser = amount)]
    pub anthropic_itpm: Option<u64>,
    /// Anthropic: output tokens per minute.
    #[arg(long = "ratelimit-anthropic-otpm", env = "RATELIMIT_ANTHROPIC_OTPM", value_name = "TOKENS", value_parser = amount)]
    pub anthropic_otpm: Option<u64>,
    /// Gemini: requests per minute; no limit unless set.
    #[arg(long = "ratelimit-gemini-rpm", env = "RATELIMIT_GEMINI_RPM", value_name = "REQUESTS", value_parser = amount)]
    pub gemini_rpm: Option<u64>,
    /// Gemini: tokens per minute, input and output; no limit unless set.
    #[arg(long = "ratelimit-gemini-tpm", env = "RATELIMIT_GEMINI_TPM", value_name = "TOKENS", value_parser = amount)]
    pub gemini_tpm: Option<u64>,
    /// Azure OpenAI: requests per minute; no limit unless set.
    #[arg(long = "ratelimit-azure-rpm", env = "RATELIMIT_AZURE_RPM", value_name = "REQUESTS", value_parser = amount)]
    pub azure_rpm: Option<u64>,
    /// Azure OpenAI: tokens per minute, input and output; no limit unless set.
    #[arg(long = "ratelimit-azure-tpm", env = "RATELIMIT_AZURE_TPM", value_name = "TOKENS", value_parser = amount)]
    pub azure_tpm: Option<u64>,
    /// Obey the limits and wait times that providers report in their responses, per model.
    #[arg(
        long = "ratelimit-learn",
        env = "RATELIMIT_LEARN",
        value_name = "BOOL",
        default_value = "true",
        action = clap::ArgAction::Set,
        value_parser = switch
    )]
    pub learn: bool,
    /// Calls that may wait for a provider's limit; with 0 a call over the limit is refused at once.
    #[arg(
        long = "ratelimit-queue",
        env = "RATELIMIT_QUEUE",
        value_name = "CALLS",
        default_value_t = 100
    )]
    pub queue: usize,
    /// Longest wait for a provider's limit; a call that would wait longer is refused at once.
    #[arg(long = "ratelimit-timeout", env = "RATELIMIT_TIMEOUT", value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub timeout: Duration,

    /// Each caller: requests per minute. A caller is identified by its gateway key. Without gateway keys it is
    /// identified by the provider key it sends. If the gateway then sends a provider key of its own instead, it does
    /// not check the caller's, so a caller can send another value each time and avoid its limit.
    #[arg(long = "ratelimit-caller-rpm", env = "RATELIMIT_CALLER_RPM", value_name = "REQUESTS", value_parser = amount)]
    pub caller_rpm: Option<u64>,
    /// Each caller: tokens per minute, input and output.
    #[arg(long = "ratelimit-caller-tpm", env = "RATELIMIT_CALLER_TPM", value_name = "TOKENS", value_parser = amount)]
    pub caller_tpm: Option<u64>,
    /// Tiers of callers, with requests per hour, such as `free:100,pro:1000,enterprise:10000`. A caller without a tier is
    /// in the first.
    #[arg(
        long = "ratelimit-tiers",
        env = "RATELIMIT_TIERS",
        value_name = "TIER:REQUESTS,.."
    )]
    pub tiers: Option<Tiers>,
    /// Assigns callers to tiers; a caller not listed here is in the first tier of RATELIMIT_TIERS. A caller is named by
    /// its gateway key or, without gateway keys, by the provider key it sends. Prefer the variable.
    #[arg(
        long = "ratelimit-caller-tiers",
        env = "RATELIMIT_CALLER_TIERS",
        value_name = "KEY:TIER,..",
        hide_env_values = true
    )]
    pub caller_tiers: Option<Secret>,
}

/// When circuits open and close. Each provider (for failed connections), each model and each account has a circuit of
/// its own.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Circuit breaker")]
pub struct BreakerSettings {
    /// `on`, `off`, or `metrics-only`: circuits stay closed, and the log and the metrics say when one would have opened.
    #[arg(
        long = "breaker",
        env = "BREAKER",
        value_name = "MODE",
        default_value = "on",
        value_parser = breaker_mode
    )]
    pub mode: BreakerMode,
    /// Failure ratio at which a circuit opens, 0 to 1.
    #[arg(
        long = "breaker-failure-ratio",
        env = "BREAKER_FAILURE_RATIO",
        value_name = "RATIO",
        default_value_t = 0.5
    )]
    pub failure_ratio: f64,
    /// Length of the sliding window over which calls are counted.
    #[arg(long = "breaker-window", env = "BREAKER_WINDOW", value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub window: Duration,
    /// Minimum number of calls before the failure ratio is judged.
    #[arg(long = "breaker-minimum-calls", env = "BREAKER_MINIMUM_CALLS", value_name = "CALLS", default_value_t = 10, value_parser = at_least_one)]
    pub minimum_calls: usize,
    /// Consecutive failures that open a circuit, whatever the failure ratio; 0 switches this off.
    #[arg(
        long = "breaker-failure-threshold",
        env = "BREAKER_FAILURE_THRESHOLD",
        value_name = "FAILURES",
        default_value_t = 5
    )]
    pub failure_threshold: u32,
    /// Successful probes that close a half-open circuit.
    #[arg(
        long = "breaker-success-threshold",
        env = "BREAKER_SUCCESS_THRESHOLD",
        value_name = "PROBES",
        default_value_t = 2
    )]
    pub success_threshold: u32,
    /// Time a circuit stays open when it first opens, doubled each time it opens again. A provider's `retry-after` can
    /// extend it.
    #[arg(long = "breaker-timeout", env = "BREAKER_TIMEOUT", value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub open_for: Duration,
    /// Longest time a circuit stays open, unless a provider's `retry-after` is longer.
    #[arg(long = "breaker-max-timeout", env = "BREAKER_MAX_TIMEOUT", value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub max_open_for: Duration,
}

/// Whether circuits open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerMode {
    /// They open and close.
    On,
    /// They stay closed and report when they would have opened.
    MetricsOnly,
    /// There are no circuits.
    Off,
}

/// Permits for concurrent calls, by provider.
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
    /// Concurrent calls to all providers together [default: no such limit].
    #[arg(long = "bulkhead-global-concurrent", env = "BULKHEAD_GLOBAL_CONCURRENT", value_name = "CALLS", value_parser = permits)]
    pub global_concurrent: Option<usize>,
    /// Calls per provider that may wait while its concurrent calls are at their limit; with 0, further calls are
    /// refused at once.
    #[arg(
        long = "bulkhead-default-queue",
        env = "BULKHEAD_DEFAULT_QUEUE",
        value_name = "CALLS",
        default_value_t = 100
    )]
    pub default_queue: usize,
    /// Longest wait for a permit.
    #[arg(long = "bulkhead-default-timeout", env = "BULKHEAD_DEFAULT_TIMEOUT", value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub default_timeout: Duration,
}

/// Timeouts of a call. A default below that is longer than TIMEOUT_TOTAL is shortened to it.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Timeout")]
pub struct TimeoutSettings {
    /// Time to the first content token of a stream [default: 120].
    #[arg(long = "timeout-first-token", env = "TIMEOUT_FIRST_TOKEN", value_name = "SECONDS", value_parser = seconds)]
    pub first_token: Option<Duration>,
    /// Time to the first content token if the stream shows signs of life before it, such as comments or events without
    /// content [default: five times TIMEOUT_FIRST_TOKEN, at most TIMEOUT_TOTAL].
    #[arg(long = "timeout-first-token-max", env = "TIMEOUT_FIRST_TOKEN_MAX", value_name = "SECONDS", value_parser = seconds)]
    pub first_token_max: Option<Duration>,
    /// Longest time between two frames after the first token [default: 60].
    #[arg(long = "timeout-idle", env = "TIMEOUT_IDLE", value_name = "SECONDS", value_parser = seconds)]
    pub idle: Option<Duration>,
    /// Time for the whole call, to the end of the response body.
    #[arg(long = "timeout-total", env = "TIMEOUT_TOTAL", value_name = "SECONDS", default_value = "600", value_parser = seconds)]
    pub total: Duration,
}
