//! Between `http` and reqwest, both ways, without copying a body.

use std::any::Any;
use std::error::Error;
use std::{io, iter};

use ::reqwest::{Body, Request, Response, ResponseBuilderExt, Url};
use bytes::Bytes;
use http_body_util::Full;
use tower_llm_core::{Failure, Outcome};

use super::BoxError;
use super::sent::Classify;

/// A body that reqwest can send, and send again where it is known to be bytes.
///
/// reqwest repeats a request by itself (a redirect that keeps the method, a connection the server closed unused) only
/// if the body is bytes to it; `Body::wrap` makes a stream of everything. So the types that are bytes are told apart.
pub(super) fn body_into_reqwest<B>(body: B) -> Body
where
    B: http_body::Body + Send + Sync + 'static,
    B::Data: Into<Bytes>,
    B::Error: Into<BoxError>,
{
    if body.is_end_stream() {
        return Body::default();
    }
    let mut body = Some(body);
    let any: &mut dyn Any = &mut body;
    if let Some(full) = any.downcast_mut::<Option<Full<Bytes>>>() {
        return full.take().and_then(ready_bytes).unwrap_or_default().into();
    }
    let any: &mut dyn Any = &mut body;
    if let Some(reqwest) = any.downcast_mut::<Option<Body>>() {
        return reqwest.take().unwrap_or_default();
    }
    body.map(Body::wrap).unwrap_or_default()
}

/// A request that reqwest can send, and the classification of its errors. The extensions go along: reqwest keeps a
/// request's timeout there.
///
/// # Errors
///
/// reqwest's own, classified, if the address has no scheme and host.
pub(super) fn request_into_reqwest<B>(
    request: http::Request<B>,
) -> Result<(Request, Classify), BoxError>
where
    B: http_body::Body + Send + Sync + 'static,
    B::Data: Into<Bytes>,
    B::Error: Into<BoxError>,
{
    let classify = Classify::new(outcome_of);
    let sent = |body| match body_into_reqwest(body) {
        // Bytes don't fail, and stay what reqwest can send again.
        body if body.as_bytes().is_some() => body,
        body => Body::wrap(classify.sent(body)),
    };
    let request: ::reqwest::Result<Request> = request.map(sent).try_into();
    match request {
        Ok(request) => Ok((request, classify)),
        Err(error) => Err(classify.error(error)),
    }
}

/// The outcome that an error of reqwest's stands for, unless it is the connection's.
fn outcome_of(error: &(dyn Error + 'static)) -> Option<Outcome> {
    let error = error.downcast_ref::<::reqwest::Error>()?;
    if error.is_builder() {
        // The request is not one that can be sent.
        Some(Outcome::ClientError)
    } else if error.is_timeout() && !error.is_connect() && !is_dead_connection(error) {
        Some(Outcome::Failed(Failure::Timeout))
    } else {
        None
    }
}

/// Whether what timed out was the connection and not the answer: a keep-alive ping, or the system's own patience.
fn is_dead_connection(error: &::reqwest::Error) -> bool {
    let sources = iter::successors(error.source(), |&error| error.source());
    sources.into_iter().any(|error| {
        let hyper = error.downcast_ref::<hyper::Error>();
        let io = error.downcast_ref::<io::Error>();
        hyper.is_some_and(hyper::Error::is_timeout)
            || io.is_some_and(|error| error.raw_os_error().is_some())
    })
}

/// A response for the layers, whose body's errors are classified. reqwest's conversion drops the address; it is kept in the
/// extensions, in the form that the conversion back looks for.
pub(super) fn response_from_reqwest(
    response: Response,
    classify: Classify,
) -> http::Response<Body> {
    let address = address_extension(response.url().clone());
    let mut response = http::Response::<Body>::from(response);
    response.extensions_mut().extend(address);
    // Still reqwest's type, so that a layer can answer with a body of its own.
    classify.received(response).map(Body::wrap)
}

/// Takes the bytes out of a body that has them all: such a body gives them in its first frame, at once.
fn ready_bytes<B>(mut body: B) -> Option<Bytes>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::Pin::new(&mut body).poll_frame(&mut cx) {
        std::task::Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
        _ => None,
    }
}

