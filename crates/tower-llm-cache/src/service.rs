use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
#[cfg(feature = "redis")]
use futures_util::FutureExt as _;
use http::{Request, Response, request::Parts};
use http_body::Body;
use tokio::runtime::Handle;
#[cfg(feature = "redis")]
use tower_llm_core::Unsent;
use tower_llm_core::{BoxError, Call, Oneshot, RequestBody};
use tower_service::Service;

use crate::{
    body::CacheBody,
    coding::Accepted,
    directives::Directives,
    error::NotCached,
    flight::Drive,
    future::ResponseFuture,
    items::{self, Batch, Outbound},
    key::Bypass,
    shared::{Boarding, Shared},
    upstream::Upstream,
};

/// Answers from the cache what it can; see [`CacheLayer`](crate::CacheLayer).
#[derive(Clone, Debug)]
pub struct Cache<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Cache<S> {
    pub(crate) fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self { inner, shared }
    }
}

impl<S, ReqB, ResB> Service<Request<RequestBody<ReqB>>> for Cache<S>
where
    S: Service<Request<RequestBody<ReqB>>, Response = Response<ResB>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    ReqB: Send + 'static,
    ResB: Body<Data = Bytes> + Send + 'static,
    ResB::Error: Into<BoxError>,
{
    type Response = Response<CacheBody<ResB>>;
    type Error = BoxError;
    type Future = ResponseFuture<S, RequestBody<ReqB>, ResB>;

    /// Always ready: a stored answer does not wait for the inner service, and a call that is sent waits for it in its future.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RequestBody<ReqB>>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let call = parts.extensions.get::<Call>();
        let batch = match (call, body.as_bytes()) {
            (Some(call), Some(json)) => self.shared.batch(&parts, json, call),
            _ => None,
        };
        #[cfg(feature = "redis")]
        if let Some(mut batch) = batch {
            let Some(looking) = self.shared.look_for_items(&mut batch) else {
                return self.answer(parts, body, Some(batch));
            };
            let cache = self.clone();
            return ResponseFuture::looking_for_items(looking.map(move |found| {
                for (item, found) in found {
                    batch.put_found(item, &found.record, found.age, found.ttl);
                }
                cache.answer(parts, body, Some(batch))
            }));
        }
        self.answer(parts, body, batch)
    }
}

impl<S> Cache<S> {
    /// Answers a request from memory or by a call.
    fn answer<ReqB, ResB>(
        &self,
        mut parts: Parts,
        body: RequestBody<ReqB>,
        batch: Option<Batch>,
    ) -> ResponseFuture<S, RequestBody<ReqB>, ResB>
    where
        S: Service<Request<RequestBody<ReqB>>, Response = Response<ResB>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        ReqB: Send + 'static,
        ResB: Body<Data = Bytes> + Send + 'static,
        ResB::Error: Into<BoxError>,
    {
        let shared = &self.shared;
        if let (Some(batch), Some(json)) = (batch, body.as_bytes()) {
            let outbound = || Outbound::new(self.inner.clone(), parts.clone(), json.clone());
            if let Some(begun) = items::begin(shared, batch, outbound) {
                return ResponseFuture::begun(begun);
            }
        }
        let read = match parts.extensions.get::<Call>() {
            Some(call) => shared.read(&parts, body.as_bytes(), call),
            None => Err(Bypass::Operation),
        };
        if let Err(reason) = read
            && reason != Bypass::Operation
            && Directives::read(&parts.headers).only_if_cached
        {
            shared.bypassed(reason);
            return ResponseFuture::known(Err(NotCached::new().into()));
        }
        let send = |parts, body| Oneshot::new(self.inner.clone(), Request::from_parts(parts, body));
        let lookup = match read {
            Ok(lookup) => lookup,
            Err(reason) => {
                shared.bypassed(reason);
                return ResponseFuture::passing(send(parts, body), shared.status, reason);
            }
        };
        let upstream = |parts, body, call: Call| -> Pin<Box<dyn Drive>> {
            Box::pin(Upstream::new(send(parts, body), call))
        };
        if let Some(hit) = shared.hit(&lookup) {
            if hit.is_due
                && let Ok(runtime) = Handle::try_current()
            {
                Accepted::replace(&mut parts.headers);
                let upstream = upstream(parts, body, lookup.call.clone());
                shared.refresh(lookup, upstream, &runtime);
            }
            return ResponseFuture::known(Ok(hit.response));
        }
        if lookup.only_if_cached() {
            #[cfg(feature = "redis")]
            if let Some(looking) = shared.look_only(&lookup) {
                let unsent = Unsent::new();
                return ResponseFuture::looking(Box::pin(async move {
                    let found = looking.await;
                    drop(unsent);
                    found.ok_or_else(|| NotCached::new().into())
                }));
            }
            return ResponseFuture::known(Err(NotCached::new().into()));
        }
        let call = lookup.call.clone();
        let accepted = Accepted::replace(&mut parts.headers);
        let upstream = || upstream(parts, body, call);
        if !lookup.policy.stale_while_revalidate.is_zero()
            && let Ok(runtime) = Handle::try_current()
            && let Some(stale) = shared.stale_while_revalidate(&lookup)
        {
            shared.revalidate(&lookup, upstream, &runtime);
            return ResponseFuture::known(Ok(stale));
        }
        match shared.board(lookup, upstream) {
            Boarding::Flying(boarded) => ResponseFuture::flying(boarded.accepting(accepted)),
            Boarding::Stored(response) => ResponseFuture::known(Ok(response)),
        }
    }
}
