//! The vectors of a response.

use std::{fmt::Display, io::Write as _};

use bytes::Bytes;

use super::json::Members;

/// The vectors of an embeddings response, in the order of the inputs that were sent, each as it is written.
///
/// ```
/// use tower_llm_core::EmbeddingVectors;
///
/// let body = br#"{"data":[{"index":1,"embedding":"AAA="},{"embedding":[0.5],"index":0}],"model":"m","usage":{"x":1}}"#;
/// let vectors = EmbeddingVectors::read(body, 2).unwrap();
/// assert_eq!(vectors.usage(), Some(r#"{"x":1}"#));
/// let second = vectors.body([vectors.of(1)], None::<&str>);
/// assert_eq!(second, r#"{"data":[{"index":0,"embedding":"AAA="}],"model":"m"}"#);
///
/// // One vector for each input.
/// assert!(EmbeddingVectors::read(body, 3).is_none());
/// ```
#[derive(Debug)]
pub struct EmbeddingVectors<'a>(Numbered<'a>);

/// The choices of a text completion, by their index, each as it is written.
#[derive(Debug)]
pub struct CompletionChoices<'a>(Numbered<'a>);

/// A response with a numbered answer to each element of a list.
#[derive(Debug)]
struct Numbered<'a> {
    name: &'static str,
    document: Members<'a>,
    /// What follows the index in each item.
    items: Vec<Vec<u8>>,
}

/// What both kinds of responses have.
macro_rules! numbered {
    ($numbered:ident, $items:literal) => {
        impl<'a> $numbered<'a> {
            #[doc = concat!("All ", $items, ", with what is written beside each.")]
            pub fn all(&self) -> impl Iterator<Item = &[u8]> {
                self.0.items.iter().map(Vec::as_slice)
            }

            /// What the call has used, as the provider writes it.
            #[must_use]
            pub fn usage(&self) -> Option<&'a str> {
                self.0.document.get("usage")
            }

            #[doc = concat!("Writes the body of a response with these ", $items, ", numbered from 0, with that usage and with all")]
            /// other members of this one.
            pub fn body<'v>(
                &self,
                items: impl IntoIterator<Item = &'v [u8]>,
                usage: Option<impl Display>,
            ) -> Bytes {
                self.0.body(items.into_iter().collect(), usage)
            }
        }
    };
}

numbered!(EmbeddingVectors, "vectors");
numbered!(CompletionChoices, "choices");

impl<'a> EmbeddingVectors<'a> {
    /// Reads a body; `None` unless it has one vector for each of the `sent` inputs: a list of numbers, base64, or one of each type
    /// that was asked for.
    ///
    /// Vectors are told apart by their `index`, whatever their order; if none has one, by their order.
    #[must_use]
    pub fn read(body: &'a [u8], sent: usize) -> Option<Self> {
        let is_vector = |item: &Members<'_>| item.get("embedding").is_some_and(is_vector);
        Numbered::read(body, "data", sent, is_vector).map(Self)
    }

    /// The vector of an input, with what is written beside it.
    ///
    /// # Panics
    ///
    /// If so many inputs were not sent.
    #[must_use]
    pub fn of(&self, input: usize) -> &[u8] {
        &self.0.items[input]
    }
}

impl<'a> CompletionChoices<'a> {
    /// Reads a body; `None` unless it has so many choices, each with its text.
    #[must_use]
    pub fn read(body: &'a [u8], choices: usize) -> Option<Self> {
        let has_text = |item: &Members<'_>| item.get("text").is_some();
        Numbered::read(body, "choices", choices, has_text).map(Self)
    }
}

impl<'a> Numbered<'a> {
    fn read(
        body: &'a [u8],
        name: &'static str,
        sent: usize,
        is_answer: impl Fn(&Members<'_>) -> bool,
    ) -> Option<Self> {
        let document: Members<'a> = serde_json::from_slice(body).ok()?;
        let data: Vec<Members<'_>> = serde_json::from_str(document.get(name)?).ok()?;
        if !data.iter().all(is_answer) {
            return None;
        }
        let items = by_position(&data, sent)?;
        Some(Self {
            name,
            document,
            items,
        })
    }

    fn body(&self, items: Vec<&[u8]>, usage: Option<impl Display>) -> Bytes {
        let bytes: usize = items.iter().map(|item| item.len() + 24).sum();
        let mut body = Vec::with_capacity(bytes + 512);
        // Writing into memory does not fail.
        let _ = write!(body, "{{\"{}\":[", self.name);
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                body.push(b',');
            }
            let _ = write!(body, "{{\"index\":{index}");
            body.extend_from_slice(item);
            body.push(b'}');
        }
        body.push(b']');
        self.document
            .write_without(&[self.name, "usage"], &mut body);
        if let Some(usage) = usage {
            let _ = write!(body, ",\"usage\":{usage}");
        }
        body.push(b'}');
        body.into()
    }
}

/// A list of numbers, base64, or one of each type that was asked for.
fn is_vector(written: &str) -> bool {
    written.starts_with(['"', '[', '{'])
        && !matches!(written, "\"\"" | "{}")
        && (!written.starts_with('[') || written[1..].trim_ascii_start() != "]")
}

/// What follows the index in each item, in the order in which the inputs were sent.
fn by_position(data: &[Members<'_>], sent: usize) -> Option<Vec<Vec<u8>>> {
    if data.len() != sent {
        return None;
    }
    let has_index = data.iter().any(|item| item.get("index").is_some());
    let mut items = vec![None; sent];
    for (position, item) in data.iter().enumerate() {
        let index = match has_index {
            true => item.get("index")?.parse().ok()?,
            false => position,
        };
        let place = items.get_mut(index).filter(|place| place.is_none())?;
        let mut rest = Vec::new();
        item.write_without(&["index"], &mut rest);
        *place = Some(rest);
    }
    items.into_iter().collect()
}
