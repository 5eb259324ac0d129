//! Connects to an upstream through a proxy: by CONNECT for https, by forwarding for http.

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::{
        legacy::connect::{Connected, Connection, HttpConnector, proxy::Tunnel},
        proxy::matcher::{Intercept, Matcher},
    },
    rt::TokioIo,
};
use tokio::{net::TcpStream, time::timeout};
use tower::Service;
use tower_llm_stack::BoxError;

use crate::{ProxySettings, Secret, StartError, client::CONNECT_TIMEOUT, settings::Names};

/// Which upstreams are reached through which proxy.
#[derive(Clone, Debug)]
pub(crate) struct Proxies(Arc<Matcher>);

/// Connects to upstreams, through a proxy where there is one; TLS with the upstream goes around it.
#[derive(Clone)]
pub(crate) struct ProxyConnector {
    direct: HttpConnector,
    /// A proxy may be reached by TLS itself.
    to_proxy: HttpsConnector<HttpConnector>,
    proxies: Proxies,
}

/// A connection to an upstream, or to a proxy that stands for it.
pub(crate) struct Stream {
    inner: MaybeHttpsStream<TokioIo<TcpStream>>,
    /// The proxy reads the requests and forwards them.
    is_forwarded: bool,
}

// === impl Proxies ===

impl Proxies {
    /// No proxy for any upstream.
    pub(crate) fn none() -> Self {
        Self(Arc::new(Matcher::builder().build()))
    }

    pub(crate) fn new(settings: &ProxySettings, names: &Names) -> Result<Self, StartError> {
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
            let url = proxy.as_ref().map_or("", Secret::expose);
            if !url.is_empty() && !is_proxy(url) {
                let what = "is not the URL of an http or https proxy (the value is not shown)";
                return Err(StartError::setting(names.of(flag), what));
            }
        }
        let url = |proxy: &Option<Secret>| proxy.as_ref().map_or("", Secret::expose).to_owned();
        let matcher = Matcher::builder()
            .https(url(https))
            .http(url(http))
            .all(url(all))
            .no(no.clone().unwrap_or_default())
            .build();
        Ok(Self(Arc::new(matcher)))
    }

    /// The proxy on the way to `upstream`.
    pub(crate) fn of(&self, upstream: &Uri) -> Option<Intercept> {
        self.0.intercept(upstream)
    }

    /// The credentials for a proxy that forwards requests to `upstream`, sent with each. CONNECT sends them once.
    pub(crate) fn authorization(&self, upstream: &Uri) -> Option<HeaderValue> {
        if upstream.scheme_str() != Some("http") {
            return None;
        }
        self.of(upstream)?.basic_auth().cloned()
    }
}

fn is_proxy(url: &str) -> bool {
    let matcher = Matcher::builder().all(url.to_owned()).build();
    let proxy = matcher.intercept(&Uri::from_static("http://upstream"));
    // SOCKS is known to the matcher, and not to the connector.
    proxy.is_some_and(|proxy| matches!(proxy.uri().scheme_str(), Some("http" | "https")))
}

// === impl ProxyConnector ===

impl ProxyConnector {
    pub(crate) fn new(
        direct: HttpConnector,
        to_proxy: HttpsConnector<HttpConnector>,
        proxies: Proxies,
    ) -> Self {
        Self {
            direct,
            to_proxy,
            proxies,
        }
    }

    async fn connect(mut self, upstream: Uri) -> Result<Stream, BoxError> {
        let Some(proxy) = self.proxies.of(&upstream) else {
            let stream = self.direct.call(upstream).await?;
            return Ok(Stream {
                inner: MaybeHttpsStream::Http(stream),
                is_forwarded: false,
            });
        };
        let is_forwarded = upstream.scheme_str() == Some("http");
        let inner = if is_forwarded {
            self.to_proxy.call(proxy.uri().clone()).await?
        } else {
            let mut tunnel = Tunnel::new(proxy.uri().clone(), self.to_proxy);
            if let Some(authorization) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(authorization.clone());
            }
            tunnel.call(upstream).await?
        };
        Ok(Stream {
            inner,
            is_forwarded,
        })
    }
}

impl Service<Uri> for ProxyConnector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, upstream: Uri) -> Self::Future {
        let connecting = self.clone().connect(upstream);
        Box::pin(async {
            let connected = timeout(CONNECT_TIMEOUT, connecting).await;
            connected.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
        })
    }
}

impl fmt::Debug for ProxyConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyConnector").finish_non_exhaustive()
    }
}

// === impl Stream ===

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.inner.connected().proxy(self.is_forwarded)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;

    fn proxies(flags: &[&str]) -> Result<Proxies, StartError> {
        let settings = Settings::from_flags(flags.iter().copied()).unwrap();
        Proxies::new(&settings.proxy, &settings.names)
    }

    fn of(proxies: &Proxies, upstream: &'static str) -> Option<String> {
        let proxy = proxies.of(&Uri::from_static(upstream))?;
        Some(proxy.uri().to_string())
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
