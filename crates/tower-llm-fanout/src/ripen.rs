//! When a response counts as an answer.

use std::{
    fmt,
    future::{Future, Ready, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use http_body::Body;
use tower_llm_core::{
    Attempt, Bill, BoxError, Call, ClassifiedError, Completion, Failure, HttpBody, Outcome,
    TooLarge, Unary, Usage, Watch,
};

use crate::{Arrived, Report, RipeBody, ripe_body::Unguarded};

const ATTEMPTS: HeaderName = HeaderName::from_static("x-fanout-attempts");
const TARGET: HeaderName = HeaderName::from_static("x-fanout-target");

/// Waits until a response counts. Implemented for [`HttpBody`], for HTTP responses, and for [`Unary`], for any other response,
/// which counts as soon as it is there.
pub trait Ripen<R>: Clone {
    /// A response that counts.
    type Ripe;
    /// Resolves when it does.
    type Ripening: Future<Output = Arrived<Self::Ripe>>;

    /// Waits until `response` is as ripe as that.
    fn ripen(&self, call: Option<&Call>, response: R, ripeness: Ripeness) -> Self::Ripening;

    /// Ends a response that does not count yet as `outcome`, and returns what was seen of it, if that is known.
    fn give_up(&self, ripening: Pin<&mut Self::Ripening>, outcome: Outcome) -> Option<Completion> {
        let _ = (ripening, outcome);
        None
    }

    /// The description that [`ripen`](Self::ripen) reads; `None` if it reads none.
    fn keep(&self, call: Option<&Call>) -> Option<Call>;
}

/// Attaches a [`Report`] to a response, if there is a place for it.
pub trait Attach<T>: Clone {
    /// Attaches it.
    fn attach(&self, response: &mut T, report: Report) {
        let _ = (response, report);
    }

    /// Has the layers around charge what other calls for the same response have used.
    fn charge(&self, response: &mut T, used: Usage) {
        let _ = (response, used);
    }

    /// Has the layers around charge this, whatever they read of the response: it was made of several.
    fn settle(&self, response: &mut T, used: Usage) {
        let _ = (response, used);
    }

    /// Attaches what a caller may see of it.
    fn attach_headers(&self, response: &mut T, report: &Report) {
        let _ = (response, report);
    }
}

/// When a response counts as an answer.
///
/// Its frames are held until then, and passed on as they were. An error response counts when all of it has arrived: only
/// then is it known what it means. What exceeds the [maximum](crate::FanoutBuilder::max_held_bytes) is not held: a good response counts then,
/// and an error response is cut there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ripeness {
    pub(crate) at: RipeAt,
    pub(crate) max_held_bytes: usize,
}

/// The moment at which a response counts as an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RipeAt {
    /// With its headers.
    Headers,
    /// With the first content token of a stream, and with the whole of any other response. An error inside a stream, a frame
    /// that names a role, a comment, an empty stream or a bare end marker is no answer. What is neither text nor JSON, such as
    /// audio, counts with its headers.
    #[default]
    FirstContent,
    /// With all of it. A response that exceeds the maximum is a failure: what is kept must not hold its connection.
    Whole,
}

/// Resolves when an HTTP response counts.
pub struct Ripening<B> {
    /// `None` once it counts.
    response: Option<http::Response<RipeBody<B>>>,
    ripeness: Ripeness,
    /// The estimate of the call's input.
    input_tokens: u64,
}

// === impl Ripeness ===

impl Default for Ripeness {
    fn default() -> Self {
        Self {
            at: RipeAt::default(),
            max_held_bytes: 1 << 20,
        }
    }
}

// === impl Unary ===

impl<R> Ripen<R> for Unary {
    type Ripe = R;
    type Ripening = Ready<Arrived<R>>;

    fn ripen(&self, _: Option<&Call>, response: R, _: Ripeness) -> Ready<Arrived<R>> {
        ready(Arrived::new(Ok(response), Outcome::Success))
    }

    fn keep(&self, _: Option<&Call>) -> Option<Call> {
        None
    }
}

impl<T> Attach<T> for Unary {}

// === impl HttpBody ===

impl<B> Ripen<http::Response<B>> for HttpBody
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Ripe = http::Response<RipeBody<B>>;
    type Ripening = Ripening<B>;

    fn ripen(
        &self,
        call: Option<&Call>,
        response: http::Response<B>,
        ripeness: Ripeness,
    ) -> Ripening<B> {
        let is_ripe = response.status().is_success()
            && match ripeness.at {
                RipeAt::Headers => true,
                RipeAt::FirstContent => !may_be_read(response.headers()),
                RipeAt::Whole => false,
            };
        let response = match is_ripe {
            true => response.map(|body| RipeBody::plain(body)),
            false => {
                let watched = self.watch(call, response, Unguarded);
                watched.map(|body| RipeBody::watched_by(body))
            }
        };
        Ripening {
            response: Some(response),
            ripeness,
            input_tokens: call.map_or(0, Call::input_tokens),
        }
    }

    fn give_up(&self, ripening: Pin<&mut Ripening<B>>, outcome: Outcome) -> Option<Completion> {
        let response = ripening.get_mut().response.as_mut()?;
        Some(response.body_mut().cut(outcome))
    }

    fn keep(&self, call: Option<&Call>) -> Option<Call> {
        call.cloned()
    }
}

