//! Which upstream a request goes to, and what is sent there.

use std::{fmt, sync::Arc};

use http::{
    HeaderName, HeaderValue, Request, Uri,
    header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, EXPECT},
    uri::{Parts, PathAndQuery},
};
use tower_llm_stack::{BoxError, Dialect, Provider, adapters::base_url::BaseUrl};

use crate::{Secret, Settings, StartError, UpstreamSettings, headers::remove_hop_by_hop};

/// Every header in which one of the dialects' clients sends its credential.
const CREDENTIALS: [HeaderName; 4] = [
    AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-goog-api-key"),
];

/// Where the calls of one provider go.
#[derive(Clone, Debug)]
pub(crate) struct Upstream {
    name: &'static str,
    provider: Provider,
    base: BaseUrl,
    /// The header in which it takes credentials, beside `authorization`.
    header: HeaderName,
    /// Takes the place of the caller's; `None` passes that on.
    credential: Option<(HeaderName, HeaderValue)>,
    simulated: bool,
}

/// The upstreams by provider.
#[derive(Clone, Debug)]
pub(crate) struct Upstreams {
    openai: Arc<Upstream>,
    anthropic: Arc<Upstream>,
    gemini: Arc<Upstream>,
    azure: Option<Arc<Upstream>>,
}

/// A provider as its clients know it: the settings' names, the official address, the credential's form.
struct Known {
    name: &'static str,
    provider: Provider,
    url_setting: &'static str,
    key_setting: &'static str,
    official: Option<&'static str>,
    header: HeaderName,
    scheme: &'static str,
}

const OPENAI: Known = Known {
    name: "openai",
    provider: Provider::OPENAI,
    url_setting: "OPENAI_BASE_URL",
    key_setting: "OPENAI_API_KEY",
    official: Some("https://api.openai.com/v1"),
    header: AUTHORIZATION,
    scheme: "Bearer ",
};

const ANTHROPIC: Known = Known {
    name: "anthropic",
    provider: Provider::ANTHROPIC,
    url_setting: "ANTHROPIC_BASE_URL",
    key_setting: "ANTHROPIC_API_KEY",
    official: Some("https://api.anthropic.com"),
    header: HeaderName::from_static("x-api-key"),
    scheme: "",
};

const GEMINI: Known = Known {
    name: "gemini",
    provider: Provider::GEMINI,
    url_setting: "GOOGLE_GEMINI_BASE_URL",
    key_setting: "GEMINI_API_KEY",
    official: Some("https://generativelanguage.googleapis.com"),
    header: HeaderName::from_static("x-goog-api-key"),
    scheme: "",
};

const AZURE: Known = Known {
    name: "azure",
    provider: Provider::AZURE_OPENAI,
    url_setting: "AZURE_OPENAI_ENDPOINT",
    key_setting: "AZURE_OPENAI_API_KEY",
    official: None,
    header: HeaderName::from_static("api-key"),
    scheme: "",
};

// === impl Known ===

impl Known {
    /// `None` if there is nowhere to go.
    fn upstream(
        &self,
        url: Option<&str>,
        key: Option<&Secret>,
    ) -> Result<Option<Arc<Upstream>>, StartError> {
        let url = url.map(str::trim).filter(|url| !url.is_empty());
        let key = key.map(Secret::expose).filter(|key| !key.is_empty());
        let Some(address) = url.or(self.official) else {
            return match key {
                Some(_) => Err(StartError::setting(
                    self.url_setting,
                    format_args!("must be set, since {} is", self.key_setting),
                )),
                None => Ok(None),
            };
        };
        // The address is not repeated: one with a password in it is among those refused.
        let base = BaseUrl::new(address)
            .map_err(|error| StartError::setting(self.url_setting, error))?
            .replacing();
        let credential = match key {
            Some(key) => Some(self.credential(key)?),
            None => None,
        };
        Ok(Some(Arc::new(Upstream {
            name: self.name,
            provider: self.provider.clone(),
            base,
            header: self.header.clone(),
            credential,
            simulated: false,
        })))
    }

    fn credential(&self, key: &str) -> Result<(HeaderName, HeaderValue), StartError> {
        let mut value = HeaderValue::try_from(format!("{}{key}", self.scheme)).map_err(|_| {
            StartError::setting(
                self.key_setting,
                "has characters that no header may have (the value is not shown)",
            )
        })?;
        value.set_sensitive(true);
        Ok((self.header.clone(), value))
    }

    fn simulated(&self, base: &BaseUrl) -> Arc<Upstream> {
        Arc::new(Upstream {
            name: self.name,
            provider: self.provider.clone(),
            base: base.clone(),
            header: self.header.clone(),
            credential: None,
            simulated: true,
        })
    }
}

// === impl Upstreams ===

impl Upstreams {
    /// Whether `settings` want the simulated provider.
    pub(crate) fn are_simulated(settings: &Settings) -> bool {
        settings.simulate || settings.upstreams.is_empty()
    }

