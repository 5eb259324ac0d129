//! The layers that all upstreams share, as the settings want them.

use std::time::Duration;

use tower_llm_stack::{BulkheadLayer, ConfigError, Key, Provider, TimeoutLayer};

use crate::{BulkheadSettings, Settings, StartError, TimeoutSettings};

/// How many calls run at once.
pub(crate) fn bulkhead(settings: &Settings) -> Result<BulkheadLayer, StartError> {
    let BulkheadSettings {
        default_concurrent,
        openai_concurrent,
        anthropic_concurrent,
        gemini_concurrent,
        azure_concurrent,
        global_concurrent,
        default_queue,
        default_timeout,
    } = settings.bulkhead;
    let mut bulkhead = BulkheadLayer::builder(default_concurrent)
        .max_waiting(default_queue)
        .max_wait(default_timeout);
    for (provider, limit) in [
        (Provider::OPENAI, openai_concurrent),
        (Provider::ANTHROPIC, anthropic_concurrent),
        (Provider::GEMINI, gemini_concurrent),
        (Provider::AZURE_OPENAI, azure_concurrent),
    ] {
        if let Some(limit) = limit {
            bulkhead = bulkhead.limit_for(Key::new(provider.as_str()), limit);
        }
    }
    if let Some(limit) = global_concurrent {
        bulkhead = bulkhead.global_limit(limit);
    }
    bulkhead.build().map_err(|error| {
        let name = match error.field() {
            "max_wait" => "--bulkhead-default-timeout",
            "global_limit" => "--bulkhead-global-concurrent",
            _ => "--bulkhead-default-concurrent",
        };
        StartError::setting(settings.names.of(name), error)
    })
}

/// How long a call may take.
pub(crate) fn timeout(settings: &Settings) -> Result<TimeoutLayer, StartError> {
    let TimeoutSettings {
        first_token,
        first_token_max,
        idle,
        total,
    } = settings.timeout;
    let or_total = |seconds| Duration::from_secs(seconds).min(total);
    let mut timeout = TimeoutLayer::builder()
        .first_token(first_token.unwrap_or(or_total(120)))
        .idle(idle.unwrap_or(or_total(60)))
        .total(total);
    if let Some(max) = first_token_max {
        timeout = timeout.first_token_max(max);
    }
    timeout.build().map_err(|error: ConfigError| {
        let name = match error.field() {
            "first_token" => "--timeout-first-token",
            "first_token_max" => "--timeout-first-token-max",
            "idle" => "--timeout-idle",
            _ => "--timeout-total",
        };
        StartError::setting(settings.names.of(name), error)
    })
}
