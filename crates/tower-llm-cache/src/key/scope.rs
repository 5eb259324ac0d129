use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};
use tower_llm_core::{Call, Caller};

use super::{buffer::Buffer, bypass::Bypass};

/// Which callers share cached answers.
///
/// There is no default: sharing answers saves the most calls, and lets one caller learn what another asked. A caller that
/// gets an answer faster than a model could write it knows that the same request was sent before.
#[derive(Clone, PartialEq, Eq)]
pub struct Scope(Kind);

#[derive(Clone, PartialEq, Eq)]
enum Kind {
    Caller,
    Header(HeaderName),
    Shared,
}

impl Scope {
    /// Answers a caller only from its own earlier calls: [`Call::caller`]. Calls without a caller bypass the cache.
    #[must_use]
    pub fn caller() -> Self {
        Self(Kind::Caller)
    }

    /// Shares answers among requests with the same value of a header, such as a tenant's name.
    ///
    /// Clients can send any value, so use a header that a proxy in front of the service sets or checks. Requests without the
    /// header, with an empty one or with more than one bypass the cache.
    #[must_use]
    pub fn header(name: HeaderName) -> Self {
        Self(Kind::Header(name))
    }

    /// Shares answers among all callers.
    ///
    /// Credentials are not part of the key: a caller gets a cached answer even if the provider would refuse its own call.
    #[must_use]
    pub fn shared() -> Self {
        Self(Kind::Shared)
    }

    /// Writes the scope of one request, whose headers `header` returns.
    pub(super) fn write<'a>(
        &self,
        call: &Call,
        header: impl FnOnce(&HeaderName) -> Option<&'a [u8]>,
        out: &mut Buffer,
    ) -> Result<(), Bypass> {
        match &self.0 {
            Kind::Shared => out.text("shared"),
            Kind::Caller => {
                let caller = call.caller().map(Caller::as_str).unwrap_or_default();
                if caller.is_empty() {
                    return Err(Bypass::NoCaller);
                }
                out.text("caller");
                out.text(caller);
            }
            Kind::Header(name) => {
                let value = header(name).unwrap_or_default();
                if value.is_empty() {
                    return Err(Bypass::NoCaller);
                }
                out.text("header");
                out.text(name.as_str());
                out.bytes(value);
            }
        }
        Ok(())
    }
}

/// The value of a header that has one: of two, the upstream might take the other.
pub(super) fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().filter(|_| values.next().is_none());
    value.map(HeaderValue::as_bytes)
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Caller => f.write_str("caller"),
            Kind::Header(name) => write!(f, "header {name}"),
            Kind::Shared => f.write_str("shared"),
        }
    }
}
