//! Layers that are left out at run time.

use std::{
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Response;
use http_body_util::Either;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_llm_core::{Answer, BoxError, Cached, HttpBody, Unary};

/// A layer, or none, chosen at run time when the stack is built.
///
/// Its service has one response type for both. `W` is the [`Watch`](tower_llm_core::Watch) of the layer: an HTTP response's body
/// is one of two, and for [`Unary`] both are the same type already. For [`Cached`] both are an [`Answer`], the cache's own
/// layer included.
#[derive(Clone, Copy, Debug)]
pub struct Optional<L, W> {
    layer: Option<L>,
    watch: PhantomData<fn() -> W>,
}

/// How the two kinds of response become one; sealed.
#[diagnostic::on_unimplemented(
    message = "an optional layer cannot be watched by `{Self}`",
    note = "an `Option` of a layer works with `HttpBody`, `Unary` and `Cached(Unary)`; leave the layer out by type otherwise"
)]
pub trait Unify<On, Off> {
    /// The response of both.
    type Response;

    /// The response of the layer's service.
    fn on(response: On) -> Self::Response;

    /// The response of the service without the layer.
    fn off(response: Off) -> Self::Response;
}

impl<A, B> Unify<Response<A>, Response<B>> for HttpBody {
    type Response = Response<Either<A, B>>;

    fn on(response: Response<A>) -> Self::Response {
        response.map(Either::Left)
    }

    fn off(response: Response<B>) -> Self::Response {
        response.map(Either::Right)
    }
}

impl<R> Unify<R, R> for Unary {
    type Response = R;

    fn on(response: R) -> R {
        response
    }

    fn off(response: R) -> R {
        response
    }
}

impl<R> Unify<Answer<R>, Answer<R>> for Cached<Unary> {
    type Response = Answer<R>;

    fn on(response: Answer<R>) -> Answer<R> {
        response
    }

    fn off(response: Answer<R>) -> Answer<R> {
        response
    }
}

/// The cache of a typed service: without it, each answer costs a call.
impl<R> Unify<Answer<R>, R> for Cached<Unary> {
    type Response = Answer<R>;

    fn on(response: Answer<R>) -> Answer<R> {
        response
    }

    fn off(response: R) -> Answer<R> {
        Answer::new(response, None)
    }
}

impl<L, W> Optional<L, W> {
    pub(crate) fn new(layer: Option<L>) -> Self {
        Self {
            layer,
            watch: PhantomData,
        }
    }

    pub(crate) fn as_ref(&self) -> Option<&L> {
        self.layer.as_ref()
    }

    pub(crate) fn as_mut(&mut self) -> Option<&mut L> {
        self.layer.as_mut()
    }
}

impl<S, L: Layer<S>, W> Layer<S> for Optional<L, W> {
    type Service = OptionalService<L::Service, S, W>;

    fn layer(&self, inner: S) -> Self::Service {
        match &self.layer {
            Some(layer) => OptionalService::on(layer.layer(inner)),
            None => OptionalService::off(inner),
        }
    }
}

/// The service of a layer that may be left out at run time: with the layer, `A`, or without it, `B`.
#[derive(Clone, Debug)]
pub struct OptionalService<A, B, W> {
    service: Service<A, B>,
    watch: PhantomData<fn() -> W>,
}

#[derive(Clone, Debug)]
enum Service<A, B> {
    On(A),
    Off(B),
}

impl<A, B, W> OptionalService<A, B, W> {
    pub(crate) fn on(service: A) -> Self {
        Self {
            service: Service::On(service),
            watch: PhantomData,
        }
    }

    pub(crate) fn off(service: B) -> Self {
        Self {
            service: Service::Off(service),
            watch: PhantomData,
        }
    }
}

impl<A, B, W, Req> tower_service::Service<Req> for OptionalService<A, B, W>
where
    A: tower_service::Service<Req>,
    A::Error: Into<BoxError>,
    B: tower_service::Service<Req>,
    B::Error: Into<BoxError>,
    W: Unify<A::Response, B::Response>,
{
    type Response = W::Response;
    type Error = BoxError;
    type Future = OptionalFuture<A::Future, B::Future, W>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match &mut self.service {
            Service::On(service) => service.poll_ready(cx).map_err(Into::into),
            Service::Off(service) => service.poll_ready(cx).map_err(Into::into),
        }
    }

    fn call(&mut self, request: Req) -> Self::Future {
        OptionalFuture {
            future: match &mut self.service {
                Service::On(service) => Called::On {
                    future: service.call(request),
                },
                Service::Off(service) => Called::Off {
                    future: service.call(request),
                },
            },
            watch: self.watch,
        }
    }
}

pin_project! {
    /// The future of [`OptionalService`].
    #[derive(Debug)]
    pub struct OptionalFuture<A, B, W> {
        #[pin]
        future: Called<A, B>,
        watch: PhantomData<fn() -> W>,
    }
}

pin_project! {
    #[project = CalledProj]
    #[derive(Debug)]
    enum Called<A, B> {
        On { #[pin] future: A },
        Off { #[pin] future: B },
    }
}

impl<A, B, W, RA, RB, EA, EB> Future for OptionalFuture<A, B, W>
where
    A: Future<Output = Result<RA, EA>>,
    EA: Into<BoxError>,
    B: Future<Output = Result<RB, EB>>,
    EB: Into<BoxError>,
    W: Unify<RA, RB>,
{
    type Output = Result<W::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match self.project().future.project() {
            CalledProj::On { future } => ready!(future.poll(cx)).map(W::on).map_err(Into::into),
            CalledProj::Off { future } => ready!(future.poll(cx)).map(W::off).map_err(Into::into),
        })
    }
}
