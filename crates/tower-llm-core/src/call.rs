//! What one call to a language model is.

use std::{borrow::Cow, fmt, sync::Arc};

use tokio::time::Instant;

use crate::Dialect;

/// What one call to a language model is: read once, carried with the request, cheap to clone.
///
/// [`DescribeLayer`](crate::DescribeLayer) makes it from an HTTP request and puts it into its extensions; a service
/// with request types of its own builds one and hands it out by [`Described`].
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
pub struct Call(Arc<Parts>);

#[derive(Clone, Debug)]
struct Parts {
    provider: Provider,
    operation: Operation,
    dialect: Option<Dialect>,
    model: Option<Box<str>>,
    account: Option<Box<str>>,
    caller: Option<Caller>,
    streamed: bool,
    input_tokens: u64,
    max_output_tokens: Option<u64>,
    items: u64,
    cost: u64,
    received_at: Instant,
}

/// Builds a [`Call`]; see [`Call::builder`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct CallBuilder(Parts);

/// Who serves the model: `gen_ai.provider.name`. An open set with well-known values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Provider(Cow<'static, str>);

/// What is asked of it: `gen_ai.operation.name`. An open set with well-known values.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Operation(Cow<'static, str>);

/// Who calls: a name the service chose, or a keyed digest of a credential. Never the credential itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Caller(Box<str>);

/// A request that may know which [`Call`] it is.
///
/// Implemented for [`http::Request`], from its extensions, and to be implemented for request types of your own.
/// Where it gives no call, a layer uses one key shared by all such requests and the cost of one request.
pub trait Described {
    /// The call that this request is, borrowed from the request or built for it.
    ///
    /// Each layer asks at least once. Store the [`Call`] in the request where that matters: building one allocates.
    fn call(&self) -> Option<Cow<'_, Call>>;

    /// A request header's value, for policies that choose a key by one.
    fn header(&self, name: &str) -> Option<&[u8]> {
        let _ = name;
        None
    }
}

// === impl Call ===

impl Call {
    /// Starts a call with defaults for everything else: no model, not streamed, one item, a cost of 1, no input tokens,
    /// received now.
    pub fn builder(provider: Provider, operation: Operation) -> CallBuilder {
        CallBuilder(Parts {
            provider,
            operation,
            dialect: None,
            model: None,
            account: None,
            caller: None,
            streamed: false,
            input_tokens: 0,
            max_output_tokens: None,
            items: 1,
            cost: 1,
            received_at: Instant::now(),
        })
    }

    /// Who serves the model.
    #[must_use]
    pub fn provider(&self) -> &Provider {
        &self.0.provider
    }

    /// What is asked of it.
    #[must_use]
    pub fn operation(&self) -> &Operation {
        &self.0.operation
    }

    /// The form in which request and response are written, if it is one that is understood here.
    #[must_use]
    pub fn dialect(&self) -> Option<Dialect> {
        self.0.dialect
    }

    /// The model, as the request names it; for Azure, the deployment.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        self.0.model.as_deref()
    }

    /// The account at the provider whose limits the call counts against, if the service named one.
    #[must_use]
    pub fn account(&self) -> Option<&str> {
        self.0.account.as_deref()
    }

    /// Who calls, if it is known.
    #[must_use]
    pub fn caller(&self) -> Option<&Caller> {
        self.0.caller.as_ref()
    }

    /// Whether the response is asked for as a stream.
    #[must_use]
    pub fn streamed(&self) -> bool {
        self.0.streamed
    }

    /// An estimate of the input, in tokens.
    #[must_use]
    pub fn input_tokens(&self) -> u64 {
        self.0.input_tokens
    }

    /// The most output tokens the request allows, of all answers that it asks for together; `None` if it names no maximum.
    #[must_use]
    pub fn max_output_tokens(&self) -> Option<u64> {
        self.0.max_output_tokens
    }

    /// How many inputs the request carries: more than one only for embeddings and prompts that come as a list.
    #[must_use]
    pub fn items(&self) -> u64 {
        self.0.items
    }

    /// What the call costs in units of the service's own, for limits that count such units; 1 unless set.
    ///
    /// For what is not measured in a model's tokens: images, seconds of audio, search credits. No provider reports such
    /// units, so a call that was sent costs what it says here.
    #[must_use]
    pub fn cost(&self) -> u64 {
        self.0.cost
    }

    /// When the request came in.
    #[must_use]
    pub fn received_at(&self) -> Instant {
        self.0.received_at
    }
}

