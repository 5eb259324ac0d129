//! How a gRPC call ended: its status is in the trailers, or in the headers of a response without a body.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

use super::{provider_error::Verdict, response_headers::MAX_RETRY_AFTER};
use crate::{Failure, Outcome, Subject};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

#[derive(Debug)]
pub(super) struct Grpc {
    verdict: Option<Verdict>,
}

impl Grpc {
    pub(super) fn new(headers: &HeaderMap) -> Self {
        Self {
            verdict: verdict(headers),
        }
    }

    pub(super) fn trailers(&mut self, trailers: &HeaderMap) {
        self.verdict = verdict(trailers).or(self.verdict);
    }

    /// `None` until the status arrives.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        self.verdict
    }
}

fn verdict(headers: &HeaderMap) -> Option<Verdict> {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok();
    let code: u8 = text(STATUS)?.trim().parse().ok()?;
    let retry_after = text(PUSHBACK)
        .and_then(|millis| millis.parse().ok())
        .map(|millis| Duration::from_millis(millis).min(MAX_RETRY_AFTER));
    let outcome = match code {
        0 => Outcome::Success,
        // Cancelled, by the caller.
        1 => Outcome::Abandoned,
        // Deadline exceeded.
        4 => Outcome::Failed(Failure::Timeout),
        // Resource exhausted.
        8 => Outcome::Throttled { retry_after },
        // Unavailable.
        14 => Outcome::Overloaded { retry_after },
        // Unknown, aborted, unimplemented, internal, data loss.
        2 | 10 | 12 | 13 | 15 => Outcome::Failed(Failure::Status),
        _ => Outcome::ClientError,
    };
    // Unauthenticated.
    let subject = (code == 16).then_some(Subject::Credential);
    Some(Verdict { outcome, subject })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_in_the_trailers_wins_over_none_in_the_headers() {
        let mut grpc = Grpc::new(&HeaderMap::new());
        assert_eq!(grpc.verdict(), None);
        let mut trailers = HeaderMap::new();
        trailers.insert(STATUS, "8".parse().unwrap());
        trailers.insert(PUSHBACK, "250".parse().unwrap());
        grpc.trailers(&trailers);
        let retry_after = Some(Duration::from_millis(250));
        assert_eq!(
            grpc.verdict().map(|verdict| verdict.outcome),
            Some(Outcome::Throttled { retry_after })
        );
    }
}
