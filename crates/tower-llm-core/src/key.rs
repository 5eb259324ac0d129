//! Which calls share state.

use std::{
    fmt,
    hash::{Hash, Hasher},
    mem,
    sync::Arc,
};

use http::HeaderName;

use crate::{Call, Caller, Described};

/// Maximum length of one part of a key.
const MAX_PART_BYTES: usize = 256;

/// Names the state that calls share: a provider, a model, a caller, or anything else that a [`KeyBy`] chooses.
///
/// A key has up to three parts. A part is empty if the call does not have it or if it is longer than 256 bytes, so all such
/// calls share one key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key {
    // All parts in one string, and the ends of the first two.
    text: Box<str>,
    ends: [usize; 2],
}

/// A key that borrows from the request: it is looked up on every call, but stored only if it is new.
#[derive(Clone, Copy, Debug, Eq)]
pub(crate) struct KeyRef<'a> {
    first: &'a str,
    second: &'a str,
    third: &'a str,
}

/// Chooses the key of a call.
///
/// ```
/// use tower_llm_core::{Key, KeyBy};
///
/// let by_region = KeyBy::custom(|request| {
///     let region = request.header("x-region").unwrap_or(b"eu");
///     Key::new(String::from_utf8_lossy(region))
/// });
/// ```
#[derive(Clone)]
pub struct KeyBy(By);

#[derive(Clone)]
enum By {
    Shared,
    Provider,
    Model,
    ProviderAndModel,
    Account,
    Credential,
    Caller,
    Header(HeaderName),
    Route(Arc<KeyBy>),
    Custom(Arc<dyn Fn(&dyn Described) -> Key + Send + Sync>),
}

// === impl Key ===

impl Key {
    /// Creates a key of one part: the provider's name for [`KeyBy::provider`], the model's for [`KeyBy::model`], and so on.
    pub fn new(part: impl AsRef<str>) -> Self {
        Self::pair(part, "")
    }

    /// Creates a key of two parts, such as a provider and a model.
    pub fn pair(first: impl AsRef<str>, second: impl AsRef<str>) -> Self {
        Self::triple(first, second, "")
    }

    /// Creates a key of three parts, such as a provider, an account at it and a model.
    pub fn triple(first: impl AsRef<str>, second: impl AsRef<str>, third: impl AsRef<str>) -> Self {
        let (first, second) = (first.as_ref(), second.as_ref());
        Self {
            text: [first, second, third.as_ref()].concat().into(),
            ends: [first.len(), first.len() + second.len()],
        }
    }

    /// Returns the parts; those that the key does not have are empty.
    #[must_use]
    pub fn parts(&self) -> [&str; 3] {
        let KeyRef {
            first,
            second,
            third,
        } = self.borrowed();
        [first, second, third]
    }

    pub(crate) fn borrowed(&self) -> KeyRef<'_> {
        let [first, second] = self.ends;
        KeyRef {
            first: &self.text[..first],
            second: &self.text[first..second],
            third: &self.text[second..],
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second, third] = self.parts();
        f.write_str(first)?;
        if !(second.is_empty() && third.is_empty()) {
            write!(f, "/{second}")?;
        }
        if !third.is_empty() {
            write!(f, "/{third}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

// === impl KeyRef ===

impl KeyRef<'_> {
    pub(crate) const EMPTY: Self = Self {
        first: "",
        second: "",
        third: "",
    };

    /// Empties parts that are too long, so that invented keys cannot fill the memory.
    fn bounded(self) -> Self {
        let bounded = |part| {
            if str::len(part) > MAX_PART_BYTES {
                ""
            } else {
                part
            }
        };
        Self {
            first: bounded(self.first),
            second: bounded(self.second),
            third: bounded(self.third),
        }
    }

    pub(crate) fn to_key(self) -> Key {
        Key::triple(self.first, self.second, self.third)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_empty() && self.second.is_empty() && self.third.is_empty()
    }
}

impl PartialEq for KeyRef<'_> {
    fn eq(&self, other: &Self) -> bool {
        // The pointer of an empty part is dangling. Vector instructions that mask out-of-bounds bytes fault inside the
        // processor on such a pointer, which costs more than 100 ns, and most keys have an empty part.
        let same = |a: &str, b: &str| a.len() == b.len() && (a.is_empty() || a == b);
        same(self.first, other.first)
            && same(self.second, other.second)
            && same(self.third, other.third)
    }
}

/// Hashes the parts that are not empty: most keys have one.
impl Hash for KeyRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.first.as_bytes());
        for (number, part) in [(2, self.second), (3, self.third)] {
            if !part.is_empty() {
                state.write_u8(number);
                state.write(part.as_bytes());
            }
        }
    }
}

// === impl KeyBy ===

impl KeyBy {
    /// Uses one key for all calls.
    #[must_use]
    pub fn shared() -> Self {
        Self(By::Shared)
    }

    /// Uses the provider.
    #[must_use]
    pub fn provider() -> Self {
        Self(By::Provider)
    }

    /// Uses the model.
    #[must_use]
    pub fn model() -> Self {
        Self(By::Model)
    }