impl<B> Attach<http::Response<B>> for HttpBody {
    fn attach(&self, response: &mut http::Response<B>, report: Report) {
        let attempts: Arc<[Attempt]> = report.attempts().into();
        response.extensions_mut().insert(attempts);
        response.extensions_mut().insert(report);
    }

    fn charge(&self, response: &mut http::Response<B>, used: Usage) {
        Bill::charge_response(response.extensions_mut(), used);
    }

    fn settle(&self, response: &mut http::Response<B>, used: Usage) {
        let mut calls = Completion::new(Outcome::Success);
        calls.usage = Some(used);
        let bill = Bill::new();
        bill.charge(&calls);
        response.extensions_mut().insert(bill);
    }

    fn attach_headers(&self, response: &mut http::Response<B>, report: &Report) {
        let headers = response.headers_mut();
        headers.insert(ATTEMPTS, report.attempts().len().into());
        let target = report.winner().and_then(|winner| winner.target.as_deref());
        // A name that cannot stand in a header is left out.
        if let Some(target) = target.and_then(|name| HeaderValue::from_str(name).ok()) {
            headers.insert(TARGET, target);
        }
    }
}

// === impl Ripening ===

impl<B> Future for Ripening<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Output = Arrived<http::Response<RipeBody<B>>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let ripeness = this.ripeness;
        let response = this.response.as_mut().expect("polled after it was ready");
        let ends = loop {
            if is_ripe(response, ripeness) {
                break None;
            }
            if response.body_mut().end_if_over() {
                break Some(Ok(()));
            }
            match ready!(response.body_mut().poll_hold(cx)) {
                Some(Ok(())) => {}
                Some(Err(error)) => break Some(Err(error)),
                None => break Some(Ok(())),
            }
        };
        let mut response = this.response.take().expect("it is ripe");
        let seen = match ends {
            None if response.status().is_success() && ripeness.at != RipeAt::Whole => None,
            None if response.status().is_success() => {
                let failed = Outcome::Failed(Failure::Transport);
                let seen = response.body_mut().cut(failed);
                let error = TooLarge::new(ripeness.max_held_bytes);
                let error = ClassifiedError::new(failed, error).into();
                return Poll::Ready(this.failed(error, &seen));
            }
            // An error response with more than may be held.
            None => {
                response.headers_mut().remove(CONTENT_LENGTH);
                Some(response.body_mut().cut(Outcome::Failed(Failure::Status)))
            }
            Some(Ok(())) => response.body().completion(),
            Some(Err(error)) => {
                let failed = Completion::new(Outcome::Failed(Failure::Transport));
                let seen = response.body().completion().unwrap_or(failed);
                return Poll::Ready(this.failed(error, &seen));
            }
        };
        let arrived = arrived(response, seen.as_ref());
        Poll::Ready(match seen {
            Some(seen) => arrived.using(seen.used(this.input_tokens)),
            None => arrived,
        })
    }
}

impl<B> Ripening<B> {
    /// A response that broke off, by what was seen of it.
    fn failed<T>(&self, error: BoxError, seen: &Completion) -> Arrived<T> {
        Arrived::error(error, 0).using(seen.used(self.input_tokens))
    }
}

/// Whether the layers can read a body of this type; one without a type may be anything.
fn may_be_read(headers: &http::HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE);
    content_type
        .and_then(|value| value.to_str().ok())
        .is_none_or(|value| {
            let value = value.trim_start().to_ascii_lowercase();
            value.starts_with("text/")
                || value.contains("json")
                || value.starts_with("application/grpc")
        })
}

/// Whether a response counts before its end.
fn is_ripe<B>(response: &http::Response<RipeBody<B>>, ripeness: Ripeness) -> bool {
    let body = response.body();
    if body.watched().is_none() || body.held_bytes() >= ripeness.max_held_bytes as u64 {
        return true;
    }
    response.status().is_success()
        && match ripeness.at {
            RipeAt::Headers => true,
            RipeAt::FirstContent => body.has_content(),
            RipeAt::Whole => false,
        }
}

fn arrived<T>(
    response: http::Response<T>,
    seen: Option<&Completion>,
) -> Arrived<http::Response<T>> {
    let should_retry = response.headers().get("x-should-retry");
    let should_retry = should_retry.and_then(|value| match value.as_bytes() {
        b"true" => Some(true),
        b"false" => Some(false),
        _ => None,
    });
    let outcome = seen.map_or(Outcome::Success, |seen| seen.outcome);
    Arrived {
        subject: seen.and_then(|seen| seen.subject),
        should_retry,
        ..Arrived::new(Ok(response), outcome)
    }
}

impl<B> fmt::Debug for Ripening<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ripening").finish_non_exhaustive()
    }
}
