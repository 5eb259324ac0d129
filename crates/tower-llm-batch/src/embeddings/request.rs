//! Which requests for embeddings are merged, and how.

use std::collections::HashMap;

use http::{
    HeaderMap, HeaderName, HeaderValue, Request,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, DATE, FORWARDED, USER_AGENT},
};
use tower_llm_core::{
    Call, Dialect, EmbeddingInputs, EmbeddingLimits, Key, Operation, RequestBody,
};

/// Headers that are about one request and not about what it asks; those of tracing, proxies and SDKs are in
/// [`is_of_one_request`].
static OF_ONE_REQUEST: [HeaderName; 5] =
    [ACCEPT_ENCODING, CONTENT_LENGTH, DATE, FORWARDED, USER_AGENT];

/// A request that can be merged with others.
pub(super) struct Mergeable<'a, B> {
    request: &'a Request<RequestBody<B>>,
    pub(super) call: &'a Call,
    pub(super) inputs: EmbeddingInputs<'a>,
}

impl<'a, B> Mergeable<'a, B> {
    /// Reads a request; `None` if it is to be sent as it is.
    pub(super) fn read(request: &'a Request<RequestBody<B>>) -> Option<Self> {
        let call = request.extensions().get::<Call>()?;
        let is_for_embeddings =
            *call.operation() == Operation::EMBEDDINGS && call.dialect() == Some(Dialect::OpenAi);
        let headers = request.headers();
        // The provider would take a repetition of the key for the same request, with the same answer.
        let is_own =
            headers.contains_key(CONTENT_ENCODING) || headers.contains_key("idempotency-key");
        if !is_for_embeddings || is_own || call.streamed() || !call.may_queue() {
            return None;
        }
        let inputs = EmbeddingInputs::read(request.body().as_bytes()?)?;
        Some(Self {
            request,
            call,
            inputs,
        })
    }

    /// Whether it is within the limits of one call.
    pub(super) fn is_within(&self, limits: &EmbeddingLimits) -> bool {
        let longest = self.inputs.tokens().max().unwrap_or_default();
        self.inputs.all().len() as u64 <= limits.items
            && limits
                .tokens
                .is_none_or(|max| self.call.input_tokens() <= max)
            && limits.tokens_per_item.is_none_or(|max| longest <= max)
    }

    /// What it has in common with requests that can be sent as one: all but its inputs, and what is about it alone.
    pub(super) fn key(&self, group: Option<Key>) -> Box<[u8]> {
        let (request, call) = (self.request, self.call);
        let mut key = Parts(Vec::with_capacity(512));
        key.options(&self.inputs);
        key.part(call.provider().as_str().as_bytes());
        key.part(call.account().unwrap_or_default().as_bytes());
        let group = group.unwrap_or_else(|| Key::new(""));
        group
            .parts()
            .iter()
            .for_each(|part| key.part(part.as_bytes()));
        key.part(request.method().as_str().as_bytes());
        key.part(request.uri().to_string().as_bytes());
        let mut headers: Vec<_> = request
            .headers()
            .iter()
            .filter(|(name, _)| !is_of_one_request(name))
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        headers.sort_unstable();
        for (name, value) in headers {
            key.part(name.as_bytes());
            key.part(value);
        }
        key.0.into()
    }
}

/// Whether a header is about one request, and not about what it asks or who pays for it.
fn is_of_one_request(name: &HeaderName) -> bool {
    let is_like = |prefix| name.as_str().starts_with(prefix);
    OF_ONE_REQUEST.contains(name)
        || ["x-stainless-", "x-b3-", "x-datadog-"]
            .into_iter()
            .any(is_like)
        || matches!(
            name.as_str(),
            "traceparent"
                | "tracestate"
                | "baggage"
                | "b3"
                | "sentry-trace"
                | "x-request-id"
                | "request-id"
                | "x-correlation-id"
                | "x-client-request-id"
                | "x-ms-client-request-id"
                | "x-amzn-trace-id"
                | "x-cloud-trace-context"
                | "x-real-ip"
                | "x-forwarded-for"
                | "x-forwarded-host"
                | "x-forwarded-port"
                | "x-forwarded-proto"
        )
}

