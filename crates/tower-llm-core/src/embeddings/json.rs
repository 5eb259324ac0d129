//! JSON objects whose values stay as they are written.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// The members of an object, in their order. An object with two members of one name is none: which one counts is not known.
#[derive(Debug, Default)]
pub(super) struct Members<'a>(Vec<(String, &'a RawValue)>);

struct MembersVisitor;

impl<'a> Members<'a> {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &'a str)> {
        let members = self.0.iter();
        members.map(|(name, value)| (name.as_str(), value.get()))
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        let mut members = self.iter();
        members.find_map(|(other, value)| (other == name).then_some(value))
    }

    /// Writes `,"name":value` for all members but some.
    pub(super) fn write_without(&self, left_out: &[&str], out: &mut Vec<u8>) {
        for (name, value) in self.iter().filter(|(name, _)| !left_out.contains(name)) {
            out.push(b',');
            // Writing into memory does not fail.
            let _ = serde_json::to_writer(&mut *out, name);
            out.push(b':');
            out.extend_from_slice(value.as_bytes());
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
        let mut members: Vec<(String, &RawValue)> = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            // Bodies have few members, but a hostile one may have many.
            if members.len() >= 64 {
                return Err(M::Error::invalid_length(64, &self));
            }
            if members.iter().any(|(other, _)| *other == name) {
                return Err(M::Error::custom("two members of one name"));
            }
            members.push((name, map.next_value()?));
        }
        Ok(Members(members))
    }
}