    /// Uses the provider and the model: [`Key::pair`].
    #[must_use]
    pub fn provider_and_model() -> Self {
        Self(By::ProviderAndModel)
    }

    /// Uses the provider, the account and the model: [`Key::triple`]. The account is the first part of the key that `account`
    /// chooses.
    #[must_use]
    pub fn route(account: Self) -> Self {
        Self(By::Route(Arc::new(account)))
    }

    /// Uses the account at the provider.
    #[must_use]
    pub fn account() -> Self {
        Self(By::Account)
    }

    /// Uses the credential that a call carries: the account if the service named one, else the caller's own.
    ///
    /// A service that sends a credential of its own names its account
    /// ([`DescribeLayer::account`](crate::DescribeLayer::account)); otherwise the caller's credential goes through.
    #[must_use]
    pub fn credential() -> Self {
        Self(By::Credential)
    }

    /// Uses the caller.
    #[must_use]
    pub fn caller() -> Self {
        Self(By::Caller)
    }

    /// Uses the value of a request header; one that is not UTF-8 counts as missing.
    ///
    /// Clients can send any value, so use a header that a proxy in front of the service sets or checks. Keys appear in
    /// statistics: for a credential use [`caller`](Self::caller), which holds only a digest.
    #[must_use]
    pub fn header(name: HeaderName) -> Self {
        Self(By::Header(name))
    }

    /// Uses the key that the closure returns.
    ///
    /// The closure runs on every call, before any lock is taken: a panic in it fails only that call.
    pub fn custom<F>(key: F) -> Self
    where
        F: Fn(&dyn Described) -> Key + Send + Sync + 'static,
    {
        Self(By::Custom(Arc::new(key)))
    }

    /// Returns the key of `request`.
    ///
    /// ```
    /// use tower_llm_core::{Call, Key, KeyBy, Operation, Provider};
    ///
    /// let mut request = http::Request::new(());
    /// assert_eq!(KeyBy::provider().key(&request), Key::new(""));
    /// request.extensions_mut().insert(Call::builder(Provider::OPENAI, Operation::CHAT).build());
    /// assert_eq!(KeyBy::provider().key(&request), Key::new("openai"));
    /// ```
    #[must_use]
    pub fn key(&self, request: &dyn Described) -> Key {
        self.with_key(request, |key| key.to_key())
    }

    pub(crate) fn is_shared(&self) -> bool {
        matches!(self.0, By::Shared)
    }

    /// Runs `then` with the key of `request`, without storing it.
    pub(crate) fn with_key<T>(
        &self,
        request: &dyn Described,
        then: impl FnOnce(KeyRef<'_>) -> T,
    ) -> T {
        // A call that the request builds for us lives until `then` returns.
        let call = request.call();
        let mut made = None;
        then(self.key_of(request, call.as_deref(), &mut made).bounded())
    }

    /// Returns the key of `request`; a key from a closure is stored in `made`.
    fn key_of<'a>(
        &'a self,
        request: &'a dyn Described,
        call: Option<&'a Call>,
        made: &'a mut Option<Key>,
    ) -> KeyRef<'a> {
        let provider = || call.map_or("", |call| call.provider().as_str());
        let model = || call.and_then(Call::model).unwrap_or_default();
        let caller = || call.and_then(Call::caller).map_or("", Caller::as_str);
        let single = |first| KeyRef {
            first,
            ..KeyRef::EMPTY
        };
        match &self.0 {
            By::Shared => KeyRef::EMPTY,
            By::Provider => single(provider()),
            By::Model => single(model()),
            By::ProviderAndModel => KeyRef {
                first: provider(),
                second: model(),
                third: "",
            },
            By::Account => single(call.and_then(Call::account).unwrap_or_default()),
            By::Caller => single(caller()),
            By::Credential => single(call.and_then(Call::account).unwrap_or_else(caller)),
            By::Header(name) => single(
                request
                    .header(name.as_str())
                    .and_then(|value| std::str::from_utf8(value).ok())
                    .unwrap_or_default(),
            ),
            By::Route(account) => KeyRef {
                first: provider(),
                second: account.key_of(request, call, made).first,
                third: model(),
            },
            By::Custom(key) => made.insert(key(request)).borrowed(),
        }
    }
}

/// Equal policies choose the same key for every request. Two closures are equal if one is the other's clone.
impl PartialEq for KeyBy {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (By::Header(one), By::Header(other)) => one == other,
            (By::Custom(one), By::Custom(other)) => Arc::ptr_eq(one, other),
            (By::Route(one), By::Route(other)) => one == other,
            (one, other) => mem::discriminant(one) == mem::discriminant(other),
        }
    }
}

impl Eq for KeyBy {}

impl fmt::Debug for KeyBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            By::Shared => "shared",
            By::Provider => "provider",
            By::Model => "model",
            By::ProviderAndModel => "provider and model",
            By::Account => "account",
            By::Credential => "credential",
            By::Caller => "caller",
            By::Header(name) => return write!(f, "header {name}"),
            By::Route(account) => return write!(f, "provider, account ({account:?}) and model"),
            By::Custom(_) => "custom",
        })
    }
}
