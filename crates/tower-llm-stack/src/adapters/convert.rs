//! Converts between `http` and reqwest, without copying a body.

use std::any::Any;
use std::error::Error;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::{io, iter};

use ::reqwest::{Body, Request, Response, ResponseBuilderExt, Url};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tower_llm_core::{Failure, Outcome};

use super::BoxError;
use super::sent::Classify;

/// Converts to a request that reqwest can send, and the classification of its errors. Extensions are kept, because reqwest
/// stores a request's timeout there.
///
/// # Errors
///
/// reqwest's own, classified, if the address has no scheme and host.
pub(super) fn request_into_reqwest<B>(
    request: http::Request<B>,
) -> Result<(Request, Classify), BoxError>
where
    B: http_body::Body + Send + 'static,
    B::Data: Into<Bytes>,
    B::Error: Into<BoxError>,
{
    let classify = Classify::new(outcome_of);
    let sent = |body| match request_body(body) {
        // Bytes do not fail, and reqwest can send them again.
        body if body.as_bytes().is_some() => body,
        body => Body::wrap(classify.sent(body)),
    };
    let request: ::reqwest::Result<Request> = request.map(sent).try_into();
    match request {
        Ok(request) => Ok((request, classify)),
        Err(error) => Err(classify.error(error)),
    }
}

/// The outcome of a reqwest error; `None` for an error of the connection.
fn outcome_of(error: &(dyn Error + 'static)) -> Option<Outcome> {
    let error = error.downcast_ref::<::reqwest::Error>()?;
    if error.is_builder() {
        // The request cannot be sent.
        Some(Outcome::ClientError)
    } else if error.is_timeout() && !error.is_connect() && !is_dead_connection(error) {
        Some(Outcome::Failed(Failure::Timeout))
    } else {
        None
    }
}

/// Whether the connection timed out and not the response: a keep-alive ping, or the timeout of the system.
fn is_dead_connection(error: &::reqwest::Error) -> bool {
    let sources = iter::successors(error.source(), |&error| error.source());
    sources.into_iter().any(|error| {
        let hyper = error.downcast_ref::<hyper::Error>();
        let io = error.downcast_ref::<io::Error>();
        hyper.is_some_and(hyper::Error::is_timeout)
            || io.is_some_and(|error| error.raw_os_error().is_some())
    })
}

/// Converts to a body that reqwest can send, and can send again if all of it is in memory.
///
/// reqwest repeats a request by itself (after a redirect that keeps the method, or on a connection that the server closed
/// unused) only if its body is bytes, and `Body::wrap` makes a stream of every body. So a body whose only frame is ready,
/// such as `Full` or a held `RequestBody`, is passed as bytes.
fn request_body<B>(body: B) -> Body
where
    B: http_body::Body + Send + 'static,
    B::Data: Into<Bytes>,
    B::Error: Into<BoxError>,
{
    let Some(length) = body.size_hint().exact() else {
        return streamed_body(body);
    };
    let mut body = Box::pin(body);
    let first = match poll_now(body.as_mut()) {
        Poll::Pending => None,
        Poll::Ready(None) => return Body::default(),
        Poll::Ready(Some(frame)) => Some(into_bytes(frame)),
    };
    match first {
        Some(Ok(frame))
            if frame
                .data_ref()
                .is_some_and(|data| data.len() as u64 == length) =>
        {
            frame.into_data().unwrap_or_default().into()
        }
        first => Body::wrap(Streamed {
            first,
            rest: Mutex::new(body),
        }),
    }
}

/// A body that reqwest sends or returns frame by frame.
fn streamed_body<B>(body: B) -> Body
where
    B: http_body::Body + Send + 'static,
    B::Data: Into<Bytes>,
    B::Error: Into<BoxError>,
{
    if body.is_end_stream() {
        return Body::default();
    }
    let mut body = Some(body);
    let any: &mut dyn Any = &mut body;
    if let Some(reqwest) = any.downcast_mut::<Option<Body>>() {
        return reqwest.take().unwrap_or_default();
    }
    body.map_or_else(Body::default, |body| {
        Body::wrap(Streamed {
            first: None,
            rest: Mutex::new(Box::pin(body)),
        })
    })
}

/// Polls a body that may have a frame ready; the task that reads it polls it again.
fn poll_now<B: http_body::Body>(
    body: Pin<&mut B>,
) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
    body.poll_frame(&mut Context::from_waker(Waker::noop()))
}