/// Parts of a key, none of which can be taken for two.
struct Parts(Vec<u8>);

impl Parts {
    /// All but the inputs themselves: equal for requests that can be sent as one.
    fn options(&mut self, inputs: &EmbeddingInputs<'_>) {
        self.part(&[inputs.are_tokens().into()]);
        let options = inputs.options();
        self.number(options.len());
        for (name, value) in options {
            self.part(name.as_bytes());
            self.part(value.as_bytes());
        }
    }

    fn part(&mut self, bytes: &[u8]) {
        self.number(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    fn number(&mut self, number: usize) {
        self.0.extend_from_slice(&(number as u64).to_le_bytes());
    }
}

/// One request for the inputs of several.
pub(super) struct Merged<B> {
    pub(super) request: Request<RequestBody<B>>,
    pub(super) call: Call,
    /// For each request, which of the inputs that are sent are its own.
    pub(super) inputs: Vec<Vec<usize>>,
    /// The tokens of each, estimated.
    pub(super) tokens: Vec<u64>,
    pub(super) sent: usize,
}

impl<B> Merged<B> {
    /// Merges requests of one key; `None` if one of them cannot be merged.
    pub(super) fn new(requests: &[Request<RequestBody<B>>], dedupes: bool) -> Option<Self> {
        let requests: Vec<_> = requests
            .iter()
            .map(Mergeable::read)
            .collect::<Option<_>>()?;
        let (mut sent, mut known): (Vec<&str>, HashMap<&str, usize>) = Default::default();
        let mut inputs = Vec::with_capacity(requests.len());
        for request in &requests {
            let mut own = Vec::with_capacity(request.inputs.all().len());
            for &input in request.inputs.all() {
                let next = sent.len();
                let place = match dedupes {
                    true => *known.entry(input).or_insert(next),
                    false => next,
                };
                if place == next {
                    sent.push(input);
                }
                own.push(place);
            }
            inputs.push(own);
        }
        let first = requests.first()?;
        let body = first.inputs.body_with(&sent);
        let call = merge_calls(&requests, sent.len());

        let mut request = Request::new(RequestBody::default());
        request.method_mut().clone_from(first.request.method());
        request.uri_mut().clone_from(first.request.uri());
        *request.version_mut() = first.request.version();
        *request.headers_mut() = headers(first.request.headers(), body.len());
        request
            .extensions_mut()
            .clone_from(first.request.extensions());
        request.extensions_mut().insert(call.clone());
        *request.body_mut() = RequestBody::held(body);
        Some(Self {
            request,
            call,
            inputs,
            tokens: requests.iter().map(|one| one.call.input_tokens()).collect(),
            sent: sent.len(),
        })
    }
}

/// The first request's. The response is taken apart, so it must not be compressed.
fn headers(first: &HeaderMap, length: usize) -> HeaderMap {
    let mut headers = first.clone();
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if headers.contains_key(CONTENT_LENGTH) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    headers
}

/// The description of a call for the inputs of several. It has a caller if all have the same.
fn merge_calls<B>(requests: &[Mergeable<'_, B>], items: usize) -> Call {
    let calls = || requests.iter().map(|request| request.call);
    let first = requests[0].call;
    let mut merged = Call::builder(first.provider().clone(), first.operation().clone())
        .items(items as u64)
        .input_tokens(calls().map(Call::input_tokens).fold(0, u64::saturating_add))
        .cost(calls().map(Call::cost).fold(0, u64::saturating_add))
        .received_at(
            calls()
                .map(Call::received_at)
                .min()
                .unwrap_or(first.received_at()),
        );
    if let Some(dialect) = first.dialect() {
        merged = merged.dialect(dialect);
    }
    if let Some(model) = first.model() {
        merged = merged.model(model);
    }
    if let Some(account) = first.account() {
        merged = merged.account(account);
    }
    if let Some(caller) = first.caller()
        && calls().all(|call| call.caller() == Some(caller))
    {
        merged = merged.caller(caller.clone());
    }
    merged.build()
}