fn address_extension(url: Url) -> http::Extensions {
    // The type is private to reqwest; its builder is the only door.
    let mut builder = http::Response::builder().url(url);
    builder
        .extensions_mut()
        .map(std::mem::take)
        .unwrap_or_default()
}

#[cfg(any(feature = "reqwest-middleware", feature = "async-openai"))]
mod inside {
    use ::reqwest::{Body, Request, Response, Url};
    use bytes::Bytes;
    use http_body::Body as _;
    use http_body_util::{BodyExt, Full, LengthLimitError, Limited};

    use std::error::Error;

    use tower_llm_core::ClassifiedError;

    use super::super::{BoxError, RequestBodyError};
    use super::{address_extension, body_into_reqwest, ready_bytes};

    /// How much of a streamed request body is read into memory, unless set; what `DescribeLayer` takes too.
    pub(in super::super) const BODY_LIMIT: usize = 10 * 1024 * 1024;

    /// A request for the layers, which want to clone it: bytes as they are, a streamed body read up to `limit`.
    pub(in super::super) async fn request_from_reqwest(
        request: Request,
        limit: usize,
    ) -> Result<http::Request<Full<Bytes>>, BoxError> {
        let (parts, body) = http::Request::<Body>::try_from(request)?.into_parts();
        let bytes = if body.as_bytes().is_some() {
            // Already in memory, so the limit would guard nothing.
            ready_bytes(body).unwrap_or_default()
        } else {
            read(body, limit).await?
        };
        Ok(http::Request::from_parts(parts, Full::new(bytes)))
    }

    /// The response as the client's user expects it. `requested` is its address if the layers know no better, as
    /// with one they made themselves.
    pub(in super::super) fn response_into_reqwest<B>(
        mut response: http::Response<B>,
        requested: Url,
    ) -> Response
    where
        B: http_body::Body + Send + Sync + 'static,
        B::Data: Into<Bytes>,
        B::Error: Into<BoxError>,
    {
        let mut extensions = address_extension(requested);
        extensions.extend(std::mem::take(response.extensions_mut()));
        *response.extensions_mut() = extensions;
        response.map(body_into_reqwest).into()
    }

    /// The error without its classification if it is reqwest's own, which the client's user expects as it is.
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

    async fn read(body: Body, limit: usize) -> Result<Bytes, RequestBodyError> {
        // A body that tells its length is refused before a byte of it is read.
        if body.size_hint().lower() > limit as u64 {
            return Err(RequestBodyError::too_large(limit));
        }
        match Limited::new(body, limit).collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(RequestBodyError::too_large(limit)),
            Err(error) => Err(RequestBodyError::read(error)),
        }
    }
}

#[cfg(any(feature = "reqwest-middleware", feature = "async-openai"))]
pub(super) use inside::{BODY_LIMIT, from_reqwest, request_from_reqwest, response_into_reqwest};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stay_where_they_are_both_ways() {
        let bytes = Bytes::from(vec![1; 1000]);
        let body = body_into_reqwest(Full::new(bytes.clone()));
        assert_eq!(body.as_bytes().map(<[u8]>::as_ptr), Some(bytes.as_ptr()));

        let passed_on = body_into_reqwest(body);
        let back = ready_bytes(passed_on).unwrap();
        assert_eq!(back.as_ptr(), bytes.as_ptr());
        assert_eq!(back, bytes);
    }

    #[test]
    fn an_empty_body_is_bytes_whatever_its_type() {
        let body = body_into_reqwest(http_body_util::Empty::<Bytes>::new());
        assert_eq!(body.as_bytes(), Some(&[][..]));
        assert!(
            body_into_reqwest(Full::new(Bytes::new()))
                .as_bytes()
                .is_some()
        );
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
