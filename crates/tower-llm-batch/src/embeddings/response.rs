//! The response to a merged call, and each call's part of it.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, Response, Version,
    header::{
        CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, ETAG, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
    response::Parts,
};
use http_body::Body;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use serde_json::Value;
use tower_llm_core::{
    BoxError, Call, ClassifiedError, Completion, EmbeddingVectors, Guard, HttpBody, Outcome, Watch,
};

use super::{BatchBody, usage};
use crate::{BatchFailed, Scattered};

/// The most that is read of the response to a merged call, in bytes. A float vector is some 30 KB as text, and providers take
/// 2,048 inputs at most.
const MAX_BYTES: usize = 256 << 20;

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

/// Which vectors are whose.
#[derive(Debug)]
pub(super) struct Division {
    pub(super) call: Call,
    /// For each request, which of the inputs that were sent are its own.
    pub(super) inputs: Vec<Vec<usize>>,
    /// The tokens of each, estimated.
    pub(super) tokens: Vec<u64>,
    pub(super) sent: usize,
}

/// A whole response.
struct Whole {
    version: Version,
    parts: Parts,
    body: Bytes,
}

/// Keeps how the call has ended.
#[derive(Clone, Debug, Default)]
struct Verdict(Arc<OnceLock<Completion>>);

impl Guard for Verdict {
    fn end(&mut self, completion: &Completion) {
        // A guard ends once.
        let _ = self.0.set(completion.clone());
    }
}

impl Division {
    /// Divides a response by its requests.
    pub(super) async fn scatter<R>(self, response: Response<R>) -> Scattered<Response<BatchBody<R>>>
    where
        R: Body<Data = Bytes>,
        R::Error: Into<BoxError>,
    {
        let requests = self.inputs.len();
        let verdict = Verdict::default();
        let response = HttpBody.watch(Some(&self.call), response, verdict.clone());
        let (parts, body) = response.into_parts();
        let read = Limited::new(body, MAX_BYTES).collect().await;
        let outcome = verdict.0.get().map(|completion| completion.outcome);
        let body = match read {
            Ok(body) => body.to_bytes(),
            // Smaller batches have smaller responses.
            Err(error) if error.is::<LengthLimitError>() => return unreadable(requests),
            Err(error) => {
                return Scattered::failed(
                    requests,
                    match outcome {
                        Some(failed @ Outcome::Failed(_)) => {
                            ClassifiedError::new(failed, error).into()
                        }
                        _ => error,
                    },
                );
            }
        };
        let whole = Whole {
            version: parts.version,
            parts,
            body,
        };
        match outcome {
            Some(Outcome::Success) => match self.divide(&whole) {
                Some(bodies) => Scattered::Each(whole.with_each(bodies)),
                None => unreadable(requests),
            },
            Some(Outcome::ClientError) if may_be_an_inputs_fault(&whole.parts) => {
                Scattered::Split(whole.copies(requests))
            }
            _ => Scattered::Each(whole.copies(requests)),
        }
    }

    /// The body for each request; `None` unless there is one vector for each input that was sent.
    fn divide(&self, whole: &Whole) -> Option<Vec<Bytes>> {
        if whole.parts.headers.contains_key(CONTENT_ENCODING) {
            return None;
        }
        let vectors = EmbeddingVectors::read(&whole.body, self.sent)?;
        let usages = match vectors.usage() {
            Some(usage) => {
                let usage: Value = serde_json::from_str(usage).ok()?;
                Some(usage::divide(&usage, &self.parts()))
            }
            None => None,
        };
        let bodies = self.inputs.iter().enumerate().map(|(request, inputs)| {
            let own = inputs.iter().map(|&input| vectors.of(input));
            vectors.body(own, usages.as_ref().map(|usages| &usages[request]))
        });
        Some(bodies.collect())
    }

    /// By what the usage is divided: the estimates, or equally if there are none.
    fn parts(&self) -> Vec<u64> {
        match self.tokens.iter().all(|&tokens| tokens == 0) {
            true => vec![1; self.tokens.len()],
            false => self.tokens.clone(),
        }
    }
}

fn unreadable<T>(requests: usize) -> Scattered<T> {
    Scattered::Split(BatchFailed::copies(requests, BatchFailed::unreadable))
}

/// Whether smaller batches may fare better: not if the credential or the model is what is wrong.
fn may_be_an_inputs_fault(response: &Parts) -> bool {
    let status = response.status.as_u16();
    response.status.is_success() || matches!(status, 400 | 413 | 422)
}

impl Whole {
    /// The same response for each of a number of requests.
    fn copies<R>(&self, requests: usize) -> Vec<Result<Response<BatchBody<R>>, BoxError>> {
        self.with_each(vec![self.body.clone(); requests])
    }

    /// Extensions are left out: they are about the body of the whole.
    fn with_each<R>(&self, bodies: Vec<Bytes>) -> Vec<Result<Response<BatchBody<R>>, BoxError>> {
        let mut headers: HeaderMap = self.parts.headers.clone();
        for name in &OF_ONE_BODY {
            headers.remove(name);
        }
        let response = |body: Bytes| {
            let mut response = Response::new(BatchBody::whole(Full::new(body)));
            *response.status_mut() = self.parts.status;
            *response.version_mut() = self.version;
            response.headers_mut().clone_from(&headers);
            Ok(response)
        };
        bodies.into_iter().map(response).collect()
    }
}