fn into_bytes<D, E>(frame: Result<Frame<D>, E>) -> Result<Frame<Bytes>, BoxError>
where
    D: Into<Bytes>,
    E: Into<BoxError>,
{
    frame
        .map(|frame| frame.map_data(Into::into))
        .map_err(Into::into)
}

/// A body for reqwest, which requires `Sync`; axum's body, for example, is not `Sync`.
struct Streamed<B: http_body::Body> {
    /// The frame that was read to check whether it is the whole body.
    first: Option<Result<Frame<Bytes>, BoxError>>,
    // Never contended: only one task polls a body.
    rest: Mutex<Pin<Box<B>>>,
}

impl<B> http_body::Body for Streamed<B>
where
    B: http_body::Body,
    B::Data: Into<Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        let rest = self.rest.get_mut().unwrap_or_else(PoisonError::into_inner);
        let frame = ready!(rest.as_mut().poll_frame(cx));
        Poll::Ready(frame.map(into_bytes))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let first = match &self.first {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len) as u64,
            _ => 0,
        };
        let rest = self.rest().size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + first);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + first);
        }
        hint
    }
}

impl<B: http_body::Body> Streamed<B> {
    fn rest(&self) -> MutexGuard<'_, Pin<Box<B>>> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Converts to a response for the layers, with classified errors of its body. reqwest's conversion drops the URL; the
/// extensions store it in the form that the conversion back expects.
pub(super) fn response_from_reqwest(
    response: Response,
    classify: Classify,
) -> http::Response<Body> {
    let address = address_extension(response.url().clone());
    let mut response = http::Response::<Body>::from(response);
    response.extensions_mut().extend(address);
    // Still reqwest's type, so that a layer can respond with its own body.
    classify.received(response).map(Body::wrap)
}

fn address_extension(url: Url) -> http::Extensions {
    // The type is private to reqwest; only its builder can create it.
    let mut builder = http::Response::builder().url(url);
    builder
        .extensions_mut()
        .map(std::mem::take)
        .unwrap_or_default()
}

#[cfg(any(feature = "reqwest-middleware", feature = "async-openai"))]
mod inside {
    use std::error::Error;
    use std::pin::Pin;

    use ::reqwest::{Body, Request, Response, Url};
    use bytes::Bytes;
    use tower_llm_core::{ClassifiedError, RequestBody};

    use super::super::BoxError;
    use super::{Poll, address_extension, poll_now, streamed_body};

    /// Converts to a request for the layers: a body of bytes is held, any other is streamed.
    pub(in super::super) fn request_from_reqwest(
        request: Request,
    ) -> ::reqwest::Result<http::Request<RequestBody<Body>>> {
        let request = http::Request::<Body>::try_from(request)?;
        Ok(request.map(|mut body| {
            if body.as_bytes().is_none() {
                return RequestBody::streamed(body);
            }
            // Its first frame is the whole body, and is not a copy.
            match poll_now(Pin::new(&mut body)) {
                Poll::Ready(Some(Ok(frame))) => {
                    RequestBody::held(frame.into_data().unwrap_or_default())
                }
                _ => RequestBody::default(),
            }
        }))
    }

