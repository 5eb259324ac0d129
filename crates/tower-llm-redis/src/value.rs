use bytes::Bytes;
use fred::types::{Resp3Frame, Value};

use crate::StoreError;

/// An argument of a script, or a value: an integer or bytes, by `into()`.
#[derive(Clone, Debug)]
pub struct Arg(pub(crate) Value);

/// The result of a script.
///
/// Lua tables are arrays, which end at their first `nil`. Numbers are integers: Redis truncates fractions, so a script must
/// return a fraction as text.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// `nil` or `false`, or nothing returned.
    Nil,
    /// A number, or `true` as one.
    Integer(i64),
    /// A string, or the `OK` of a command.
    Bytes(Bytes),
    /// A table. A RESP3 map is an array of keys, each followed by its value, in any order.
    Array(Vec<Self>),
}

// === impl Arg ===

impl From<i64> for Arg {
    fn from(integer: i64) -> Self {
        Self(Value::Integer(integer))
    }
}

impl From<i32> for Arg {
    fn from(integer: i32) -> Self {
        i64::from(integer).into()
    }
}

impl From<u32> for Arg {
    fn from(integer: u32) -> Self {
        i64::from(integer).into()
    }
}

impl From<u64> for Arg {
    fn from(integer: u64) -> Self {
        // As text, as Lua gets all arguments. Lua rounds numbers beyond 2^53.
        integer.to_string().into()
    }
}

impl From<String> for Arg {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&str> for Arg {
    fn from(text: &str) -> Self {
        Bytes::copy_from_slice(text.as_bytes()).into()
    }
}

impl From<Vec<u8>> for Arg {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<Bytes> for Arg {
    fn from(bytes: Bytes) -> Self {
        Self(Value::Bytes(bytes))
    }
}

// === impl Reply ===

impl Reply {
    /// Returns the integers of a flat array, or a single integer.
    ///
    /// # Errors
    ///
    /// If there is anything else, including `nil`: match on the reply if a script uses `nil` for "none".
    pub fn into_integers(self) -> Result<Vec<i64>, StoreError> {
        match self {
            Self::Array(items) => items.into_iter().map(Self::into_integer).collect(),
            alone => Ok(vec![alone.into_integer()?]),
        }
    }

    /// Returns a single integer.
    ///
    /// # Errors
    ///
    /// If it was anything else.
    pub fn into_integer(self) -> Result<i64, StoreError> {
        match self {
            Self::Integer(integer) => Ok(integer),
            _ => Err(StoreError::unexpected("not an integer")),
        }
    }

    /// Returns the bytes; `None` for `nil`.
    ///
    /// # Errors
    ///
    /// If it was anything else.
    pub fn into_bytes(self) -> Result<Option<Bytes>, StoreError> {
        match self {
            Self::Nil => Ok(None),
            Self::Bytes(bytes) => Ok(Some(bytes)),
            _ => Err(StoreError::unexpected("not a string")),
        }
    }

    /// Converts a frame, which must not be an error. Types that only RESP3 has become what RESP2 would have sent.
    pub(crate) fn from_frame(frame: Resp3Frame) -> Result<Self, StoreError> {
        Ok(match frame {
            Resp3Frame::Null => Self::Nil,
            Resp3Frame::Number { data, .. } => Self::Integer(data),
            Resp3Frame::Boolean { data, .. } => Self::Integer(data.into()),
            Resp3Frame::Double { data, .. } => Self::Bytes(data.to_string().into()),
            Resp3Frame::BlobString { data, .. }
            | Resp3Frame::SimpleString { data, .. }
            | Resp3Frame::VerbatimString { data, .. }
            | Resp3Frame::BigNumber { data, .. } => Self::Bytes(data),
            Resp3Frame::Array { data, .. } => Self::from_frames(data)?,
            Resp3Frame::Set { data, .. } => Self::from_frames(data)?,
            Resp3Frame::Map { data, .. } => {
                Self::from_frames(data.into_iter().flat_map(|(key, value)| [key, value]))?
            }
            _ => return Err(StoreError::unexpected("an error among other things")),
        })
    }

    fn from_frames(frames: impl IntoIterator<Item = Resp3Frame>) -> Result<Self, StoreError> {
        let items = frames.into_iter().map(Self::from_frame);
        items.collect::<Result<_, _>>().map(Self::Array)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_taken_from_a_flat_array_or_alone() {
        let pair = Reply::Array(vec![Reply::Integer(1), Reply::Integer(-2)]);
        assert_eq!(pair.into_integers().unwrap(), [1, -2]);
        assert_eq!(Reply::Integer(7).into_integers().unwrap(), [7]);
        assert_eq!(Reply::Array(vec![]).into_integers().unwrap(), [0_i64; 0]);
    }

    #[test]
    fn what_is_not_an_integer_is_an_error_and_not_a_zero() {
        let text = Reply::Bytes("3".into());
        for reply in [Reply::Nil, text, Reply::Array(vec![Reply::Nil])] {
            reply.into_integers().unwrap_err();
        }
        Reply::Array(vec![]).into_integer().unwrap_err();
    }

    #[test]
    fn nil_is_no_bytes() {
        assert_eq!(Reply::Nil.into_bytes().unwrap(), None);
        let bytes = Reply::Bytes("a".into()).into_bytes().unwrap();
        assert_eq!(bytes.as_deref(), Some(&b"a"[..]));
        Reply::Integer(1).into_bytes().unwrap_err();
    }
}
