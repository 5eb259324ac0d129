//! What is sent of a request.

use std::{ops::Range, pin::Pin, sync::Arc};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, Response, header::CONTENT_LENGTH, request::Parts};
use http_body::Body;
use serde_json::value::RawValue;
use tower_llm_core::{BoxError, Call, Oneshot, RequestBody, Unsent};
use tower_service::Service;

use super::json::Members;
use crate::{coding::Accepted, flight::Drive, upstream::Upstream};

/// A request of which a part is sent.
pub(crate) struct Outbound {
    inputs: Arc<Inputs>,
    accepted: Accepted,
    send: Box<dyn Fn(Vec<u32>) -> Sending + Send>,
}

/// A call that is about to be sent.
pub(super) struct Sending {
    pub(super) upstream: Pin<Box<dyn Drive>>,
    /// The estimate of its input.
    pub(super) input_tokens: u64,
}

/// Where the inputs are in a request's body.
struct Inputs {
    body: Bytes,
    /// The value of `input`.
    all: Range<usize>,
    each: Vec<Range<usize>>,
}

impl Outbound {
    /// `None` if the inputs cannot be told apart.
    pub(crate) fn new<S, ReqB, ResB>(inner: S, mut parts: Parts, body: Bytes) -> Option<Self>
    where
        S: Service<Request<RequestBody<ReqB>>, Response = Response<ResB>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        ReqB: Send + 'static,
        ResB: Body<Data = Bytes> + Send + 'static,
        ResB::Error: Into<BoxError>,
    {
        let call = parts.extensions.get::<Call>()?.clone();
        let inputs = Arc::new(Inputs::find(body)?);
        let accepted = Accepted::replace(&mut parts.headers);
        let of_all = Arc::clone(&inputs);
        let send = Box::new(move |sent: Vec<u32>| {
            let (inner, mut parts) = (inner.clone(), parts.clone());
            let inputs = Arc::clone(&of_all);
            let call = inputs.describe(&sent, &call);
            parts.extensions.insert(call.clone());
            let unsent = Unsent::new();
            // The body is written when it is first polled, not with the table of claims locked.
            let sending = async move {
                let body = inputs.body_with(&sent);
                if parts.headers.contains_key(CONTENT_LENGTH) {
                    let length = HeaderValue::from(body.len());
                    parts.headers.insert(CONTENT_LENGTH, length);
                }
                let request = Request::from_parts(parts, RequestBody::held(body));
                let sending = Oneshot::new(inner, request);
                drop(unsent);
                sending.await
            };
            Sending {
                input_tokens: call.input_tokens(),
                upstream: Box::pin(Upstream::new(sending, call)),
            }
        });
        Some(Self {
            inputs,
            accepted,
            send,
        })
    }

    /// What the caller accepts.
    pub(super) fn accepted(&self) -> Accepted {
        self.accepted
    }

    pub(super) fn inputs(&self) -> usize {
        self.inputs.each.len()
    }

    /// The call for some of the inputs, by their positions.
    pub(super) fn send(&self, inputs: Vec<u32>) -> Sending {
        (self.send)(inputs)
    }

    /// The caller's own call.
    pub(super) fn send_all(&self) -> Sending {
        self.send((0..self.inputs.each.len() as u32).collect())
    }
}

impl Inputs {
    fn find(body: Bytes) -> Option<Self> {
        let members: Members<'_> = serde_json::from_slice(&body).ok()?;
        let input = members.get("input")?;
        let start = body.as_ptr().addr();
        let range = |value: &str| {
            let start = value.as_ptr().addr() - start;
            start..start + value.len()
        };
        let is_one = |first: Option<&&RawValue>| {
            first.is_some_and(|first| !first.get().starts_with(['"', '[']))
        };
        let each = if input.starts_with('"') {
            vec![range(input)]
        } else {
            let inputs: Vec<&RawValue> = serde_json::from_str(input).ok()?;
            match is_one(inputs.first()) {
                true => vec![range(input)],
                false => inputs.iter().map(|input| range(input.get())).collect(),
            }
        };
        let all = range(input);
        Some(Self { body, all, each })
    }

    /// The caller's body, with only these inputs in it.
    fn body_with(&self, sent: &[u32]) -> Bytes {
        if self.is_all(sent) {
            return self.body.clone();
        }
        let bytes = self.bytes_of(sent) + sent.len() + 2;
        let mut body = BytesMut::with_capacity(self.body.len() - self.all.len() + bytes);
        body.extend_from_slice(&self.body[..self.all.start]);
        let mut separator = b"[";
        for &input in sent {
            body.extend_from_slice(separator);
            body.extend_from_slice(&self.body[self.each[input as usize].clone()]);
            separator = b",";
        }
        body.extend_from_slice(b"]");
        body.extend_from_slice(&self.body[self.all.end..]);
        body.freeze()
    }

    /// The call for these inputs: its tokens are estimated by their part of the text.
    fn describe(&self, sent: &[u32], call: &Call) -> Call {
        if self.is_all(sent) {
            return call.clone();
        }
        let all: usize = self.each.iter().map(Range::len).sum();
        let tokens = u128::from(call.input_tokens()) * self.bytes_of(sent) as u128;
        let tokens = tokens.div_ceil(all.max(1) as u128);
        call.to_builder()
            .items(sent.len() as u64)
            // It is at most what it was.
            .input_tokens(u64::try_from(tokens).unwrap_or(u64::MAX))
            .build()
    }

    /// Each input is sent once, in its order.
    fn is_all(&self, sent: &[u32]) -> bool {
        sent.len() == self.each.len()
    }

    fn bytes_of(&self, sent: &[u32]) -> usize {
        sent.iter()
            .map(|&input| self.each[input as usize].len())
            .sum()
    }
}
