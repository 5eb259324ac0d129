//! What is cached, and for how long.

use std::time::Duration;

use tower_llm_core::{ConfigError, FinishReason, Operation};

const MAX_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// How the answers of one kind of operation are cached.
///
/// ```
/// use std::time::Duration;
/// use tower_llm_cache::Policy;
///
/// let policy = Policy::completions().ttl(Duration::from_secs(600)).deterministic_only();
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a policy does nothing until a builder takes it"]
pub struct Policy {
    pub(crate) ttl: Duration,
    pub(crate) max_answer_bytes: usize,
    pub(crate) deterministic_only: bool,
    pub(crate) tool_calls: bool,
}

/// The policies of all operations.
#[derive(Clone, Debug)]
pub(crate) struct Policies {
    pub(crate) completions: Option<Policy>,
    pub(crate) embeddings: Option<Policy>,
    others: Vec<(Operation, Policy)>,
}

impl Policy {
    /// A policy for chat, messages, responses and text completions: 30 minutes, answers up to 4 MiB, whatever the
    /// temperature, none that call tools.
    pub const fn completions() -> Self {
        Self {
            ttl: Duration::from_secs(30 * 60),
            max_answer_bytes: 4 << 20,
            deterministic_only: false,
            tool_calls: false,
        }
    }

    /// A policy for embeddings: 24 hours, answers up to 16 MiB.
    pub const fn embeddings() -> Self {
        Self {
            ttl: Duration::from_secs(24 * 60 * 60),
            max_answer_bytes: 16 << 20,
            deterministic_only: false,
            tool_calls: false,
        }
    }

    /// Sets how long an answer is served after it was stored.
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets the maximum size of an answer's body, in bytes. A larger one is passed on and not stored, and callers that come
    /// after it has grown beyond do not share it.
    pub const fn max_answer_bytes(mut self, bytes: usize) -> Self {
        self.max_answer_bytes = bytes;
        self
    }

    /// Caches only requests that ask for determinism: `temperature` 0 or a `seed`.
    ///
    /// A person who asks for another answer to the same question then gets one.
    pub const fn deterministic_only(mut self) -> Self {
        self.deterministic_only = true;
        self
    }

    /// Caches answers that call tools, too: for tools whose calls may be repeated.
    pub const fn tool_calls(mut self) -> Self {
        self.tool_calls = true;
        self
    }

    /// Whether an answer that ended for this reason may be given to others.
    pub(crate) fn allows(&self, finish: FinishReason) -> bool {
        match finish {
            FinishReason::Stop => true,
            FinishReason::ToolCalls => self.tool_calls,
            _ => false,
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.ttl.is_zero() || self.ttl > MAX_TTL {
            let reason = "it must be over zero and at most ten years";
            return Err(ConfigError::new("ttl", format!("{:?}", self.ttl), reason));
        }
        if self.max_answer_bytes == 0 {
            let reason = "no answer is that small; leave the policy out to cache nothing";
            return Err(ConfigError::new("max_answer_bytes", 0, reason));
        }
        Ok(())
    }
}

impl Policies {
    pub(crate) const fn new() -> Self {
        Self {
            completions: Some(Policy::completions()),
            embeddings: Some(Policy::embeddings()),
            others: Vec::new(),
        }
    }

    pub(crate) fn set(&mut self, operation: Operation, policy: Policy) {
        self.others.retain(|(known, _)| *known != operation);
        self.others.push((operation, policy));
    }

    /// The policy for an operation; `None` if it is not cached.
    pub(crate) fn of(&self, operation: &Operation) -> Option<&Policy> {
        if let Some((_, policy)) = self.others.iter().find(|(known, _)| known == operation) {
            return Some(policy);
        }
        if *operation == Operation::EMBEDDINGS {
            self.embeddings.as_ref()
        } else if is_completion(operation) {
            self.completions.as_ref()
        } else {
            None
        }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let others = self.others.iter().map(|(_, policy)| policy);
        let all = self
            .completions
            .iter()
            .chain(&self.embeddings)
            .chain(others);
        all.into_iter().try_for_each(Policy::check)
    }
}

/// Whether the answer is a model's text, which says why it ended.
pub(crate) fn is_completion(operation: &Operation) -> bool {
    [
        Operation::CHAT,
        Operation::GENERATE_CONTENT,
        Operation::TEXT_COMPLETION,
    ]
    .contains(operation)
}
