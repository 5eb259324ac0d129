//! Which addresses are reached through which proxy.

use std::{error::Error, ffi::OsString, fmt, sync::Arc};

use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};

use crate::Secret;

/// Which addresses are reached through which proxy: `http`, `https` or `socks5`. `Debug` shows no password.
#[derive(Clone, Debug)]
pub struct Proxies(Arc<Matcher>);

/// A value is not the URL of a proxy. Its text may change; it does not show the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyError {
    setting: Box<str>,
}

impl Proxies {
    /// No proxy for any address.
    #[must_use]
    pub fn none() -> Self {
        Self(Arc::new(Matcher::builder().build()))
    }

    /// One proxy for all addresses. Its URL may hold a user and password.
    ///
    /// # Errors
    ///
    /// [`ProxyError`] if `url` is not the URL of an `http`, `https`, `socks5` or `socks5h` proxy.
    pub fn all(url: &Secret) -> Result<Self, ProxyError> {
        check("proxy", url.expose())?;
        let matcher = Matcher::builder().all(url.expose().to_owned()).build();
        Ok(Self(Arc::new(matcher)))
    }

    /// The proxies of an environment: `HTTPS_PROXY` and `HTTP_PROXY` by the scheme of the address, `ALL_PROXY` for what
    /// neither covers, and none for the hosts of `NO_PROXY`: domains with their subdomains, IP addresses, networks
    /// (`10.0.0.0/8`), or `*`. Each is read in lower case too, and counts as not set if it is empty.
    ///
    /// `env` returns the value of a variable: `|name| std::env::var_os(name)`.
    ///
    /// # Errors
    ///
    /// [`ProxyError`] if a variable is not the URL of a proxy.
    pub fn from_env(env: impl Fn(&str) -> Option<OsString>) -> Result<Self, ProxyError> {
        let value = |name: &str| {
            let names = [name.to_owned(), name.to_ascii_lowercase()];
            let values = names.iter().filter_map(|name| env(name));
            let mut values = values.map(|value| value.to_string_lossy().trim().to_owned());
            values.find(|value| !value.is_empty()).unwrap_or_default()
        };
        let proxy = |name: &str| {
            let url = value(name);
            match url.is_empty() {
                true => Ok(url),
                false => check(name, &url).map(|()| url),
            }
        };
        let matcher = Matcher::builder()
            .https(proxy("HTTPS_PROXY")?)
            .http(proxy("HTTP_PROXY")?)
            .all(proxy("ALL_PROXY")?)
            .no(value("NO_PROXY"))
            .build();
        Ok(Self(Arc::new(matcher)))
    }

    /// The proxy on the way to `address`.
    pub(super) fn of(&self, address: &Uri) -> Option<Intercept> {
        self.0.intercept(address)
    }

    /// Returns the URL of the proxy on the way to `address`, without its user and password.
    #[must_use]
    pub fn url_of(&self, address: &Uri) -> Option<Uri> {
        self.of(address).map(|proxy| proxy.uri().clone())
    }

    /// Returns the credentials for a proxy that forwards the requests to `address`, sent with each. A tunnel sends them once.
    #[must_use]
    pub fn authorization(&self, address: &Uri) -> Option<HeaderValue> {
        if address.scheme_str() != Some("http") {
            return None;
        }
        self.of(address)?.basic_auth().cloned()
    }
}

fn check(setting: &str, url: &str) -> Result<(), ProxyError> {
    let matcher = Matcher::builder().all(url.to_owned()).build();
    let proxy = matcher.intercept(&Uri::from_static("http://any"));
    let scheme = proxy.as_ref().and_then(|proxy| proxy.uri().scheme_str());
    match scheme {
        Some("http" | "https" | "socks5" | "socks5h") => Ok(()),
        _ => Err(ProxyError {
            setting: setting.into(),
        }),
    }
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is not the URL of an http, https or socks5 proxy (the value is not shown)",
            self.setting
        )
    }
}

impl Error for ProxyError {}
