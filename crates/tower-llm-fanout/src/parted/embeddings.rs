//! Embeddings requests in parts.

use std::ops::Range;

use http::{Request, Response};
use tower_llm_core::{
    BoxError, EmbeddingInputs, EmbeddingLimits, EmbeddingVectors, Operation, RequestBody,
};

use super::{Divide, Divided, Join, list};
use crate::RipeBody;

/// Divides embeddings requests of `OpenAI`'s dialect by the limits of their provider: of inputs, and of their tokens together.
///
/// Requests must be [described](tower_llm_core::DescribeLayer). A request within the limits is sent as it is, and so is one that
/// cannot be divided: with a member that is [not known](tower_llm_core::is_of_each_input) to leave each vector to its own input.
/// An input that exceeds the limit of one fails its request at once, with [`ItemTooLong`](super::ItemTooLong). Tokens are estimated as bytes / 4: set
/// lower [limits](Self::limits) for texts in scripts whose characters have more bytes and tokens than that.
///
/// The answers are joined by position, byte for byte as the provider wrote the vectors, numbers or base64. `usage` is summed; all
/// else is that of the first part's answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmbeddingParts {
    limits: Option<EmbeddingLimits>,
}

/// Joins the vectors of the parts of a request.
#[derive(Debug)]
pub struct JoinVectors {
    /// How many inputs each part has.
    sent: Vec<usize>,
}

impl EmbeddingParts {
    /// Divides by the limits [of the provider](EmbeddingLimits::of).
    #[must_use]
    pub const fn new() -> Self {
        Self { limits: None }
    }

    /// Sets the limits of a part, instead of those of the provider.
    #[must_use]
    pub const fn limits(mut self, limits: EmbeddingLimits) -> Self {
        self.limits = Some(limits);
        self
    }
}

impl<B> Divide<Request<RequestBody<B>>> for EmbeddingParts {
    type Join = JoinVectors;

    fn divide(
        &self,
        request: Request<RequestBody<B>>,
    ) -> Result<Divided<Request<RequestBody<B>>, JoinVectors>, BoxError> {
        let Some((call, body)) = list::read(&request, &Operation::EMBEDDINGS) else {
            return Ok(Divided::Whole(request));
        };
        let Some(inputs) = EmbeddingInputs::read(body) else {
            return Ok(Divided::Whole(request));
        };
        let limits = self.limits;
        let limits = limits.unwrap_or_else(|| EmbeddingLimits::of(call.provider()));
        let tokens: Vec<u64> = inputs.tokens().collect();
        let body_of = |part: Range<usize>| inputs.body_with(&inputs.all()[part]);
        Ok(
            match list::divide(&request, call, &limits, &tokens, body_of)? {
                Some((parts, sent)) => Divided::Parts(parts, JoinVectors { sent }),
                None => Divided::Whole(request),
            },
        )
    }
}

impl<B> Join<Response<RipeBody<B>>> for JoinVectors {
    fn join(self, answers: Vec<Response<RipeBody<B>>>) -> Result<Response<RipeBody<B>>, BoxError> {
        let (head, bodies) = list::take_apart(answers)?;
        let read = bodies.iter().zip(self.sent);
        let read = read.map(|(body, sent)| EmbeddingVectors::read(body, sent));
        let vectors: Vec<_> = read.collect::<Option<_>>().ok_or_else(list::unreadable)?;
        let usage = list::sum(vectors.iter().filter_map(EmbeddingVectors::usage));
        let all = vectors.iter().flat_map(EmbeddingVectors::all);
        let body = vectors[0].body(all, usage);
        Ok(list::respond(head, body))
    }
}
