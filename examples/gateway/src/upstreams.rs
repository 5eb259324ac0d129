//! All providers: how they are made of the settings, and which one a request goes to.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, request::Parts};
use tower_llm_stack::{Dialect, adapters::base_url::BaseUrl, config::TargetConfig};

use crate::{
    Secret, Settings, StartError, UpstreamSettings,
    known::{ANTHROPIC, AZURE, GEMINI, Known, OPENAI},
    settings::Names,
    upstream::Upstream,
};

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
        let upstream = Upstream::new(self, base, credential, false);
        let upstream = upstream.named(names.of(self.url.flag), key_name);
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
        let front = Upstream::new(self, base.replacing(), keyed.map(|_| own), false);
        let key = format!("targets.{}", keyed.unwrap_or(name));
        Ok(front.named(&setting("base_url"), &key))
    }

    fn simulated(&self, base: &BaseUrl) -> Arc<Upstream> {
        Arc::new(Upstream::new(self, base.clone(), None, true))
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

#[cfg(test)]
mod tests {
    use http::{Method, Request, header::AUTHORIZATION};

    use super::*;
    use crate::{AllowPaths, access::CREDENTIALS};

    fn upstreams(flags: &[&str]) -> Result<Upstreams, StartError> {
        let settings = Settings::from_flags(flags.iter().copied()).unwrap();
        Upstreams::new(&settings.upstreams, &settings.names)
    }

    fn to(path: &'static str) -> Request<()> {
        Request::post(path).body(()).unwrap()
    }

    fn of(all: &Upstreams, request: &Request<()>) -> Option<&'static str> {
        let parts = request.clone().into_parts().0;
        all.of(&parts).map(|upstream| upstream.name())
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
