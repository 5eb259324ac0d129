//! Connects to a provider through a proxy: by CONNECT for https, by forwarding for http, or by SOCKS.

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Uri, uri::Authority};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::{
        legacy::connect::{
            Connected, Connection, HttpConnector,
            proxy::{SocksV5, Tunnel},
        },
        proxy::matcher::Intercept,
    },
    rt::TokioIo,
};
use rustls::ClientConfig;
use tokio::{net::TcpStream, time::timeout};
use tower_llm_core::BoxError;
use tower_service::Service;

use super::Proxies;

/// For a connection to a provider or a proxy, and for a proxy to make a tunnel.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

const SOCKS_PORT: u16 = 1080;

/// Connects to addresses, through a proxy where there is one; TLS with the provider goes around it.
#[derive(Clone)]
pub struct ProxyConnector {
    direct: HttpConnector,
    /// A proxy may be reached by TLS itself.
    to_proxy: HttpsConnector<HttpConnector>,
    proxies: Proxies,
}

/// A connection to a provider, or to a proxy that stands for it.
pub struct ProxyStream {
    inner: MaybeHttpsStream<TokioIo<TcpStream>>,
    /// The proxy reads the requests and forwards them.
    is_forwarded: bool,
}

impl ProxyConnector {
    /// A connector whose connections to proxies are made with `tls`. A connection, or a tunnel, is made within 10 s.
    #[must_use]
    pub fn new(tls: Arc<ClientConfig>, proxies: Proxies) -> Self {
        let mut direct = HttpConnector::new();
        direct.enforce_http(false);
        direct.set_nodelay(true);
        direct.set_connect_timeout(Some(CONNECT_TIMEOUT));
        direct.set_keepalive(Some(Duration::from_secs(60)));
        Self {
            to_proxy: HttpsConnector::from((direct.clone(), tls)),
            direct,
            proxies,
        }
    }

    async fn connect(mut self, address: Uri) -> Result<ProxyStream, BoxError> {
        let Some(proxy) = self.proxies.of(&address) else {
            let stream = self.direct.call(address).await?;
            return Ok(MaybeHttpsStream::Http(stream).into());
        };
        match (proxy.uri().scheme_str(), address.scheme_str()) {
            (Some("socks5" | "socks5h"), _) => {
                let stream = socks(&proxy, self.direct)?
                    .call(with_port(address)?)
                    .await?;
                Ok(MaybeHttpsStream::Http(stream).into())
            }
            (_, Some("http")) => Ok(ProxyStream {
                inner: self.to_proxy.call(proxy.uri().clone()).await?,
                is_forwarded: true,
            }),
            _ => {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), self.to_proxy);
                if let Some(authorization) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(authorization.clone());
                }
                Ok(tunnel.call(address).await?.into())
            }
        }
    }
}

/// The proxy resolves names: resolving them here would block the thread.
fn socks(proxy: &Intercept, direct: HttpConnector) -> Result<SocksV5<HttpConnector>, BoxError> {
    let uri = or_port(proxy.uri().clone(), SOCKS_PORT)?;
    let socks = SocksV5::new(uri, direct);
    Ok(match proxy.raw_auth() {
        Some((user, password)) => socks.with_auth(user.to_owned(), password.to_owned()),
        None => socks,
    })
}

/// The address with its port, which the connector takes for 443 if it is not written.
fn with_port(address: Uri) -> Result<Uri, BoxError> {
    let default = match address.scheme_str() {
        Some("http") => 80,
        _ => 443,
    };
    or_port(address, default)
}

fn or_port(uri: Uri, port: u16) -> Result<Uri, BoxError> {
    let Some(host) = uri.host().filter(|_| uri.port().is_none()) else {
        return Ok(uri);
    };
    let authority: Authority = format!("{host}:{port}").parse()?;
    let mut parts = uri.into_parts();
    parts.authority = Some(authority);
    Ok(Uri::from_parts(parts)?)
}

impl Service<Uri> for ProxyConnector {
    type Response = ProxyStream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<ProxyStream, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, address: Uri) -> Self::Future {
        let connecting = self.clone().connect(address);
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

// === impl ProxyStream ===

impl From<MaybeHttpsStream<TokioIo<TcpStream>>> for ProxyStream {
    fn from(inner: MaybeHttpsStream<TokioIo<TcpStream>>) -> Self {
        Self {
            inner,
            is_forwarded: false,
        }
    }
}

impl Connection for ProxyStream {
    fn connected(&self) -> Connected {
        self.inner.connected().proxy(self.is_forwarded)
    }
}

impl Read for ProxyStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl Write for ProxyStream {
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

impl fmt::Debug for ProxyStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyStream")
            .field("is_forwarded", &self.is_forwarded)
            .finish_non_exhaustive()
    }
}
