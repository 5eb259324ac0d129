//! Which plan a caller is on.

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use tower_llm_core::{ConfigError, Described};

use crate::Limit;

/// Says which tier a call is in.
pub(crate) type TierBy = Arc<dyn Fn(&dyn Described) -> Cow<'static, str> + Send + Sync>;

/// A tier's place among a layer's tiers; the first is that of callers who are in none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tier(usize);

/// The tiers that a layer's limits name, and the policy that chooses among them.
pub(crate) struct Tiers {
    names: Vec<String>,
    // `None` if there are no tiers, so that nobody is asked.
    by: Option<RwLock<TierBy>>,
}

impl Tier {
    #[cfg(test)]
    pub(crate) const NONE: Self = Self(0);

    pub(crate) fn index(self) -> usize {
        self.0
    }
}

impl Tiers {
    /// The tiers that `limits` name.
    ///
    /// There is something wrong if nobody says who is in them, or if there are none to be in.
    pub(crate) fn new(limits: &[Limit], by: Option<TierBy>) -> Result<Self, ConfigError> {
        let mut names: Vec<String> = Vec::new();
        for (name, _) in limits.iter().flat_map(|limit| &limit.tiers) {
            if !names.iter().any(|other| other == name) {
                names.push(name.clone().into_owned());
            }
        }
        if !names.is_empty() && by.is_none() {
            let reason = "limits have tiers, and nothing says which a caller is in";
            return Err(ConfigError::new("tier_by", names, reason));
        }
        if names.is_empty() && by.is_some() {
            let reason = "no limit has a tier that it could choose";
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
    pub(crate) fn of(&self, request: &dyn Described) -> Tier {
        let Some(by) = &self.by else {
            return Tier::default();
        };
        // Cloned, and run with the lock free: it is code of the user's, which may take its time, or panic.
        let by = Arc::clone(&by.read().unwrap_or_else(PoisonError::into_inner));
        let tier = by(request);
        let known = self.names.iter().position(|name| *name == tier);
        Tier(known.map_or(0, |index| index + 1))
    }

    /// Chooses by another policy from now on; `false` if there are no tiers.
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
