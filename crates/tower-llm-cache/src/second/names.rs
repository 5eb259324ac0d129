//! What things are called in Redis.

use crate::{
    key::{self, CacheKey},
    target::Target,
};

/// The channel on which processes tell each other what they have removed.
const CHANNEL: &str = "tower-llm-cache";

/// The names in one namespace. Those of another never match them.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// The namespace, percent-encoded, and a colon; empty if it is empty.
    prefix: Box<str>,
}

impl Names {
    pub(super) fn new(namespace: &str) -> Self {
        let prefix = match namespace {
            "" => String::new(),
            _ => format!("{}:", key::encoded(namespace)),
        };
        Self {
            prefix: prefix.into(),
        }
    }

    pub(super) fn of(&self, key: &CacheKey) -> String {
        format!("{}{key}", self.prefix)
    }

    pub(super) fn parse(&self, name: &str) -> Option<CacheKey> {
        name.strip_prefix(&*self.prefix)?.parse().ok()
    }

    /// A pattern of Redis that all names of a target match, and some others.
    pub(super) fn matching(&self, target: &Target) -> String {
        let pattern = match target {
            Target::Key(key) => key.to_string(),
            Target::Matching(pattern) => escaped(pattern),
            Target::All => "ai:*".to_owned(),
        };
        format!("{}{pattern}", self.prefix)
    }

    pub(super) fn channel(&self) -> String {
        match self.prefix.strip_suffix(':') {
            Some(namespace) => format!("{CHANNEL}:{namespace}"),
            None => CHANNEL.to_owned(),
        }
    }
}

/// A pattern of ours as one of Redis, in which more characters mean something.
fn escaped(pattern: &str) -> String {
    let mut escaped = String::with_capacity(pattern.len());
    for character in pattern.chars() {
        if matches!(character, '[' | ']' | '\\') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> CacheKey {
        let text = format!("ai:completion:a%3Ab:{}", "0".repeat(64));
        text.parse().unwrap()
    }

    #[test]
    fn without_a_namespace_a_name_is_the_key() {
        let names = Names::new("");
        assert_eq!(names.of(&key()), key().to_string());
        assert_eq!(names.matching(&Target::All), "ai:*");
        assert_eq!(names.channel(), "tower-llm-cache");
    }

    #[test]
    fn a_namespace_comes_first_and_means_nothing_to_redis() {
        let names = Names::new("a:b{c}*?[d]\\");
        let prefix = "a%3Ab%7Bc%7D%2A%3F%5Bd%5D%5C";
        assert_eq!(names.of(&key()), format!("{prefix}:{}", key()));
        assert_eq!(names.matching(&Target::All), format!("{prefix}:ai:*"));
        let matching = Target::Matching("ai:*:m".into());
        assert_eq!(names.matching(&matching), format!("{prefix}:ai:*:m"));
        assert_eq!(names.channel(), format!("tower-llm-cache:{prefix}"));
    }

    #[test]
    fn only_stars_and_question_marks_mean_something() {
        assert_eq!(escaped(r"a*b?[c]\d"), r"a*b?\[c\]\\d");
    }

    proptest! {
        #[test]
        fn a_name_is_read_in_its_own_namespace_alone(
            own in "(ai|[a:%{}*]{0,4}|.{0,8})",
            other in "(ai|[a:%{}*]{0,4}|.{0,8})",
        ) {
            let name = Names::new(&own).of(&key());
            prop_assert_eq!(Names::new(&own).parse(&name), Some(key()));
            let found = Names::new(&other).parse(&name);
            prop_assert_eq!(found.is_some(), own == other);
        }
    }
}
