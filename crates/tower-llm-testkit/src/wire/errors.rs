//! Error bodies in each dialect, as a response and inside a stream.

use std::borrow::Cow;

use http::{HeaderMap, HeaderValue, Method};
use serde_json::Value;

use super::{
    escaped,
    part::{data, event as named},
    route::Dialect,
};
use crate::{Fault, InBand, RetryAfter};

/// One error before it is put into a dialect.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) status: u16,
    /// OpenAI's and Anthropic's `type`, Gemini's `status`.
    kind: &'static str,
    /// OpenAI's `code`; for the others what stands in their details.
    code: Option<&'static str>,
    pub(crate) message: Cow<'static, str>,
    /// OpenAI's `param`: the field that is wrong.
    param: Option<Cow<'static, str>>,
    retry_after: RetryAfter,
}

impl Failure {
    const fn new(
        status: u16,
        kind: &'static str,
        code: Option<&'static str>,
        message: &'static str,
    ) -> Self {
        Self {
            status,
            kind,
            code,
            message: Cow::Borrowed(message),
            param: None,
            retry_after: RetryAfter::Untold,
        }
    }

    /// The error response of `fault`; `None` if it is of another kind.
    pub(crate) fn of(fault: Fault, dialect: Dialect) -> Option<Self> {
        Some(match fault {
            Fault::Throttled(retry_after) => Self {
                retry_after,
                ..Self::with_status(429, dialect)
            },
            Fault::QuotaExhausted => Self::exhausted(dialect),
            Fault::Overloaded => Self::overloaded(dialect),
            Fault::Status(status) => Self::with_status(status, dialect),
            _ => return None,
        })
    }

    /// The error inside a stream.
    pub(crate) fn in_band(kind: InBand, dialect: Dialect) -> Self {
        match kind {
            InBand::Overloaded => Self::overloaded(dialect),
            InBand::RateLimited => Self::with_status(429, dialect),
            InBand::ServerError => Self::with_status(500, dialect),
        }
    }

    /// The answer to a path that the provider does not have.
    pub(crate) fn unknown_path(dialect: Dialect, method: &Method, path: &str) -> Self {
        let path = path.split('?').next().unwrap_or(path);
        let (code, message) = match dialect {
            Dialect::OpenAi => (
                Some("unknown_url"),
                format!(
                    "Unknown request URL: {method} {path}. Please check the URL for typos, or see the docs."
                ),
            ),
            Dialect::Azure => (Some("404"), "Resource not found".to_owned()),
            Dialect::Anthropic => (None, "Not Found".to_owned()),
            Dialect::Gemini => (None, "Requested entity was not found.".to_owned()),
        };
        Self {
            code,
            message: message.into(),
            ..Self::with_status(404, dialect)
        }
    }

    /// The answer to a question after a model that the provider does not have.
    pub(crate) fn unknown_model(dialect: Dialect, model: &str) -> Self {
        let message = match dialect {
            Dialect::OpenAi | Dialect::Azure => format!("The model '{model}' does not exist"),
            Dialect::Anthropic => format!("model: {model}"),
            Dialect::Gemini => format!("models/{model} is not found for API version v1beta."),
        };
        Self {
            message: message.into(),
            param: Some("model".into()),
            ..Self::with_status(404, dialect)
        }
    }

    pub(crate) fn bad_json(dialect: Dialect) -> Self {
        let message = "We could not parse the JSON body of your request.";
        Self {
            message: message.into(),
            ..Self::with_status(400, dialect)
        }
    }

    /// A request that is JSON, but not what the API takes; `param` names the field.
    pub(crate) fn invalid(
        dialect: Dialect,
        message: String,
        param: Option<&'static str>,
        code: Option<&'static str>,
    ) -> Self {
        Self {
            code,
            message: message.into(),
            param: param.map(Cow::Borrowed),
            ..Self::with_status(400, dialect)
        }
    }

