use crate::{glob::Glob, key::CacheKey, memory::Store};

/// What is to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Key(CacheKey),
    Matching(String),
    All,
}

impl Target {
    pub(crate) fn is(&self, key: &CacheKey) -> bool {
        match self {
            Self::Key(target) => target == key,
            Self::Matching(pattern) => Glob::new(pattern).matches(&key.to_string()),
            Self::All => true,
        }
    }

    pub(crate) fn remove_from(&self, memory: &dyn Store) -> u64 {
        match self {
            Self::Key(key) => memory.remove(key.digest()).into(),
            Self::Matching(_) | Self::All => memory.remove_if(&|stored| self.is(&stored.key)),
        }
    }
}