    pub(crate) fn simulated(url: &str) -> Result<Self, StartError> {
        let base = BaseUrl::new(url)
            .map_err(|error| StartError::setting("simulate", error))?
            .replacing();
        Ok(Self {
            openai: OPENAI.simulated(&base),
            anthropic: ANTHROPIC.simulated(&base),
            gemini: GEMINI.simulated(&base),
            azure: Some(AZURE.simulated(&base)),
        })
    }

    pub(crate) fn new(settings: &UpstreamSettings) -> Result<Self, StartError> {
        let UpstreamSettings {
            openai_base_url,
            openai_api_key,
            anthropic_base_url,
            anthropic_api_key,
            gemini_base_url,
            gemini_api_key,
            azure_endpoint,
            azure_api_key,
        } = settings;
        let official = "has an official address";
        Ok(Self {
            openai: OPENAI
                .upstream(openai_base_url.as_deref(), openai_api_key.as_ref())?
                .expect(official),
            anthropic: ANTHROPIC
                .upstream(anthropic_base_url.as_deref(), anthropic_api_key.as_ref())?
                .expect(official),
            gemini: GEMINI
                .upstream(gemini_base_url.as_deref(), gemini_api_key.as_ref())?
                .expect(official),
            azure: AZURE.upstream(azure_endpoint.as_deref(), azure_api_key.as_ref())?,
        })
    }

