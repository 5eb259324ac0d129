//! What stands behind the cache: the layers of one upstream, or the targets of a configuration file.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::Response;
use http_body_util::Either;
use pin_project_lite::pin_project;
use tower::Service;
use tower_llm_stack::BoxError;

/// One of two services, whose responses differ in their bodies.
#[derive(Clone, Debug)]
pub(crate) enum Behind<U, T> {
    Upstream(U),
    Targets(T),
}

pin_project! {
    /// The response of one of them.
    #[project = ResponseFutureProj]
    pub(crate) enum ResponseFuture<U, T> {
        Upstream { #[pin] future: U },
        Targets { #[pin] future: T },
    }
}

impl<U, T, Req, A, B> Service<Req> for Behind<U, T>
where
    U: Service<Req, Response = Response<A>, Error = BoxError>,
    T: Service<Req, Response = Response<B>, Error = BoxError>,
{
    type Response = Response<Either<A, B>>;
    type Error = BoxError;
    type Future = ResponseFuture<U::Future, T::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self {
            Self::Upstream(upstream) => upstream.poll_ready(cx),
            Self::Targets(targets) => targets.poll_ready(cx),
        }
    }

    fn call(&mut self, request: Req) -> Self::Future {
        match self {
            Self::Upstream(upstream) => ResponseFuture::Upstream {
                future: upstream.call(request),
            },
            Self::Targets(targets) => ResponseFuture::Targets {
                future: targets.call(request),
            },
        }
    }
}

impl<U, T, A, B> Future for ResponseFuture<U, T>
where
    U: Future<Output = Result<Response<A>, BoxError>>,
    T: Future<Output = Result<Response<B>, BoxError>>,
{
    type Output = Result<Response<Either<A, B>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            ResponseFutureProj::Upstream { future } => future
                .poll(cx)
                .map_ok(|response| response.map(Either::Left)),
            ResponseFutureProj::Targets { future } => future
                .poll(cx)
                .map_ok(|response| response.map(Either::Right)),
        }
    }
}
