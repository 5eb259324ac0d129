//! What a request must pass before any of it is read or sent.

use std::sync::Arc;

use http::request::Parts;
use tower_llm_stack::Dialect;

use crate::{
    AllowPaths,
    access::{Access, KeyNumber},
    framing::Ambiguous,
    headers::wants_upgrade,
    paths::is_ambiguous,
    problem::Problem,
    upstream::Upstream,
    upstreams::Upstreams,
};

/// Decides which requests go to which upstream, and which go nowhere.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) access: Access,
    pub(crate) allow_paths: AllowPaths,
    pub(crate) upstreams: Upstreams,
}

/// Checks what no request may have, from any caller and to any path.
pub(crate) fn check_form(parts: &Parts, ambiguous: &Ambiguous) -> Result<(), Problem> {
    if ambiguous.is_set() {
        Err(Problem::TWO_LENGTHS)
    } else if is_ambiguous(parts.uri.path()) {
        Err(Problem::DOT_SEGMENTS)
    } else if is_admin(parts.uri.path()) {
        Err(Problem::NO_ADMIN)
    } else if wants_upgrade(&parts.headers) {
        Err(Problem::NO_UPGRADE)
    } else {
        Ok(())
    }
}

/// Whether a path is one of administration, whose token must not reach a provider if it is sent to the wrong port.
fn is_admin(path: &str) -> bool {
    let path = path.strip_prefix("/v1").unwrap_or(path);
    let rest = path.strip_prefix("/admin");
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Gate {
    /// The dialect in which to answer a request.
    pub(crate) fn dialect(&self, parts: &Parts) -> Dialect {
        let upstream = || {
            let upstream = self.upstreams.of(parts)?;
            Some(upstream.dialect(parts.uri.path()))
        };
        Dialect::of(&parts.method, &parts.uri, &parts.headers)
            .or_else(upstream)
            .unwrap_or(Dialect::OpenAi)
    }

    /// The upstream of a request, out of which the gateway's key has been taken; or why it is refused.
    pub(crate) fn admit(&self, parts: &mut Parts) -> Result<Arc<Upstream>, Problem> {
        // Before the keys are taken, since a header that only one provider's clients send may tell.
        let upstream = self.upstreams.of(parts).cloned();
        if let Access::Keys(keys) = &self.access {
            let key = keys.take(parts).ok_or(match keys.is_empty() {
                true => Problem::NO_KEYS_CONFIGURED,
                false => Problem::NO_KEY,
            })?;
            parts.extensions.insert(key);
        }
        self.check(upstream, parts)
    }

    /// The upstream of a call of the gateway's own. Its caller is the [`KeyNumber`] in its extensions, or as in any request.
    pub(crate) fn admit_own(&self, parts: &mut Parts) -> Result<Arc<Upstream>, Problem> {
        if parts.extensions.get::<KeyNumber>().is_none() {
            return self.admit(parts);
        }
        let upstream = self.upstreams.of(parts).cloned();
        self.check(upstream, parts)
    }

    fn check(
        &self,
        upstream: Option<Arc<Upstream>>,
        parts: &mut Parts,
    ) -> Result<Arc<Upstream>, Problem> {
        let upstream = upstream.ok_or(Problem::NOT_FOUND)?;
        if !upstream.allows(&parts.method, parts.uri.path(), &self.allow_paths) {
            return Err(Problem::NOT_ALLOWED);
        }
        // An open gateway leaves that to the provider, which may need none.
        if matches!(self.access, Access::Keys(_)) {
            upstream.check_credential(parts)?;
        }
        upstream.address(parts);
        Ok(upstream)
    }
}
