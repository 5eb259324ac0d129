//! Which requests have the same answer.
//!
//! A key is a digest of everything that can change the answer: whose it is, the provider, the model, the path, a few headers,
//! and the body in a form that does not depend on how it is written. Two callers choose the bytes that are hashed, and one of
//! them may want the other to get its answer; so the hash is a cryptographic one of 256 bits, and no item of its input can
//! run into the next.
//!
//! It does not guard against data behind an address: a request with the URL of an image is the same request after the image
//! has changed.

mod buffer;
mod bypass;
mod canonical;
pub(crate) mod items;
mod json;
mod name;
mod place;
mod policy;
mod route;
mod scope;
mod typed;

use std::{cell::Cell, fmt};

use http::{HeaderName, Method, request::Parts};
use tower_llm_core::{Call, Dialect, Operation};

#[cfg(feature = "redis")]
pub(crate) use self::name::encoded;
use self::{
    buffer::Buffer,
    json::{Arena, Node},
    place::Place,
};
pub use self::{
    bypass::Bypass,
    name::{CacheKey, ParseKeyError},
    scope::Scope,
    typed::KeyContent,
};

/// Changes when the bytes that are hashed do, so that no stored answer is found by a key that means something else.
const SCHEMA: &str = "tower-llm-cache key 2";

/// The most memory that a thread holds for its next key.
const MAX_HELD_BYTES: usize = 1 << 20;

/// What keys depend on beside the request.
#[derive(Clone)]
pub(crate) struct KeySettings {
    pub(crate) scope: Scope,
    pub(crate) namespace: Box<str>,
    /// Without it, a guessed request can be confirmed from its key.
    pub(crate) secret: Option<[u8; 32]>,
    /// Whether to cache answers that the provider stores too: a later request may refer to them, and one from the cache has
    /// the id of another call.
    pub(crate) allow_stored: bool,
    /// Headers of the service's own that change the answer, in the order of their names.
    headers: Vec<HeaderName>,
}

/// What a request asks for.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) key: CacheKey,
    /// Whether a stream is to end with the usage.
    pub(crate) include_usage: bool,
    /// The number of choices, or candidates.
    pub(crate) choices: u64,
}

/// Reads what a request asks for; fails if it must not be answered from the cache.
///
/// # Errors
///
/// [`Bypass`], with the first reason found.
pub(crate) fn read(
    settings: &KeySettings,
    request: &Parts,
    body: &[u8],
    call: &Call,
    deterministic_only: bool,
) -> Result<Asked, Bypass> {
    let asked = with_request(settings, request, body, call, |body, root, out| {
        // Before the key, which is most of the work.
        let is_deterministic =
            || *call.operation() == Operation::EMBEDDINGS || policy::is_deterministic(body);
        if deterministic_only && !is_deterministic() {
            return Err(Bypass::NotDeterministic);
        }
        canonical::write(body, root, out);
        Ok(Asked {
            key: CacheKey::new(call, settings.digest(out)),
            include_usage: policy::includes_usage(body),
            choices: policy::choices(body, root),
        })
    });
    asked?
}

/// Runs `then` with the body, its place and a buffer that holds all that the key has beside it.
fn with_request<T>(
    settings: &KeySettings,
    request: &Parts,
    body: &[u8],
    call: &Call,
    then: impl FnOnce(Node<'_>, Place, &mut Buffer) -> T,
) -> Result<T, Bypass> {
    if request.method != Method::POST {
        return Err(Bypass::Operation);
    }
    Scratch::with(|Scratch { arena, buffer }| {
        buffer.clear();
        buffer.reserve(body.len() + body.len() / 8 + 512);
        settings.write(request, call, buffer)?;
        let body = arena.read(body)?;
        if !body.is_object() {
            return Err(Bypass::NotJson);
        }
        let root = route::root(request, call);
        policy::check(body, root, call, settings.allow_stored)?;
        Ok(then(body, root, buffer))
    })
}

/// The memory that a key is read in.
#[derive(Default)]
struct Scratch {
    arena: Arena,
    buffer: Buffer,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

// === impl KeySettings ===

impl KeySettings {
    pub(crate) fn new(scope: Scope) -> Self {
        Self {
            scope,
            namespace: Box::default(),
            secret: None,
            allow_stored: false,
            headers: Vec::new(),
        }
    }

    /// Makes a header part of the key. The order of the settings does not matter: processes that share answers agree on keys.
    pub(crate) fn add_header(&mut self, name: HeaderName) {
        let at = self
            .headers
            .binary_search_by(|known| known.as_str().cmp(name.as_str()));
        if let Err(at) = at {
            self.headers.insert(at, name);
        }
    }

    /// Appends all but the body.
    fn write(&self, request: &Parts, call: &Call, out: &mut Buffer) -> Result<(), Bypass> {
        out.text(SCHEMA);
        out.text(&self.namespace);
        self.scope
            .write(call, |name| scope::only(&request.headers, name), out)?;
        Self::write_call(call, out)?;
        route::write(request, call, &self.headers, out);
        Ok(())
    }

    /// Appends what the call is, whatever the type of its request.
    fn write_call(call: &Call, out: &mut Buffer) -> Result<(), Bypass> {
        let provider = call.provider().as_str();
        out.text(provider);
        // The names of deployments are an account's own. Elsewhere a model is the same by every account.
        let account = call.account().filter(|_| provider.starts_with("azure."));
        out.optional(account);
        out.text(call.operation().as_str());
        out.text(match call.dialect() {
            None => "none",
            Some(Dialect::OpenAi) => "openai",
            Some(Dialect::OpenAiResponses) => "responses",
            Some(Dialect::Anthropic) => "anthropic",
            Some(Dialect::Gemini) => "gemini",
            // One that is newer than this crate has no rules yet.
            Some(_) => return Err(Bypass::Operation),
        });
        out.optional(call.model());
        if call.candidate() > 0 {
            out.text("candidate");
            out.text(&call.candidate().to_string());
        }
        Ok(())
    }

    fn digest(&self, buffer: &Buffer) -> [u8; 32] {
        let digest = match &self.secret {
            Some(secret) => blake3::keyed_hash(secret, buffer.as_slice()),
            None => blake3::hash(buffer.as_slice()),
        };
        *digest.as_bytes()
    }
}

impl fmt::Debug for KeySettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySettings")
            .field("scope", &self.scope)
            .field("namespace", &self.namespace)
            .field("secret", &self.secret.map(|_| "..."))
            .field("allow_stored", &self.allow_stored)
            .field("headers", &self.headers)
            .finish()
    }
}

// === impl Scratch ===

impl Scratch {
    /// Lends this thread's memory, and gives it back unless a large body has made it grow.
    fn with<T>(then: impl FnOnce(&mut Self) -> T) -> T {
        let mut scratch = SCRATCH.take();
        let result = then(&mut scratch);
        if scratch.memory_bytes() <= MAX_HELD_BYTES {
            SCRATCH.set(scratch);
        }
        result
    }

    fn memory_bytes(&self) -> usize {
        self.arena.memory_bytes() + self.buffer.capacity()
    }
}

#[cfg(test)]
mod tests;
