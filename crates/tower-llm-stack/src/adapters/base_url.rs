//! Scheme, host and base path for requests that have only a path.
//!
//! A client needs an address to connect to, but a service that calls one provider writes only `/chat/completions`, and a
//! server that forwards requests gets only a path. [`BaseUrlLayer`] goes directly around the client:
//!
//! ```
//! use http::Request;
//! use tower_llm_stack::adapters::base_url::BaseUrl;
//!
//! let openai = BaseUrl::new("https://api.openai.com/v1")?;
//!
//! let mut request = Request::post("/chat/completions?trace=1").body(())?;
//! openai.apply(&mut request)?;
//! assert_eq!(request.uri(), "https://api.openai.com/v1/chat/completions?trace=1");
//! assert_eq!(request.headers()["host"], "api.openai.com");
//!
//! // An invalid URL is refused here and not when it is used:
//! assert!(BaseUrl::new("api.openai.com/v1").is_err());
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! # How the paths are joined
//!
//! The base URLs of the official SDKs end in `/v1`, and calls leave it out; but the requests that these SDKs send to a
//! server contain it. Both must result in the same address. So if a path begins with the end of the base path, in whole
//! segments, that part is not repeated:
//!
//! | base path | request | sent |
//! |---|---|---|
//! | none | `/v1/models` | `/v1/models` |
//! | `/v1` | `/models` | `/v1/models` |
//! | `/v1` | `/v1/models` | `/v1/models` |
//! | `/openai/v1` | `/v1/models` | `/openai/v1/models` |
//! | `/v1` | `/v1beta/models` | `/v1/v1beta/models` |
//!
//! The base path does not confine requests: `..` is neither resolved nor refused here, and a client may resolve it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll, ready};

use http::header::HOST;
use http::uri::{Authority, InvalidUri, PathAndQuery, Scheme, Uri};
use http::{HeaderValue, Request, Version};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_llm_core::{ClassifiedError, Outcome};
use tower_service::Service;

use super::BoxError;

/// The address of requests that have only a path; see the [module](self) for how paths are joined.
#[derive(Clone, Debug)]
pub struct BaseUrl {
    scheme: Scheme,
    authority: Authority,
    /// Without its trailing slash, so empty for none.
    path: Box<str>,
    host: HeaderValue,
    applies_to: AppliesTo,
}

impl BaseUrl {
    /// Parses `url`: `http` or `https`, a host, and optionally a port and a path.
    ///
    /// # Errors
    ///
    /// [`BaseUrlError`] if `url` is anything else, or has a user or password (which belong in a header, where they are not
    /// logged) or a query.
    pub fn new(url: &str) -> Result<Self, BaseUrlError> {
        let parts = url.parse::<Uri>().map_err(Reason::Invalid)?.into_parts();
        if parts
            .authority
            .as_ref()
            .is_some_and(|a| a.as_str().contains('@'))
        {
            return Err(Reason::Credentials.into());
        }
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return Err(Reason::NotAbsolute.into());
        };
        if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
            return Err(Reason::Scheme(scheme).into());
        }
        let path = parts
            .path_and_query
            .unwrap_or_else(|| PathAndQuery::from_static("/"));
        if path.query().is_some() {
            return Err(Reason::Query.into());
        }
        let path = path.path().trim_end_matches('/').into();
        let host = host_header(&scheme, &authority)?;
        Ok(Self {
            scheme,
            authority,
            path,
            host,
            applies_to: AppliesTo::PathOnly,
        })
    }

    /// Applies to every request: a request with a complete address is sent here instead.
    ///
    /// For servers that forward requests. Over HTTP/2 a server receives complete addresses with its own name, and without
    /// this setting such a request would be sent back to the server itself.
    #[must_use]
    pub fn replacing(mut self) -> Self {
        self.applies_to = AppliesTo::Every;
        self
    }

    /// Completes the request's address and sets its `Host`. A complete address is not changed, unless
    /// [`replacing`](Self::replacing) is set.
    ///
    /// The version is set to HTTP/1.1 if it was lower or HTTP/2, because it is the version of the incoming connection.
    /// hyper's client refuses to send a request marked HTTP/2 over HTTP/1.1, but sends one marked HTTP/1.1 over either.
    ///
    /// # Errors
    ///
    /// [`BaseUrlError`] if the path is `*`, or if the joined address is too long. The request is unchanged.
    pub fn apply<B>(&self, request: &mut Request<B>) -> Result<(), BaseUrlError> {
        let uri = request.uri();
        if uri.authority().is_some() && self.applies_to == AppliesTo::PathOnly {
            return Ok(());
        }
        let mut parts = http::uri::Parts::default();
        parts.path_and_query = Some(self.join(uri)?);
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Reason::Asterisk)?;
        request.headers_mut().insert(HOST, self.host.clone());
        if request.version() <= Version::HTTP_2 {
            *request.version_mut() = Version::HTTP_11;
        }
        Ok(())
    }

    fn join(&self, uri: &Uri) -> Result<PathAndQuery, BaseUrlError> {
        let given = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        if !given.starts_with('/') {
            return Err(Reason::Asterisk.into());
        }
        let kept = kept_base(&self.path, uri.path());
        match (kept, uri.path_and_query()) {
            // Shares the bytes; the other arm copies them.
            ("", Some(path)) => Ok(path.clone()),
            _ => Ok([kept, given].concat().try_into().map_err(Reason::Joined)?),
        }
    }
}

