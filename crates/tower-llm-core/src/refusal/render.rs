//! Writes errors of the layers in the formats of the providers.

use std::{error::Error, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::{Completion, Dialect, Failure, Outcome, Refusal, RefusalKind, TimedOut, error::chain};

/// The names of an error in each dialect.
#[derive(Clone, Copy)]
struct Name {
    status: StatusCode,
    /// `error.code`, and for `OpenAI`'s dialects `error.type` too.
    openai: &'static str,
    /// `error.type`.
    anthropic: &'static str,
    /// `error.status`.
    gemini: &'static str,
}

const RATE_LIMITED: Name = Name {
    status: StatusCode::TOO_MANY_REQUESTS,
    openai: "rate_limit_exceeded",
    anthropic: "rate_limit_error",
    gemini: "RESOURCE_EXHAUSTED",
};

const UNAVAILABLE: Name = Name {
    status: StatusCode::SERVICE_UNAVAILABLE,
    openai: "server_is_overloaded",
    anthropic: "overloaded_error",
    gemini: "UNAVAILABLE",
};

const TOO_LARGE: Name = Name {
    status: StatusCode::PAYLOAD_TOO_LARGE,
    openai: "request_too_large",
    anthropic: "request_too_large",
    gemini: "INVALID_ARGUMENT",
};

const BAD_REQUEST: Name = Name {
    status: StatusCode::BAD_REQUEST,
    openai: "invalid_request_error",
    anthropic: "invalid_request_error",
    gemini: "INVALID_ARGUMENT",
};

const TIMED_OUT: Name = Name {
    status: StatusCode::GATEWAY_TIMEOUT,
    openai: "timeout",
    anthropic: "timeout_error",
    gemini: "DEADLINE_EXCEEDED",
};

const BAD_GATEWAY: Name = Name {
    status: StatusCode::BAD_GATEWAY,
    openai: "bad_gateway",
    anthropic: "api_error",
    gemini: "UNAVAILABLE",
};

/// RFC 9111, section 5.2.1.7.
const NOT_CACHED: Name = Name {
    status: StatusCode::GATEWAY_TIMEOUT,
    openai: "not_cached",
    anthropic: "not_found_error",
    gemini: "NOT_FOUND",
};

/// The response for a refusal, a timeout or an error that states an outcome; `None` for any other error.
pub(super) fn render(
    error: &(dyn Error + 'static),
    dialect: Dialect,
) -> Option<Response<Full<Bytes>>> {
    if let Some(timed_out) = TimedOut::find(error) {
        return Some(respond(TIMED_OUT, dialect, &timed_out.to_string()));
    }
    if let Some(refusal) = Refusal::find(error) {
        let name = match refusal.kind() {
            RefusalKind::RateLimited => RATE_LIMITED,
            RefusalKind::Unavailable => UNAVAILABLE,
            RefusalKind::TooLarge => TOO_LARGE,
            RefusalKind::NotCached => NOT_CACHED,
        };
        let mut response = respond(name, dialect, &said_by_layer(error).to_string());
        let headers = response.headers_mut();
        headers.extend(refusal.headers().cloned().unwrap_or_default());
        if let Some(wait) = refusal.retry_after() {
            retry_after(headers, wait);
        }
        if !refusal.is_retryable() {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        return Some(response);
    }
    // A fixed text: the error's own may contain internal hosts, and keys in their URLs.
    let (name, message, wait) = match Completion::of_error(error).outcome {
        Outcome::Failed(Failure::Timeout | Failure::Slow | Failure::Stalled) => {
            (TIMED_OUT, "the upstream did not answer in time", None)
        }
        Outcome::ClientError => (BAD_REQUEST, "the request or its body is not valid", None),
        Outcome::Throttled { retry_after } => (
            RATE_LIMITED,
            "the upstream's rate limit is reached",
            retry_after,
        ),
        Outcome::Exhausted => (RATE_LIMITED, "the upstream's quota is used up", None),
        Outcome::Overloaded { retry_after } => {
            (UNAVAILABLE, "the upstream is overloaded", retry_after)
        }
        Outcome::Refused => (UNAVAILABLE, "the service is overloaded", None),
        _ => return None,
    };
    let mut response = respond(name, dialect, message);
    if let Some(wait) = wait {
        retry_after(response.headers_mut(), wait);
    }
    Some(response)
}

/// The response for any other error.
pub(super) fn bad_gateway(dialect: Dialect) -> Response<Full<Bytes>> {
    respond(BAD_GATEWAY, dialect, "the upstream could not be reached")
}

fn retry_after(headers: &mut HeaderMap, wait: Duration) {
    headers.insert(header::RETRY_AFTER, rounded_up(wait, 1_000_000_000).into());
    headers.insert("retry-after-ms", rounded_up(wait, 1_000_000).into());
}

/// Returns the error of the layer that refused: the last one before the refusal itself.
///
/// Errors that wrap it may contain hosts, and keys in their URLs.
fn said_by_layer<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    chain(error)
        .take_while(|error| !error.is::<Refusal>())
        .last()
        .unwrap_or(error)
}

/// Returns the event that ends a stream after a timeout.
pub(crate) fn timed_out_event(dialect: Dialect, message: &str) -> Bytes {
    let data = match dialect {
        // In this dialect the error's fields are the event's own.
        Dialect::OpenAiResponses => json!({
            "type": "error",
            "code": TIMED_OUT.openai,
            "message": message,
            "param": null,
            "sequence_number": 0,
        }),
        _ => body(TIMED_OUT, dialect, message),
    };
    let event = match dialect {
        Dialect::Anthropic | Dialect::OpenAiResponses => "event: error\n",
        Dialect::OpenAi | Dialect::Gemini => "",
    };
    format!("{event}data: {data}\n\n").into()
}

fn respond(name: Name, dialect: Dialect, message: &str) -> Response<Full<Bytes>> {
    let body = body(name, dialect, message).to_string();
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = name.status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

fn body(name: Name, dialect: Dialect, message: &str) -> Value {
    match dialect {
        Dialect::OpenAi | Dialect::OpenAiResponses => json!({
            "error": {
                "message": message,
                "type": name.openai,
                "param": null,
                "code": name.openai,
            }
        }),
        Dialect::Anthropic => json!({
            "type": "error",
            "error": { "type": name.anthropic, "message": message },
        }),
        Dialect::Gemini => json!({
            "error": {
                "code": name.status.as_u16(),
                "message": message,
                "status": name.gemini,
            }
        }),
    }
}

fn rounded_up(wait: Duration, unit_nanos: u128) -> u64 {
    wait.as_nanos()
        .div_ceil(unit_nanos)
        .try_into()
        .unwrap_or(u64::MAX)
}
