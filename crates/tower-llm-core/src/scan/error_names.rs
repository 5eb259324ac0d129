//! What providers call their errors.
//!
//! One table for codes, types, statuses and numbers, wherever a provider writes them. Messages are never interpreted,
//! because they may change. Names are compared without case and punctuation, and without `error` or `exception` at the end,
//! so `rate_limit_error`, `RateLimitError` and `RateLimitException` are one entry.
//!
//! | provider | source |
//! |---|---|
//! | `OpenAI`, Azure | error guide; `error.code` and `error.type` of their SDKs; Azure's REST reference |
//! | Anthropic | API reference, "Errors"; types of its SDK |
//! | Gemini, Vertex | `google.rpc.Code`, `ErrorInfo.reason`, `QuotaFailure` |
//! | Bedrock | exceptions of the runtime's service model |
//! | Mistral, Groq, Cohere, xAI, Together, Fireworks | their error pages; shapes seen in reports |
//! | OpenRouter | "Errors and debugging": the number is the status |
//! | DeepSeek, Moonshot, Zhipu (Z.ai), `DashScope`, `MiniMax`, Baidu, Volcengine | their error code pages |
//! | vLLM, `SGLang`, TGI, llama.cpp | their servers' sources |

/// What an error's name stands for.
///
/// Ordered: the later one wins if an error carries several names, because money is named beside a general
/// `rate_limit_error`, and a credential beside a general `invalid_request_error`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ErrorKind {
    /// The provider's own failure, or a name that is not known here.
    #[default]
    Unknown,
    /// The request: its form, size or content, a missing permission or resource.
    ClientError,
    /// The credential.
    Credential,
    Throttled,
    Overloaded,
    /// Money, or a quota that lasts.
    Exhausted,
}

/// Longest name that is compared.
const LONGEST: usize = 64;

impl ErrorKind {
    /// The kind that `name` stands for: a code, type or status. Those of xAI are sentences.
    pub(super) fn of_name(name: &[u8]) -> Self {
        let mut buffer = [0; LONGEST];
        let plain = plain(name, &mut buffer);
        Self::exact(plain)
            .or_else(|| Self::by_part(plain))
            .unwrap_or_default()
    }

    /// The kind that `text` stands for, which may be a name or a message.
    pub(super) fn of_text(text: &[u8]) -> Self {
        if !text.contains(&b' ') {
            return Self::of_name(text);
        }
        // A status line is compared as a whole, and messages are not interpreted.
        let mut buffer = [0; LONGEST];
        Self::exact(plain(text, &mut buffer)).unwrap_or_default()
    }

