//! What one call to a language model is.

use std::{borrow::Cow, fmt, sync::Arc};

use tokio::time::Instant;

use crate::Dialect;

/// Describes one call to a language model. It is read once, travels with the request, and is cheap to clone.
///
/// [`DescribeLayer`](crate::DescribeLayer) reads it from an HTTP request and inserts it into the request's extensions. A
/// service with its own request types builds one and returns it from [`Described::call`].
///
/// Names follow the OpenTelemetry conventions for generative AI.
///
/// ```
/// use tower_llm_core::{Call, Operation, Provider};
///
/// let call = Call::builder(Provider::ANTHROPIC, Operation::CHAT)
///     .model("claude-sonnet-5")
///     .input_tokens(1_200)
///     .streamed(true)
///     .build();
/// assert_eq!(call.model(), Some("claude-sonnet-5"));
/// assert_eq!(call.max_output_tokens(), None);
/// assert_eq!(call.cost(), 1);
///
/// let images = Call::builder(Provider::OPENAI, Operation::new("image")).cost(4).build();
/// assert_eq!(images.cost(), 4);
/// ```
#[derive(Clone, Debug)]
pub struct Call {
    parts: Arc<Parts>,
    // Not among the parts: each branch of a call may have its own, without a copy of them.
    may_queue: bool,
    candidate: u32,
}

#[derive(Clone, Debug)]
struct Parts {
    provider: Provider,
    operation: Operation,
    dialect: Option<Dialect>,
    model: Option<Box<str>>,
    account: Option<Box<str>>,
    caller: Option<Caller>,
    streamed: bool,
    stored: bool,
    input_tokens: u64,
    max_output_tokens: Option<u64>,
    items: u64,
    cost: u64,
    received_at: Instant,
    body_bytes: Option<u64>,
}

/// Builds a [`Call`]; see [`Call::builder`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct CallBuilder {
    parts: Parts,
    may_queue: bool,
    candidate: u32,
}

/// The provider of the model: `gen_ai.provider.name`. An open set with well-known values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Provider(Cow<'static, str>);

/// The kind of call: `gen_ai.operation.name`. An open set with well-known values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Operation(Cow<'static, str>);

/// The caller: a name that the service chose, or a keyed digest of a credential. Never the credential itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Caller(Box<str>);

/// A request that can describe its [`Call`].
///
/// Implemented for [`http::Request`], which holds the call in its extensions. Implement it for your own request types: lend a
/// call that the request holds, or build one when a layer asks.
///
/// ```
/// use std::borrow::Cow;
///
/// use tower_llm_core::{Call, Described, Operation, Provider};
///
/// // Holds its call: layers borrow it.
/// struct Prompt {
///     text: String,
///     call: Call,
/// }
///
/// impl Described for Prompt {
///     fn call(&self) -> Option<Cow<'_, Call>> {
///         Some((&self.call).into())
///     }
/// }
///
/// // Holds no call: each layer that asks gets a new one.
/// struct Image {
///     count: u64,
/// }
///
/// impl Described for Image {
///     fn call(&self) -> Option<Cow<'_, Call>> {
///         let call = Call::builder(Provider::OPENAI, Operation::new("image"))
///             .model("gpt-image-1")
///             .cost(self.count);
///         Some(call.build().into())
///     }
/// }
/// # assert_eq!(Image { count: 3 }.call().unwrap().cost(), 3);
/// ```
///
/// All requests without a call share one key, and each costs one request.
#[diagnostic::on_unimplemented(
    message = "the layers of tower-llm cannot read a call from `{Self}`",
    label = "does not implement `Described`",
    note = "implement `Described` for your own request type, or call the service with an `http::Request`"
)]
pub trait Described {
    /// Returns the call, borrowed from the request or built for it; `None` if nothing is known about it.
    ///
    /// Each layer asks at least once per request. Building a call allocates, so a request that passes several layers should
    /// hold it.
    fn call(&self) -> Option<Cow<'_, Call>>;

