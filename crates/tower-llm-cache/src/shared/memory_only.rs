//! Without Redis, nothing is looked for beyond the memory.

use std::{pin::Pin, time::Duration};

use super::{Lookup, Shared};
use crate::{flight::Drive, key::CacheKey, memory::Store, record::Record};

impl Shared {
    pub(crate) fn current_memory(&self) -> Option<&dyn Store> {
        self.memory.as_deref()
    }

    pub(super) const fn share(&self, _: &CacheKey, _: &Record, _: Duration) -> bool {
        false
    }

    pub(super) const fn looks_first(&self, _: &Lookup) -> bool {
        false
    }

    pub(super) fn look_first(
        &self,
        _: bool,
        _: &Lookup,
        upstream: Pin<Box<dyn Drive>>,
    ) -> Pin<Box<dyn Drive>> {
        upstream
    }
}
