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

/// Largest request body that is taken unless told otherwise: 10 MB.
pub const MAX_BODY_BYTES: usize = 10 * 1024 * 1024;

// Headers in which clients of the dialects send their credential, beside `authorization`.
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const API_KEY: HeaderName = HeaderName::from_static("api-key");
const X_GOOG_API_KEY: HeaderName = HeaderName::from_static("x-goog-api-key");

/// Reads each request once, and puts the [`Call`](crate::Call) that it is into its extensions.
///
/// It collects the body, at most 10 MB unless set otherwise, and hands it on as one cloneable piece: a longer
/// one is refused with [`TooLarge`](crate::TooLarge), before it is read if its `content-length` says so. A path or a
/// body that is not understood passes, described by what is known.
///
/// The input is estimated as a quarter of the bytes of its texts, media left out; with the feature `tokenizer` it
/// can be [counted](Self::count_tokens).
///
/// It is always ready: what is inside is readied when the body is in hand, and so is not held while a slow
/// caller sends it. It takes requests with any body, so `service.ready()` has to be told of which:
/// `ServiceExt::<Request<B>>::ready(&mut service)`; `service.oneshot(request)` need not be.
#[derive(Clone)]
pub struct DescribeLayer {
    pub(super) settings: Arc<Settings>,
}

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) max_body_bytes: usize,
    pub(super) provider: ProviderBy,
    account: AccountBy,
    caller: CallerBy,
    /// Under which credentials are digested.
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
    /// A layer with the defaults: 10 MB, callers told apart by a digest of their credential.
    #[must_use]
    pub fn new() -> Self {
        let (one, two) = (random(), random());
        let mut secret = [0; 16];
        secret[..8].copy_from_slice(&one.to_ne_bytes());
        secret[8..].copy_from_slice(&two.to_ne_bytes());
        Self {
            settings: Arc::new(Settings {
                max_body_bytes: MAX_BODY_BYTES,
                provider: ProviderBy::Form,
                account: AccountBy::Unnamed,
                caller: CallerBy::Credential,
                secret,
                exact: false,
            }),
        }
    }

    /// Sets the largest body that is taken, in bytes.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if it is zero.
    pub fn max_body_bytes(self, bytes: usize) -> Result<Self, ConfigError> {
        let bytes = ConfigError::check_nonzero("max_body_bytes", bytes)?;
        Ok(self.with(|settings| settings.max_body_bytes = bytes))
    }

    /// Says who serves the calls, which else is taken from their form: many providers speak `OpenAI`'s.
    #[must_use]
    pub fn provider(self, provider: Provider) -> Self {
        self.with(|settings| settings.provider = ProviderBy::Fixed(provider))
    }

    /// Says who serves a call by `provider`, for a service that sends calls to several; where it gives none, the call's form
    /// tells.
    #[must_use]
    pub fn provider_by<F>(self, provider: F) -> Self
    where
        F: Fn(&Parts) -> Option<Provider> + Send + Sync + 'static,
    {
        self.with(|settings| settings.provider = ProviderBy::Custom(Arc::new(provider)))
    }

    /// Names the account at the provider that the calls count against.
    #[must_use]
    pub fn account(self, account: impl Into<Box<str>>) -> Self {
        let account = account.into();
        self.with(|settings| settings.account = AccountBy::Fixed(account))
    }

    /// Names the account by a digest of the call's credential, for a service that passes on its callers' own: calls with
    /// the same credential count against the same account, however the [caller](Self::caller_by) is named.
    #[must_use]
    pub fn account_by_credential(self) -> Self {
        self.with(|settings| settings.account = AccountBy::Credential)
    }

    /// Sets the secret under which credentials are digested; a random one for each layer unless set.
    ///
    /// Processes that share limits by caller need the same secret, or one caller is another in each of them. It undoes
    /// [`caller_by`](Self::caller_by).
    #[must_use]
    pub fn caller_secret(self, key: [u8; 16]) -> Self {
        self.with(|settings| {
            settings.secret = key;
            settings.caller = CallerBy::Credential;
        })
    }

    /// Names callers by `caller`, in place of the digest of their credential.
    #[must_use]
    pub fn caller_by<F>(self, caller: F) -> Self
    where
        F: Fn(&Parts) -> Option<Caller> + Send + Sync + 'static,
    {
        self.with(|settings| settings.caller = CallerBy::Custom(Arc::new(caller)))
    }

    /// Counts the input's tokens by `OpenAI`'s `o200k` vocabulary, in place of the estimate.
    ///
    /// It loads the vocabulary at once, about 60 MB and 50 ms, and then takes about 20 us for each kB of text. For
    /// models of other vendors it is an estimate too, within about a tenth on English and code.
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
    /// Who calls, and against which account the call counts.
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

/// The credential that the provider will look at, so that another one beside it makes nobody somebody else.
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

/// SipHash-2-4 with 128 bits (Aumasson, Bernstein 2012): without the key nobody can find the credential or a
/// second one with its digest.
fn digest(key: &[u8; 16], credential: &[u8]) -> String {
    let mut hasher = SipHasher24::new_with_key(key);
    hasher.write(credential);
    format!("{:032x}", hasher.finish128().as_u128())
}

/// The one source of randomness in the standard library; each is keyed apart.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
