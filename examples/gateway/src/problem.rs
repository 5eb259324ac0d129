//! Answers of the gateway's own, in the dialect of the request.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde_json::{Value, json};
use tower_llm_stack::Dialect;

/// Why the gateway itself answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    /// What it is called in the log, and `error.code` in OpenAI's dialects.
    pub(crate) code: &'static str,
    pub(crate) message: &'static str,
    /// `error.type` in OpenAI's dialects.
    openai: &'static str,
    /// `error.type` in Anthropic's.
    anthropic: &'static str,
    /// `error.status` in Gemini's.
    gemini: &'static str,
}

impl Problem {
    pub(crate) const DOT_SEGMENTS: Self = Self::bad_request(
        "invalid_path",
        "The path has dot segments or bytes that no path may have.",
    );
    pub(crate) const TWO_LENGTHS: Self = Self::bad_request(
        "invalid_framing",
        "A request must not have both content-length and transfer-encoding.",
    );
    pub(crate) const NO_KEY: Self = Self::unauthorized(
        "The gateway key is missing or wrong. Send it as `authorization: Bearer KEY`, or in the header in which your \
         client sends a provider's key.",
    );
    pub(crate) const NO_KEYS_CONFIGURED: Self = Self::unauthorized(
        "This gateway has a provider's credential but no keys for callers yet: its operator must set GATEWAY_KEYS.",
    );
    pub(crate) const NOT_ALLOWED: Self = Self {
        status: StatusCode::FORBIDDEN,
        code: "path_not_allowed",
        message: "This gateway allows inference and lists of models with its own credential. Its operator can allow this \
                  path with GATEWAY_ALLOW_PATHS.",
        openai: "invalid_request_error",
        anthropic: "permission_error",
        gemini: "PERMISSION_DENIED",
    };
    pub(crate) const NOT_FOUND: Self = Self {
        status: StatusCode::NOT_FOUND,
        code: "not_found",
        message: "No upstream serves this path.",
        openai: "invalid_request_error",
        anthropic: "not_found_error",
        gemini: "NOT_FOUND",
    };
    pub(crate) const NO_ADMIN: Self = Self {
        message: "Administration has a listener of its own: see GATEWAY_ADMIN_LISTEN.",
        ..Self::NOT_FOUND
    };
    pub(crate) const NO_UPGRADE: Self = Self {
        status: StatusCode::UPGRADE_REQUIRED,
        code: "upgrade_not_supported",
        message: "This gateway does not tunnel WebSocket. Send plain HTTP requests; responses can be streamed as \
                  server-sent events.",
        openai: "invalid_request_error",
        anthropic: "invalid_request_error",
        gemini: "UNIMPLEMENTED",
    };
    pub(crate) const STALLED: Self = Self {
        status: StatusCode::REQUEST_TIMEOUT,
        code: "request_timeout",
        message: "The request body did not arrive in time.",
        openai: "invalid_request_error",
        anthropic: "timeout_error",
        gemini: "DEADLINE_EXCEEDED",
    };

    pub(crate) const SHUTTING_DOWN: Self = Self {
        status: StatusCode::SERVICE_UNAVAILABLE,
        code: "shutting_down",
        message: "The gateway is shutting down.",
        openai: "server_error",
        anthropic: "overloaded_error",
        gemini: "UNAVAILABLE",
    };

    /// For a request with a key of the gateway and no other credential, if the gateway has none for its provider.
    pub(crate) const fn no_credential(message: &'static str) -> Self {
        Self::unauthorized(message)
    }

    const fn bad_request(code: &'static str, message: &'static str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            code,
            message,
            openai: "invalid_request_error",
            anthropic: "invalid_request_error",
            gemini: "INVALID_ARGUMENT",
        }
    }

    const fn unauthorized(message: &'static str) -> Self {
        Self {
            status: StatusCode::UNAUTHORIZED,
            code: "invalid_api_key",
            message,
            openai: "invalid_request_error",
            anthropic: "authentication_error",
            gemini: "UNAUTHENTICATED",
        }
    }

    pub(crate) fn response(self, dialect: Dialect) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(self.body(dialect).to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
        // Another attempt may succeed, here or at another gateway; the others never will.
        let may_retry = [StatusCode::REQUEST_TIMEOUT, StatusCode::SERVICE_UNAVAILABLE];
        if !may_retry.contains(&self.status) {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        // A 426 must name what would be spoken instead.
        if self.status == StatusCode::UPGRADE_REQUIRED {
            headers.insert(header::UPGRADE, HeaderValue::from_static("HTTP/1.1"));
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        // Nothing that follows on its connection is believed.
        if self == Self::TWO_LENGTHS {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }

    /// The server-sent event that ends a stream with this.
    pub(crate) fn event(self, dialect: Dialect) -> Bytes {
        let data = match dialect {
            // An event of this dialect carries its error flat.
            Dialect::OpenAiResponses => json!({
                "type": "error",
                "code": self.code,
                "message": self.message,
                "param": null,
                "sequence_number": 0,
            }),
            _ => self.body(dialect),
        };
        let event = match dialect {
            Dialect::Anthropic | Dialect::OpenAiResponses => "event: error\n",
            _ => "",
        };
        // The reader may stand within an event, or within the end of a line: blank lines end both.
        format!("\n\n{event}data: {data}\n\n").into()
    }

    fn body(self, dialect: Dialect) -> Value {
        let Self { message, code, .. } = self;
        match dialect {
            Dialect::Anthropic => json!({
                "type": "error",
                "error": { "type": self.anthropic, "message": message },
            }),
            Dialect::Gemini => json!({
                "error": { "code": self.status.as_u16(), "message": message, "status": self.gemini },
            }),
            _ => json!({
                "error": { "message": message, "type": self.openai, "param": null, "code": code },
            }),
        }
    }
}
