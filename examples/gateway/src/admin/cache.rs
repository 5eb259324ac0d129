//! The endpoints under `/admin/cache/`: what the cache holds, and how to remove it.

use http::Method;
use serde_json::{Map, Value, json};
use tower_llm_stack::{
    CacheHandle,
    cache::{CacheKey, CacheStats},
};

use super::answer::Problem;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Stats,
    /// Removes one answer by its key, or all that match a pattern.
    Invalidate,
    /// Removes all answers, or all that match a pattern.
    Clear,
    /// Removes answers that have expired.
    Purge,
}

/// Which answers to remove.
#[derive(Debug)]
enum Which {
    All,
    Key(CacheKey),
    Matching(String),
}

impl Endpoint {
    pub(super) fn at(path: &str) -> Option<Self> {
        // Guides write these paths under /v1, too.
        match path.strip_prefix("/v1").unwrap_or(path) {
            "/admin/cache/stats" => Some(Self::Stats),
            "/admin/cache/invalidate" => Some(Self::Invalidate),
            "/admin/cache/clear" => Some(Self::Clear),
            "/admin/cache/purge" | "/admin/cache/cleanup" => Some(Self::Purge),
            _ => None,
        }
    }

    pub(super) fn method(self) -> Method {
        match self {
            Self::Stats => Method::GET,
            Self::Invalidate | Self::Clear | Self::Purge => Method::POST,
        }
    }

    pub(super) async fn act(self, cache: &CacheHandle, body: &[u8]) -> Result<Value, Problem> {
        let which = Which::parse(body)?;
        let removed = match (self, which) {
            (Self::Stats, _) => return Ok(stats(&cache.stats())),
            (Self::Purge, Which::All) => {
                return Ok(json!({ "removed": cache.purge_expired() }));
            }
            (Self::Clear, Which::All) => cache.clear().await,
            (Self::Clear | Self::Invalidate, Which::Matching(pattern)) => {
                cache.invalidate_matching(&pattern).await
            }
            (Self::Invalidate, Which::Key(key)) => cache.invalidate(&key).await,
            (Self::Invalidate, Which::All) => {
                return Err(Problem::bad_request(
                    "the request body must name a `key` or a `pattern`",
                ));
            }
            (Self::Clear, Which::Key(_)) => {
                return Err(Problem::bad_request(
                    "a `key` is for /admin/cache/invalidate",
                ));
            }
            (Self::Purge, Which::Key(_) | Which::Matching(_)) => {
                return Err(Problem::bad_request(
                    "expired answers are removed, whatever their key",
                ));
            }
        };
        let removed = removed.map_err(|error| {
            let memory = error.memory();
            Problem::store_unavailable(format!("{error}; {memory} were removed from memory"))
        })?;
        Ok(json!({ "removed": removed.memory, "removed_from_redis": removed.shared }))
    }
}

impl Which {
    fn parse(body: &[u8]) -> Result<Self, Problem> {
        if body.trim_ascii().is_empty() {
            return Ok(Self::All);
        }
        let body: Map<String, Value> = serde_json::from_slice(body).map_err(|error| {
            Problem::bad_request(format!("the request body is no JSON object: {error}"))
        })?;
        let mut which = Self::All;
        for (name, value) in body {
            let Value::String(value) = value else {
                return Err(Problem::bad_request(format!("`{name}` must be a string")));
            };
            if !matches!(which, Self::All) {
                return Err(Problem::bad_request(
                    "the request body must name a `key` or a `pattern`, not both",
                ));
            }
            which = match name.as_str() {
                "key" => Self::Key(value.parse().map_err(|_| {
                    Problem::bad_request(
                        "`key` is not the key of an answer: `ai:KIND:MODEL:DIGEST`",
                    )
                })?),
                "pattern" => Self::Matching(value),
                _ => return Err(Problem::bad_request(format!("`{name}` is not known"))),
            };
        }
        Ok(which)
    }
}

fn stats(stats: &CacheStats) -> Value {
    let bypassed: Map<String, Value> = stats
        .bypassed()
        .map(|(reason, calls)| (reason.as_str().to_owned(), calls.into()))
        .collect();
    json!({
        "hits": stats.hits,
        "misses": stats.misses,
        "collapsed": stats.collapsed,
        "hit_ratio": stats.hit_ratio(),
        "bypassed": bypassed,
        "items_reused": stats.items_reused,
        "items_sent": stats.items_sent,
        "stored": stats.stored,
        "not_stored": stats.not_stored,
        "evicted": stats.evicted,
        "shared_hits": stats.shared_hits,
        "shared_stored": stats.shared_stored,
        "shared_not_stored": stats.shared_not_stored,
        "shared_failures": stats.shared_failures,
        "shared_unreadable": stats.shared_unreadable,
        "entries": stats.entries,
        "bytes": stats.bytes,
        "in_flight": stats.in_flight,
    })
}
