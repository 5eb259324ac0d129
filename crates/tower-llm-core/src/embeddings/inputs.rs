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
pub struct EmbeddingInputs<'a>(List<'a>);

/// The prompts of a text completion whose choices depend on nothing but their prompt and the options, each as it is written.
///
/// ```
/// use tower_llm_core::CompletionPrompts;
///
/// let body = br#"{"model":"m","prompt":["a","b"],"n":2}"#;
/// let prompts = CompletionPrompts::read(body).unwrap();
/// assert_eq!(prompts.all(), [r#""a""#, r#""b""#]);
/// assert_eq!(prompts.choices(), 2);
/// assert_eq!(prompts.body_with(&prompts.all()[1..]), r#"{"prompt":["b"],"model":"m","n":2}"#);
/// ```
#[derive(Debug)]
pub struct CompletionPrompts<'a>(List<'a>);

/// A request for each element of a list.
#[derive(Debug)]
struct List<'a> {
    name: &'static str,
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

/// What both kinds of lists have.
macro_rules! list {
    ($list:ident, $elements:literal) => {
        impl<'a> $list<'a> {
            #[doc = concat!("The ", $elements, ".")]
            #[must_use]
            pub fn all(&self) -> &[&'a str] {
                &self.0.all
            }

            /// The tokens of each: texts are estimated as bytes / 4, lists of tokens are counted.
            pub fn tokens(&self) -> impl Iterator<Item = u64> {
                self.0.tokens()
            }

            #[doc = concat!("The body of a request for other ", $elements, ", with the same options.")]
            #[must_use]
            pub fn body_with(&self, elements: &[&str]) -> Bytes {
                self.0.body_with(elements)
            }
        }
    };
}

list!(EmbeddingInputs, "inputs");
list!(CompletionPrompts, "prompts");

impl<'a> EmbeddingInputs<'a> {
    /// Reads a body; `None` if it is to be sent as it is: with a member that is [not known](is_of_each_input) to leave each vector
    /// to its own input, or with an input that providers reject, as far as that can be seen.
    #[must_use]
    pub fn read(body: &'a [u8]) -> Option<Self> {
        List::read(body, "input", is_of_each_input).map(Self)
    }

    /// Whether the inputs are lists of tokens, and not texts.
    #[must_use]
    pub fn are_tokens(&self) -> bool {
        self.0.kind == Kind::Tokens
    }

    /// All members but the inputs, by name: requests with the same ones can be sent as one.
    #[must_use]
    pub fn options(&self) -> Vec<(&str, &str)> {
        let mut options: Vec<_> = (self.0.members.iter())
            .filter(|(name, _)| *name != "input")
            .collect();
        options.sort_unstable();
        options
    }
}

impl<'a> CompletionPrompts<'a> {
    /// Reads a body; `None` if it is to be sent as it is: a stream, with a member that is not known to leave each choice to its own
    /// prompt, or with a prompt that providers reject, as far as that can be seen.
    #[must_use]
    pub fn read(body: &'a [u8]) -> Option<Self> {
        let list = List::read(body, "prompt", is_of_each_prompt)?;
        let is_whole = list
            .members
            .get("stream")
            .is_none_or(|stream| stream == "false");
        is_whole.then_some(Self(list))
    }

    /// How many choices each prompt gets.
    #[must_use]
    pub fn choices(&self) -> usize {
        let choices = self.0.members.get("n");
        choices.and_then(|n| n.parse().ok()).unwrap_or(1)
    }
}

/// The members of `OpenAI`'s text completions, and of vLLM's sampling.
fn is_of_each_prompt(name: &str) -> bool {
    matches!(
        name,
        "model"
            | "prompt"
            | "best_of"
            | "echo"
            | "frequency_penalty"
            | "logit_bias"
            | "logprobs"
            | "max_tokens"
            | "n"
            | "presence_penalty"
            | "seed"
            | "stop"
            | "stream"
            | "suffix"
            | "temperature"
            | "top_p"
            | "user"
            | "min_p"
            | "top_k"
            | "repetition_penalty"
            | "stop_token_ids"
            | "ignore_eos"
            | "min_tokens"
    )
}

impl<'a> List<'a> {
    fn read(body: &'a [u8], name: &'static str, knows: fn(&str) -> bool) -> Option<Self> {
        let members: Members<'a> = serde_json::from_slice(body).ok()?;
        if !members.iter().all(|(name, _)| knows(name)) {
            return None;
        }
        let input = members.get(name)?;
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
        all.iter().all(is_valid).then_some(Self {
            name,
            members,
            all,
            kind,
        })
    }

    fn tokens(&self) -> impl Iterator<Item = u64> {
        self.all.iter().map(|input| match self.kind {
            Kind::Text => (input.len() as u64 - 2).div_ceil(4),
            Kind::Tokens => input.matches(',').count() as u64 + 1,
        })
    }

    fn body_with(&self, inputs: &[&str]) -> Bytes {
        let bytes: usize = inputs.iter().map(|input| input.len() + 1).sum();
        let mut body = Vec::with_capacity(bytes + 256);
        body.extend_from_slice(b"{\"");
        body.extend_from_slice(self.name.as_bytes());
        body.extend_from_slice(b"\":");
        let mut separator = b'[';
        for input in inputs {
            body.push(separator);
            body.extend_from_slice(input.as_bytes());
            separator = b',';
        }
        body.push(b']');
        self.members.write_without(&[self.name], &mut body);
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
