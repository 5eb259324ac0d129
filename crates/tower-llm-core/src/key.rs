//! Which state a call shares with which others.

use std::{fmt, mem, sync::Arc};

use http::HeaderName;

use crate::{Call, Described};

/// Longest part of a key.
const MAX_PART_BYTES: usize = 256;

/// What calls are counted together by: a provider, a model, a caller, or what a policy says.
///
/// Two keys are equal if their parts are. Where a call lacks what its policy asks for, or it is over 256 bytes long, that
/// part is empty, so that all such calls share one key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key {
    first: Box<str>,
    second: Box<str>,
}

/// A key that borrows from the request: it is looked up on every call and kept only for a new one.
#[derive(Clone, Copy, Debug, Eq, Hash)]
pub(crate) struct KeyRef<'a> {
    first: &'a str,
    second: &'a str,
}

/// How a layer chooses the key of a call.
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
    Caller,
    Header(HeaderName),
    Custom(Arc<dyn Fn(&dyn Described) -> Key + Send + Sync>),
}

// === impl Key ===

impl Key {
    /// The key `part`: a provider's name for [`KeyBy::provider`], a model's for [`KeyBy::model`], and so on.
    pub fn new(part: impl AsRef<str>) -> Self {
        Self::pair(part, "")
    }

    /// The key of two parts, such as a provider and a model.
    pub fn pair(first: impl AsRef<str>, second: impl AsRef<str>) -> Self {
        Self {
            first: first.as_ref().into(),
            second: second.as_ref().into(),
        }
    }

    /// Its parts; the second is empty where there is only one.
    #[must_use]
    pub fn parts(&self) -> (&str, &str) {
        (&self.first, &self.second)
    }

    pub(crate) fn borrowed(&self) -> KeyRef<'_> {
        KeyRef {
            first: &self.first,
            second: &self.second,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.first)?;
        if !self.second.is_empty() {
            write!(f, "/{}", self.second)?;
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
    };

    /// Without what no provider, model or caller is called, but somebody who wants the registry to grow.
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
        }
    }

    pub(crate) fn to_key(self) -> Key {
        Key::pair(self.first, self.second)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_empty() && self.second.is_empty()
    }
}

impl PartialEq for KeyRef<'_> {
    fn eq(&self, other: &Self) -> bool {
        // An empty part points nowhere. Comparing such with vector instructions that mask what is out of bounds costs
        // a fault inside the processor, more than 100 ns, and most keys have an empty part.
        let same = |a: &str, b: &str| a.len() == b.len() && (a.is_empty() || a == b);
        same(self.first, other.first) && same(self.second, other.second)
    }
}

// === impl KeyBy ===

impl KeyBy {
    /// All calls share one key.
    #[must_use]
    pub fn shared() -> Self {
        Self(By::Shared)
    }

    /// The provider.
    #[must_use]
    pub fn provider() -> Self {
        Self(By::Provider)
    }

    /// The model.
    #[must_use]
    pub fn model() -> Self {
        Self(By::Model)
    }

    /// Provider and model: [`Key::pair`].
    #[must_use]
    pub fn provider_and_model() -> Self {
        Self(By::ProviderAndModel)
    }

    /// The account at the provider.
    #[must_use]
    pub fn account() -> Self {
        Self(By::Account)
    }

    /// The caller.
    #[must_use]
    pub fn caller() -> Self {
        Self(By::Caller)
    }

    /// A request header's value; one that is not UTF-8 counts as missing.
    ///
    /// A header is what the caller says it is: use one that something in front of the service has checked. The key is
    /// shown in statistics: for a credential use [`caller`](Self::caller), which knows its digest.
    #[must_use]
    pub fn header(name: HeaderName) -> Self {
        Self(By::Header(name))
    }

    /// What `key` makes of the request.
    ///
    /// It runs on every call, before any lock is taken: a panic in it is the caller's alone.
    pub fn custom<F>(key: F) -> Self
    where
        F: Fn(&dyn Described) -> Key + Send + Sync + 'static,
    {
        Self(By::Custom(Arc::new(key)))
    }

    /// Runs `then` with the key of `request`, without keeping it.
    pub(crate) fn with_key<T>(
        &self,
        request: &dyn Described,
        then: impl FnOnce(KeyRef<'_>) -> T,
    ) -> T {
        let of = |part: fn(&Call) -> &str| request.call().map_or("", part);
        let single = |first| KeyRef { first, second: "" };
        let custom;
        let key = match &self.0 {
            By::Shared => single(""),
            By::Provider => single(of(|call| call.provider().as_str())),
            By::Model => single(of(|call| call.model().unwrap_or_default())),
            By::ProviderAndModel => KeyRef {
                first: of(|call| call.provider().as_str()),
                second: of(|call| call.model().unwrap_or_default()),
            },
            By::Account => single(of(|call| call.account().unwrap_or_default())),
            By::Caller => single(of(|call| {
                call.caller().map_or("", |caller| caller.as_str())
            })),
            By::Header(name) => single(
                request
                    .header(name.as_str())
                    .and_then(|value| std::str::from_utf8(value).ok())
                    .unwrap_or_default(),
            ),
            By::Custom(key) => {
                custom = key(request);
                custom.borrowed()
            }
        };
        then(key.bounded())
    }
}

/// Whether both choose the same key for every request; two closures do if one is the other's clone.
impl PartialEq for KeyBy {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (By::Header(one), By::Header(other)) => one == other,
            (By::Custom(one), By::Custom(other)) => Arc::ptr_eq(one, other),
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
            By::Caller => "caller",
            By::Header(name) => return write!(f, "header {name}"),
            By::Custom(_) => "custom",
        })
    }
}