    /// Converts to the response that the client's user expects. `requested` is its URL if the layers set none, as in a
    /// response that they made themselves.
    pub(in super::super) fn response_into_reqwest<B>(
        mut response: http::Response<B>,
        requested: Url,
    ) -> Response
    where
        B: http_body::Body + Send + 'static,
        B::Data: Into<Bytes>,
        B::Error: Into<BoxError>,
    {
        let mut extensions = address_extension(requested);
        extensions.extend(std::mem::take(response.extensions_mut()));
        *response.extensions_mut() = extensions;
        response.map(streamed_body).into()
    }

    /// Removes the classification from reqwest's own errors, which the client's user expects as they are.
    pub(in super::super) fn from_reqwest(error: BoxError) -> BoxError {
        let of_reqwest = |error: &ClassifiedError| {
            error
                .source()
                .is_some_and(|source| source.is::<::reqwest::Error>())
        };
        match error.downcast::<ClassifiedError>() {
            Ok(classified) if of_reqwest(&classified) => classified.into_source(),
            Ok(classified) => classified,
            Err(error) => error,
        }
    }
}

#[cfg(any(feature = "reqwest-middleware", feature = "async-openai"))]
pub(super) use inside::{from_reqwest, request_from_reqwest, response_into_reqwest};

#[cfg(test)]
mod tests {
    use super::*;

    use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
    use tower_llm_core::RequestBody;

    #[test]
    fn bytes_are_handed_over_without_a_copy() {
        let bytes = Bytes::from(vec![1; 1000]);
        let at = Some(bytes.as_ptr());
        let full = request_body(Full::new(bytes.clone()));
        assert_eq!(full.as_bytes().map(<[u8]>::as_ptr), at);
        let again = request_body(full);
        assert_eq!(again.as_bytes().map(<[u8]>::as_ptr), at);
        let held = request_body(RequestBody::<Full<Bytes>>::held(bytes));
        assert_eq!(held.as_bytes().map(<[u8]>::as_ptr), at);
    }

    #[test]
    fn an_empty_body_is_bytes_whatever_its_type() {
        let body = request_body(http_body_util::Empty::<Bytes>::new());
        assert_eq!(body.as_bytes(), Some(&[][..]));
        let body = request_body(RequestBody::<Full<Bytes>>::default());
        assert_eq!(body.as_bytes(), Some(&[][..]));
    }

    #[tokio::test]
    async fn a_body_that_has_not_all_come_is_streamed_and_loses_nothing() {
        let lengths = [Some(9), None];
        for length in lengths {
            let (mut sender, channel) = http_body_util::channel::Channel::<Bytes>::new(4);
            sender.send_data(Bytes::from_static(b"some")).await.unwrap();
            // It is not `Sync`.
            let body = UnsyncBoxBody::new(Announced { length, channel });
            let body = request_body(body);
            assert!(body.as_bytes().is_none());
            assert_eq!(http_body::Body::size_hint(&body).exact(), length);
            sender
                .send_data(Bytes::from_static(b" more"))
                .await
                .unwrap();
            drop(sender);
            let sent = body.collect().await.unwrap().to_bytes();
            assert_eq!(sent, "some more");
        }
    }

    /// A body whose length is known before it comes, or is not.
    struct Announced {
        length: Option<u64>,
        channel: http_body_util::channel::Channel<Bytes>,
    }

    impl http_body::Body for Announced {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            let frame = ready!(Pin::new(&mut self.channel).poll_frame(cx));
            if let (Some(length), Some(Ok(frame))) = (&mut self.length, &frame) {
                *length -= frame.data_ref().map_or(0, Bytes::len) as u64;
            }
            Poll::Ready(frame)
        }

        fn size_hint(&self) -> SizeHint {
            self.length.map_or_else(SizeHint::new, SizeHint::with_exact)
        }
    }

    #[test]
    fn a_response_keeps_its_address() {
        let url: Url = "http://h/v1/models?a=b".parse().unwrap();
        let response = http::Response::builder().url(url.clone()).body("").unwrap();
        let classify = Classify::new(outcome_of);
        let through: Response = response_from_reqwest(response.into(), classify).into();
        assert_eq!(through.url(), &url);
    }
}
