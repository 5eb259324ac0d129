use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use http::{Request, request::Parts};
use http_body::Body;
use http_body_util::Full;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_service::Service;

use super::{body::describe, layer::Settings};
use crate::{BoxError, TooLarge, oneshot::Oneshot};

pin_project! {
    /// Answers when the body has been read and the inner service has answered.
    pub struct ResponseFuture<S, B>
    where
        S: Service<Request<Full<Bytes>>>,
    {
        #[pin]
        state: State<S, B, Oneshot<S, Request<Full<Bytes>>>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B, F> {
        Refused { error: Option<TooLarge> },
        Reading {
            #[pin]
            body: B,
            read: Read,
            // `None` only while it turns into `Calling`.
            rest: Option<(S, Parts)>,
            settings: Arc<Settings>,
            received_at: Instant,
        },
        Calling { #[pin] future: F },
    }
}

/// The body, as far as it has come.
#[derive(Default)]
struct Read {
    // Most bodies come in one frame, which is then handed on as it is.
    first: Option<Bytes>,
    more: BytesMut,
}

impl<S, B> ResponseFuture<S, B>
where
    S: Service<Request<Full<Bytes>>>,
{
    pub(super) fn refused(error: TooLarge) -> Self {
        let error = Some(error);
        Self {
            state: State::Refused { error },
        }
    }

    pub(super) fn reading(
        inner: S,
        request: Request<B>,
        settings: Arc<Settings>,
        received_at: Instant,
    ) -> Self {
        let (parts, body) = request.into_parts();
        Self {
            state: State::Reading {
                body,
                read: Read::default(),
                rest: Some((inner, parts)),
                settings,
                received_at,
            },
        }
    }
}

impl<S, B> Future for ResponseFuture<S, B>
where
    S: Service<Request<Full<Bytes>>>,
    S::Error: Into<BoxError>,
    B: Body,
    B::Error: Into<BoxError>,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Refused { error } => {
                    let error = error.take().expect("polled after it was ready");
                    return Poll::Ready(Err(error.into()));
                }
                // Read on until the body ends, then describe and call.
                StateProj::Reading {
                    body,
                    read,
                    rest,
                    settings,
                    received_at,
                } => {
                    if ready!(read.poll(body, settings.max_body_bytes, cx))? == Progress::More {
                        continue;
                    }
                    let bytes = std::mem::take(read).into_bytes();
                    let (service, mut parts) = rest.take().expect("polled after it was ready");
                    let call = describe(&parts, &bytes, settings, *received_at);
                    parts.extensions.insert(call);
                    let request = Request::from_parts(parts, Full::new(bytes));
                    let future = Oneshot::new(service, request);
                    this.state.set(State::Calling { future });
                }
                StateProj::Calling { future } => return future.poll(cx).map_err(Into::into),
            }
        }
    }
}

impl<S, B> fmt::Debug for ResponseFuture<S, B>
where
    S: Service<Request<Full<Bytes>>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

#[derive(PartialEq, Eq)]
enum Progress {
    More,
    Ended,
}

impl Read {
    fn poll<B>(
        &mut self,
        body: Pin<&mut B>,
        limit: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Progress, BoxError>>
    where
        B: Body,
        B::Error: Into<BoxError>,
    {
        let Some(frame) = ready!(body.poll_frame(cx)) else {
            return Poll::Ready(Ok(Progress::Ended));
        };
        // Trailers of a request mean nothing to any of the dialects.
        if let Ok(mut data) = frame.map_err(Into::into)?.into_data() {
            let so_far = self.first.as_ref().map_or(0, Bytes::len) + self.more.len();
            // Compare what is left, not the sum, which could overflow.
            if data.remaining() > limit - so_far {
                return Poll::Ready(Err(TooLarge::new(limit).into()));
            }
            let piece = data.copy_to_bytes(data.remaining());
            match &self.first {
                None => self.first = Some(piece),
                Some(_) => self.more.extend_from_slice(&piece),
            }
        }
        Poll::Ready(Ok(Progress::More))
    }

    fn into_bytes(self) -> Bytes {
        let first = self.first.unwrap_or_default();
        if self.more.is_empty() {
            return first;
        }
        let mut whole = BytesMut::with_capacity(first.len() + self.more.len());
        whole.extend_from_slice(&first);
        whole.extend_from_slice(&self.more);
        whole.freeze()
    }
}
