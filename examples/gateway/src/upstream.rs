//! Which upstream a request goes to, and what is sent there.

use std::{fmt, sync::Arc};

use http::{
    HeaderName, HeaderValue, Method, Request, Uri,
    header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, EXPECT, HOST},
    request::Parts,
};
use tower_llm_stack::{
    BoxError, Dialect, Provider,
    accounts::{remove_choices, remove_hop_by_hop},
    adapters::base_url::BaseUrl,
    config::TargetConfig,
};

use crate::{
    AllowPaths, Secret, Settings, StartError, UpstreamSettings,
    access::{CREDENTIALS, decoded, without_query},
    known::{ANTHROPIC, AZURE, GEMINI, Known, OPENAI},
    paths::is_inference_or_models,
    problem::Problem,
    settings::Names,
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

/// The upstreams by provider.
#[derive(Clone, Debug, Default)]
pub(crate) struct Upstreams {
    openai: Option<Arc<Upstream>>,
    anthropic: Option<Arc<Upstream>>,
    gemini: Option<Arc<Upstream>>,
    azure: Option<Arc<Upstream>>,
}

// === impl Known ===

impl Known {
    /// `None` if there is nowhere to go.
    fn upstream(
        &self,
        url: Option<&str>,
        key: Option<&Secret>,
        names: &Names,
    ) -> Result<Option<Arc<Upstream>>, StartError> {
        let url = url.map(str::trim).filter(|url| !url.is_empty());
        let key = key.map(Secret::expose).filter(|key| !key.is_empty());
        let key_name = names.of(self.key.flag);
        let Some(address) = url.or(self.official) else {
            // Named like the one that is set.
            let missing = match names.is_variable(self.key.flag) {
                true => self.url.variable,
                false => self.url.flag,
            };
            return match key {
                Some(_) => Err(StartError::setting(
                    missing,
                    format_args!("must be set, because {key_name} is"),
                )),
                None => Ok(None),
            };
        };
        // The address is not repeated: one with a password in it is among those refused.
        let base = BaseUrl::new(address)
            .map_err(|error| StartError::setting(names.of(self.url.flag), error))?
            .replacing();
        let credential = match key {
            Some(key) => Some(self.credential(key, key_name)?),
            None => None,
        };
        let mut upstream = self.at(base, credential, false);
        upstream.url_name = names.of(self.url.flag).into();
        upstream.key_name = key_name.into();
        Ok(Some(Arc::new(upstream)))
    }

    fn credential(&self, key: &str, name: &str) -> Result<(HeaderName, HeaderValue), StartError> {
        let mut value = HeaderValue::try_from(format!("{}{key}", self.scheme)).map_err(|_| {
            let what = "has characters that a header must not have (the value is not shown)";
            StartError::setting(name, what)
        })?;
        value.set_sensitive(true);
        Ok((self.header.clone(), value))
    }

    /// The provider as a target stands for it.
    fn front(
        &self,
        name: &str,
        target: &TargetConfig,
        keyed: Option<&str>,
    ) -> Result<Upstream, StartError> {
        let setting = |what: &str| format!("targets.{name}.{what}");
        let base = BaseUrl::new(target.base_url().unwrap_or_default())
            .map_err(|error| StartError::setting(setting("base_url"), error))?;
        // The target's own credential is put in where it is sent; here it only says that there is one.
        let own = (self.header.clone(), HeaderValue::from_static("-"));
        let mut front = self.at(base.replacing(), keyed.map(|_| own), false);
        front.url_name = setting("base_url").into();
        front.key_name = format!("targets.{}", keyed.unwrap_or(name)).into();
        Ok(front)
    }

    fn simulated(&self, base: &BaseUrl) -> Arc<Upstream> {
        Arc::new(self.at(base.clone(), None, true))
    }

    fn at(
        &self,
        base: BaseUrl,
        credential: Option<(HeaderName, HeaderValue)>,
        simulated: bool,
    ) -> Upstream {
        let url: Uri = base.to_string().parse().expect("a base URL is a URL");
        let host = url.authority().map_or("", |authority| authority.as_str());
        Upstream {
            name: self.name,
            label: self.label,
            provider: self.provider.clone(),
            host: HeaderValue::from_str(host).expect("a host is a header value"),
            url,
            base,
            url_name: self.url.variable.into(),
            key_name: self.key.variable.into(),
            header: self.header.clone(),
            credential,
            no_credential: self.no_credential,
            simulated,
        }
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
            openai: Some(OPENAI.simulated(&base)),
            anthropic: Some(ANTHROPIC.simulated(&base)),
            gemini: Some(GEMINI.simulated(&base)),
            azure: Some(AZURE.simulated(&base)),
        })
    }

    /// Where the targets of a configuration file stand for the providers whose dialects they speak.
    ///
    /// Which target a call goes to is known when its body has been read. So if any target has a credential of its own, requests
    /// of all dialects need a key of the gateway's, and reach inference and lists of models alone.
    pub(crate) fn of_targets<'a>(
        targets: impl Iterator<Item = (&'a str, &'a TargetConfig)>,
    ) -> Result<Self, StartError> {
        let mut fronts = Self::default();
        let targets: Vec<_> = targets.collect();
        let keyed = targets.iter().find(|(_, target)| target.has_credential());
        let keyed = keyed.map(|(name, _)| *name);
        for (name, target) in targets {
            let (known, front) = match target.dialect() {
                Some(Dialect::Anthropic) => (&ANTHROPIC, &mut fronts.anthropic),
                Some(Dialect::Gemini) => (&GEMINI, &mut fronts.gemini),
                _ => (&OPENAI, &mut fronts.openai),
            };
            if front.is_none() {
                *front = Some(Arc::new(known.front(name, target, keyed)?));
            }
        }
        Ok(fronts)
    }

    pub(crate) fn new(settings: &UpstreamSettings, names: &Names) -> Result<Self, StartError> {
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
        Ok(Self {
            openai: OPENAI.upstream(openai_base_url.as_deref(), openai_api_key.as_ref(), names)?,
            anthropic: ANTHROPIC.upstream(
                anthropic_base_url.as_deref(),
                anthropic_api_key.as_ref(),
                names,
            )?,
            gemini: GEMINI.upstream(gemini_base_url.as_deref(), gemini_api_key.as_ref(), names)?,
            azure: AZURE.upstream(azure_endpoint.as_deref(), azure_api_key.as_ref(), names)?,
        })
    }

    /// Where a request goes: by its dialect if it has one; else by its path's first segment, so that a provider's other
    /// endpoints (`GET /v1/models`, files, batches) are reached too.
    pub(crate) fn of(&self, request: &Parts) -> Option<&Arc<Upstream>> {
        let (uri, headers) = (&request.uri, &request.headers);
        let path = uri.path();
        if path.starts_with("/openai/") && self.azure.is_some() {
            return self.azure.as_ref();
        }
        // A deployment exists only at Azure.
        if path.contains("/openai/deployments/") {
            return self.azure.as_ref();
        }
        // Where Gemini speaks OpenAI's dialect.
        if path.starts_with("/v1beta/openai/") {
            return self.gemini.as_ref();
        }
        match Dialect::of(&request.method, uri, headers) {
            Some(Dialect::Anthropic) => self.anthropic.as_ref(),
            Some(Dialect::Gemini) => self.gemini.as_ref(),
            Some(_) => self.openai.as_ref(),
            None if path.starts_with("/v1/") => self.openai.as_ref(),
            None if path.starts_with("/v1beta/") => self.gemini.as_ref(),
            None => None,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Upstream> {
        let all = [&self.openai, &self.anthropic, &self.gemini, &self.azure];
        all.into_iter().flatten().map(Arc::as_ref)
    }
}

// === impl Upstream ===

impl Upstream {
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

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn upstreams(flags: &[&str]) -> Result<Upstreams, StartError> {
        let settings = Settings::from_flags(flags.iter().copied()).unwrap();
        Upstreams::new(&settings.upstreams, &settings.names)
    }

    fn to(path: &'static str) -> Request<()> {
        Request::post(path).body(()).unwrap()
    }

    fn of(all: &Upstreams, request: &Request<()>) -> Option<&'static str> {
        let parts = request.clone().into_parts().0;
        all.of(&parts).map(|upstream| upstream.name)
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
            let parts = request.clone().into_parts().0;
            let upstream = all.of(&parts).unwrap();
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
    fn the_dialect_or_else_the_path_decides_the_upstream() {
        let all = upstreams(&["--azure-endpoint", "http://127.0.0.1:1"]).unwrap();
        let of = |path: &'static str| of(&all, &to(path));
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
    fn a_header_of_only_one_providers_clients_decides_too() {
        let all = upstreams(&[]).unwrap();
        let mut request = to("/v1/models");
        *request.method_mut() = Method::GET;
        let version = HeaderValue::from_static("2023-06-01");
        request.headers_mut().insert("anthropic-version", version);
        assert_eq!(of(&all, &request), Some("anthropic"));
    }

    #[test]
    fn without_azure_a_deployment_has_nowhere_to_go() {
        let all = upstreams(&[]).unwrap();
        let deployment = to("/openai/deployments/d/chat/completions");
        assert_eq!(of(&all, &deployment), None);
        let found = of(&all, &to("/openai/v1/chat/completions"));
        assert_eq!(found, Some("openai"));
    }

    #[test]
    fn what_can_t_work_is_refused_by_name_and_no_key_is_shown() {
        for (flags, name) in [
            (
                ["--openai-base-url", "api.openai.com/v1"],
                "--openai-base-url",
            ),
            (
                ["--anthropic-base-url", "ftp://host"],
                "--anthropic-base-url",
            ),
            (
                ["--gemini-base-url", "http://me:secret@host"],
                "--gemini-base-url",
            ),
            (["--azure-api-key", "secret"], "--azure-endpoint"),
            (["--openai-api-key", "secret\n1"], "--openai-api-key"),
        ] {
            let error = upstreams(&flags).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_owner_s_credential_reaches_inference_and_models_below_any_base() {
        let none = AllowPaths::default();
        let key = ["--openai-api-key", "ours", "--openai-base-url"];
        for base in [
            "https://h",
            "https://h/v1",
            "https://h/api/v1/",
            "https://h/openai/v1",
        ] {
            let all = upstreams(&[key[0], key[1], key[2], base]).unwrap();
            for path in ["/v1/chat/completions", "/chat/completions", "/v1/responses"] {
                assert!(
                    all.openai
                        .as_ref()
                        .unwrap()
                        .allows(&Method::POST, path, &none),
                    "{base} {path}"
                );
            }
            assert!(
                all.openai
                    .as_ref()
                    .unwrap()
                    .allows(&Method::GET, "/v1/models", &none),
                "{base}"
            );
            for path in [
                "/v1/files",
                "/v1/api/v1/chat/completions",
                "/admin/chat/completions",
            ] {
                assert!(
                    !all.openai
                        .as_ref()
                        .unwrap()
                        .allows(&Method::POST, path, &none),
                    "{base} {path}"
                );
            }
        }
        let all = upstreams(&[key[0], key[1], key[2], "https://h/api/v1"]).unwrap();
        assert!(all.openai.as_ref().unwrap().allows(
            &Method::POST,
            "/api/v1/chat/completions",
            &none
        ));
        // Of the others, the callers' own credentials decide.
        assert!(
            all.anthropic
                .as_ref()
                .unwrap()
                .allows(&Method::DELETE, "/v1/files/x", &none)
        );
    }

    #[test]
    fn no_path_may_be_traced_with_the_owner_s_credential() {
        let all = upstreams(&["--openai-api-key", "ours"]).unwrap();
        let everything: AllowPaths = "/*".parse().unwrap();
        assert!(
            all.openai
                .as_ref()
                .unwrap()
                .allows(&Method::DELETE, "/v1/files/x", &everything)
        );
        assert!(
            !all.openai
                .as_ref()
                .unwrap()
                .allows(&Method::TRACE, "/v1/files/x", &everything)
        );
    }
}
