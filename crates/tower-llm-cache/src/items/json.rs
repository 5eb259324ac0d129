//! JSON whose values stay as they are written.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// The members of an object, in their order.
#[derive(Debug, Default)]
pub(super) struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

/// An answer: the members of an object, and of each object in its `data`.
#[derive(Debug, Default)]
pub(super) struct Document<'a> {
    pub(super) members: Members<'a>,
    pub(super) data: Vec<Members<'a>>,
}

struct MembersVisitor;
struct DocumentVisitor;
struct NameVisitor;
/// A name, borrowed if it has no escapes.
struct Name<'a>(Cow<'a, str>);

// === impl Members ===

impl<'a> Members<'a> {
    /// The value of a member as it is written; `None` if there is none, or more than one.
    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        let mut named = self.0.iter().filter(|(other, _)| other == name);
        match (named.next(), named.next()) {
            (Some((_, value)), None) => Some(value.get()),
            _ => None,
        }
    }

    /// Writes all members but one: `"name":value`, with a comma between them.
    pub(super) fn write_without(&self, left_out: &str, out: &mut Vec<u8>) {
        let mut is_first = true;
        for (name, value) in self.0.iter().filter(|(name, _)| name != left_out) {
            if !std::mem::take(&mut is_first) {
                out.push(b',');
            }
            // Writing into memory does not fail.
            let _ = serde_json::to_writer(&mut *out, name);
            out.push(b':');
            out.extend_from_slice(value.get().as_bytes());
        }
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_map(MembersVisitor)
    }
}

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Members<'de>, M::Error> {
        let mut members = Members::default();
        while let Some(Name(name)) = map.next_key()? {
            members.0.push((name, map.next_value()?));
        }
        Ok(members)
    }
}

// === impl Document ===

impl<'de> Deserialize<'de> for Document<'de> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_map(DocumentVisitor)
    }
}

impl<'de> Visitor<'de> for DocumentVisitor {
    type Value = Document<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with an array of objects, `data`")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Document<'de>, M::Error> {
        let mut document = Document::default();
        let mut data = None;
        while let Some(Name(name)) = map.next_key()? {
            if name != "data" {
                document.members.0.push((name, map.next_value()?));
            } else if data.replace(map.next_value()?).is_some() {
                return Err(M::Error::duplicate_field("data"));
            }
        }
        document.data = data.ok_or_else(|| M::Error::missing_field("data"))?;
        Ok(document)
    }
}

// === impl Name ===

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_str(NameVisitor)
    }
}

impl<'de> Visitor<'de> for NameVisitor {
    type Value = Name<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Name<'de>, E> {
        Ok(Name(Cow::Borrowed(name)))
    }

    fn visit_str<E>(self, name: &str) -> Result<Name<'de>, E> {
        Ok(Name(Cow::Owned(name.to_owned())))
    }
}