    /// Returns a request header's value, for policies that choose a key by one.
    fn header(&self, name: &str) -> Option<&[u8]> {
        let _ = name;
        None
    }

    /// Replaces the call: a layer sends the request to another account or model, or marks it as one that may not queue.
    ///
    /// Does nothing unless implemented, so a request type that does not implement it shows the same call to every target.
    fn set_call(&mut self, call: Call) {
        let _ = call;
    }
}

// === impl Call ===

impl Call {
    /// Starts a call with defaults for everything else: no model, not streamed, one item, a cost of 1, no input tokens,
    /// received now.
    pub fn builder(provider: Provider, operation: Operation) -> CallBuilder {
        let parts = Parts {
            provider,
            operation,
            dialect: None,
            model: None,
            account: None,
            caller: None,
            streamed: false,
            stored: false,
            input_tokens: 0,
            max_output_tokens: None,
            items: 1,
            cost: 1,
            received_at: Instant::now(),
            body_bytes: None,
        };
        CallBuilder {
            parts,
            may_queue: true,
            candidate: 0,
        }
    }

    /// Returns the provider of the model.
    #[must_use]
    pub fn provider(&self) -> &Provider {
        &self.parts.provider
    }

    /// Returns the kind of call.
    #[must_use]
    pub fn operation(&self) -> &Operation {
        &self.parts.operation
    }

    /// Returns the API format of request and response; `None` if it is not a known one.
    #[must_use]
    pub fn dialect(&self) -> Option<Dialect> {
        self.parts.dialect
    }

    /// Returns the model as the request names it; for Azure, the deployment.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        self.parts.model.as_deref()
    }

    /// Returns the account at the provider whose limits the call counts against, if the service named one.
    #[must_use]
    pub fn account(&self) -> Option<&str> {
        self.parts.account.as_deref()
    }

    /// Returns the caller, if it is known.
    #[must_use]
    pub fn caller(&self) -> Option<&Caller> {
        self.parts.caller.as_ref()
    }

    /// Returns whether the request asks for a stream.
    #[must_use]
    pub fn streamed(&self) -> bool {
        self.parts.streamed
    }

    /// Returns whether the provider keeps something of the call: a stored response, one that it makes in the background, or a turn
    /// of a conversation. Sent twice, such a call is there twice.
    #[must_use]
    pub fn stored(&self) -> bool {
        self.parts.stored
    }

    /// Returns the estimated number of input tokens.
    #[must_use]
    pub fn input_tokens(&self) -> u64 {
        self.parts.input_tokens
    }

    /// Returns the maximum number of output tokens, for all choices together; `None` if the request sets no maximum.
    #[must_use]
    pub fn max_output_tokens(&self) -> Option<u64> {
        self.parts.max_output_tokens
    }

    /// Returns the number of inputs: more than one only for embeddings and for prompts in a list.
    #[must_use]
    pub fn items(&self) -> u64 {
        self.parts.items
    }

    /// Returns the cost of the call in the service's own units, for limits that count such units; 1 unless set.
    ///
    /// Use it for what is not measured in tokens: images, seconds of audio, search credits. Providers do not report such
    /// units, so a call that was sent is charged its stated cost.
    #[must_use]
    pub fn cost(&self) -> u64 {
        self.parts.cost
    }

    /// Returns whether the call may wait in a layer's queue; `true` unless set.
    ///
    /// A call with an alternative does not wait: it is refused where it would, and the alternative is tried.
    #[must_use]
    pub fn may_queue(&self) -> bool {
        self.may_queue
    }

    /// Returns the number of the call among several equal ones whose answers are to be compared, such as votes; 0 for the first,
    /// and for any other call.
    ///
    /// A cache answers each candidate by itself: otherwise all votes would be one answer.
    #[must_use]
    pub fn candidate(&self) -> u32 {
        self.candidate
    }

    /// Returns when the request arrived.
    #[must_use]
    pub fn received_at(&self) -> Instant {
        self.parts.received_at
    }

    /// Returns the size of the request body in bytes; `None` if it is not known before the body is sent, as for an upload.
    #[must_use]
    pub fn body_bytes(&self) -> Option<u64> {
        self.parts.body_bytes
    }

    /// Starts a call that is like this one: for a layer that sends a part of it, or the same to another model.
    ///
    /// ```
    /// use tower_llm_core::{Call, Operation, Provider};
    ///
    /// let batch = Call::builder(Provider::OPENAI, Operation::EMBEDDINGS).items(100).input_tokens(2_000).build();
    /// let half = batch.to_builder().items(50).input_tokens(1_000).build();
    /// assert_eq!(half.received_at(), batch.received_at());
    /// ```
    pub fn to_builder(&self) -> CallBuilder {
        CallBuilder {
            parts: Parts::clone(&self.parts),
            may_queue: self.may_queue,
            candidate: self.candidate,
        }
    }

    /// Returns the call, marked as one that may not wait in a queue; see [`may_queue`](Self::may_queue). It copies nothing.
    ///
    /// ```
    /// use tower_llm_core::{Call, Described, Operation, Provider};
    ///
    /// let call = Call::builder(Provider::OPENAI, Operation::CHAT).build();
    /// let mut request = http::Request::new(());
    /// request.set_call(call.clone().without_queueing());
    /// assert!(!request.call().unwrap().may_queue());
    /// assert!(call.may_queue());
    /// ```
    #[must_use]
    pub const fn without_queueing(mut self) -> Self {
        self.may_queue = false;
        self
    }

    /// Returns the call as the candidate with this number; see [`candidate`](Self::candidate). It copies nothing.
    #[must_use]
    pub const fn as_candidate(mut self, candidate: u32) -> Self {
        self.candidate = candidate;
        self
    }
}

