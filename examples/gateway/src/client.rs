//! How a request is sent to its upstream.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response, StatusCode, Uri, header::PROXY_AUTHORIZATION};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy;
use pin_project_lite::pin_project;
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tower::Service;
use tower_llm_stack::{
    BoxError, Described, RequestBody,
    accounts::{Proxies, ProxyConnector, remove_hop_by_hop},
    adapters::hyper_util as adapter,
};

use crate::{
    StartError, caller::PatientBody, compress::Streamed, error::Reason, headers::name_coding,
    resend::Resend, upstream::Upstream, upstreams::Upstreams,
};

/// The body of a request that is sent: held JSON, or the caller's own.
type Body = RequestBody<PatientBody>;

type Pool = legacy::Client<HttpsConnector<ProxyConnector>, Body>;
type Sent = <Resend<Pool> as Service<Request<Body>>>::Future;

/// The innermost service: sends a request to the [`Upstream`] in its extensions.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    inner: Resend<Pool>,
    proxies: Proxies,
}

impl Client {
    /// A client for `upstreams`, which share its connections.
    ///
    /// It speaks HTTP/1.1 alone, with a connection for each call: a caller that reads slowly holds up no other stream, and
    /// one that disconnects closes its upstream. HTTP/2 has one flow-control window for all of them.
    pub(crate) fn new(upstreams: &Upstreams, proxies: Proxies) -> Result<Self, StartError> {
        let wants_tls = upstreams.iter().any(|upstream| {
            let proxy = proxies.url_of(upstream.url());
            let proxy_scheme = proxy.as_ref().and_then(Uri::scheme_str);
            [upstream.url().scheme_str(), proxy_scheme].contains(&Some("https"))
        });
        let roots = match wants_tls {
            true => system_roots()?,
            false => RootCertStore::empty(),
        };
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Reason::Tls(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tls = Arc::new(tls);
        let connector = ProxyConnector::new(Arc::clone(&tls), proxies.clone());
        Ok(Self {
            inner: Resend::new(adapter::client(HttpsConnector::from((connector, tls)))),
            proxies,
        })
    }
}

/// The system's certificates, so that what a company adds to them is trusted too.
fn system_roots() -> Result<RootCertStore, StartError> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    // Some of a system's certificates are always too odd; what matters is that there are any.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let what = found.errors.first().map_or_else(
            || "the system has no certificates".to_owned(),
            |error| format!("the system's certificates can't be read: {error}"),
        );
        return Err(Reason::Tls(what).into());
    }
    Ok(roots)
}

impl Service<Request<Body>> for Client {
    type Response = Response<Incoming>;
    type Error = BoxError;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<Body>) -> ResponseFuture {
        let Some(upstream) = request.extensions_mut().remove::<Arc<Upstream>>() else {
            return ResponseFuture::refused("the request has no upstream".into());
        };
        let streamed = request.call().is_some_and(|call| call.streamed());
        let prepared = upstream.prepare(&mut request);
        if let Some(authorization) = self.proxies.authorization(upstream.url()) {
            let headers = request.headers_mut();
            headers.insert(PROXY_AUTHORIZATION, authorization);
        }
        match prepared {
            Ok(()) => ResponseFuture::new(self.inner.call(request), streamed),
            Err(error) => ResponseFuture::refused(error),
        }
    }
}

pin_project! {
    /// The upstream's answer, as far as it is for the caller.
    pub(crate) struct ResponseFuture<F = Sent> {
        streamed: bool,
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F> {
        Sent { #[pin] inner: F },
        Refused { error: Option<BoxError> },
    }
}

impl<F> ResponseFuture<F> {
    /// The answer to a request that was sent.
    pub(crate) fn new(inner: F, streamed: bool) -> Self {
        Self {
            streamed,
            state: State::Sent { inner },
        }
    }

    fn refused(error: BoxError) -> Self {
        let error = Some(error);
        Self {
            streamed: false,
            state: State::Refused { error },
        }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Response<B>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = match this.state.project() {
            StateProj::Sent { inner } => ready!(inner.poll(cx))
                .map_err(Into::into)
                .and_then(final_answer),
            StateProj::Refused { error } => Err(error.take().expect("polled after completion")),
        };
        Poll::Ready(answer.map(|mut response| {
            remove_hop_by_hop(response.headers_mut());
            name_coding(response.headers_mut());
            if *this.streamed {
                response.extensions_mut().insert(Streamed);
            }
            response
        }))
    }
}

/// `response`, unless it switches to another protocol: none was asked for, so nothing that either side could read would follow.
fn final_answer<B>(response: Response<B>) -> Result<Response<B>, BoxError> {
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS => {
            Err("the upstream switched protocols without being asked".into())
        }
        _ => Ok(response),
    }
}
