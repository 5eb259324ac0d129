//! One provider: which requests may go there, and what is sent.

use std::fmt;

use http::{
    HeaderName, HeaderValue, Method, Request, Uri,
    header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, COOKIE, EXPECT, HOST},
    request::Parts,
};
use tower_llm_stack::{
    BoxError, Dialect, Provider,
    accounts::{remove_choices, remove_hop_by_hop},
    adapters::base_url::BaseUrl,
};

use crate::{
    AllowPaths,
    access::{CREDENTIALS, decoded, without_query},
    known::{ANTHROPIC, GEMINI, Known, OPENAI},
    paths::is_inference_or_models,
    problem::Problem,
};

/// Where the calls of one provider go.
#[derive(Clone, Debug)]
pub(crate) struct Upstream {
    name: &'static str,
    label: &'static str,
    provider: Provider,
    base: BaseUrl,
    /// The same as an address.
    url: Uri,
    /// Its host, as a header.
    host: HeaderValue,
    /// What `base` was given by.
    url_name: Box<str>,
    /// What its credential was given by.
    key_name: Box<str>,
    /// The header in which it takes credentials, beside `authorization`.
    header: HeaderName,
    /// Replaces the caller's credential; `None` passes that on.
    credential: Option<(HeaderName, HeaderValue)>,
    /// Says which credential is missing.
    no_credential: Problem,
    simulated: bool,
}

// === impl Upstream ===

impl Upstream {
    /// One of a provider, named by its variables.
    pub(crate) fn new(
        known: &Known,
        base: BaseUrl,
        credential: Option<(HeaderName, HeaderValue)>,
        simulated: bool,
    ) -> Self {
        let url: Uri = base.to_string().parse().expect("a base URL is a URL");
        let host = url.authority().map_or("", |authority| authority.as_str());
        Self {
            name: known.name,
            label: known.label,
            provider: known.provider.clone(),
            host: HeaderValue::from_str(host).expect("a host is a header value"),
            url,
            base,
            url_name: known.url.variable.into(),
            key_name: known.key.variable.into(),
            header: known.header.clone(),
            credential,
            no_credential: known.no_credential,
            simulated,
        }
    }

    /// Sets what its base URL and its credential were given by.
    pub(crate) fn named(mut self, url: &str, key: &str) -> Self {
        self.url_name = url.into();
        self.key_name = key.into();
        self
    }

    /// The name of the provider that targets of a dialect stand for.
    pub(crate) fn front_of(dialect: Dialect) -> &'static str {
        match dialect {
            Dialect::Anthropic => ANTHROPIC.name,
            Dialect::Gemini => GEMINI.name,
            _ => OPENAI.name,
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Its provider's name, as in the metrics.
    pub(crate) fn label(&self) -> &'static str {
        self.label
    }

    pub(crate) fn provider(&self) -> Provider {
        self.provider.clone()
    }

    /// Its base URL.
    pub(crate) fn url(&self) -> &Uri {
        &self.url
    }

    /// What its base URL was given by.
    pub(crate) fn url_name(&self) -> &str {
        &self.url_name
    }

    /// Whether the provider gets the caller's own credential, and not one of the gateway's owner.
    pub(crate) fn passes_credentials(&self) -> bool {
        self.credential.is_none()
    }

    /// The owner's credential, if there is one.
    pub(crate) fn credential(&self) -> Option<&[u8]> {
        let (_, value) = self.credential.as_ref()?;
        Some(value.as_bytes())
    }

    /// What the owner's credential was given by, if there is one.
    pub(crate) fn credential_name(&self) -> Option<&str> {
        self.credential.as_ref().map(|_| &*self.key_name)
    }

    /// Whether a caller may send this here: anything with its own credential; with the owner's, inference, lists of models
    /// and the paths that are allowed.
    pub(crate) fn allows(&self, method: &Method, path: &str, allowed: &AllowPaths) -> bool {
        if self.credential.is_none() {
            return true;
        }
        // A server may answer TRACE with the request's headers, and so with the credential.
        if matches!(*method, Method::TRACE | Method::CONNECT) {
            return false;
        }
        let below_base = path.strip_prefix(self.url.path().trim_end_matches('/'));
        let relative = below_base.filter(|path| path.starts_with('/'));
        allowed.allows(path) || is_inference_or_models(method, relative.unwrap_or(path))
    }

