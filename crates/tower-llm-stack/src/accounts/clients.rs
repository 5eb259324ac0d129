//! HTTP clients: one for each distinct proxy and bounds of its pool.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, header::PROXY_AUTHORIZATION};
use http_body::Body;
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use pin_project_lite::pin_project;
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tower_llm_core::{BoxError, RequestBody};
use tower_service::Service;

use super::{ClientsError, Proxies, ProxyError, connector::ProxyConnector};
use crate::{
    Secret,
    adapters::{
        ClassifiedFuture, ResponseBody, SentBody,
        hyper_util::{MAX_HEADERS, RequestBodyLayer, RequestBodyService},
    },
};

/// Makes HTTP clients: one for each distinct proxy and bounds of its pool, which all accounts share that have both in
/// common. Clones share the clients.
///
/// A client speaks HTTP/1.1, with a connection for each call: a caller that reads slowly holds up no other stream, and one
/// that disconnects closes its connection to the provider. Connections to a provider are made within 10 s. A call has no
/// timeout here, and no redirect is followed.
#[derive(Clone)]
pub struct Clients<B>(Arc<Inner<B>>);

struct Inner<B> {
    environment: Proxies,
    tls: Arc<ClientConfig>,
    clients: Mutex<HashMap<(Option<Secret>, PoolBounds), Client<B>>>,
}

/// Bounds of a client's pool of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PoolBounds {
    max_idle_per_host: usize,
    idle_timeout: Duration,
}

type Pool<B> = legacy::Client<HttpsConnector<ProxyConnector>, SentBody<RequestBody<B>>>;

/// A pooled HTTP client. Clones share the pool.
///
/// An error of the request body is attributed to the caller and not to the provider.
pub struct Client<B> {
    inner: RequestBodyService<Pool<B>>,
    proxies: Proxies,
}

// === impl Clients ===

impl<B> Clients<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    /// Trusts the system's certificates, so that what a company adds to them is trusted too. `environment` is for accounts
    /// without a proxy: [`Proxies::from_env`].
    ///
    /// # Errors
    ///
    /// [`ClientsError`] if the system has no certificates.
    pub fn new(environment: Proxies) -> Result<Self, ClientsError> {
        Self::with_roots(environment, system_roots()?)
    }

    /// Trusts no certificates: for providers and proxies that are reached without TLS, on a machine that has none.
    ///
    /// # Errors
    ///
    /// [`ClientsError`] if TLS cannot be set up.
    pub fn without_certificates(environment: Proxies) -> Result<Self, ClientsError> {
        Self::with_roots(environment, RootCertStore::empty())
    }

    fn with_roots(environment: Proxies, roots: RootCertStore) -> Result<Self, ClientsError> {
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| ClientsError::new(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(Arc::new(Inner {
            environment,
            tls: Arc::new(tls),
            clients: Mutex::default(),
        })))
    }

    /// Returns the client for a proxy, or for the environment's if it is `None`.
    ///
    /// # Errors
    ///
    /// [`ProxyError`] if `proxy` is not the URL of a proxy.
    pub fn client(
        &self,
        proxy: Option<&Secret>,
        bounds: PoolBounds,
    ) -> Result<Client<B>, ProxyError> {
        let Inner {
            environment,
            tls,
            clients,
        } = &*self.0;
        let mut clients = clients.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (proxy.cloned(), bounds);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let proxies = match proxy {
            Some(url) => Proxies::all(url)?,
            None => environment.clone(),
        };
        let client = Client::new(proxies, Arc::clone(tls), bounds);
        clients.insert(key, client.clone());
        Ok(client)
    }

    /// Returns the number of distinct clients made so far.
    #[must_use]
    pub fn len(&self) -> usize {
        let clients = self.0.clients.lock();
        clients.unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Returns whether no client was made so far.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The system's certificates.
fn system_roots() -> Result<RootCertStore, ClientsError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    // Some of a system's certificates are always too odd; what matters is that there are any.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let what = found.errors.first().map_or_else(
            || "the system has no certificates".to_owned(),
            |error| format!("the system's certificates cannot be read: {error}"),
        );
        return Err(ClientsError::new(what));
    }
    Ok(roots)
}

// === impl PoolBounds ===

impl PoolBounds {
    /// Keeps at most this many idle connections for each host; 100 unless set.
    #[must_use]
    pub const fn max_idle_per_host(mut self, connections: usize) -> Self {
        self.max_idle_per_host = connections;
        self
    }

    /// Keeps an idle connection for this long; 90 s unless set.
    #[must_use]
    pub const fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout;
        self
    }
}

impl Default for PoolBounds {
    fn default() -> Self {
        Self {
            max_idle_per_host: 100,
            idle_timeout: Duration::from_secs(90),
        }
    }
}

// === impl Client ===

impl<B> Client<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    fn new(proxies: Proxies, tls: Arc<ClientConfig>, bounds: PoolBounds) -> Self {
        let connector = ProxyConnector::new(Arc::clone(&tls), proxies.clone());
        let pool: Pool<B> = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_max_idle_per_host(bounds.max_idle_per_host)
            .pool_idle_timeout(bounds.idle_timeout)
            .http1_max_headers(MAX_HEADERS)
            .build(HttpsConnector::from((connector, tls)));
        Self {
            inner: tower_layer::Layer::layer(&RequestBodyLayer::new(), pool),
            proxies,
        }
    }
}

impl<B> Service<Request<RequestBody<B>>> for Client<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody<Incoming>>;
    type Error = BoxError;
    type Future = ClientFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<RequestBody<B>>) -> ClientFuture {
        if let Some(authorization) = self.proxies.authorization(request.uri()) {
            let headers = request.headers_mut();
            headers.insert(PROXY_AUTHORIZATION, authorization);
        }
        ClientFuture {
            inner: self.inner.call(request),
        }
    }
}

impl<B> Clone for Client<B> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            proxies: self.proxies.clone(),
        }
    }
}

pin_project! {
    /// The future of [`Client`].
    #[derive(Debug)]
    pub struct ClientFuture {
        #[pin]
        inner: ClassifiedFuture<legacy::ResponseFuture>,
    }
}

impl Future for ClientFuture {
    type Output = Result<Response<ResponseBody<Incoming>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().inner.poll(cx)
    }
}

impl<B> fmt::Debug for Clients<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").finish_non_exhaustive()
    }
}

impl<B> fmt::Debug for Client<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("proxies", &self.proxies)
            .finish_non_exhaustive()
    }
}
