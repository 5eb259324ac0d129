//! What a request says of caches: `cache-control` (RFC 9111, section 5.2.1).

use std::time::Duration;

use http::{HeaderMap, header::CACHE_CONTROL};

/// The directives that are heeded; others are ignored, as the RFC asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Directives {
    /// A new answer is wanted, and may be stored.
    pub(crate) no_cache: bool,
    /// The answer must not be stored.
    pub(crate) no_store: bool,
    pub(crate) only_if_cached: bool,
    /// The oldest answer that is wanted.
    pub(crate) max_age: Option<Duration>,
}

impl Directives {
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        let mut directives = Self::default();
        for value in headers.get_all(CACHE_CONTROL) {
            // A value that is no text has no directive that is known.
            for directive in value.to_str().unwrap_or_default().split(',') {
                directives.note(directive.trim());
            }
        }
        directives
    }

    fn note(&mut self, directive: &str) {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        if name.eq_ignore_ascii_case("no-cache") {
            self.no_cache = true;
        } else if name.eq_ignore_ascii_case("no-store") {
            self.no_store = true;
        } else if name.eq_ignore_ascii_case("only-if-cached") {
            self.only_if_cached = true;
        } else if name.eq_ignore_ascii_case("max-age") {
            // What cannot be read allows nothing old.
            let seconds = value.trim_matches('"').parse().unwrap_or(0);
            self.max_age = Some(Duration::from_secs(seconds));
        }
    }

    /// Whether an answer of this age is wanted.
    pub(crate) fn allows(&self, age: Duration) -> bool {
        !self.no_cache && self.max_age.is_none_or(|most| age <= most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Directives {
        let mut headers = HeaderMap::new();
        headers.insert(CACHE_CONTROL, value.parse().unwrap());
        Directives::read(&headers)
    }

    #[test]
    fn directives_are_read_without_case_and_unknown_ones_ignored() {
        let read = read("No-Store, max-stale=9 ,ONLY-IF-CACHED,max-age=\"7\"");
        let expected = Directives {
            no_store: true,
            only_if_cached: true,
            max_age: Some(Duration::from_secs(7)),
            no_cache: false,
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn an_age_equal_to_the_maximum_is_allowed() {
        let read = read("max-age=7");
        assert!(read.allows(Duration::from_secs(7)));
        assert!(!read.allows(Duration::from_millis(7_001)));
        assert!(!super::tests::read("max-age=x").allows(Duration::from_millis(1)));
        assert!(!super::tests::read("no-cache").allows(Duration::ZERO));
    }
}
