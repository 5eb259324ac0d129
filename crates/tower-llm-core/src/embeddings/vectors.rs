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
pub struct EmbeddingVectors<'a> {
    document: Members<'a>,
    /// What follows the index in each item.
    items: Vec<Vec<u8>>,
}

impl<'a> EmbeddingVectors<'a> {
    /// Reads a body; `None` unless it has one vector for each of the `sent` inputs: a list of numbers, base64, or one of each type
    /// that was asked for.
    ///
    /// Vectors are told apart by their `index`, whatever their order; if none has one, by their order.
    #[must_use]
    pub fn read(body: &'a [u8], sent: usize) -> Option<Self> {
        let document: Members<'a> = serde_json::from_slice(body).ok()?;
        let data: Vec<Members<'_>> = serde_json::from_str(document.get("data")?).ok()?;
        let items = by_position(&data, sent)?;
        Some(Self { document, items })
    }

    /// The vector of an input, with what is written beside it.
    ///
    /// # Panics
    ///
    /// If so many inputs were not sent.
    #[must_use]
    pub fn of(&self, input: usize) -> &[u8] {
        &self.items[input]
    }

    /// The vectors of all inputs.
    pub fn all(&self) -> impl Iterator<Item = &[u8]> {
        self.items.iter().map(Vec::as_slice)
    }

    /// What the call has used, as the provider writes it.
    #[must_use]
    pub fn usage(&self) -> Option<&'a str> {
        self.document.get("usage")
    }

    /// Writes the body of a response with these vectors, numbered from 0, with that usage and with all other members of this one.
    pub fn body<'v>(
        &self,
        vectors: impl IntoIterator<Item = &'v [u8]>,
        usage: Option<impl Display>,
    ) -> Bytes {
        let vectors: Vec<_> = vectors.into_iter().collect();
        let bytes: usize = vectors.iter().map(|vector| vector.len() + 24).sum();
        let mut body = Vec::with_capacity(bytes + 512);
        body.extend_from_slice(b"{\"data\":[");
        for (index, vector) in vectors.into_iter().enumerate() {
            if index > 0 {
                body.push(b',');
            }
            // Writing into memory does not fail.
            let _ = write!(body, "{{\"index\":{index}");
            body.extend_from_slice(vector);
            body.push(b'}');
        }
        body.push(b']');
        self.document.write_without(&["data", "usage"], &mut body);
        if let Some(usage) = usage {
            let _ = write!(body, ",\"usage\":{usage}");
        }
        body.push(b'}');
        body.into()
    }
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
        let vector = item.get("embedding")?;
        let is_vector = vector.starts_with(['"', '[', '{'])
            && !matches!(vector, "\"\"" | "{}")
            && (!vector.starts_with('[') || vector[1..].trim_ascii_start() != "]");
        if !is_vector {
            return None;
        }
        let mut rest = Vec::with_capacity(vector.len() + 64);
        item.write_without(&["index"], &mut rest);
        *place = Some(rest);
    }
    items.into_iter().collect()
}