// === impl CallBuilder ===

impl CallBuilder {
    /// Sets the provider of the model.
    pub fn provider(mut self, provider: Provider) -> Self {
        self.parts.provider = provider;
        self
    }

    /// Sets the dialect.
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.parts.dialect = Some(dialect);
        self
    }

    /// Sets the model.
    pub fn model(mut self, model: impl Into<Box<str>>) -> Self {
        self.parts.model = Some(model.into());
        self
    }

    /// Sets the account at the provider.
    pub fn account(mut self, account: impl Into<Box<str>>) -> Self {
        self.parts.account = Some(account.into());
        self
    }

    /// Sets the caller.
    pub fn caller(mut self, caller: Caller) -> Self {
        self.parts.caller = Some(caller);
        self
    }

    /// Sets whether the request asks for a stream.
    pub fn streamed(mut self, streamed: bool) -> Self {
        self.parts.streamed = streamed;
        self
    }

    /// Sets whether the provider keeps something of the call; `false` unless set.
    pub fn stored(mut self, stored: bool) -> Self {
        self.parts.stored = stored;
        self
    }

    /// Sets the estimated number of input tokens.
    pub fn input_tokens(mut self, tokens: u64) -> Self {
        self.parts.input_tokens = tokens;
        self
    }

    /// Sets the maximum number of output tokens, for all choices together.
    pub fn max_output_tokens(mut self, tokens: u64) -> Self {
        self.parts.max_output_tokens = Some(tokens);
        self
    }

    /// Sets the number of inputs.
    pub fn items(mut self, items: u64) -> Self {
        self.parts.items = items;
        self
    }

    /// Sets the cost in the service's own units; 1 unless set. A call that costs 0 passes every limit on such units.
    pub fn cost(mut self, units: u64) -> Self {
        self.parts.cost = units;
        self
    }

    /// Sets whether the call may wait in a layer's queue. If not, limits and bulkheads refuse it where it would wait.
    pub fn may_queue(mut self, may_queue: bool) -> Self {
        self.may_queue = may_queue;
        self
    }

    /// Sets when the request arrived; the time of [`Call::builder`] unless set.
    pub fn received_at(mut self, at: Instant) -> Self {
        self.parts.received_at = at;
        self
    }

    /// Sets the size of the request body, in bytes.
    pub fn body_bytes(mut self, bytes: u64) -> Self {
        self.parts.body_bytes = Some(bytes);
        self
    }

    /// Builds the call.
    #[must_use]
    pub fn build(self) -> Call {
        Call {
            parts: Arc::new(self.parts),
            may_queue: self.may_queue,
            candidate: self.candidate,
        }
    }
}

