//! A response body with a guard.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::{
    Armed, Guard,
    lead::{Lead, Led},
};
use crate::{
    BoxError, Call, Completion, Failure, Outcome,
    scan::{End, Scanner},
};

pin_project! {
    /// A response body that ends a [`Guard`] when the call ends.
    ///
    /// Frames pass as they are. The guard ends as soon as the body can have no more frames; with a known length, that is
    /// with the last one. On drop, the upstream body is dropped first, so that it is closed before the guard releases what
    /// it holds.
    #[derive(Debug)]
    pub struct Watched<B, G: Guard> {
        // `None` once it has ended and nothing more can come of it.
        #[pin]
        inner: Option<B>,
        armed: Armed<G>,
        lead: Lead,
        leads: bool,
        reported_first_token: bool,
    }

    impl<B, G: Guard> PinnedDrop for Watched<B, G> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let dropped = this.armed.dropped();
            this.inner.set(None);
            if !this.armed.has_ended() {
                this.lead.end(this.armed, End::Dropped(dropped));
            }
        }
    }
}

impl<B, G: Guard> Watched<B, G> {
    /// Watches `response`, and reads it unless an inner layer already does.
    pub(super) fn response(
        call: Option<&Call>,
        response: http::Response<B>,
        mut armed: Armed<G>,
    ) -> http::Response<Self>
    where
        B: Body<Data = Bytes>,
    {
        let (mut parts, body) = response.into_parts();
        let followed = parts.extensions.get::<Led>().and_then(Led::lead);
        let leads = followed.is_none();
        let lead = followed.unwrap_or_else(|| {
            let scanner = Scanner::new(call, parts.status, &parts.headers);
            let bill = parts.extensions.get().cloned();
            let lead = Lead::new(scanner.served(&parts.extensions), bill);
            parts.extensions.insert(lead.led());
            lead
        });
        armed.response_headers(Some(&mut parts));
        let mut watched = Self {
            inner: Some(body),
            armed,
            lead,
            leads,
            reported_first_token: false,
        };
        watched.end_if_over();
        http::Response::from_parts(parts, watched)
    }

    /// Ends the call with `outcome` and drops the upstream body.
    ///
    /// If an error status, an error in the body or the terminal marker has already decided how the call ended, that outcome
    /// stands.
    pub fn cut(self: Pin<&mut Self>, outcome: Outcome) {
        let mut this = self.project();
        this.lead.cut(outcome);
        this.inner.set(None);
        this.lead.end(this.armed, End::Cut(outcome));
    }

    /// How the call ended; `None` as long as it has not.
    #[must_use]
    pub fn completion(&self) -> Option<&Completion> {
        self.lead.completion()
    }

    /// Whether the body is an event stream.
    #[must_use]
    pub fn is_event_stream(&self) -> bool {
        self.lead.scanner(|scanner| scanner.is_event_stream())
    }

    /// Whether everything has arrived that shows how the call ended: the terminal marker, a whole JSON document, or an
    /// error within a stream.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.lead.is_over()
    }

    /// When the first content token of a stream passed.
    #[must_use]
    pub fn first_token_at(&self) -> Option<tokio::time::Instant> {
        self.lead.first_token_at()
    }

    /// A body of known length is over with its last frame: its reader may never poll again.
    fn end_if_over(&mut self)
    where
        B: Body<Data = Bytes>,
    {
        if !self.armed.has_ended() && self.inner.as_ref().is_some_and(Body::is_end_stream) {
            self.lead.end(&mut self.armed, End::Ended);
        }
    }
}

impl<B, G> Body for Watched<B, G>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
    G: Guard,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        let Some(inner) = this.inner.as_mut().as_pin_mut() else {
            return Poll::Ready(None);
        };
        let Poll::Ready(polled) = this.armed.enter(|| inner.poll_frame(cx)) else {
            this.armed.pending(cx);
            return Poll::Pending;
        };
        let polled = polled.map(|frame| frame.map_err(Into::into));
        let end = match &polled {
            Some(Ok(frame)) => {
                if *this.leads {
                    this.lead.frame(frame);
                }
                if !*this.reported_first_token
                    && let Some(at) = this.lead.first_token_at()
                {
                    *this.reported_first_token = true;
                    this.armed.first_token(at);
                }
                if this.armed.follows_content() {
                    this.armed.content(this.lead.content_bytes());
                }
                let inner = this.inner.as_ref().as_pin_ref();
                let is_over = inner.is_some_and(|inner| inner.is_end_stream());
                is_over.then_some(End::Ended)
            }
            Some(Err(error)) => Some(End::Errored(outcome(error))),
            None => Some(End::Ended),
        };
        if let Some(end) = end {
            this.inner.set(None);
            this.lead.end(this.armed, end);
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Some(inner) => inner.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

/// The outcome of a call whose response had begun and then broke off with `error`.
fn outcome(error: &BoxError) -> Outcome {
    match Completion::of_error(&**error).outcome {
        // The model was at work, so the output seen is charged, as after a disconnect.
        Outcome::ClientError => Outcome::Abandoned,
        // This call was sent: the refusal is of another one.
        Outcome::Refused => Outcome::Failed(Failure::Transport),
        outcome => outcome,
    }
}
