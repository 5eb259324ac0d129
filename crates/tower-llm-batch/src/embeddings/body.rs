use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use pin_project_lite::pin_project;
use tower_llm_core::BoxError;

pin_project! {
    /// The body of a response: the upstream's own, or a call's part of it.
    pub struct BatchBody<R> {
        #[pin]
        kind: Kind<R>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<R> {
        Passed { #[pin] body: R },
        Whole { #[pin] body: Full<Bytes> },
    }
}

impl<R> BatchBody<R> {
    pub(super) const fn passed(body: R) -> Self {
        Self {
            kind: Kind::Passed { body },
        }
    }

    pub(super) const fn whole(body: Full<Bytes>) -> Self {
        Self {
            kind: Kind::Whole { body },
        }
    }
}

impl<R> Body for BatchBody<R>
where
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().kind.project() {
            KindProj::Passed { body } => body
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(Into::into))),
            KindProj::Whole { body } => body
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(|never| match never {}))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Passed { body } => body.is_end_stream(),
            Kind::Whole { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Passed { body } => body.size_hint(),
            Kind::Whole { body } => body.size_hint(),
        }
    }
}

impl<R> fmt::Debug for BatchBody<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An answer must not end up in a log.
        f.write_str(match self.kind {
            Kind::Passed { .. } => "Passed",
            Kind::Whole { .. } => "Whole",
        })
    }
}
