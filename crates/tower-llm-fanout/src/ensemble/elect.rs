//! The answers of candidates as a judge reads them, and the call's own answer.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_llm_core::{BoxError, HttpBody, Unary};

use crate::{Attach, RipeBody, Ripen};

/// Shows a judge the answers of candidates, and makes one type of their answers and its own.
///
/// Implemented for [`HttpBody`], where a judge reads each answer as a response with all of its bytes, and for [`Unary`], where
/// judge and candidates have the same type of response.
pub trait Elect<T, R>: Ripen<R> + Attach<Self::Out> {
    /// An answer as the judge reads it.
    type Answer;
    /// The call's own answer.
    type Out;

    /// Reads the answer of a candidate, which has arrived whole.
    fn read(&self, candidate: T) -> Self::Answer;

    /// Reads the answer of a judge, which has arrived whole.
    fn read_verdict(&self, verdict: <Self as Ripen<R>>::Ripe) -> Self::Answer;

    /// The answer of a candidate is the call's own.
    fn elect(&self, answer: Self::Answer) -> Self::Out;

    /// The answer of a judge is the call's own.
    fn judged(&self, ripe: <Self as Ripen<R>>::Ripe) -> Self::Out;

    /// The answer of the only branch, which may not have arrived whole, is the call's own.
    fn pass(&self, only: T) -> Self::Out;
}

pin_project! {
    /// The body of an ensemble's response: that of a candidate, or that of the judge.
    pub struct EnsembleBody<B, J> {
        #[pin]
        of: Of<B, J>,
    }
}

pin_project! {
    #[project = OfProj]
    enum Of<B, J> {
        Candidate { #[pin] body: RipeBody<B> },
        Judge { #[pin] body: RipeBody<J> },
    }
}

/// The trailers of an answer, in its extensions while its body is bytes.
#[derive(Clone, Debug)]
struct Trailers(HeaderMap);

impl<R> Elect<R, R> for Unary {
    type Answer = R;
    type Out = R;

    fn read(&self, candidate: R) -> R {
        candidate
    }

    fn read_verdict(&self, verdict: R) -> R {
        verdict
    }

    fn elect(&self, answer: R) -> R {
        answer
    }

    fn judged(&self, ripe: R) -> R {
        ripe
    }

    fn pass(&self, only: R) -> R {
        only
    }
}

impl<B, J> Elect<Response<RipeBody<B>>, Response<J>> for HttpBody
where
    Self: Ripen<Response<J>, Ripe = Response<RipeBody<J>>>,
{
    type Answer = Response<Bytes>;
    type Out = Response<EnsembleBody<B, J>>;

    fn read(&self, candidate: Response<RipeBody<B>>) -> Response<Bytes> {
        read(candidate)
    }

    fn read_verdict(&self, verdict: Response<RipeBody<J>>) -> Response<Bytes> {
        read(verdict)
    }

    fn elect(&self, mut answer: Response<Bytes>) -> Self::Out {
        let trailers = answer.extensions_mut().remove::<Trailers>();
        let trailers = trailers.map(|Trailers(trailers)| trailers);
        self.pass(answer.map(|bytes| RipeBody::whole(bytes, trailers)))
    }

    fn judged(&self, ripe: Response<RipeBody<J>>) -> Self::Out {
        ripe.map(|body| EnsembleBody {
            of: Of::Judge { body },
        })
    }

    fn pass(&self, only: Response<RipeBody<B>>) -> Self::Out {
        only.map(|body| EnsembleBody {
            of: Of::Candidate { body },
        })
    }
}

fn read<B>(response: Response<RipeBody<B>>) -> Response<Bytes> {
    let (mut parts, body) = response.into_parts();
    let (bytes, trailers) = body.into_held();
    trailers.map(|trailers| parts.extensions.insert(Trailers(trailers)));
    Response::from_parts(parts, bytes)
}

impl<B, J> Body for EnsembleBody<B, J>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
    J: Body<Data = Bytes>,
    J::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().of.project() {
            OfProj::Candidate { body } => body.poll_frame(cx),
            OfProj::Judge { body } => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.of {
            Of::Candidate { body } => body.is_end_stream(),
            Of::Judge { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.of {
            Of::Candidate { body } => body.size_hint(),
            Of::Judge { body } => body.size_hint(),
        }
    }
}

impl<B, J> fmt::Debug for EnsembleBody<B, J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An answer must not end up in a log.
        f.write_str(match self.of {
            Of::Candidate { .. } => "Candidate",
            Of::Judge { .. } => "Judge",
        })
    }
}
