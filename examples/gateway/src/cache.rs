//! The answers that are repeated.

use std::{num::NonZeroU32, time::Duration};

use tower_llm_stack::{
    CacheLayer, Policy, Scope,
    cache::{Memory, RefreshAhead, StatusHeader},
};

use crate::{
    CacheSettings, CacheStatus, StartError,
    secret::CallerSecret,
    settings::{CacheCompletions, Names},
    sharing::Sharing,
};

/// The cache of all upstreams; `None` if nothing is to be cached.
///
/// A caller is its credential, or the gateway's key that it sends: each has answers of its own.
pub(crate) fn layer(
    settings: &CacheSettings,
    names: &Names,
    sharing: Option<&Sharing>,
    secret: Option<&CallerSecret>,
) -> Result<Option<CacheLayer>, StartError> {
    let lasts = |policy: Policy, own: Option<Duration>| match own.or(settings.ttl) {
        Some(ttl) => policy.ttl(ttl),
        None => policy,
    };
    let completions = lasts(Policy::completions(), settings.completions_ttl)
        .stale_while_revalidate(settings.stale_while_revalidate.unwrap_or_default())
        .stale_if_error(settings.stale_if_error.unwrap_or_default());
    let completions = match settings.finish_abandoned {
        true => completions.finish_abandoned(),
        false => completions,
    };
    let completions = match settings.completions {
        CacheCompletions::All => Some(completions),
        CacheCompletions::Deterministic => Some(completions.deterministic_only()),
        CacheCompletions::Off => None,
    };
    let embeddings = settings
        .embeddings
        .then(|| lasts(Policy::embeddings(), settings.embeddings_ttl));
    if completions.is_none() && embeddings.is_none() {
        return Ok(None);
    }
    let mut memory = Memory::lru().max_bytes(settings.max_bytes);
    if let Some(entries) = settings.max_entries {
        memory = memory.max_entries(entries);
    }
    let mut builder = CacheLayer::builder(Scope::caller());
    if let (Some(sharing), Some(secret)) = (sharing, secret) {
        builder = builder
            .shared(sharing.cache())
            .secret(secret.of_cache_keys());
    }
    let layer = builder
        .completions(completions)
        .embeddings(embeddings)
        .memory(memory)
        .namespace(settings.namespace.as_deref().unwrap_or_default())
        .refresh_ahead(NonZeroU32::new(settings.refresh_per_minute).map(RefreshAhead::per_minute))
        .status_header(match settings.status {
            CacheStatus::Off => StatusHeader::Omitted,
            CacheStatus::Plain => StatusHeader::Plain,
            CacheStatus::Key => StatusHeader::WithKey,
        })
        .build();
    let layer = layer.map_err(|error| {
        let name = match error.field() {
            "max_bytes" => "--cache-max-bytes",
            "max_entries" => "--cache-max-entries",
            "stale_while_revalidate" => "--cache-stale-while-revalidate",
            "stale_if_error" => "--cache-stale-if-error",
            _ => "--cache-ttl",
        };
        StartError::setting(names.of(name), error)
    })?;
    Ok(Some(layer))
}