    fn exact(name: &[u8]) -> Option<Self> {
        Some(match name {
            // OpenAI.
            b"insufficientquota"
            | b"creditbalanceexhausted"
            | b"organizationspendlimitexceeded"
            | b"projectspendlimitexceeded"
            | b"organizationusagelimitexceeded"
            | b"billinghardlimitreached"
            | b"billingnotactive"
            | b"usagelimitreached"
            // Anthropic.
            | b"enforcedspendlimitreached"
            | b"billing"
            // Gemini, Bedrock, Moonshot.
            | b"quotaexceeded"
            | b"servicequotaexceeded"
            | b"exceededcurrentquota"
            // DeepSeek, DashScope, Volcengine, one-api.
            | b"insufficientbalance"
            | b"arrearage"
            | b"accountoverdue"
            | b"insufficientuserquota"
            | b"insufficientcredits"
            | b"paymentrequired" => Self::Exhausted,

            // OpenAI, Anthropic.
            b"overloaded"
            | b"serverisoverloaded"
            | b"serviceunavailable"
            | b"resourceunavailable"
            // Gemini.
            | b"modelcapacityexhausted"
            | b"unavailable"
            // Volcengine, vLLM's routers.
            | b"serverbusy"
            | b"modelloading"
            | b"queuefull" => Self::Overloaded,

            // OpenAI, Anthropic, Mistral.
            b"ratelimit"
            | b"ratelimitexceeded"
            | b"slowdown"
            | b"toomanyrequests"
            // Gemini, Azure, Bedrock.
            | b"resourceexhausted"
            | b"ratelimitreached"
            | b"throttling"
            | b"modelnotready" => Self::Throttled,

            // OpenAI, Anthropic.
            b"authentication"
            | b"invalidapikey"
            | b"accountdeactivated"
            // Gemini, Bedrock.
            | b"unauthenticated"
            | b"apikeyinvalid"
            | b"unrecognizedclient"
            | b"expiredtoken"
            // By their status lines.
            | b"unauthorized" => Self::Credential,

            // Gemini.
            b"failedprecondition" | b"outofrange"
            // Groq: the model's call of a tool did not fit the request's schema.
            | b"toolusefailed" | b"jsonvalidatefailed"
            // DashScope, Azure.
            | b"datainspectionfailed" | b"responsibleaipolicyviolation"
            // OpenAI.
            | b"failedtodownloadimage" | b"imagetoosmall" | b"imageparse" | b"emptyimagefile" | b"conflict"
            // By their status lines.
            | b"badrequest"
            | b"forbidden"
            | b"notfound"
            | b"methodnotallowed"
            | b"payloadtoolarge"
            | b"unprocessableentity" => Self::ClientError,
            _ => return None,
        })
    }

    /// By a part of the name, because providers form many names of the same words.
    fn by_part(name: &[u8]) -> Option<Self> {
        let has = |parts: &[&str]| {
            parts
                .iter()
                .any(|part| memchr::memmem::find(name, part.as_bytes()).is_some())
        };
        // An error of a server behind the provider does not concern the request.
        if has(&[
            "response", "upstream", "gateway", "provider", "timeout", "timedout",
        ]) {
            return None;
        }
        if has(&[
            "insufficientquota",
            "insufficientbalance",
            "insufficientcredit",
            "spendlimit",
        ]) {
            Some(Self::Exhausted)
        } else if has(&[
            "ratelimit",
            "throttl",
            "toomanyrequests",
            "requestlimit",
            "toomanytokens",
            "tokenquota",
            "exhausted",
        ]) {
            Some(Self::Throttled)
        } else if has(&["overload", "capacity", "unavailable"]) {
            Some(Self::Overloaded)
        } else if has(&["apikey", "authenticat", "unauthori", "credential"]) {
            Some(Self::Credential)
        } else if has(&[
            "invalid",
            "badrequest",
            "malformedrequest",
            "validation",
            "unprocessable",
            "missing",
            "notfound",
            "notexist",
            "unsupported",
            "notsupported",
            "permission",
            "forbidden",
            "accessdenied",
            "toolarge",
            "toolong",
            "contextlength",
            "contextwindow",
            "contextsize",
            "maxlength",
            "contentfilter",
            "contentpolicy",
            "policyviolation",
            "moderation",
            "guardrail",
            "safety",
            "sensitive",
            "prohibited",
            "flagged",
            "unknownparameter",
        ]) {
            Some(Self::ClientError)
        } else {
            None
        }
    }

    /// The kind of a number that is no HTTP status.
    pub(super) fn of_number(number: u64) -> Self {
        match number {
            // google.rpc.Code.
            3 | 5 | 6 | 7 | 9 | 11 => Self::ClientError,
            16 => Self::Credential,
            8 => Self::Throttled,
            14 => Self::Overloaded,
            // Zhipu: the key; the account; the request; content; rates.
            1000..=1004 => Self::Credential,
            1112 | 1113 | 1304 | 1308 | 1309 => Self::Exhausted,
            1210..=1222 | 1261 | 1301 => Self::ClientError,
            1302 | 1303 => Self::Throttled,
            1305 => Self::Overloaded,
            _ => Self::Unknown,
        }
    }