    /// Checks that a request, out of which the gateway's key has been taken, would not arrive without any credential.
    pub(crate) fn check_credential(&self, request: &Parts) -> Result<(), Problem> {
        if self.simulated || self.credential.is_some() || self.has_own_credential(request) {
            return Ok(());
        }
        Err(self.no_credential)
    }

    /// Whether the caller's own credential is in a place that its provider reads.
    fn has_own_credential(&self, request: &Parts) -> bool {
        let is_credential = |value: &HeaderValue| {
            let value = value.as_bytes().trim_ascii();
            !value.is_empty() && !value.eq_ignore_ascii_case(b"Bearer")
        };
        let mut headers = CREDENTIALS.into_iter().filter(|name| self.passes(name));
        headers.any(|name| request.headers.get_all(name).iter().any(is_credential))
            || self.takes_elsewhere(request)
    }

    /// Whether a request has a credential where only this provider reads one.
    fn takes_elsewhere(&self, request: &Parts) -> bool {
        let query = request.uri.query().unwrap_or_default();
        if self.provider == Provider::GEMINI {
            has_pair(query, &["key", "$key", "access_token", "oauth_token"])
        } else if self.provider == Provider::AZURE_OPENAI {
            request.headers.contains_key("ocp-apim-subscription-key")
                || has_pair(query, &["subscription-key"])
        } else {
            false
        }
    }

    /// Whether the header `name` of [`CREDENTIALS`] is sent as the caller wrote it: never what another provider takes.
    fn passes(&self, name: &HeaderName) -> bool {
        self.credential.is_none() && (*name == self.header || *name == AUTHORIZATION)
    }

    /// The dialect of requests whose path and headers name none.
    pub(crate) fn dialect(&self, path: &str) -> Dialect {
        if self.provider == Provider::ANTHROPIC {
            Dialect::Anthropic
        } else if self.provider == Provider::GEMINI && !path.contains("/openai/") {
            Dialect::Gemini
        } else {
            Dialect::OpenAi
        }
    }

    /// Addresses a request to this provider. Before, it names the gateway, by the name under which its caller knows it.
    pub(crate) fn address(&self, parts: &mut Parts) {
        parts.headers.insert(HOST, self.host.clone());
        if parts.uri.authority().is_some()
            && let Some(path) = parts.uri.path_and_query()
        {
            parts.uri = path.clone().into();
        }
    }

    /// Makes of a caller's request the one that is sent.
    pub(crate) fn prepare<B>(&self, request: &mut Request<B>) -> Result<(), BoxError> {
        let headers = request.headers_mut();
        remove_hop_by_hop(headers);
        // The HTTP client sets the length, and `expect: 100-continue` concerns only the connection to the caller.
        headers.remove(CONTENT_LENGTH);
        headers.remove(EXPECT);
        // A browser sends cookies by itself: they are this gateway's, or of a service beside it.
        headers.remove(COOKIE);
        // What is compressed can't be read for its usage.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some((name, value)) = &self.credential {
            remove_choices(request);
            request.headers_mut().insert(name, value.clone());
            return Ok(self.base.apply(request)?);
        }
        // What another provider takes is none of this one's business.
        for name in CREDENTIALS.iter().filter(|name| !self.passes(name)) {
            headers.remove(name);
        }
        if self.provider != Provider::GEMINI
            && let Some(uri) = without_query(request.uri(), |name, _| decoded(name) == b"key")
        {
            *request.uri_mut() = uri;
        }
        Ok(self.base.apply(request)?)
    }
}

/// Whether a query has a value for one of `names`.
fn has_pair(query: &str, names: &[&str]) -> bool {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .any(|(name, value)| {
            let name = decoded(name);
            !value.is_empty() && names.iter().any(|known| name == known.as_bytes())
        })
}

/// What it is, without its key.
impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.simulated {
            return f.write_str("simulated");
        }
        let key = match self.credential {
            Some(_) => "the configured key",
            None => "the caller's key",
        };
        write!(f, "{}, with {key}", self.base)
    }
}
