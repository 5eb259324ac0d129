//! Requests with a list of inputs over HTTP, in parts.

use std::ops::Range;

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Request, Response,
    header::{
        ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, ETAG, TE, TRAILER,
        TRANSFER_ENCODING, UPGRADE,
    },
    response::Parts,
};
use tower_llm_core::{
    BoxError, Call, ClassifiedError, Dialect, EmbeddingLimits, Failure, Operation, Outcome,
    RequestBody, sum_usages,
};

use super::ItemTooLong;
use crate::RipeBody;

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

/// The description and body of a request for this operation, if it may be divided.
pub(super) fn read<'a, B>(
    request: &'a Request<RequestBody<B>>,
    operation: &Operation,
) -> Option<(&'a Call, &'a Bytes)> {
    let call = request.extensions().get::<Call>()?;
    let is_known = call.operation() == operation && call.dialect() == Some(Dialect::OpenAi);
    if !is_known || call.streamed() || request.headers().contains_key(CONTENT_ENCODING) {
        return None;
    }
    Some((call, request.body().as_bytes()?))
}

/// The parts of a request with items of so many tokens, and how many items each has; `None` if one call takes them all.
pub(super) fn divide<B>(
    request: &Request<RequestBody<B>>,
    call: &Call,
    limits: &EmbeddingLimits,
    tokens: &[u64],
    body_of: impl Fn(Range<usize>) -> Bytes,
) -> Result<Option<(Vec<Request<RequestBody<B>>>, Vec<usize>)>, ItemTooLong> {
    let parts = limits.divide(tokens.iter().copied()).map_err(|item| {
        let most = limits.tokens.unwrap_or(u64::MAX);
        let most_of_one = limits.tokens_per_item.unwrap_or(u64::MAX).min(most);
        ItemTooLong::new(item, tokens[item], most_of_one)
    })?;
    if parts.len() < 2 {
        return Ok(None);
    }
    let all = tokens.len() as u64;
    let ratio_of = |whole: u64, part: &Range<usize>| {
        let ratio = (u128::from(whole) * part.len() as u128).div_ceil(u128::from(all));
        u64::try_from(ratio).unwrap_or(u64::MAX)
    };
    let requests = parts.iter().map(|part| {
        let mut described = (call.to_builder())
            .items(part.len() as u64)
            .input_tokens(tokens[part.clone()].iter().sum())
            .cost(ratio_of(call.cost(), part));
        if let Some(output) = call.max_output_tokens() {
            described = described.max_output_tokens(ratio_of(output, part));
        }
        let mut sent = RequestBody::request_with(request, body_of(part.clone()));
        // The response is taken apart, so it must not be compressed.
        let identity = HeaderValue::from_static("identity");
        sent.headers_mut().insert(ACCEPT_ENCODING, identity);
        sent.extensions_mut().insert(described.build());
        sent
    });
    let requests = requests.collect();
    let sent = parts.iter().map(ExactSizeIterator::len).collect();
    Ok(Some((requests, sent)))
}

/// The head of the first answer, and the bodies of all.
pub(super) fn take_apart<B>(
    answers: Vec<Response<RipeBody<B>>>,
) -> Result<(Parts, Vec<Bytes>), BoxError> {
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
    head.map(|head| (head, bodies)).ok_or_else(unreadable)
}

/// The usage of all answers.
pub(super) fn sum<'a>(usages: impl Iterator<Item = &'a str>) -> Option<String> {
    usages.map(str::to_owned).reduce(|sum, usage| {
        let added = sum_usages(&sum, &usage);
        added.unwrap_or(sum)
    })
}

/// The answer to the whole request. The extensions of the first part's are about its body alone.
pub(super) fn respond<B>(head: Parts, body: Bytes) -> Response<RipeBody<B>> {
    let mut response = Response::new(());
    *response.status_mut() = head.status;
    *response.version_mut() = head.version;
    *response.headers_mut() = head.headers;
    for name in &OF_ONE_BODY {
        response.headers_mut().remove(name);
    }
    let length = HeaderValue::from(body.len());
    response.headers_mut().insert(CONTENT_LENGTH, length);
    response.map(|()| RipeBody::whole(body, None))
}

pub(super) fn unreadable() -> BoxError {
    let reason = "the answer to a part does not have one item for each input";
    ClassifiedError::new(Outcome::Failed(Failure::InBand), reason).into()
}
