//! The body of a request that has been described.

use std::{
    error::Error,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::{
    HeaderName, Request,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, TRANSFER_ENCODING},
};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Full, LengthLimitError};

use crate::{
    BoxError, Call, ClassifiedError, Outcome, Refusal, RefusalKind, TooLarge, error::chain,
};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A request body: bytes held in memory, or a stream that is not read.
///
/// [`DescribeLayer`](crate::DescribeLayer) gives every request such a body. JSON, which the layers read, is held: it can be
/// [cloned](Self::try_clone) and sent again. Anything else, such as an uploaded file, is the caller's own body `B`, passed
/// on frame by frame: it can be sent once, and takes no memory beyond one frame.
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::Full;
/// use tower_llm_core::RequestBody;
///
/// let json = RequestBody::<Full<Bytes>>::held("{}");
/// assert_eq!(json.as_bytes().unwrap(), "{}");
/// assert!(json.try_clone().is_some());
///
/// let upload = RequestBody::streamed(Full::new(Bytes::from("RIFF")));
/// assert_eq!(upload.as_bytes(), None);
/// assert!(upload.try_clone().is_none());
/// ```
pub struct RequestBody<B = Full<Bytes>> {
    kind: Kind<B>,
}

enum Kind<B> {
    Held { bytes: Bytes, is_sent: bool },
    Streamed(Stream<B>),
}

struct Stream<B> {
    /// What was read to detect the kind of body.
    first: Bytes,
    rest: B,
    limit: usize,
    /// What is left of the limit.
    left: usize,
}

/// The body exceeds a limit of the server; the error does not name the limit.
#[derive(Debug)]
struct OverServersLimit(Refusal);

// === impl RequestBody ===

impl<B> RequestBody<B> {
    /// Creates a body that is held in memory.
    pub fn held(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let is_sent = bytes.is_empty();
        Self {
            kind: Kind::Held { bytes, is_sent },
        }
    }

    /// Creates a body of any length that is passed on frame by frame.
    pub fn streamed(body: B) -> Self {
        Self::streamed_after(Bytes::new(), body, usize::MAX)
    }

    /// `rest` after its first bytes, `limit` bytes in all.
    pub(crate) fn streamed_after(first: Bytes, rest: B, limit: usize) -> Self {
        let stream = Stream {
            first,
            rest,
            limit,
            left: limit,
        };
        Self {
            kind: Kind::Streamed(stream),
        }
    }

    /// Returns the whole body if it is held, even after it was sent; `None` if it is streamed.
    pub fn as_bytes(&self) -> Option<&Bytes> {
        match &self.kind {
            Kind::Held { bytes, .. } => Some(bytes),
            Kind::Streamed(_) => None,
        }
    }

    /// Clones the body if it is held, without copying the bytes; `None` if it is streamed, because a stream can be sent
    /// only once.
    #[must_use]
    pub fn try_clone(&self) -> Option<Self> {
        self.as_bytes().cloned().map(Self::held)
    }

    /// Clones a request with its extensions; `None` if its body is streamed.
    ///
    /// Use it in `clone_request` of a `tower::retry::Policy`.
    #[must_use]
    pub fn try_clone_request(request: &Request<Self>) -> Option<Request<Self>> {
        <Self as TryClone>::try_clone_request(request)
    }
}

impl<B> RequestBody<B> {
    /// Makes a request like another one, with another body: for a layer that sends a part of a call, or another call for it.
    ///
    /// It has the method, URI, headers and extensions of the first, without what is about its body or makes it once and for all,
    /// such as an `idempotency-key`. Its [`Call`] has the tokens of `bytes`, estimated as bytes / 4.
    ///
    /// ```
    /// use http::Request;
    /// use tower_llm_core::{Call, Described, Operation, Provider, RequestBody};
    ///
    /// let call = Call::builder(Provider::OPENAI, Operation::CHAT).input_tokens(900).build();
    /// let request = Request::post("/v1/chat/completions")
    ///     .header("authorization", "Bearer sk-1")
    ///     .header("content-length", 3_600)
    ///     .header("idempotency-key", "k-1")
    ///     .extension(call)
    ///     .body(RequestBody::<()>::held("..."))?;
    ///
    /// let other = RequestBody::request_with(&request, r#"{"model":"judge"}"#);
    /// assert_eq!(other.headers()["authorization"], "Bearer sk-1");
    /// assert_eq!(other.headers()["content-length"], "17");
    /// assert!(!other.headers().contains_key("idempotency-key"));
    /// assert_eq!(other.call().unwrap().input_tokens(), 5);
    /// # Ok::<(), http::Error>(())
    /// ```
    pub fn request_with(request: &Request<Self>, bytes: impl Into<Bytes>) -> Request<Self> {
        let bytes = bytes.into();
        let length = bytes.len();
        let mut other = Request::new(Self::held(bytes));
        other.method_mut().clone_from(request.method());
        other.uri_mut().clone_from(request.uri());
        *other.version_mut() = request.version();
        let headers = other.headers_mut();
        headers.clone_from(request.headers());
        for name in [CONTENT_ENCODING, IDEMPOTENCY_KEY, TRANSFER_ENCODING] {
            headers.remove(name);
        }
        if let Some(stated) = headers.get_mut(CONTENT_LENGTH) {
            *stated = length.into();
        }
        other.extensions_mut().clone_from(request.extensions());
        if let Some(call) = other.extensions_mut().get_mut::<Call>() {
            let tokens = (length as u64).div_ceil(4);
            *call = call.to_builder().input_tokens(tokens).build();
        }
        other
    }
}

