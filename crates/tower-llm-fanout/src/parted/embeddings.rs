//! Embeddings requests in parts.

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Request, Response,
    header::{
        ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, ETAG, TE, TRAILER,
        TRANSFER_ENCODING, UPGRADE,
    },
};
use tower_llm_core::{
    BoxError, Call, ClassifiedError, Dialect, EmbeddingInputs, EmbeddingLimits, EmbeddingVectors,
    Failure, Operation, Outcome, RequestBody, sum_usages,
};

use super::{Divide, Divided, ItemTooLong, Join};
use crate::RipeBody;

/// Divides embeddings requests of `OpenAI`'s dialect by the limits of their provider: of inputs, and of their tokens together.
///
/// Requests must be [described](tower_llm_core::DescribeLayer). A request within the limits is sent as it is, and so is one that
/// cannot be divided: with a member that is [not known](tower_llm_core::is_of_each_input) to leave each vector to its own input.
/// An input that exceeds the limit of one fails its request at once, with [`ItemTooLong`]. Tokens are estimated as bytes / 4: set
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

/// Headers of one body or connection.
static OF_ONE_BODY: [HeaderName; 8] = [
    CONNECTION,
    CONTENT_LENGTH,
    ETAG,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
];

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
        let Some((call, inputs)) = read(&request) else {
            return Ok(Divided::Whole(request));
        };
        let limits = self.limits;
        let limits = limits.unwrap_or_else(|| EmbeddingLimits::of(call.provider()));
        let tokens: Vec<u64> = inputs.tokens().collect();
        let parts = limits.divide(tokens.iter().copied()).map_err(|item| {
            let most = limits.tokens.unwrap_or(u64::MAX);
            let most_of_one = limits.tokens_per_item.unwrap_or(u64::MAX).min(most);
            ItemTooLong::new(item, tokens[item], most_of_one)
        })?;
        if parts.len() < 2 {
            return Ok(Divided::Whole(request));
        }
        let all = inputs.all().len() as u128;
        let requests = parts.iter().map(|part| {
            let body = inputs.body_with(&inputs.all()[part.clone()]);
            let cost = (u128::from(call.cost()) * part.len() as u128).div_ceil(all);
            let call = call
                .to_builder()
                .items(part.len() as u64)
                .input_tokens(tokens[part.clone()].iter().sum())
                .cost(cost as u64);
            part_of(&request, body, call.build())
        });
        let requests = requests.collect();
        let sent = parts.iter().map(ExactSizeIterator::len).collect();
        Ok(Divided::Parts(requests, JoinVectors { sent }))
    }
}

/// The description and inputs of a request that can be divided.
fn read<B>(request: &Request<RequestBody<B>>) -> Option<(&Call, EmbeddingInputs<'_>)> {
    let call = request.extensions().get::<Call>()?;
    let is_for_embeddings =
        *call.operation() == Operation::EMBEDDINGS && call.dialect() == Some(Dialect::OpenAi);
    if !is_for_embeddings || call.streamed() || request.headers().contains_key(CONTENT_ENCODING) {
        return None;
    }
    let inputs = EmbeddingInputs::read(request.body().as_bytes()?)?;
    Some((call, inputs))
}

fn part_of<B>(
    request: &Request<RequestBody<B>>,
    body: Bytes,
    call: Call,
) -> Request<RequestBody<B>> {
    let mut part = RequestBody::request_with(request, body);
    // The response is taken apart, so it must not be compressed.
    let identity = HeaderValue::from_static("identity");
    part.headers_mut().insert(ACCEPT_ENCODING, identity);
    part.extensions_mut().insert(call);
    part
}

impl<B> Join<Response<RipeBody<B>>> for JoinVectors {
    fn join(self, answers: Vec<Response<RipeBody<B>>>) -> Result<Response<RipeBody<B>>, BoxError> {
        let mut head = None;
        let mut bodies = Vec::with_capacity(answers.len());
        for answer in answers {
            let (parts, body) = answer.into_parts();
            if parts.headers.contains_key(CONTENT_ENCODING) {
                return Err(unreadable());
            }
            head.get_or_insert(parts);
            bodies.push(body.into_held().0);
        }
        let read = bodies.iter().zip(self.sent);
        let read = read.map(|(body, sent)| EmbeddingVectors::read(body, sent));
        let vectors: Option<Vec<_>> = read.collect();
        let (Some(head), Some(vectors)) = (head, vectors) else {
            return Err(unreadable());
        };
        let usages = vectors.iter().filter_map(EmbeddingVectors::usage);
        let usage = usages.map(str::to_owned).reduce(|sum, usage| {
            let added = sum_usages(&sum, &usage);
            added.unwrap_or(sum)
        });
        let all = vectors.iter().flat_map(EmbeddingVectors::all);
        let body = vectors[0].body(all, usage);
        let mut response = Response::new(());
        *response.status_mut() = head.status;
        *response.version_mut() = head.version;
        *response.headers_mut() = head.headers;
        for name in &OF_ONE_BODY {
            response.headers_mut().remove(name);
        }
        let length = HeaderValue::from(body.len());
        response.headers_mut().insert(CONTENT_LENGTH, length);
        Ok(response.map(|()| RipeBody::whole(body, None)))
    }
}

fn unreadable() -> BoxError {
    let reason = "the answer to a part does not have one vector for each input";
    ClassifiedError::new(Outcome::Failed(Failure::InBand), reason).into()
}