    /// Where a request goes: by its dialect if it has one; else by its path's first segment, so that a provider's other
    /// endpoints (`GET /v1/models`, files, batches) are reached too.
    pub(crate) fn of<B>(&self, request: &Request<B>) -> Option<&Arc<Upstream>> {
        let (uri, headers) = (request.uri(), request.headers());
        let path = uri.path();
        if path.starts_with("/openai/") && self.azure.is_some() {
            return self.azure.as_ref();
        }
        // A deployment is Azure's alone: nobody else can answer for it.
        if path.contains("/openai/deployments/") {
            return self.azure.as_ref();
        }
        // Where Gemini speaks OpenAI's dialect.
        if path.starts_with("/v1beta/openai/") {
            return Some(&self.gemini);
        }
        match Dialect::of(request.method(), uri, headers) {
            Some(Dialect::Anthropic) => Some(&self.anthropic),
            Some(Dialect::Gemini) => Some(&self.gemini),
            Some(_) => Some(&self.openai),
            None if path.starts_with("/v1/") => Some(&self.openai),
            None if path.starts_with("/v1beta/") => Some(&self.gemini),
            None => None,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Upstream> {
        let fixed = [&self.openai, &self.anthropic, &self.gemini];
        fixed.into_iter().chain(&self.azure).map(Arc::as_ref)
    }
}

// === impl Upstream ===

impl Upstream {
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn provider(&self) -> Provider {
        self.provider.clone()
    }

    pub(crate) fn base(&self) -> &BaseUrl {
        &self.base
    }

    /// Whether a caller's own key is what the provider takes.
    pub(crate) fn takes_the_caller_s_key(&self) -> bool {
        self.credential.is_none()
    }

    /// Makes of a caller's request the one that is sent.
    pub(crate) fn prepare<B>(&self, request: &mut Request<B>) -> Result<(), BoxError> {
        let headers = request.headers_mut();
        remove_hop_by_hop(headers);
        // The body is in hand: its length is the client's to tell, and nobody waits for leave to send it.
        headers.remove(CONTENT_LENGTH);
        headers.remove(EXPECT);
        // What is compressed can't be read for its usage.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        // What another provider takes is none of this one's business; nor is the caller's, where ours takes its place:
        // with two, some providers take the caller's.
        let passes = |name: &HeaderName| {
            self.credential.is_none() && (*name == self.header || *name == AUTHORIZATION)
        };
        for name in CREDENTIALS.iter().filter(|name| !passes(name)) {
            headers.remove(name);
        }
        if let Some((name, value)) = &self.credential {
            headers.insert(name, value.clone());
        }
        if (self.credential.is_some() || self.provider != Provider::GEMINI)
            && let Some(uri) = without_key(request.uri())
        {
            *request.uri_mut() = uri;
        }
        Ok(self.base.apply(request)?)
    }
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

/// The address without the `key=` in which Gemini's clients may send their credential; `None` if it has none.
fn without_key(uri: &Uri) -> Option<Uri> {
    let query = uri.query()?;
    let is_key = |pair: &&str| pair.split('=').next() == Some("key");
    if !query.split('&').any(|pair| is_key(&pair)) {
        return None;
    }
    let kept: Vec<&str> = query.split('&').filter(|pair| !is_key(pair)).collect();
    let path = match kept.is_empty() {
        true => uri.path().to_owned(),
        false => format!("{}?{}", uri.path(), kept.join("&")),
    };
    let mut parts = Parts::from(uri.clone());
    parts.path_and_query = Some(PathAndQuery::try_from(path).ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn upstreams(flags: &[&str]) -> Result<Upstreams, StartError> {
        Upstreams::new(&Settings::from_flags(flags).unwrap().upstreams)
    }

    fn to(path: &'static str) -> Request<()> {
        Request::post(path).body(()).unwrap()
    }

    #[test]
    fn no_provider_sees_what_another_one_takes() {
        let all = upstreams(&["--azure-endpoint", "http://127.0.0.1:1"]).unwrap();
        for (path, header) in [
            ("/v1/chat/completions", None),
            ("/v1/messages", Some("x-api-key")),
            (
                "/v1beta/models/m:generateContent?key=k",
                Some("x-goog-api-key"),
            ),
            ("/openai/v1/chat/completions", Some("api-key")),
        ] {
            let mut request = to(path);
            for name in &CREDENTIALS {
                request
                    .headers_mut()
                    .insert(name, HeaderValue::from_static("k"));
            }
            let upstream = all.of(&request).unwrap();
            upstream.prepare(&mut request).unwrap();
            for name in &CREDENTIALS {
                let passes = name == AUTHORIZATION || header == Some(name.as_str());
                assert_eq!(
                    request.headers().contains_key(name),
                    passes,
                    "{path} {name}"
                );
            }
        }
    }

    #[test]
    fn the_dialect_or_else_the_path_says_where_a_request_goes() {
        let all = upstreams(&["--azure-endpoint", "http://127.0.0.1:1"]).unwrap();
        let of = |path: &'static str| all.of(&to(path)).map(|upstream| upstream.name);
        for (path, name) in [
            ("/v1/chat/completions", "openai"),
            ("/chat/completions", "openai"),
            ("/v1/responses", "openai"),
            ("/v1/models", "openai"),
            ("/v1/responses/resp_1", "openai"),
            (
                "/openai/deployments/d/chat/completions?api-version=1",
                "azure",
            ),
            ("/openai/v1/chat/completions", "azure"),
            ("/v1/messages", "anthropic"),
            ("/v1/messages/count_tokens", "anthropic"),
            ("/v1beta/models/m:generateContent", "gemini"),
            ("/v1/models/m:generateContent", "gemini"),
            ("/v1beta/models", "gemini"),
            ("/v1beta/openai/chat/completions", "gemini"),
            ("/v1/chat/completions/chatcmpl-1/messages", "openai"),
            ("/v1/threads/thread_1/messages", "openai"),
        ] {
            assert_eq!(of(path), Some(name), "{path}");
        }
        for path in ["/", "/favicon.ico", "/v1", "/healthz/x", "*"] {
            assert_eq!(of(path), None, "{path}");
        }
    }

    #[test]
    fn a_header_only_one_provider_s_clients_send_says_it_too() {
        let all = upstreams(&[]).unwrap();
        let mut request = to("/v1/models");
        *request.method_mut() = Method::GET;
        let version = HeaderValue::from_static("2023-06-01");
        request.headers_mut().insert("anthropic-version", version);
        let found = all.of(&request).map(|found| found.name);
        assert_eq!(found, Some("anthropic"));
    }

    #[test]
    fn without_azure_a_deployment_has_nowhere_to_go() {
        let all = upstreams(&[]).unwrap();
        let deployment = to("/openai/deployments/d/chat/completions");
        assert!(all.of(&deployment).is_none());
        let found = all.of(&to("/openai/v1/chat/completions"));
        assert_eq!(found.map(|found| found.name), Some("openai"));
    }

    #[test]
    fn what_can_t_work_is_refused_by_name_and_no_key_is_shown() {
        for (flags, name) in [
            (
                ["--openai-base-url", "api.openai.com/v1"],
                "OPENAI_BASE_URL",
            ),
            (["--anthropic-base-url", "ftp://host"], "ANTHROPIC_BASE_URL"),
            (
                ["--gemini-base-url", "http://me:secret@host"],
                "GOOGLE_GEMINI_BASE_URL",
            ),
            (["--azure-api-key", "secret"], "AZURE_OPENAI_ENDPOINT"),
            (["--openai-api-key", "secret\n1"], "OPENAI_API_KEY"),
        ] {
            let error = upstreams(&flags).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_caller_s_key_goes_from_the_query_too() {
        let without = |uri| without_key(&Uri::from_static(uri)).map(|uri| uri.to_string());
        assert_eq!(
            without("/m?alt=sse&key=k&x=1").as_deref(),
            Some("/m?alt=sse&x=1")
        );
        assert_eq!(without("/m?key=k").as_deref(), Some("/m"));
        assert_eq!(without("http://h/m?key").as_deref(), Some("http://h/m"));
        assert_eq!(without("/m?keys=1&monkey=2"), None);
        assert_eq!(without("/m"), None);
    }
}
