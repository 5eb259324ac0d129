use std::{
    fmt,
    hash::{BuildHasher, Hasher, RandomState},
    sync::Arc,
};

use http::{HeaderName, HeaderValue, header, request::Parts};
use siphasher::sip128::{Hasher128, SipHasher24};
use tower_layer::Layer;

use super::Describe;
use crate::{Caller, ConfigError, Dialect, Provider, dialect::Route};

/// Default limit for a JSON body, which is held in memory: 10 MB.
pub const MAX_BODY_BYTES: usize = 10 * 1024 * 1024;

// Headers in which clients of the dialects send their credential, besides `authorization`.
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const API_KEY: HeaderName = HeaderName::from_static("api-key");
const X_GOOG_API_KEY: HeaderName = HeaderName::from_static("x-goog-api-key");

/// Reads each request and inserts its description, a [`Call`](crate::Call), into the request's extensions.
///
/// The inner service gets the body as a [`RequestBody`](crate::RequestBody):
///
/// - JSON is read and held in memory, up to [10 MB](Self::max_body_bytes). A body is JSON if its content type says so or if
///   its first bytes are JSON. A larger body is refused with [`TooLarge`](crate::TooLarge), before it is read if its length
///   is announced.
/// - Anything else, such as a multipart form or audio, is streamed: only its first bytes are read before the inner service
///   is called, and it is never held. The call is described by path and headers alone: no model, and no input
///   tokens unless it has a `content-encoding`. It has a
///   [limit of its own](Self::max_streamed_bytes). A body that begins like JSON and exceeds the JSON limit is streamed too,
///   if its content type is another and its path is not one of inference.
///
/// A request with an unknown path or body passes, with a description of what is known. If a body fails while it is read,
/// the caller is at fault and not the provider: the error is a [`ClassifiedError`](crate::ClassifiedError) with the outcome
/// `ClientError`, or a refusal as too large if the body exceeds a limit of the server (`LengthLimitError`).
///
/// Input is estimated at one token for four bytes of text, media excluded; with the feature `tokenizer` it can be
/// [counted](Self::count_tokens). JSON that cannot be read, because it is compressed or written in UTF-16, is estimated at one
/// token a byte: send it as plain UTF-8.
///
/// The layer is always ready. It clones the inner service, and readies the clone only when the body is held or known to be
/// streamed, so a slow client that sends JSON holds no permit of an inner layer. A streamed body is sent while the inner
/// call runs, so a slow upload holds a permit, and its deadlines run.
///
/// Requests may have any body that is `Unpin`. `service.ready()` therefore cannot infer which one: write
/// `ServiceExt::<Request<B>>::ready(&mut service)`, or use `service.oneshot(request)`.
#[derive(Clone)]
pub struct DescribeLayer {
    pub(super) settings: Arc<Settings>,
}

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) max_body_bytes: usize,
    pub(super) max_streamed_bytes: usize,
    pub(super) provider: ProviderBy,
    account: AccountBy,
    caller: CallerBy,
    /// The key of the digest of credentials.
    secret: [u8; 16],
    pub(super) exact: bool,
}

#[derive(Clone)]
pub(super) enum ProviderBy {
    Form,
    Fixed(Provider),
    Custom(Arc<dyn Fn(&Parts) -> Option<Provider> + Send + Sync>),
}

#[derive(Clone)]
enum AccountBy {
    Unnamed,
    Fixed(Box<str>),
    Credential,
}

#[derive(Clone)]
enum CallerBy {
    Credential,
    Custom(Arc<dyn Fn(&Parts) -> Option<Caller> + Send + Sync>),
}

impl DescribeLayer {
    /// Creates a layer with the defaults: JSON bodies up to 10 MB, callers identified by a digest of their credential.
    #[must_use]
    pub fn new() -> Self {
        let (one, two) = (random(), random());
        let mut secret = [0; 16];
        secret[..8].copy_from_slice(&one.to_ne_bytes());
        secret[8..].copy_from_slice(&two.to_ne_bytes());
        Self {
            settings: Arc::new(Settings {
                max_body_bytes: MAX_BODY_BYTES,
                max_streamed_bytes: usize::MAX,
                provider: ProviderBy::Form,
                account: AccountBy::Unnamed,
                caller: CallerBy::Credential,
                secret,
                exact: false,
            }),
        }
    }

    /// Sets the maximum size of a JSON body, in bytes; 10 MB unless set.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if it is zero.
    pub fn max_body_bytes(self, bytes: usize) -> Result<Self, ConfigError> {
        let bytes = ConfigError::check_nonzero("max_body_bytes", bytes)?;
        Ok(self.with(|settings| settings.max_body_bytes = bytes))
    }

    /// Sets the maximum size of a streamed body, in bytes; no limit unless set, since none of it is held.
    ///
    /// A longer body is refused with [`TooLarge`](crate::TooLarge) before any of it is sent if its length is announced.
    /// Otherwise the body, and with it the call, fails with that error at the first frame over the limit.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if it is zero.
    pub fn max_streamed_bytes(self, bytes: usize) -> Result<Self, ConfigError> {
        let bytes = ConfigError::check_nonzero("max_streamed_bytes", bytes)?;
        Ok(self.with(|settings| settings.max_streamed_bytes = bytes))
    }

    /// Sets the provider of all calls. Unless set, it is inferred from path and headers, which is wrong for the many
    /// providers that speak `OpenAI`'s dialect.
    #[must_use]
    pub fn provider(self, provider: Provider) -> Self {
        self.with(|settings| settings.provider = ProviderBy::Fixed(provider))
    }

