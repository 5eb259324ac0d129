//! Which upstreams are reached through which proxy: by CONNECT for https, by forwarding for http.

use http::Uri;
use tower_llm_stack::{Secret, accounts::Proxies};

use crate::{ProxySettings, StartError, settings::Names};

/// The proxies of the settings.
pub(crate) fn proxies(settings: &ProxySettings, names: &Names) -> Result<Proxies, StartError> {
    let ProxySettings {
        https,
        http,
        all,
        no,
    } = settings;
    for (proxy, flag) in [
        (https, "--https-proxy"),
        (http, "--http-proxy"),
        (all, "--all-proxy"),
    ] {
        let url = proxy.as_ref().map_or("", crate::Secret::expose);
        if !url.is_empty() && !is_proxy(url) {
            let what = "is not the URL of an http or https proxy (the value is not shown)";
            return Err(StartError::setting(names.of(flag), what));
        }
    }
    let value = |name: &str| match name {
        "HTTPS_PROXY" => https.as_ref().map(crate::Secret::expose),
        "HTTP_PROXY" => http.as_ref().map(crate::Secret::expose),
        "ALL_PROXY" => all.as_ref().map(crate::Secret::expose),
        "NO_PROXY" => no.as_deref(),
        _ => None,
    };
    Proxies::from_env(|name| value(name).map(Into::into))
        .map_err(|error| StartError::setting(names.of("--all-proxy"), error))
}

/// Whether it is one of those that the gateway uses by its settings: a target may name one of SOCKS, too.
fn is_proxy(url: &str) -> bool {
    let proxy = Proxies::all(&Secret::new(url)).ok();
    let proxy = proxy.and_then(|proxy| proxy.url_of(&Uri::from_static("http://upstream")));
    proxy.is_some_and(|proxy| matches!(proxy.scheme_str(), Some("http" | "https")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;

    fn proxies(flags: &[&str]) -> Result<Proxies, StartError> {
        let settings = Settings::from_flags(flags.iter().copied()).unwrap();
        super::proxies(&settings.proxy, &settings.names)
    }

    fn of(proxies: &Proxies, upstream: &'static str) -> Option<String> {
        let proxy = proxies.url_of(&Uri::from_static(upstream))?;
        Some(proxy.to_string())
    }

    #[test]
    fn a_proxy_is_for_its_scheme_and_not_for_excepted_hosts() {
        let all = proxies(&[
            "--https-proxy",
            "http://secure:3128",
            "--http-proxy",
            "plain:3128",
            "--no-proxy",
            "internal.test, 10.0.0.0/8,127.0.0.1",
        ])
        .unwrap();
        let (secure, plain) = (
            "http://secure:3128/".to_owned(),
            "http://plain:3128/".to_owned(),
        );
        assert_eq!(of(&all, "https://api.openai.com/v1"), Some(secure));
        assert_eq!(of(&all, "http://models.test"), Some(plain));
        for excepted in [
            "https://internal.test",
            "https://a.internal.test",
            "http://10.1.2.3:8000",
            "http://127.0.0.1:11434",
        ] {
            assert_eq!(of(&all, excepted), None, "{excepted}");
        }
        let one = proxies(&["--all-proxy", "http://any:3128"]).unwrap();
        assert!(of(&one, "https://a.test").is_some() && of(&one, "http://a.test").is_some());
        assert_eq!(of(&Proxies::none(), "https://a.test"), None);
        assert_eq!(of(&proxies(&[]).unwrap(), "https://a.test"), None);
        let star = ["--all-proxy", "http://any:3128", "--no-proxy", "*"];
        assert_eq!(of(&proxies(&star).unwrap(), "https://a.test"), None);
    }

    #[test]
    fn an_invalid_proxy_is_refused_without_being_shown() {
        for (flag, url) in [
            ("--https-proxy", "socks5://hidden:1080"),
            ("--http-proxy", "ftp://hidden"),
            ("--all-proxy", "http://"),
            ("--https-proxy", "http://me:hid den@proxy"),
        ] {
            let error = proxies(&[flag, url]).unwrap_err().to_string();
            assert!(error.starts_with(flag), "{error}");
            assert!(!error.contains("hid"), "{error}");
        }
    }

    #[test]
    fn a_password_goes_with_forwarded_requests_alone_and_is_not_shown() {
        let all = proxies(&["--all-proxy", "http://me:hidden@proxy:3128"]).unwrap();
        let forwarded = all
            .authorization(&Uri::from_static("http://a.test"))
            .unwrap();
        assert_eq!(forwarded, "Basic bWU6aGlkZGVu");
        assert_eq!(all.authorization(&Uri::from_static("https://a.test")), None);
        assert!(!format!("{all:?}{forwarded:?}").contains("hidden"));
        assert!(!format!("{forwarded:?}").contains("bWU6"));
    }
}