    pub(crate) fn code_or_kind(&self) -> &'static str {
        self.code.unwrap_or(self.kind)
    }

    /// The answer to a known path with a method that it does not take.
    pub(crate) fn wrong_method(dialect: Dialect) -> Self {
        Self {
            message: "Method not allowed.".into(),
            ..Self::with_status(405, dialect)
        }
    }

    fn overloaded(dialect: Dialect) -> Self {
        match dialect {
            Dialect::Anthropic => Self::with_status(529, dialect),
            Dialect::Gemini => Self {
                code: Some("MODEL_CAPACITY_EXHAUSTED"),
                ..Self::with_status(503, dialect)
            },
            Dialect::OpenAi | Dialect::Azure => Self::with_status(503, dialect),
        }
    }

    fn exhausted(dialect: Dialect) -> Self {
        match dialect {
            Dialect::OpenAi | Dialect::Azure => Self::new(
                429,
                "insufficient_quota",
                Some("insufficient_quota"),
                "You exceeded your current quota, please check your plan and billing details.",
            ),
            Dialect::Anthropic => Self::new(
                429,
                "rate_limit_error",
                Some("enforced_spend_limit_reached"),
                "You have reached your API usage limits: your organization has crossed its monthly API usage threshold.",
            ),
            Dialect::Gemini => Self::new(
                429,
                "RESOURCE_EXHAUSTED",
                Some("GenerateRequestsPerDayPerProjectPerModel"),
                "You exceeded your current quota, please check your plan and billing details.",
            ),
        }
    }

    fn with_status(status: u16, dialect: Dialect) -> Self {
        let (kind, code, message) = match dialect {
            Dialect::OpenAi | Dialect::Azure => openai(status),
            Dialect::Anthropic => anthropic(status),
            Dialect::Gemini => gemini(status),
        };
        Self::new(status, kind, code, message)
    }
}

/// The headers an error has beyond those of every answer.
pub(crate) fn headers(dialect: Dialect, failure: &Failure) -> HeaderMap {
    let mut headers = HeaderMap::new();
    match (failure.retry_after, dialect) {
        (_, Dialect::Gemini) | (RetryAfter::Untold, _) => {}
        (RetryAfter::Seconds(seconds), _) => {
            headers.insert("retry-after", HeaderValue::from(seconds));
        }
        (RetryAfter::Millis(ms), _) => {
            headers.insert("retry-after-ms", HeaderValue::from(ms));
        }
    }
    // Money says nothing about the rate.
    if failure.status == 429
        && matches!(dialect, Dialect::OpenAi)
        && failure.kind != "insufficient_quota"
    {
        headers.insert(
            "x-ratelimit-remaining-tokens",
            HeaderValue::from_static("0"),
        );
        headers.insert("x-ratelimit-reset-tokens", HeaderValue::from_static("1m0s"));
    }
    headers
}