    /// Sets a function that names the provider of each call, for a service that calls several. If it returns `None`, the
    /// provider is inferred from path and headers.
    #[must_use]
    pub fn provider_by<F>(self, provider: F) -> Self
    where
        F: Fn(&Parts) -> Option<Provider> + Send + Sync + 'static,
    {
        self.with(|settings| settings.provider = ProviderBy::Custom(Arc::new(provider)))
    }

    /// Sets the account at the provider that all calls count against.
    #[must_use]
    pub fn account(self, account: impl Into<Box<str>>) -> Self {
        let account = account.into();
        self.with(|settings| settings.account = AccountBy::Fixed(account))
    }

    /// Uses a digest of the call's credential as the account, for a service that passes on its callers' credentials: calls
    /// with the same credential count against the same account, whatever their [caller](Self::caller_by) is.
    #[must_use]
    pub fn account_by_credential(self) -> Self {
        self.with(|settings| settings.account = AccountBy::Credential)
    }

    /// Sets the key of the digest of credentials; random for each layer unless set.
    ///
    /// Processes that share limits by caller need the same key; otherwise a caller is a different one in each. It undoes
    /// [`caller_by`](Self::caller_by).
    #[must_use]
    pub fn caller_secret(self, key: [u8; 16]) -> Self {
        self.with(|settings| {
            settings.secret = key;
            settings.caller = CallerBy::Credential;
        })
    }

    /// Sets a function that names callers, instead of the digest of their credential.
    #[must_use]
    pub fn caller_by<F>(self, caller: F) -> Self
    where
        F: Fn(&Parts) -> Option<Caller> + Send + Sync + 'static,
    {
        self.with(|settings| settings.caller = CallerBy::Custom(Arc::new(caller)))
    }

    /// Counts input tokens with `OpenAI`'s `o200k` vocabulary instead of estimating them.
    ///
    /// The vocabulary is loaded here, in about 50 ms, and takes 60 MB; counting takes about 20 us for each kB of text. Of a
    /// request, texts of up to 32 KiB together are counted, and the rest is estimated. For models of other vendors the count is still an estimate, within about 10 % on English and code.
    #[cfg(feature = "tokenizer")]
    #[must_use]
    pub fn count_tokens(self) -> Self {
        bpe_openai::o200k_base();
        self.with(|settings| settings.exact = true)
    }

    fn with(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        set(Arc::make_mut(&mut self.settings));
        self
    }
}

impl Default for DescribeLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for DescribeLayer {
    type Service = Describe<S>;

    fn layer(&self, inner: S) -> Describe<S> {
        Describe::new(inner, Arc::clone(&self.settings))
    }
}

impl fmt::Debug for DescribeLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DescribeLayer")
            .field("max_body_bytes", &self.settings.max_body_bytes)
            .field("max_streamed_bytes", &self.settings.max_streamed_bytes)
            .finish_non_exhaustive()
    }
}

impl ProviderBy {
    pub(super) fn provider(&self, parts: &Parts) -> Option<Provider> {
        match self {
            Self::Form => None,
            Self::Fixed(provider) => Some(provider.clone()),
            Self::Custom(provider) => provider(parts),
        }
    }
}

impl Settings {
    /// Returns the caller and the account that the call counts against.
    pub(super) fn identity(
        &self,
        parts: &Parts,
        route: &Route<'_>,
    ) -> (Option<Caller>, Option<Box<str>>) {
        let by_credential = matches!(self.caller, CallerBy::Credential)
            || matches!(self.account, AccountBy::Credential);
        let credential = by_credential.then(|| credential(parts, route)).flatten();
        let digest = credential.map(|credential| digest(&self.secret, credential));
        let account = match &self.account {
            AccountBy::Unnamed => None,
            AccountBy::Fixed(account) => Some(account.clone()),
            AccountBy::Credential => digest.as_deref().map(Box::from),
        };
        let caller = match &self.caller {
            CallerBy::Credential => digest.map(Caller::named),
            CallerBy::Custom(caller) => caller(parts),
        };
        (caller, account)
    }
}

/// Returns the credential that the provider checks: a second one in another header must not change the caller.
fn credential<'a>(parts: &'a Parts, route: &Route<'_>) -> Option<&'a [u8]> {
    let header = |name| parts.headers.get(name).map(HeaderValue::as_bytes);
    let query = || query_key(parts.uri.query()?);
    let own = match route.dialect {
        Some(Dialect::Anthropic) => header(X_API_KEY),
        Some(Dialect::Gemini) => header(X_GOOG_API_KEY).or_else(query),
        _ if route.provider == Provider::AZURE_OPENAI => header(API_KEY),
        _ => None,
    };
    let others = [header::AUTHORIZATION, X_API_KEY, API_KEY, X_GOOG_API_KEY];
    own.or_else(|| others.into_iter().find_map(header))
        .or_else(query)
}

/// Gemini's clients may send their key as `?key=`.
fn query_key(query: &str) -> Option<&[u8]> {
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix("key="))
        .map(str::as_bytes)
}

/// SipHash-2-4 with 128 bits (Aumasson, Bernstein 2012): without the key, neither the credential nor another one with the same
/// digest can be found.
fn digest(key: &[u8; 16], credential: &[u8]) -> String {
    let mut hasher = SipHasher24::new_with_key(key);
    hasher.write(credential);
    format!("{:032x}", hasher.finish128().as_u128())
}

/// Each `RandomState` has random keys; the standard library has no other source of randomness.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
