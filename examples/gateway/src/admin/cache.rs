//! The endpoints under `/admin/cache/`: what the cache holds, how to remove it, and how to warm it.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use tower_llm_stack::{
    CacheHandle,
    cache::{CacheKey, CacheStats, Latency},
};

use super::answer::Problem;
use crate::warm::{NotStarted, Warmer};

const MAX_BODY_BYTES: usize = 64 * 1024;
const MAX_WARM_BYTES: usize = 16 * 1024 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Stats,
    /// Removes one answer by its key, or all that match a pattern.
    Invalidate,
    /// Removes all answers, or all that match a pattern.
    Clear,
    /// Removes answers that have expired.
    Purge,
    /// Makes calls so that their answers are cached, or tells how far they are.
    Warm,
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
            "/admin/cache/warm" => Some(Self::Warm),
            "/admin/cache/purge" | "/admin/cache/cleanup" => Some(Self::Purge),
            _ => None,
        }
    }

    pub(super) fn methods(self) -> &'static [Method] {
        match self {
            Self::Stats => &[Method::GET],
            Self::Invalidate | Self::Clear | Self::Purge => &[Method::POST],
            Self::Warm => &[Method::GET, Method::POST],
        }
    }

    pub(super) fn max_body_bytes(self) -> usize {
        match self {
            Self::Warm => MAX_WARM_BYTES,
            _ => MAX_BODY_BYTES,
        }
    }

    /// The status of a request that was carried out.
    pub(super) fn success(self, method: &Method) -> StatusCode {
        match self {
            // The calls go on.
            Self::Warm if *method == Method::POST => StatusCode::ACCEPTED,
            _ => StatusCode::OK,
        }
    }

    pub(super) async fn act(
        self,
        method: &Method,
        cache: &CacheHandle,
        warmer: &Warmer,
        body: &[u8],
    ) -> Result<Value, Problem> {
        if self == Self::Warm {
            return warm(method, warmer, body);
        }
        let which = Which::parse(body)?;
        let removed = match (self, which) {
            (Self::Stats | Self::Warm, _) => return Ok(stats(&cache.stats())),
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

fn warm(method: &Method, warmer: &Warmer, lines: &[u8]) -> Result<Value, Problem> {
    if *method == Method::GET {
        return Ok(warmer.report());
    }
    match warmer.start_text(lines) {
        Ok(calls) => Ok(json!({ "calls": calls })),
        Err(NotStarted::Busy) => Err(Problem::already_warming()),
        Err(NotStarted::Wrong(what)) => Err(Problem::bad_request(what)),
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

pub(super) fn stats(stats: &CacheStats) -> Value {
    let bypassed: Map<String, Value> = stats
        .bypassed()
        .map(|(reason, calls)| (reason.as_str().to_owned(), calls.into()))
        .collect();
    let counts = stats.counts();
    let mut all: Map<String, Value> = counts
        .map(|(name, count)| (name.to_owned(), count.into()))
        .collect();
    all.insert("hit_ratio".to_owned(), stats.hit_ratio().into());
    all.insert("bypassed".to_owned(), bypassed.into());
    all.insert("memory_suspended".to_owned(), stats.memory_suspended.into());
    for (name, of) in [
        ("hit_latency_ms", stats.hit_latency),
        ("miss_latency_ms", stats.miss_latency),
    ] {
        all.insert(name.to_owned(), latency(of));
    }
    all.into()
}

fn latency(latency: Latency) -> Value {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    json!({
        "count": latency.count,
        "mean": ms(latency.mean),
        "p50": ms(latency.p50),
        "p99": ms(latency.p99),
    })
}