// === impl Provider ===

impl Provider {
    /// `OpenAI`, and providers that speak its dialects without naming themselves.
    pub const OPENAI: Self = Self(Cow::Borrowed("openai"));
    /// Azure `OpenAI`.
    pub const AZURE_OPENAI: Self = Self(Cow::Borrowed("azure.ai.openai"));
    /// Anthropic.
    pub const ANTHROPIC: Self = Self(Cow::Borrowed("anthropic"));
    /// Gemini.
    pub const GEMINI: Self = Self(Cow::Borrowed("gcp.gemini"));
    /// An unknown provider.
    pub const OTHER: Self = Self(Cow::Borrowed("_OTHER"));

    /// Creates a provider from its name.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self(name.into())
    }

    /// Returns its name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// === impl Operation ===

impl Operation {
    /// A chat completion, by any provider's name for it.
    pub const CHAT: Self = Self(Cow::Borrowed("chat"));
    /// A legacy text completion.
    pub const TEXT_COMPLETION: Self = Self(Cow::Borrowed("text_completion"));
    /// Gemini's content generation.
    pub const GENERATE_CONTENT: Self = Self(Cow::Borrowed("generate_content"));
    /// Embeddings.
    pub const EMBEDDINGS: Self = Self(Cow::Borrowed("embeddings"));
    /// Counting tokens, which uses none.
    pub const COUNT_TOKENS: Self = Self(Cow::Borrowed("count_tokens"));
    /// Reading or changing stored data: lists, files, an earlier answer, the cancellation of a batch. It uses no tokens and shows
    /// nothing about a model.
    pub const RETRIEVE: Self = Self(Cow::Borrowed("retrieve"));
    /// Anything else.
    pub const OTHER: Self = Self(Cow::Borrowed("_OTHER"));

    /// Creates an operation from its name.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self(name.into())
    }

    /// Returns its name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the call asks a model to produce something. Reading or changing stored data, counting tokens and
    /// [`OTHER`](Self::OTHER) are not inference; every other operation is, including those that the service named.
    #[must_use]
    pub fn is_inference(&self) -> bool {
        ![Self::RETRIEVE, Self::COUNT_TOKENS, Self::OTHER].contains(self)
    }
}

// === impl Caller ===

impl Caller {
    /// Creates a caller from a name that the service chose.
    pub fn named(name: impl Into<Box<str>>) -> Self {
        Self(name.into())
    }

    /// Returns the name, or the digest in hexadecimal.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// === impl Display ===

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Described ===

impl From<Call> for Cow<'_, Call> {
    fn from(call: Call) -> Self {
        Self::Owned(call)
    }
}

impl<'a> From<&'a Call> for Cow<'a, Call> {
    fn from(call: &'a Call) -> Self {
        Self::Borrowed(call)
    }
}

impl<B> Described for http::Request<B> {
    fn call(&self) -> Option<Cow<'_, Call>> {
        self.extensions().get::<Call>().map(Cow::Borrowed)
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers().get(name).map(http::HeaderValue::as_bytes)
    }

    fn set_call(&mut self, call: Call) {
        self.extensions_mut().insert(call);
    }
}