/// A request body that can be sent again, perhaps. Implemented for whatever is `Clone`, and for [`RequestBody`].
pub trait TryClone: Sized {
    /// Clones the body; `None` if it can be sent only once.
    fn try_clone(&self) -> Option<Self>;

    /// Clones a request with its extensions; `None` if its body can be sent only once.
    fn try_clone_request(request: &Request<Self>) -> Option<Request<Self>> {
        let mut clone = Request::new(request.body().try_clone()?);
        clone.method_mut().clone_from(request.method());
        clone.uri_mut().clone_from(request.uri());
        *clone.version_mut() = request.version();
        clone.headers_mut().clone_from(request.headers());
        clone.extensions_mut().clone_from(request.extensions());
        Some(clone)
    }
}

impl<T: Clone> TryClone for T {
    fn try_clone(&self) -> Option<Self> {
        Some(self.clone())
    }
}

impl<B> TryClone for RequestBody<B> {
    fn try_clone(&self) -> Option<Self> {
        Self::try_clone(self)
    }
}

impl<B> From<Bytes> for RequestBody<B> {
    fn from(bytes: Bytes) -> Self {
        Self::held(bytes)
    }
}

impl<B> Default for RequestBody<B> {
    /// An empty body.
    fn default() -> Self {
        Self::held(Bytes::new())
    }
}

impl<B> Body for RequestBody<B>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.kind {
            Kind::Held { is_sent: true, .. } => Poll::Ready(None),
            Kind::Held { bytes, is_sent } => {
                *is_sent = true;
                Poll::Ready(Some(Ok(Frame::data(bytes.clone()))))
            }
            Kind::Streamed(stream) => stream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Held { is_sent, .. } => *is_sent,
            Kind::Streamed(stream) => stream.first.is_empty() && stream.rest.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Held { is_sent: true, .. } => SizeHint::with_exact(0),
            Kind::Held { bytes, .. } => SizeHint::with_exact(bytes.len() as u64),
            Kind::Streamed(stream) => stream.size_hint(),
        }
    }
}

impl<B> fmt::Debug for RequestBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A prompt must not end up in a log.
        match &self.kind {
            Kind::Held { bytes, .. } => f.debug_tuple("Held").field(&bytes.len()).finish(),
            Kind::Streamed(_) => f.debug_tuple("Streamed").finish(),
        }
    }
}

// === impl Stream ===

impl<B> Stream<B>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = if self.first.is_empty() {
            match ready!(Pin::new(&mut self.rest).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(callers_fault(error)))),
                Some(Ok(frame)) => frame.map_data(|mut data| data.copy_to_bytes(data.remaining())),
            }
        } else {
            Frame::data(std::mem::take(&mut self.first))
        };
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        Poll::Ready(Some(match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(frame)
            }
            None => Err(TooLarge::new(self.limit).into()),
        }))
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.len() as u64;
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(first));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(first)) {
            hint.set_upper(upper);
        }
        hint
    }
}

// === impl OverServersLimit ===

impl fmt::Display for OverServersLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("request body is over the server's limit")
    }
}

impl Error for OverServersLimit {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

/// States that an error of the request body is the fault of the caller or of its connection, not of the provider.
pub(crate) fn callers_fault(error: impl Into<BoxError>) -> BoxError {
    let error = error.into();
    let is_known = Refusal::find(&*error).is_some() || ClassifiedError::find(&*error).is_some();
    if is_known {
        error
    } else if chain(&*error).any(|error| error.is::<LengthLimitError>()) {
        let refusal = Refusal::new(RefusalKind::TooLarge, "describe").never();
        OverServersLimit(refusal).into()
    } else {
        ClassifiedError::new(Outcome::ClientError, error).into()
    }
}
