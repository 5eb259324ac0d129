//! What is cached, and for how long.

use std::time::Duration;

use tower_llm_core::{ConfigError, FinishReason, Operation};

use crate::record::Record;

const MAX_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
const MAX_PAUSE: Duration = Duration::from_secs(60);

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
    pub(crate) max_ttl: Option<Duration>,
    pub(crate) stale_while_revalidate: Duration,
    pub(crate) stale_if_error: Duration,
    pub(crate) pause: Duration,
    pub(crate) max_answer_bytes: usize,
    pub(crate) max_silence: Duration,
    pub(crate) max_unattended: Duration,
    pub(crate) finish_abandoned: bool,
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
    const DEFAULT: Self = Self {
        ttl: Duration::ZERO,
        max_ttl: None,
        stale_while_revalidate: Duration::ZERO,
        stale_if_error: Duration::ZERO,
        pause: Duration::ZERO,
        max_answer_bytes: 0,
        max_silence: Duration::from_secs(10 * 60),
        max_unattended: Duration::from_secs(30 * 60),
        finish_abandoned: false,
        deterministic_only: false,
        tool_calls: false,
    };

    /// A policy for chat, messages, responses and text completions: 30 minutes, answers up to 4 MiB, whatever the
    /// temperature, none that call tools.
    pub const fn completions() -> Self {
        Self {
            ttl: Duration::from_secs(30 * 60),
            max_answer_bytes: 4 << 20,
            ..Self::DEFAULT
        }
    }

    /// A policy for embeddings: 24 hours, answers up to 16 MiB.
    pub const fn embeddings() -> Self {
        Self {
            ttl: Duration::from_secs(24 * 60 * 60),
            max_answer_bytes: 16 << 20,
            ..Self::DEFAULT
        }
    }

    /// Sets how long an answer is served after it was stored.
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Renews the time of an answer with each hit, up to this age: what is asked for again and again stays, and the rest goes
    /// after its [`ttl`](Self::ttl). Unless set, hits change nothing.
    ///
    /// Only in this process's memory: in Redis an answer keeps its time.
    pub const fn max_ttl(mut self, max_ttl: Duration) -> Self {
        self.max_ttl = Some(max_ttl);
        self
    }

    /// Serves an answer for this long after its time while a new one is fetched (RFC 5861, section 3); zero unless set.
    ///
    /// The first caller after the time of an answer gets it at once, and its request is sent in a task of its own. That call is
    /// subject to the limits inside of the cache and is charged to no caller. Calls outside of a tokio runtime are sent instead.
    /// Embeddings are not served so.
    pub const fn stale_while_revalidate(mut self, time: Duration) -> Self {
        self.stale_while_revalidate = time;
        self
    }

    /// Serves an answer for this long after its time instead of a failure (RFC 5861, section 4); zero unless set.
    ///
    /// A failure is an error, among them a refusal by a layer inside of the cache, or a status of 408, 429, or 500 and above. A
    /// stream that breaks off later is passed on as it is. Embeddings are not served so.
    pub const fn stale_if_error(mut self, time: Duration) -> Self {
        self.stale_if_error = time;
        self
    }

    /// Replays a stored stream with this pause after each frame, for clients that show an answer as it is written; none unless
    /// set. Outside of a tokio runtime there is no pause. A call in flight is never slowed.
    pub const fn pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// Sets the maximum size of an answer's body, in bytes. A larger one is passed on and not stored. So is one with more than
    /// one frame for every 16 of these bytes, unless it has 64 or fewer.
    ///
    /// When an answer grows larger, no more callers can share it. Those that share it read on, but no more than this is held for
    /// them: a caller that falls this far behind the fastest one gets an error in the middle of its answer.
    pub const fn max_answer_bytes(mut self, bytes: usize) -> Self {
        self.max_answer_bytes = bytes;
        self
    }

    /// Sets how long a call in flight may bring nothing before further callers send their own; 10 minutes unless set, the
    /// timeout of most clients. It begins again with each frame, but for those that have nothing but comments and blank lines.
    /// The callers that share the call wait on, up to timeouts of their own.
    pub const fn max_silence(mut self, silence: Duration) -> Self {
        self.max_silence = silence;
        self
    }

    /// Sets how long a call may go on that no caller waits for; 30 minutes unless set. Then it is dropped and not stored.
    ///
    /// Such calls are those that [`finish_abandoned`](Self::finish_abandoned) has read on, from when the last caller has left, and
    /// those that renew an answer: see [`stale_while_revalidate`](Self::stale_while_revalidate) and
    /// [`RefreshAhead`](crate::RefreshAhead). If callers have joined meanwhile, the call goes on for them.
    pub const fn max_unattended(mut self, time: Duration) -> Self {
        self.max_unattended = time;
        self
    }

    /// Reads an answer to its end, in a task, when the last caller that waited for it has left, and stores it; unless set, the
    /// call is dropped.
    ///
    /// For callers that give up and ask again: the provider is paid once. The last caller to leave pays: a rate limit around the
    /// cache keeps its reservation until the call has ended, and then charges what the call has used. A caller that asks again
    /// shares the call and is charged a request. Of two caches around each other, set it on the outer one: it does not wait for a
    /// call that the inner one reads on.
    ///
    /// The task ends when the answer exceeds [`max_answer_bytes`](Self::max_answer_bytes), brings nothing for
    /// [`max_silence`](Self::max_silence), or takes longer than [`max_unattended`](Self::max_unattended). Until then the call counts in the limits inside of the cache. Outside of a tokio
    /// runtime the call is dropped.
    pub const fn finish_abandoned(mut self) -> Self {
        self.finish_abandoned = true;
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

    /// Whether a stored answer may be served. Another process may have stored it, whose policy allows more.
    pub(crate) fn serves(&self, record: &Record) -> bool {
        record.finish().is_none_or(|finish| self.allows(finish))
    }

    /// How long an answer may be of use after its time.
    pub(crate) fn stale_for(&self) -> Duration {
        self.stale_while_revalidate.max(self.stale_if_error)
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.ttl.is_zero() || self.ttl > MAX_TTL {
            let reason = "it must be over zero and at most ten years";
            return Err(ConfigError::new("ttl", format!("{:?}", self.ttl), reason));
        }
        if let Some(max_ttl) = self.max_ttl
            && !(self.ttl..=MAX_TTL).contains(&max_ttl)
        {
            let reason = "it must be at least the ttl and at most ten years";
            return Err(ConfigError::new("max_ttl", format!("{max_ttl:?}"), reason));
        }
        for (field, time) in [
            ("stale_while_revalidate", self.stale_while_revalidate),
            ("stale_if_error", self.stale_if_error),
        ] {
            if time > MAX_TTL {
                let reason = "it must be at most ten years";
                return Err(ConfigError::new(field, format!("{time:?}"), reason));
            }
        }
        if self.pause > MAX_PAUSE {
            let reason = "it must be at most a minute";
            return Err(ConfigError::new(
                "pause",
                format!("{:?}", self.pause),
                reason,
            ));
        }
        for (field, time) in [
            ("max_silence", self.max_silence),
            ("max_unattended", self.max_unattended),
        ] {
            if time.is_zero() || time > MAX_TTL {
                let reason = "it must be over zero and at most ten years";
                return Err(ConfigError::new(field, format!("{time:?}"), reason));
            }
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
