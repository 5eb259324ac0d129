//! The future of services around a client that classify its errors.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use super::BoxError;
use super::sent::{Classify, ResponseBody};

pin_project! {
    /// A client's future with a classified error.
    #[derive(Debug)]
    pub struct ClassifiedFuture<F> {
        #[pin]
        inner: F,
        // `None` once it is ready.
        classify: Option<Classify>,
    }
}

impl<F> ClassifiedFuture<F> {
    pub(super) fn new(inner: F, classify: Classify) -> Self {
        Self {
            inner,
            classify: Some(classify),
        }
    }
}

impl<F, B, E> Future for ClassifiedFuture<F>
where
    F: Future<Output = Result<http::Response<B>, E>>,
    E: Into<BoxError>,
{
    type Output = Result<http::Response<ResponseBody<B>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        let classify = this.classify.take().expect("polled after it was ready");
        Poll::Ready(match result {
            Ok(response) => Ok(classify.received(response)),
            Err(error) => Err(classify.error(error)),
        })
    }
}
