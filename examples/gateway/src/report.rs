//! A line in the log for each call that did not go well: why, at which provider, with which model, for which path.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use http::{Method, Request, uri::PathAndQuery};
use tower_llm_stack::{Call, Completion, Failure, Operation, Outcome, Provider, Refusal, TooLarge};

use crate::monitor::label;

/// What a line says of its call.
#[derive(Clone, Debug)]
pub(crate) struct Report(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    call: Option<Call>,
    method: Method,
    path: Option<PathAndQuery>,
}

impl Report {
    pub(crate) fn new<B>(request: &Request<B>, call: Option<&Call>) -> Self {
        Self(Arc::new(Parts {
            call: call.cloned(),
            method: request.method().clone(),
            path: request.uri().path_and_query().cloned(),
        }))
    }

    /// A call that ended without a response.
    pub(crate) fn error(&self, error: &(dyn Error + 'static)) {
        let (provider, operation, model) = self.call();
        let (method, path) = (&self.0.method, self.path());
        if let Some(refusal) = Refusal::find(error) {
            let (layer, retry_after) = (refusal.layer(), refusal.retry_after().map(Seconds));
            let reason = Chain(error);
            tracing::warn!(
                layer, %reason, retry_after = retry_after.map(tracing::field::display),
                provider, operation, model, %method, path, "call refused"
            );
            return;
        }
        let outcome = Completion::of_error(error).outcome;
        let (outcome, reason) = (label(outcome), Chain(error));
        match outcome {
            "client_error" | "abandoned" => {
                tracing::debug!(outcome, %reason, provider, operation, model, %method, path, "call ended");
            }
            _ => {
                tracing::warn!(outcome, %reason, provider, operation, model, %method, path, "call failed");
            }
        }
    }

    /// A call that ended with a response, or in the middle of one.
    pub(crate) fn end(&self, completion: &Completion) {
        let (provider, operation, model) = self.call();
        let (method, path) = (&self.0.method, self.path());
        let (outcome, status) = (label(completion.outcome), completion.status);
        match completion.outcome {
            Outcome::Failed(Failure::Timeout | Failure::Slow | Failure::Stalled) => {
                tracing::warn!(outcome, status, provider, operation, model, %method, path, "call timed out");
            }
            Outcome::Failed(_) | Outcome::Overloaded { .. } | Outcome::Exhausted => {
                tracing::warn!(outcome, status, provider, operation, model, %method, path, "call failed");
            }
            Outcome::Throttled { retry_after } => {
                let retry_after = retry_after.map(Seconds).map(tracing::field::display);
                tracing::warn!(
                    outcome, status, retry_after,
                    provider, operation, model, %method, path, "call throttled by the provider"
                );
            }
            _ => {
                tracing::debug!(outcome, status, provider, operation, model, %method, path, "call ended");
            }
        }
    }

    fn call(&self) -> (&str, &str, Option<&str>) {
        let call = self.0.call.as_ref();
        let provider = call.map_or(Provider::OTHER.as_str(), |call| call.provider().as_str());
        let operation = call.map_or(Operation::OTHER.as_str(), |call| call.operation().as_str());
        (provider, operation, call.and_then(Call::model))
    }

    /// Without the query, which may hold a credential.
    fn path(&self) -> &str {
        self.0.path.as_ref().map_or("", PathAndQuery::path)
    }
}

/// A request whose body was refused before anything was known of it.
pub(crate) fn too_large(error: &(dyn Error + 'static), method: &Method, path: &PathAndQuery) {
    if let Some(too_large) = error.downcast_ref::<TooLarge>() {
        let path = path.path();
        tracing::warn!(status = 413, code = "request_too_large", reason = %too_large, %method, path, "request refused");
    }
}

/// An error with all its sources.
struct Chain<'a>(&'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            write!(f, ": {error}")?;
            next = error.source();
        }
        Ok(())
    }
}

/// A wait, as people read it.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}s", self.0.as_secs_f64())
    }
}
