//! A stack around a client, of a type that can be named.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use tower::{ServiceExt, util::BoxCloneSyncService};
use tower_layer::Layer;
use tower_llm_core::BoxError;
use tower_service::Service;

use crate::Stack;

/// The body of a [`BoxedStack`]'s responses.
pub type BoxedBody = UnsyncBoxBody<Bytes, BoxError>;

/// A [`Stack`] around a client, of one type for all layers and clients: for a field of a struct, or what a function returns.
/// [`Stack::boxed`] makes it.
///
/// `B` is the body of its requests. The future of a call is boxed, and the body of its response.
pub struct BoxedStack<B = Full<Bytes>> {
    // A `BoxCloneSyncService`, as a field: no type of tower's is part of this API.
    inner: BoxCloneSyncService<Request<B>, Response<BoxedBody>, BoxError>,
}

impl<L> Stack<L> {
    /// Puts the stack around a client, as a service whose type names neither.
    ///
    /// ```
    /// use tower_llm_stack::{BoxedStack, Preset, Stack};
    ///
    /// struct Assistant {
    ///     model: BoxedStack,
    /// }
    ///
    /// # use bytes::Bytes;
    /// # use http::{Request, Response};
    /// # use http_body_util::Full;
    /// # use tower_llm_stack::RequestBody;
    /// # let client = tower::service_fn(async |_: Request<RequestBody>| {
    /// #     Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::default()))
    /// # });
    /// let assistant = Assistant {
    ///     model: Stack::preset(Preset::Chat).build().boxed(client),
    /// };
    /// # let _ = assistant.model;
    /// ```
    pub fn boxed<S, B, R>(&self, client: S) -> BoxedStack<B>
    where
        Self: Layer<S>,
        <Self as Layer<S>>::Service:
            Service<Request<B>, Response = Response<R>> + Clone + Send + Sync + 'static,
        <<Self as Layer<S>>::Service as Service<Request<B>>>::Error: Into<BoxError>,
        <<Self as Layer<S>>::Service as Service<Request<B>>>::Future: Send + 'static,
        B: 'static,
        R: Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let service = self.layer(client).map_err(Into::into);
        let service = service.map_response(|response: Response<R>| {
            response.map(|body| body.map_err(Into::into).boxed_unsync())
        });
        BoxedStack {
            inner: BoxCloneSyncService::new(service),
        }
    }
}

impl<B> Clone for BoxedStack<B> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

impl<B> fmt::Debug for BoxedStack<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoxedStack").finish_non_exhaustive()
    }
}

impl<B> Service<Request<B>> for BoxedStack<B> {
    type Response = Response<BoxedBody>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<BoxedBody>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.inner.call(request)
    }
}