pub(crate) fn body(dialect: Dialect, failure: &Failure) -> String {
    let Failure {
        status, kind, code, ..
    } = failure;
    let message = escaped(&failure.message);
    match dialect {
        Dialect::Azure if *status == 404 && *code == Some("404") => {
            format!(r#"{{"error":{{"code":"404","message":"{message}"}}}}"#)
        }
        Dialect::Azure if *status == 429 && *code == Some("rate_limit_exceeded") => {
            format!(r#"{{"error":{{"code":"429","message":"{message}"}}}}"#)
        }
        Dialect::OpenAi | Dialect::Azure => {
            let code = code.map_or_else(|| "null".to_owned(), |code| format!(r#""{code}""#));
            let param = failure.param.as_deref().map_or(Value::Null, Value::from);
            format!(
                r#"{{"error":{{"message":"{message}","type":"{kind}","param":{param},"code":{code}}}}}"#
            )
        }
        Dialect::Anthropic => {
            let details = code.map_or_else(
                || "null".to_owned(),
                |code| format!(r#"{{"error_code":"{code}"}}"#),
            );
            format!(
                r#"{{"type":"error","error":{{"type":"{kind}","message":"{message}","details":{details}}},"request_id":"req_0000000000000000"}}"#
            )
        }
        Dialect::Gemini => {
            let details = gemini_details(failure);
            format!(
                r#"{{"error":{{"code":{status},"message":"{message}","status":"{kind}","details":[{details}]}}}}"#
            )
        }
    }
}

/// The error as an event inside a stream; not for Responses, nor for a JSON array.
pub(crate) fn event(dialect: Dialect, failure: &Failure) -> String {
    let body = body(dialect, failure);
    match dialect {
        Dialect::Anthropic => named("error", &body),
        Dialect::OpenAi | Dialect::Azure | Dialect::Gemini => data(&body),
    }
}

/// The error inside a Responses stream, after `sequence` other events.
pub(crate) fn responses_event(sequence: usize, failure: &Failure) -> String {
    let (code, message) = (failure.code_or_kind(), escaped(&failure.message));
    named(
        "error",
        &format!(
            r#"{{"type":"error","sequence_number":{sequence},"code":"{code}","message":"{message}","param":null}}"#
        ),
    )
}

fn gemini_details(failure: &Failure) -> String {
    let quota = |id: &str| {
        format!(
            r#"{{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{{"quotaMetric":"generativelanguage.googleapis.com/generate_content_requests","quotaId":"{id}","quotaValue":"150"}}]}}"#
        )
    };
    let mut details = match (failure.status, failure.code) {
        (_, Some("MODEL_CAPACITY_EXHAUSTED")) => {
            r#"{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"MODEL_CAPACITY_EXHAUSTED","domain":"googleapis.com"}"#.to_owned()
        }
        (429, id) => quota(id.unwrap_or("GenerateRequestsPerMinutePerProjectPerModel")),
        _ => String::new(),
    };
    let delay = match failure.retry_after {
        RetryAfter::Seconds(seconds) => format!("{seconds}s"),
        RetryAfter::Millis(ms) => format!("{}.{:03}s", ms / 1000, ms % 1000),
        RetryAfter::Untold => return details,
    };
    details.push_str(&format!(
        r#",{{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"{delay}"}}"#
    ));
    details
}

type Words = (&'static str, Option<&'static str>, &'static str);

fn openai(status: u16) -> Words {
    match status {
        401 => (
            "invalid_request_error",
            Some("invalid_api_key"),
            "Incorrect API key provided.",
        ),
        404 => (
            "invalid_request_error",
            Some("model_not_found"),
            "The model does not exist.",
        ),
        429 => (
            "tokens",
            Some("rate_limit_exceeded"),
            "Rate limit reached on tokens per min (TPM).",
        ),
        503 | 529 => (
            "service_unavailable_error",
            Some("server_is_overloaded"),
            "Our servers are currently overloaded. Please try again later.",
        ),
        400..=499 => ("invalid_request_error", None, "The request is invalid."),
        _ => (
            "server_error",
            None,
            "The server had an error while processing your request.",
        ),
    }
}

fn anthropic(status: u16) -> Words {
    let (kind, message) = match status {
        401 => ("authentication_error", "invalid x-api-key"),
        402 => ("billing_error", "There is an issue with your billing."),
        403 => (
            "permission_error",
            "Your API key does not have permission to use the resource.",
        ),
        404 => (
            "not_found_error",
            "The requested resource could not be found.",
        ),
        413 => ("request_too_large", "Request exceeds the maximum size"),
        429 => (
            "rate_limit_error",
            "This request would exceed your organization's rate limit.",
        ),
        504 => ("timeout_error", "The request timed out while processing."),
        529 => ("overloaded_error", "Overloaded"),
        400..=499 => ("invalid_request_error", "The request is invalid."),
        _ => ("api_error", "Internal server error"),
    };
    (kind, None, message)
}

fn gemini(status: u16) -> Words {
    let (kind, message) = match status {
        400 => ("INVALID_ARGUMENT", "Request contains an invalid argument."),
        401 => (
            "UNAUTHENTICATED",
            "API key not valid. Please pass a valid API key.",
        ),
        403 => ("PERMISSION_DENIED", "The caller does not have permission."),
        404 => ("NOT_FOUND", "The model is not found for this API version."),
        429 => ("RESOURCE_EXHAUSTED", "You exceeded your current quota."),
        503 => (
            "UNAVAILABLE",
            "The model is overloaded. Please try again later.",
        ),
        504 => (
            "DEADLINE_EXCEEDED",
            "The request timed out. Please try again.",
        ),
        500..=599 => ("INTERNAL", "An internal error has occurred."),
        _ => ("FAILED_PRECONDITION", "The request is invalid."),
    };
    (kind, None, message)
}