impl FromStr for BaseUrl {
    type Err = BaseUrlError;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        Self::new(url)
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.path)
    }
}

/// Completes the address of each request with a [`BaseUrl`].
#[derive(Clone, Debug)]
pub struct BaseUrlLayer {
    base: BaseUrl,
}

impl BaseUrlLayer {
    /// Creates a layer that sends to `base`.
    #[must_use]
    pub fn new(base: BaseUrl) -> Self {
        Self { base }
    }
}

impl<S> Layer<S> for BaseUrlLayer {
    type Service = BaseUrlService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        BaseUrlService {
            inner,
            base: self.base.clone(),
        }
    }
}

/// The service of [`BaseUrlLayer`].
#[derive(Clone, Debug)]
pub struct BaseUrlService<S> {
    inner: S,
    base: BaseUrl,
}

impl<S, B> Service<Request<B>> for BaseUrlService<S>
where
    S: Service<Request<B>>,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let state = match self.base.apply(&mut request) {
            Ok(()) => State::Sent {
                inner: self.inner.call(request),
            },
            Err(error) => State::Refused { error: Some(error) },
        };
        ResponseFuture { state }
    }
}

pin_project! {
    /// The future of [`BaseUrlService`].
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        state: State<F>,
    }
}

impl<F, R, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<R, E>>,
    E: Into<BoxError>,
{
    type Output = Result<R, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Sent { inner } => Poll::Ready(ready!(inner.poll(cx)).map_err(Into::into)),
            StateProj::Refused { error } => {
                let error = error.take().expect("polled after completion");
                Poll::Ready(Err(ClassifiedError::new(Outcome::ClientError, error).into()))
            }
        }
    }
}

pin_project! {
    #[project = StateProj]
    #[derive(Debug)]
    enum State<F> {
        Sent { #[pin] inner: F },
        Refused { error: Option<BaseUrlError> },
    }
}

/// An invalid base address, or a request that cannot be joined to it.
///
/// The text may change.
#[derive(Debug)]
pub struct BaseUrlError {
    reason: Reason,
}

impl From<Reason> for BaseUrlError {
    fn from(reason: Reason) -> Self {
        Self { reason }
    }
}

impl fmt::Display for BaseUrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Reason::Invalid(_) => f.write_str("base url is not a valid address"),
            // Not shown: an invalid address may be a key that was set in the wrong variable.
            Reason::NotAbsolute => f.write_str("base url lacks a scheme or a host"),
            Reason::Scheme(scheme) => {
                write!(f, "base url has scheme `{scheme}`, not http or https")
            }
            // Neither is printed: they may hold a credential.
            Reason::Credentials => f.write_str("base url holds a user or password"),
            Reason::Query => f.write_str("base url has a query"),
            Reason::Asterisk => f.write_str("request has no path to join to the base url"),
            Reason::Joined(_) => {
                f.write_str("request path is not valid once joined to the base url")
            }
        }
    }
}

impl std::error::Error for BaseUrlError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.reason {
            Reason::Invalid(error) | Reason::Joined(error) => Some(error),
            _ => None,
        }
    }
}

#[derive(Debug)]
enum Reason {
    Invalid(InvalidUri),
    NotAbsolute,
    Scheme(Scheme),
    Credentials,
    Query,
    Asterisk,
    Joined(InvalidUri),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AppliesTo {
    PathOnly,
    Every,
}

/// The part of `base` before its longest end with which `path` begins.
fn kept_base<'a>(base: &'a str, path: &str) -> &'a str {
    let overlap = base.match_indices('/').map(|(at, _)| at).find(|&at| {
        path.strip_prefix(&base[at..])
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    });
    &base[..overlap.unwrap_or(base.len())]
}

