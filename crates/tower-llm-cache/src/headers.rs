//! The headers of answers that are shared, and what a cache says of itself in them.

use std::{
    fmt::{self, Write as _},
    time::Duration,
};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{self, CACHE_CONTROL},
};

use crate::key::{Bypass, CacheKey};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Whether responses say what the cache did, in a `cache-status` header (RFC 9211).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StatusHeader {
    /// They do not.
    Omitted,
    /// They do: `hit`, or why the call was forwarded.
    #[default]
    Plain,
    /// They also name the key, by which the answer can be [invalidated](crate::CacheHandle::invalidate). A batch of embeddings
    /// has a key for each of its items, so it names none.
    WithKey,
}

/// What the cache did with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Did {
    Hit {
        age: Duration,
        ttl: Duration,
    },
    /// Served an answer that was past its time.
    Stale {
        age: Duration,
        since: Duration,
    },
    Forwarded(Why),
    /// Joined a call in flight, instead of being forwarded.
    Collapsed(Why),
}

/// Why a request was forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Miss,
    /// Some of the items were stored or in flight.
    Partial,
    /// The request asked for a new answer, or for none as old as the one stored.
    Request,
    Bypass(Bypass),
}

/// The headers of an answer that another caller may see: without those about one connection, one call or one account.
///
/// The id of the request stays (`x-request-id`, `request-id`): it says which call has made the answer, which a provider asks for
/// in a complaint about it. It names no account, and nothing can be fetched by it.
pub(crate) fn shareable(headers: &HeaderMap) -> HeaderMap {
    let mut shared = HeaderMap::with_capacity(headers.len() + 2);
    for (name, value) in headers {
        if !is_of_one_call(name) && !is_of_one_account(name) {
            shared.append(name.clone(), value.clone());
        }
    }
    shared
}

fn is_of_one_call(name: &HeaderName) -> bool {
    const NAMES: [HeaderName; 18] = [
        // Of the connection: RFC 9110, section 7.6.1.
        header::CONNECTION,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        header::PROXY_AUTHENTICATE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::ALT_SVC,
        // Cloudflare's, with the data center that the caller is near to.
        HeaderName::from_static("cf-ray"),
        // Of the message as it was sent.
        header::AGE,
        header::CONTENT_LENGTH,
        header::DATE,
        CACHE_CONTROL,
        // Of the caller it was sent to.
        header::RETRY_AFTER,
        header::SET_COOKIE,
        HeaderName::from_static("retry-after-ms"),
        HeaderName::from_static("x-should-retry"),
    ];
    NAMES.contains(name)
}

/// Whether a header says whose account or credential made the call, or how far its limits are used.
///
/// Gateways pass the headers of providers on with something before the name, such as `llm_provider-`.
fn is_of_one_account(name: &HeaderName) -> bool {
    const PARTS: [&str; 3] = [
        "ratelimit",
        "rate-limit",
        // LiteLLM: the spend and the limits of one of its keys.
        "x-litellm-key-",
    ];
    const ENDS: [&str; 12] = [
        "-organization",
        "-organization-id",
        "-org-id",
        "-project",
        "-project-id",
        "-workspace-id",
        "-account-id",
        "-tenant-id",
        "-team-id",
        "-user-id",
        "-subscription-id",
        "-api-key",
    ];
    let name = name.as_str();
    PARTS.iter().any(|part| name.contains(part)) || ENDS.iter().any(|end| name.ends_with(end))
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Miss => f.write_str("miss"),
            Self::Partial => f.write_str("partial"),
            Self::Request => f.write_str("request"),
            Self::Bypass(reason) => write!(f, "bypass; detail={reason}"),
        }
    }
}

impl StatusHeader {
    /// Adds what the cache did to what caches nearer to the provider have said.
    pub(crate) fn write(self, did: Did, key: Option<&CacheKey>, headers: &mut HeaderMap) {
        if let Did::Hit { age, .. } | Did::Stale { age, .. } = did {
            headers.insert(header::AGE, HeaderValue::from(age.as_secs()));
        }
        // A list of models, say, has nothing to do with a cache.
        let is_foreign = did == Did::Forwarded(Why::Bypass(Bypass::Operation));
        if self == Self::Omitted || is_foreign {
            return;
        }
        // Room for all but a key.
        let mut status = String::with_capacity(64);
        status.push_str("tower-llm-cache; ");
        let written = match did {
            Did::Hit { ttl, .. } => write!(status, "hit; ttl={}", ttl.as_secs()),
            Did::Stale { since, .. } => write!(status, "hit; ttl=-{}", since.as_secs().max(1)),
            Did::Collapsed(why) => write!(status, "fwd={why}; collapsed"),
            Did::Forwarded(why) => write!(status, "fwd={why}"),
        };
        if let (Self::WithKey, Some(key)) = (self, key) {
            // A quoted string: RFC 8941, section 3.3.3. A key has neither quotes nor backslashes.
            let _ = write!(status, "; key=\"{key}\"");
        }
        if let (Ok(()), Ok(status)) = (written, HeaderValue::from_str(&status)) {
            headers.append(CACHE_STATUS, status);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(name: &'static str) -> bool {
        let mut headers = HeaderMap::new();
        headers.append(name, HeaderValue::from_static("1"));
        !shareable(&headers).is_empty()
    }

    #[test]
    fn headers_about_one_account_are_not_shared() {
        for name in [
            "openai-organization",
            "openai-project",
            "anthropic-organization-id",
            "llm_provider-openai-organization",
            "x-ratelimit-remaining-tokens",
            "anthropic-ratelimit-requests-limit",
            "llm_provider-x-ratelimit-limit-requests",
            "x-rate-limit-reset",
            "ratelimit-policy",
            "x-litellm-key-spend",
            "set-cookie",
            "cf-ray",
        ] {
            assert!(!shared(name), "{name}");
        }
    }

    #[test]
    fn headers_about_the_answer_are_shared() {
        for name in [
            "content-type",
            "x-request-id",
            "request-id",
            "openai-version",
            "openai-model",
            "openai-processing-ms",
            "x-litellm-model-id",
            "x-projection",
        ] {
            assert!(shared(name), "{name}");
        }
    }
}