// === impl CallBuilder ===

impl CallBuilder {
    /// Sets the dialect.
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.0.dialect = Some(dialect);
        self
    }

    /// Sets the model.
    pub fn model(mut self, model: impl Into<Box<str>>) -> Self {
        self.0.model = Some(model.into());
        self
    }

    /// Sets the account at the provider.
    pub fn account(mut self, account: impl Into<Box<str>>) -> Self {
        self.0.account = Some(account.into());
        self
    }

    /// Sets who calls.
    pub fn caller(mut self, caller: Caller) -> Self {
        self.0.caller = Some(caller);
        self
    }

    /// Sets whether the response is a stream.
    pub fn streamed(mut self, streamed: bool) -> Self {
        self.0.streamed = streamed;
        self
    }

    /// Sets the estimate of the input, in tokens.
    pub fn input_tokens(mut self, tokens: u64) -> Self {
        self.0.input_tokens = tokens;
        self
    }

    /// Sets the most output tokens, of all answers together.
    pub fn max_output_tokens(mut self, tokens: u64) -> Self {
        self.0.max_output_tokens = Some(tokens);
        self
    }

    /// Sets the number of inputs.
    pub fn items(mut self, items: u64) -> Self {
        self.0.items = items;
        self
    }

    /// Sets the cost in units of the service's own; 1 unless set. A call that costs 0 passes every limit of such units.
    pub fn cost(mut self, units: u64) -> Self {
        self.0.cost = units;
        self
    }

    /// Sets when the request came in.
    pub fn received_at(mut self, at: Instant) -> Self {
        self.0.received_at = at;
        self
    }

    /// The call.
    #[must_use]
    pub fn build(self) -> Call {
        Call(Arc::new(self.0))
    }
}

// === impl Provider ===

impl Provider {
    /// `OpenAI`, and what speaks its dialects without saying who it is.
    pub const OPENAI: Self = Self(Cow::Borrowed("openai"));
    /// Azure `OpenAI`.
    pub const AZURE_OPENAI: Self = Self(Cow::Borrowed("azure.ai.openai"));
    /// Anthropic.
    pub const ANTHROPIC: Self = Self(Cow::Borrowed("anthropic"));
    /// Gemini.
    pub const GEMINI: Self = Self(Cow::Borrowed("gcp.gemini"));
    /// Nobody knows.
    pub const OTHER: Self = Self(Cow::Borrowed("_OTHER"));

    /// A provider by its name.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self(name.into())
    }

    /// Its name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// === impl Operation ===

impl Operation {
    /// A chat completion, whatever the provider calls it.
    pub const CHAT: Self = Self(Cow::Borrowed("chat"));
    /// A legacy text completion.
    pub const TEXT_COMPLETION: Self = Self(Cow::Borrowed("text_completion"));
    /// Gemini's content generation.
    pub const GENERATE_CONTENT: Self = Self(Cow::Borrowed("generate_content"));
    /// Embeddings.
    pub const EMBEDDINGS: Self = Self(Cow::Borrowed("embeddings"));
    /// Counting tokens, which costs none.
    pub const COUNT_TOKENS: Self = Self(Cow::Borrowed("count_tokens"));
    /// Anything else.
    pub const OTHER: Self = Self(Cow::Borrowed("_OTHER"));

    /// An operation by its name.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self(name.into())
    }

    /// Its name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// === impl Caller ===

impl Caller {
    /// A caller by a name the service chose.
    pub fn named(name: impl Into<Box<str>>) -> Self {
        Self(name.into())
    }

    /// The name, or the digest in hexadecimal.
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

impl<B> Described for http::Request<B> {
    fn call(&self) -> Option<Cow<'_, Call>> {
        self.extensions().get::<Call>().map(Cow::Borrowed)
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers().get(name).map(http::HeaderValue::as_bytes)
    }
}