/// `Host` as browsers and hyper write it: without the default port of the scheme.
fn host_header(scheme: &Scheme, authority: &Authority) -> Result<HeaderValue, BaseUrlError> {
    let default = if *scheme == Scheme::HTTPS { 443 } else { 80 };
    let host = match authority.port_u16() {
        Some(port) if port == default => authority.host(),
        _ => authority.as_str(),
    };
    HeaderValue::from_str(host).map_err(|_| Reason::NotAbsolute.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(base: &str, path: &str) -> String {
        let mut request = Request::get(path).body(()).unwrap();
        BaseUrl::new(base).unwrap().apply(&mut request).unwrap();
        request.uri().to_string()
    }

    #[test]
    fn joins_as_documented() {
        let to = |base: &str, path: &str| sent(&format!("http://h{base}"), path);
        assert_eq!(to("", "/v1/models"), "http://h/v1/models");
        assert_eq!(to("/", "/v1/models"), "http://h/v1/models");
        assert_eq!(to("/v1", "/models"), "http://h/v1/models");
        assert_eq!(to("/v1/", "/models"), "http://h/v1/models");
        assert_eq!(to("/v1", "/v1/models"), "http://h/v1/models");
        assert_eq!(to("/v1", "/v1"), "http://h/v1");
        assert_eq!(to("/openai/v1", "/v1/models"), "http://h/openai/v1/models");
        assert_eq!(
            to("/openai/v1", "/openai/v1/models"),
            "http://h/openai/v1/models"
        );
        assert_eq!(to("/v1", "/v1beta/models"), "http://h/v1/v1beta/models");
        assert_eq!(to("/a/b/a", "/a/b"), "http://h/a/b/a/b");
    }

    #[test]
    fn keeps_the_query() {
        assert_eq!(
            sent("http://h/v1", "/models?a=/v1/b"),
            "http://h/v1/models?a=/v1/b"
        );
        assert_eq!(sent("http://h", "/models?a=b"), "http://h/models?a=b");
        assert_eq!(sent("http://h/v1", "/v1?a=b"), "http://h/v1?a=b");
    }

    #[test]
    fn leaves_a_complete_address_alone_unless_set_to_replace_it() {
        let request = || {
            let mut request = Request::get("https://gateway.local/v1/models")
                .body(())
                .unwrap();
            *request.version_mut() = Version::HTTP_2;
            request
        };
        let base = BaseUrl::new("https://api.openai.com/v1").unwrap();

        let mut kept = request();
        base.apply(&mut kept).unwrap();
        assert_eq!(kept.uri(), "https://gateway.local/v1/models");
        assert!(kept.headers().is_empty());
        assert_eq!(kept.version(), Version::HTTP_2);

        let mut replaced = request();
        base.replacing().apply(&mut replaced).unwrap();
        assert_eq!(replaced.uri(), "https://api.openai.com/v1/models");
        assert_eq!(replaced.headers()[HOST], "api.openai.com");
        assert_eq!(replaced.version(), Version::HTTP_11);
    }

    #[test]
    fn replaces_the_host_that_a_server_was_called_by() {
        let mut request = Request::get("/v1/models")
            .header(HOST, "gateway.local")
            .body(())
            .unwrap();
        BaseUrl::new("http://127.0.0.1:8081")
            .unwrap()
            .apply(&mut request)
            .unwrap();
        assert_eq!(request.headers().get_all(HOST).iter().count(), 1);
        assert_eq!(request.headers()[HOST], "127.0.0.1:8081");
    }

    #[test]
    fn host_has_no_default_port() {
        for (base, host) in [
            ("https://h:443", "h"),
            ("https://h:80", "h:80"),
            ("http://h:80", "h"),
            ("http://[::1]:80", "[::1]"),
            ("http://[::1]:81", "[::1]:81"),
        ] {
            assert_eq!(BaseUrl::new(base).unwrap().host, host, "{base}");
        }
    }

    #[test]
    fn refuses_an_invalid_base_without_showing_a_credential() {
        for bad in [
            "",
            "/v1",
            "api.openai.com",
            "ftp://h",
            "http://h?key=secret",
            "http://",
            "h:80",
        ] {
            let error = BaseUrl::new(bad).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
        for bad in ["http://user:secret@h", "user:secret@h"] {
            let error = BaseUrl::new(bad).unwrap_err().to_string();
            assert_eq!(error, "base url holds a user or password");
        }
    }

    #[test]
    fn refuses_an_asterisk_and_a_path_that_grows_too_long() {
        let base = BaseUrl::new("http://h/v1").unwrap();
        let mut request = Request::options("*").body(()).unwrap();
        assert!(base.apply(&mut request).is_err());
        assert_eq!(request.uri(), "*");

        let longest = format!("/{}", "a".repeat(65_533));
        let mut request = Request::get(longest.as_str()).body(()).unwrap();
        assert!(base.apply(&mut request).is_err());
        assert_eq!(request.uri().path(), longest);
    }
}
