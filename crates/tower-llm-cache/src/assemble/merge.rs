//! How members that come more than once become one.

use serde_json::{Value, map::Entry};

use super::Map;

/// What a member becomes that was said before with another value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeated {
    /// The last value counts.
    Last,
    /// The last number or boolean counts; other strings and arrays may be a continuation, so they cannot be joined.
    Same,
}

/// Reads an object whose numbers survive being written again.
pub(super) fn parse(json: &[u8]) -> Option<Map> {
    let value: Value = serde_json::from_slice(json).ok()?;
    if !is_exact(&value) {
        return None;
    }
    match value {
        Value::Object(object) => Some(object),
        _ => None,
    }
}

/// Whether no integer in it was too large for 64 bits: those are read as floats, and lose digits.
pub(super) fn is_exact(value: &Value) -> bool {
    match value {
        Value::Number(number) if number.is_f64() => number
            .as_f64()
            .is_some_and(|number| number.abs() < 2_f64.powi(63)),
        Value::Array(values) => values.iter().all(is_exact),
        Value::Object(members) => members.values().all(is_exact),
        _ => true,
    }
}

/// Sets each of the members; those that were there before as `repeated` says.
pub(super) fn set_all(known: &mut Map, new: Map, repeated: Repeated) -> Option<()> {
    for (name, value) in new {
        set(known, name, value, repeated)?;
    }
    Some(())
}

/// Sets a member; one that was there before as `repeated` says.
pub(super) fn set(known: &mut Map, name: String, new: Value, repeated: Repeated) -> Option<()> {
    match known.entry(name) {
        Entry::Vacant(vacant) => {
            vacant.insert(new);
            Some(())
        }
        Entry::Occupied(occupied) => replace(occupied.into_mut(), new, repeated),
    }
}

fn replace(known: &mut Value, new: Value, repeated: Repeated) -> Option<()> {
    match (known, new) {
        (Value::Object(known), Value::Object(new)) => set_all(known, new, repeated),
        // Chunks name the members that they have nothing to say about.
        (_, new) if is_nothing(&new) => Some(()),
        (known, new) => {
            let is_safe = repeated == Repeated::Last
                || is_nothing(known)
                || *known == new
                || matches!(new, Value::Bool(_) | Value::Number(_));
            is_safe.then(|| *known = new)
        }
    }
}

fn is_nothing(value: &Value) -> bool {
    value.is_null() || value == ""
}

/// Appends text to a member.
pub(super) fn append(known: &mut Map, name: String, piece: Value) -> Option<()> {
    match (known.get_mut(&name), piece) {
        (Some(Value::String(text)), Value::String(piece)) => {
            text.push_str(&piece);
            Some(())
        }
        // The empty text says that there is one.
        (Some(text @ Value::Null), Value::String(piece)) => {
            *text = Value::String(piece);
            Some(())
        }
        (_, piece) => set(known, name, piece, Repeated::Same),
    }
}

/// Appends the elements of an array to a member.
pub(super) fn extend(known: &mut Map, name: String, piece: Value) -> Option<()> {
    match (known.get_mut(&name), piece) {
        (Some(Value::Array(elements)), Value::Array(piece)) => {
            elements.extend(piece);
            Some(())
        }
        (_, piece) => set(known, name, piece, Repeated::Same),
    }
}

/// The member as an array, taken out.
pub(super) fn take_array(object: &mut Map, name: &str) -> Option<Vec<Value>> {
    match object.remove(name)? {
        Value::Array(elements) => Some(elements),
        _ => None,
    }
}

pub(super) fn into_object(value: Value) -> Option<Map> {
    match value {
        Value::Object(object) => Some(object),
        _ => None,
    }
}

/// Whether a member says something: it is there, and neither null nor the empty string.
pub(super) fn has(object: &Map, name: &str) -> bool {
    object.get(name).is_some_and(|value| !is_nothing(value))
}
