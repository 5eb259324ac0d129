use std::{
    error::Error,
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
    sync::Arc,
};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use tower_llm_core::{Call, Operation};

/// What is encoded in a part of a key: separators, and what means something in a Redis key or pattern, or ends a quoted
/// string. Braces would be a hash tag, and send all keys of a model to one node of a cluster.
const ENCODED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'%')
    .add(b':')
    .add(b'{')
    .add(b'}')
    .add(b'*')
    .add(b'?')
    .add(b'[')
    .add(b']')
    .add(b'\\');

const PREFIX: &str = "ai:";

/// A part of a name, percent-encoded.
#[cfg(feature = "redis")]
pub(crate) fn encoded(part: &str) -> impl fmt::Display {
    utf8_percent_encode(part, ENCODED)
}

/// The name of a cached answer: `ai:completion:{model}:{digest}`.
///
/// The kind is `completion` for text, `embedding` for embeddings, and the operation's name for anything else. The model is
/// percent-encoded, and empty if the call names none. The digest is 256 bits in lower-case hexadecimal.
///
/// Requests with the same answer have the same key. In Redis, the namespace stands before it: see
/// [`CacheBuilder::namespace`](crate::CacheBuilder::namespace). The key says nothing about the request but its kind and its model. Without a
/// secret, a guessed request can be confirmed from its key.
#[derive(Clone, Eq)]
pub struct CacheKey {
    /// Up to the last colon, without it.
    group: Arc<str>,
    digest: [u8; 32],
}

/// The text is not a [`CacheKey`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseKeyError(());

// === impl CacheKey ===

impl CacheKey {
    pub(crate) fn new(call: &Call, digest: [u8; 32]) -> Self {
        Self::from_parts(
            kind(call.operation()),
            call.model().unwrap_or_default(),
            digest,
        )
    }

    /// The key of another answer of the same kind and model.
    pub(crate) fn sibling(&self, digest: [u8; 32]) -> Self {
        Self {
            group: Arc::clone(&self.group),
            digest,
        }
    }

    fn from_parts(kind: &str, model: &str, digest: [u8; 32]) -> Self {
        let mut group = String::with_capacity(PREFIX.len() + kind.len() + 1 + model.len() + 8);
        group.push_str(PREFIX);
        group.extend(utf8_percent_encode(kind, ENCODED));
        group.push(':');
        group.extend(utf8_percent_encode(model, ENCODED));
        Self {
            group: group.into(),
            digest,
        }
    }

    /// Returns the digest of the request.
    #[must_use]
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Returns what the keys of all answers of this kind and model start with, without the colon that follows.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.group
    }
}

fn kind(operation: &Operation) -> &str {
    let text = [
        Operation::CHAT,
        Operation::GENERATE_CONTENT,
        Operation::TEXT_COMPLETION,
    ];
    if text.contains(operation) {
        "completion"
    } else if *operation == Operation::EMBEDDINGS {
        "embedding"
    } else {
        operation.as_str()
    }
}

impl PartialEq for CacheKey {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest && self.group == other.group
    }
}

impl Hash for CacheKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.digest);
    }
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digest = blake3::Hash::from_bytes(self.digest).to_hex();
        write!(f, "{}:{digest}", self.group)
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CacheKey({self})")
    }
}

impl FromStr for CacheKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        parse(text).ok_or(ParseKeyError(()))
    }
}

fn parse(text: &str) -> Option<CacheKey> {
    let (group, hex) = text.rsplit_once(':')?;
    let (kind, model) = group.strip_prefix(PREFIX)?.split_once(':')?;
    // The parser of digests takes capitals too.
    if hex.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return None;
    }
    let digest = blake3::Hash::from_hex(hex).ok()?;
    let decode = |part| percent_decode_str(part).decode_utf8().ok();
    let key = CacheKey::from_parts(&decode(kind)?, &decode(model)?, *digest.as_bytes());
    // One key has one spelling.
    (!kind.is_empty() && *key.group == *group).then_some(key)
}

// === impl ParseKeyError ===

impl fmt::Display for ParseKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not the key of a cached answer")
    }
}

impl Error for ParseKeyError {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tower_llm_core::Provider;

    use super::*;

    #[test]
    fn a_key_says_kind_and_model() {
        for (operation, kind) in [
            (Operation::CHAT, "completion"),
            (Operation::GENERATE_CONTENT, "completion"),
            (Operation::TEXT_COMPLETION, "completion"),
            (Operation::EMBEDDINGS, "embedding"),
            (Operation::new("rerank:v2"), "rerank%3Av2"),
        ] {
            let call = Call::builder(Provider::OPENAI, operation).model("openai/gpt-5");
            let key = CacheKey::new(&call.build(), [0xab; 32]);
            assert_eq!(
                key.to_string(),
                format!("ai:{kind}:openai/gpt-5:{}", "ab".repeat(32))
            );
        }
    }

    #[test]
    fn hostile_models_keep_to_their_part() {
        for model in [
            "",
            "{tag}",
            "a:b:c",
            "100%",
            "%7B",
            "h*t?[x]\\",
            "a\"; hit",
            "line\r\nend\0",
            "模型 é",
            &"{".repeat(256),
        ] {
            let key = CacheKey::from_parts("completion", model, [7; 32]);
            let text = key.to_string();
            assert_eq!(text.matches(':').count(), 3, "{text}");
            assert!(!text.contains(['{', '}', '*', '?', '[', ']', '\\', '\r', '\n', ' ', '"']));
            assert!(text.is_ascii());
            assert_eq!(text.parse(), Ok(key));
        }
    }

    #[test]
    fn other_texts_are_no_keys() {
        let hex = "ab".repeat(32);
        for text in [
            String::new(),
            "ai:completion:m".into(),
            format!("ai:completion:{hex}"),
            format!("ai::m:{hex}"),
            format!("ia:completion:m:{hex}"),
            format!("ai:completion:a:b:{hex}"),
            format!("ai:completion:{{m}}:{hex}"),
            // Other spellings of keys.
            format!("ai:completion:m:{}", hex.to_uppercase()),
            format!("ai:completion:%6D:{hex}"),
            format!("ai:completion:%7b:{hex}"),
            format!("ai:completion:%FF:{hex}"),
            format!("ai:completion:m:{}", &hex[1..]),
            format!("ai:completion:m:{hex}0"),
        ] {
            assert_eq!(text.parse::<CacheKey>(), Err(ParseKeyError(())), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_key_is_read_as_it_is_written(
            kind in ".{1,20}",
            model in ".{0,40}",
            digest: [u8; 32],
        ) {
            let key = CacheKey::from_parts(&kind, &model, digest);
            prop_assert_eq!(key.to_string().parse(), Ok(key));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "(ai:)?.{0,80}") {
            if let Ok(key) = text.parse::<CacheKey>() {
                prop_assert_eq!(key.to_string(), text);
            }
        }
    }
}
