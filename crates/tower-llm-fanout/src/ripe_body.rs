//! A response body whose first frames have been read.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_llm_core::{BoxError, Completion, Failure, Guard, Outcome, Watched};

pin_project! {
    /// A response body that may have arrived in part already.
    #[derive(Debug)]
    pub struct RipeBody<B> {
        held: VecDeque<Frame<Bytes>>,
        held_bytes: u64,
        #[pin]
        rest: Rest<B>,
    }
}

pin_project! {
    /// What has not arrived yet.
    #[derive(Debug)]
    #[project = RestProj]
    enum Rest<B> {
        // Nothing depends on it.
        Plain { #[pin] body: B },
        Watched { #[pin] body: Watched<B, Unguarded> },
        // All of it is held.
        Over,
    }
}

/// Holds nothing for the call.
#[derive(Debug)]
pub(crate) struct Unguarded;

impl Guard for Unguarded {
    fn end(&mut self, _: &Completion) {}
}

impl<B> RipeBody<B> {
    /// A body on which nothing depends.
    pub(crate) fn plain(body: B) -> Self {
        Self::new(Rest::Plain { body })
    }

    /// A body that is to be read until it counts.
    pub(crate) fn watched_by(body: Watched<B, Unguarded>) -> Self {
        Self::new(Rest::Watched { body })
    }

    /// A body of which all is there.
    pub(crate) fn whole(bytes: Bytes, trailers: Option<HeaderMap>) -> Self {
        let mut body = Self::new(Rest::Over);
        body.held_bytes = bytes.len() as u64;
        let data = (!bytes.is_empty()).then(|| Frame::data(bytes));
        body.held.extend(data);
        body.held.extend(trailers.map(Frame::trailers));
        body
    }

    /// The bytes that are held, and the trailers.
    pub(crate) fn into_held(self) -> (Bytes, Option<HeaderMap>) {
        let (mut data, mut trailers) = (Vec::with_capacity(self.held.len()), None);
        for frame in self.held {
            match frame.into_data() {
                Ok(bytes) => data.push(bytes),
                Err(frame) => trailers = frame.into_trailers().ok().or(trailers),
            }
        }
        let bytes = match <[Bytes; 1]>::try_from(data) {
            Ok([bytes]) => bytes,
            Err(data) => data.concat().into(),
        };
        (bytes, trailers)
    }

    fn new(rest: Rest<B>) -> Self {
        Self {
            held: VecDeque::new(),
            held_bytes: 0,
            rest,
        }
    }

    pub(crate) fn watched(&self) -> Option<&Watched<B, Unguarded>> {
        match &self.rest {
            Rest::Watched { body } => Some(body),
            Rest::Plain { .. } | Rest::Over => None,
        }
    }

    /// Returns the data that has arrived and was not read yet: all of it once the whole body counts.
    pub fn held(&self) -> impl Iterator<Item = &Bytes> {
        self.held.iter().filter_map(Frame::data_ref)
    }

    /// How many bytes are held.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    pub(crate) fn has_content(&self) -> bool {
        self.watched()
            .is_some_and(|body| body.first_token_at().is_some())
    }

    /// How the call ended, if it has.
    pub(crate) fn completion(&self) -> Option<Completion> {
        let body = self.watched()?;
        let mut completion = body.completion().cloned()?;
        let is_empty = body.is_event_stream() && !self.has_content();
        if is_empty && completion.outcome == Outcome::Success && completion.finish.is_none() {
            // An end marker without an answer before it.
            completion.outcome = Outcome::Failed(Failure::Truncated);
        }
        Some(completion)
    }

    /// Ends the body after what is held, as `outcome` unless that is decided.
    pub(crate) fn cut(&mut self, outcome: Outcome) -> Completion
    where
        B: Unpin,
    {
        if let Rest::Watched { body } = &mut self.rest {
            Pin::new(body).cut(outcome);
        }
        self.completion().unwrap_or(Completion::new(outcome))
    }

    /// Ends a stream without content that has told all: an error, or an end marker. Some providers leave it open.
    pub(crate) fn end_if_over(&mut self) -> bool
    where
        B: Unpin,
    {
        let is_over = |body: &&Watched<B, Unguarded>| body.is_event_stream() && body.is_over();
        let is_over = !self.has_content() && self.watched().filter(is_over).is_some();
        if is_over {
            self.cut(Outcome::Failed(Failure::Status));
        }
        is_over
    }

    /// Holds the next frame; `None` at the end.
    pub(crate) fn poll_hold(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<(), BoxError>>>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        let frame = match ready!(Pin::new(&mut self.rest).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => return Poll::Ready(None),
        };
        self.held_bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        self.held.push_back(frame);
        Poll::Ready(Some(Ok(())))
    }
}

impl<B> Rest<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project() {
            RestProj::Plain { body } => body.poll_frame(cx).map_err(Into::into),
            RestProj::Watched { body } => body.poll_frame(cx),
            RestProj::Over => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Plain { body } => body.is_end_stream(),
            Self::Watched { body } => body.is_end_stream(),
            Self::Over => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Plain { body } => body.size_hint(),
            Self::Watched { body } => body.size_hint(),
            Self::Over => SizeHint::with_exact(0),
        }
    }
}

impl<B> Body for RipeBody<B>
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
        let this = self.project();
        if let Some(frame) = this.held.pop_front() {
            let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
            *this.held_bytes -= bytes;
            return Poll::Ready(Some(Ok(frame)));
        }
        this.rest.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + self.held_bytes);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + self.held_bytes);
        }
        hint
    }
}
