//! The tier of a call.

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use tower_llm_core::{ConfigError, Described};

use crate::Limit;

/// Chooses the tier of a call.
pub(crate) type TierBy = Arc<dyn Fn(&dyn Described) -> Cow<'static, str> + Send + Sync>;

/// The index of a tier among the tiers of a layer; zero is for callers without a tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tier(u16);

/// The tiers that a layer's limits name, and the policy that chooses among them.
pub(crate) struct Tiers {
    names: Vec<String>,
    // `None` if there are no tiers.
    by: Option<RwLock<TierBy>>,
}

impl Tier {
    #[cfg(test)]
    pub(crate) const NONE: Self = Self(0);

    pub(crate) fn index(self) -> usize {
        self.0.into()
    }
}

impl Tiers {
    /// Collects the tiers that `limits` name; tiers and a policy that chooses among them require each other.
    pub(crate) fn new(limits: &[Limit], by: Option<TierBy>) -> Result<Self, ConfigError> {
        let mut names: Vec<String> = Vec::new();
        for (name, _) in limits.iter().flat_map(|limit| &limit.tiers) {
            if !names.iter().any(|other| other == name) {
                names.push(name.clone().into_owned());
            }
        }
        if !names.is_empty() && by.is_none() {
            let reason = "limits have tiers, but no policy chooses the tier of a call";
            return Err(ConfigError::new("tier_by", names, reason));
        }
        if names.is_empty() && by.is_some() {
            let reason = "the policy has no tiers to choose from";
            return Err(ConfigError::new("tier_by", "a policy", reason));
        }
        Ok(Self {
            names,
            by: by.map(RwLock::new),
        })
    }

    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// The tier of `request`.
    #[inline]
    pub(crate) fn of(&self, request: &dyn Described) -> Tier {
        match &self.by {
            Some(by) => self.chosen(by, request),
            None => Tier::default(),
        }
    }

    fn chosen(&self, by: &RwLock<TierBy>, request: &dyn Described) -> Tier {
        // Cloned and run without the lock: it is the user's code, which may be slow or panic.
        let by = Arc::clone(&by.read().unwrap_or_else(PoisonError::into_inner));
        let tier = by(request);
        let known = self.names.iter().position(|name| *name == tier);
        Tier(known.map_or(0, |index| u16::try_from(index + 1).unwrap_or(0)))
    }

    /// Replaces the policy; `false` if there are no tiers.
    pub(crate) fn choose_by(&self, policy: TierBy) -> bool {
        let Some(by) = &self.by else {
            return false;
        };
        *by.write().unwrap_or_else(PoisonError::into_inner) = policy;
        true
    }
}

impl fmt::Debug for Tiers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.names).finish()
    }
}
