//! The inputs of a request.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::{is_of_each_input, json::Members};

/// The inputs of an embeddings request whose vectors depend on nothing but its inputs and options, each as it is written.
///
/// ```
/// use tower_llm_core::EmbeddingInputs;
///
/// let body = br#"{"model":"m","input":["a","bcdefgh"]}"#;
/// let inputs = EmbeddingInputs::read(body).unwrap();
/// assert_eq!(inputs.all(), [r#""a""#, r#""bcdefgh""#]);
/// assert_eq!(inputs.tokens().collect::<Vec<_>>(), [1, 2]);
/// assert_eq!(inputs.body_with(&inputs.all()[1..]), r#"{"input":["bcdefgh"],"model":"m"}"#);
///
/// // Each vector depends on all inputs: it must be neither divided nor merged with another one.
/// let late = br#"{"input":["a","b"],"late_chunking":true}"#;
/// assert!(EmbeddingInputs::read(late).is_none());
/// ```
#[derive(Debug)]
pub struct EmbeddingInputs<'a> {
    members: Members<'a>,
    all: Vec<&'a str>,
    kind: Kind,
}

/// Texts and lists of tokens do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Tokens,
}

impl<'a> EmbeddingInputs<'a> {
    /// Reads a body; `None` if it is to be sent as it is: with a member that is [not known](is_of_each_input) to leave each vector
    /// to its own input, or with an input that providers reject, as far as that can be seen.
    #[must_use]
    pub fn read(body: &'a [u8]) -> Option<Self> {
        let members: Members<'a> = serde_json::from_slice(body).ok()?;
        if !members.iter().all(|(name, _)| is_of_each_input(name)) {
            return None;
        }
        let input = members.get("input")?;
        let elements: Vec<&RawValue> = match input.starts_with('[') {
            true => serde_json::from_str(input).ok()?,
            false => Vec::new(),
        };
        let first = elements.first().map_or("", |first| first.get());
        let (kind, all) = match first.as_bytes().first() {
            None => (Kind::Text, vec![input]),
            Some(b'"') => (Kind::Text, elements.iter().map(|text| text.get()).collect()),
            Some(b'[') => (
                Kind::Tokens,
                elements.iter().map(|list| list.get()).collect(),
            ),
            Some(_) => (Kind::Tokens, vec![input]),
        };
        // What a provider rejects is sent alone, as far as that can be seen here.
        let is_valid = |input: &&str| match kind {
            Kind::Text => input.starts_with('"') && *input != "\"\"",
            Kind::Tokens => is_list_of_tokens(input),
        };
        all.iter()
            .all(is_valid)
            .then_some(Self { members, all, kind })
    }

    /// The inputs.
    #[must_use]
    pub fn all(&self) -> &[&'a str] {
        &self.all
    }

    /// The tokens of each input: texts are estimated as bytes / 4, lists of tokens are counted.
    pub fn tokens(&self) -> impl Iterator<Item = u64> {
        self.all.iter().map(|input| match self.kind {
            Kind::Text => (input.len() as u64 - 2).div_ceil(4),
            Kind::Tokens => input.matches(',').count() as u64 + 1,
        })
    }

    /// Whether the inputs are lists of tokens, and not texts.
    #[must_use]
    pub fn are_tokens(&self) -> bool {
        self.kind == Kind::Tokens
    }

    /// All members but the inputs, by name: requests with the same ones can be sent as one.
    #[must_use]
    pub fn options(&self) -> Vec<(&str, &str)> {
        let mut options: Vec<_> = (self.members.iter())
            .filter(|(name, _)| *name != "input")
            .collect();
        options.sort_unstable();
        options
    }

    /// The body of a request for other inputs, with the same options.
    #[must_use]
    pub fn body_with(&self, inputs: &[&str]) -> Bytes {
        let bytes: usize = inputs.iter().map(|input| input.len() + 1).sum();
        let mut body = Vec::with_capacity(bytes + 256);
        body.extend_from_slice(b"{\"input\":");
        let mut separator = b'[';
        for input in inputs {
            body.push(separator);
            body.extend_from_slice(input.as_bytes());
            separator = b',';
        }
        body.push(b']');
        self.members.write_without(&["input"], &mut body);
        body.push(b'}');
        body.into()
    }
}

/// `[1,2,3]`
fn is_list_of_tokens(input: &str) -> bool {
    let inside = input
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    inside.is_some_and(|inside| {
        inside
            .split(',')
            .all(|token| token.trim_ascii().parse::<u64>().is_ok())
    })
}