    /// The kind of `base_resp.status_code` of `MiniMax`.
    pub(super) fn of_minimax(number: u64) -> Self {
        match number {
            1002 | 1039 | 1041 | 2045 => Self::Throttled,
            1004 | 2049 => Self::Credential,
            1008 | 2056 => Self::Exhausted,
            1026 | 1027 | 1042 | 2013 | 20132 => Self::ClientError,
            _ => Self::Unknown,
        }
    }

    /// The kind of `error_code` of Baidu.
    pub(super) fn of_baidu(number: u64) -> Self {
        match number {
            4 | 18 | 336_501 | 336_502 => Self::Throttled,
            17 | 19 => Self::Exhausted,
            13 | 14 | 15 | 110 | 111 => Self::Credential,
            3 | 6 | 100 | 336_001..=336_007 | 336_103..=336_105 => Self::ClientError,
            2 | 336_100 => Self::Overloaded,
            _ => Self::of_number(number),
        }
    }
}

/// The letters and digits of `name` in lower case, without the words that say only that it is an error.
fn plain<'a>(name: &[u8], buffer: &'a mut [u8; LONGEST]) -> &'a [u8] {
    let letters = name.iter().filter(|byte| byte.is_ascii_alphanumeric());
    let mut len = 0;
    for (slot, byte) in buffer.iter_mut().zip(letters) {
        *slot = byte.to_ascii_lowercase();
        len += 1;
    }
    let plain = &buffer[..len];
    plain
        .strip_suffix(b"error")
        .or_else(|| plain.strip_suffix(b"exception"))
        .unwrap_or(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_is_known_in_every_spelling() {
        for name in [
            "rate_limit_error",
            "RateLimitError",
            "rate_limit_exceeded",
            "RATE_LIMIT_EXCEEDED",
            "Throttling.RateQuota",
            "ThrottlingException",
            "Too Many Requests",
        ] {
            assert_eq!(
                ErrorKind::of_name(name.as_bytes()),
                ErrorKind::Throttled,
                "{name}"
            );
        }
    }

    #[test]
    fn the_request_is_named_in_many_ways() {
        for name in [
            "BadRequestError",
            "bad_request",
            "invalid_request_error",
            "invalid_parameter_error",
            "context_length_exceeded",
            "exceed_context_size_error",
            "string_above_max_length",
            "content_filter",
            "content_policy_violation",
            "ResponsibleAIPolicyViolation",
            "moderation_blocked",
            "NotFoundError",
            "model_not_found",
            "DeploymentNotFound",
            "INVALID_ARGUMENT",
            "PERMISSION_DENIED",
            "ValidationException",
            "AccessDeniedException",
            "UnprocessableEntityError",
            "request_too_large",
            "unsupported_value",
            "missing_required_parameter",
            "Bad Request",
            "validation",
        ] {
            assert_eq!(
                ErrorKind::of_name(name.as_bytes()),
                ErrorKind::ClientError,
                "{name}"
            );
        }
    }

    #[test]
    fn a_credential_is_named_apart() {
        for name in [
            "authentication_error",
            "AuthenticationError",
            "invalid_api_key",
            "API_KEY_INVALID",
            "UNAUTHENTICATED",
            "Unauthorized",
            "InvalidApiKey",
            "invalid_authentication_error",
        ] {
            assert_eq!(
                ErrorKind::of_name(name.as_bytes()),
                ErrorKind::Credential,
                "{name}"
            );
        }
    }

    #[test]
    fn the_providers_own_failures_and_messages_are_unknown() {
        for name in [
            "",
            "error",
            "server_error",
            "InternalServerError",
            "api_error",
            "internal_error",
            "timeout_error",
            "upstream_error",
            "invalid_response_error",
            "provider_returned_invalid_json",
            "ModelStreamErrorException",
            "INTERNAL",
            "the file was not found on the server",
            "internal error: invalid state",
        ] {
            assert_eq!(
                ErrorKind::of_text(name.as_bytes()),
                ErrorKind::Unknown,
                "{name}"
            );
        }
    }
}
