//! The body of a response that passed, is shared, or was stored.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
    vec,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_llm_core::BoxError;

use crate::{
    flight::Participant,
    pace::Paced,
    record::{Frames, Record},
};

pin_project! {
    /// A response body: of a call that passed the cache, of a call in flight, or of a stored answer.
    pub struct CacheBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<B> {
        Passed { #[pin] body: B },
        // `None` once it has ended.
        Shared { participant: Option<Participant> },
        Stored { frames: Paced<Frames> },
        Converted { frames: Paced<vec::IntoIter<Bytes>>, left: u64 },
    }
}

/// Without the answer.
impl<B> fmt::Debug for CacheBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheBody").finish_non_exhaustive()
    }
}

impl<B> CacheBody<B> {
    pub(crate) fn passed(body: B) -> Self {
        Self {
            kind: Kind::Passed { body },
        }
    }

    pub(crate) fn shared(participant: Participant) -> Self {
        Self {
            kind: Kind::Shared {
                participant: Some(participant),
            },
        }
    }

    /// The answer as it was recorded, frame for frame, with a pause after each.
    pub(crate) fn stored(record: &Record, pause: Duration) -> Self {
        Self {
            kind: Kind::Stored {
                frames: Paced::new(record.frames(), pause),
            },
        }
    }

    /// The answer in another form than the recorded one.
    pub(crate) fn converted(frames: Vec<Bytes>, pause: Duration) -> Self {
        let left = frames.iter().map(|frame| frame.len() as u64).sum();
        Self {
            kind: Kind::Converted {
                frames: Paced::new(frames.into_iter(), pause),
                left,
            },
        }
    }
}

impl<B> Body for CacheBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
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
            KindProj::Shared { participant } => {
                let Some(reading) = participant else {
                    return Poll::Ready(None);
                };
                let frame = ready!(reading.poll_frame(cx));
                if !matches!(frame, Some(Ok(_))) {
                    *participant = None;
                }
                Poll::Ready(frame)
            }
            KindProj::Stored { frames } => {
                let frame = ready!(frames.poll_next(cx));
                Poll::Ready(frame.map(|frame| Ok(Frame::data(frame))))
            }
            KindProj::Converted { frames, left } => {
                let frame = ready!(frames.poll_next(cx));
                Poll::Ready(frame.map(|frame| {
                    *left -= frame.len() as u64;
                    Ok(Frame::data(frame))
                }))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Passed { body } => body.is_end_stream(),
            Kind::Shared { participant } => participant.as_ref().is_none_or(Participant::is_read),
            Kind::Stored { frames } => frames.frames().left() == 0,
            Kind::Converted { left, .. } => *left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Passed { body } => body.size_hint(),
            Kind::Shared { .. } => SizeHint::default(),
            Kind::Stored { frames } => SizeHint::with_exact(frames.frames().left() as u64),
            Kind::Converted { left, .. } => SizeHint::with_exact(*left),
        }
    }
}
