//! A stored answer: one buffer, the same in memory and in a shared store.
//!
//! ```text
//! magic  u8 version  u8 form  u8 includes usage  u8 finish  u32 headers  u32 frames  headers..  frame lengths..  body
//! ```
//!
//! Numbers are little-endian. A header is `u16 name length, u32 value length, name, value`. An object has no frame lengths:
//! its body is one frame. Those of an item are its parts. Nothing is copied to serve it: headers and frames are slices of the buffer.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use tower_llm_core::FinishReason;

use crate::form::Form;

const MAGIC: &[u8; 4] = b"tllm";
/// Of the layout. A record of another version is a miss.
const VERSION: u8 = 2;
const FIXED: usize = 4 + 1 + 1 + 1 + 1 + 4 + 4;

/// Why an answer ended, by its number; the first is none that is known.
const FINISHES: [Option<FinishReason>; 6] = [
    None,
    Some(FinishReason::Stop),
    Some(FinishReason::Length),
    Some(FinishReason::ToolCalls),
    Some(FinishReason::ContentFilter),
    Some(FinishReason::Other),
];

/// One complete answer.
#[derive(Clone)]
pub(crate) struct Record {
    bytes: Bytes,
    form: Form,
    includes_usage: bool,
    finish: Option<FinishReason>,
    headers: u32,
    frames: u32,
    lengths_at: u32,
    body_at: u32,
}

impl Record {
    /// Writes a record; `None` if it is too large, or has ended in a way that has no number.
    pub(crate) fn new(
        form: Form,
        includes_usage: bool,
        finish: Option<FinishReason>,
        headers: &HeaderMap,
        frames: &[Bytes],
    ) -> Option<Self> {
        // An object's frames are where the network cut it; a stream's are where the provider did.
        let lengths = if form == Form::Object {
            &[][..]
        } else {
            frames
        };
        let body: usize = frames.iter().map(Bytes::len).sum();
        let of_headers: usize = headers
            .iter()
            .map(|(name, value)| 6 + name.as_str().len() + value.len())
            .sum();
        let len = FIXED + of_headers + 4 * lengths.len() + body;
        u32::try_from(len).ok()?;
        let mut bytes = BytesMut::with_capacity(len);
        bytes.put_slice(MAGIC);
        bytes.put_u8(VERSION);
        bytes.put_u8(match form {
            Form::Object => 0,
            Form::Events => 1,
            Form::List => 2,
            Form::Item => 3,
        });
        bytes.put_u8(includes_usage.into());
        let number = FINISHES.iter().position(|known| *known == finish)?;
        bytes.put_u8(u8::try_from(number).ok()?);
        bytes.put_u32_le(u32::try_from(headers.len()).ok()?);
        bytes.put_u32_le(u32::try_from(lengths.len()).ok()?);
        for (name, value) in headers {
            bytes.put_u16_le(u16::try_from(name.as_str().len()).ok()?);
            bytes.put_u32_le(u32::try_from(value.len()).ok()?);
            bytes.put_slice(name.as_str().as_bytes());
            bytes.put_slice(value.as_bytes());
        }
        for frame in lengths {
            bytes.put_u32_le(u32::try_from(frame.len()).ok()?);
        }
        for frame in frames {
            bytes.put_slice(frame);
        }
        Self::parse(bytes.freeze())
    }

    /// Reads a record; `None` if it is not whole, or of another version.
    pub(crate) fn parse(bytes: Bytes) -> Option<Self> {
        let mut at = Cursor(&bytes);
        if at.take(4)? != MAGIC || at.take(1)? != [VERSION] {
            return None;
        }
        let form = match at.take(1)? {
            [0] => Form::Object,
            [1] => Form::Events,
            [2] => Form::List,
            [3] => Form::Item,
            _ => return None,
        };
        let includes_usage = at.take(1)? == [1];
        let finish = *FINISHES.get(usize::from(at.take(1)?[0]))?;
        let (headers, frames) = (at.number()?, at.number()?);
        for _ in 0..headers {
            let name = u16::from_le_bytes(at.take(2)?.try_into().ok()?);
            let value = at.number()?;
            HeaderName::from_bytes(at.take(name.into())?).ok()?;
            HeaderValue::from_bytes(at.take(value as usize)?).ok()?;
        }
        let lengths_at = bytes.len() - at.0.len();
        let mut body = 0_usize;
        for _ in 0..frames {
            body = body.checked_add(at.number()? as usize)?;
        }
        if form != Form::Object && body != at.0.len() {
            return None;
        }
        let body_at = bytes.len() - at.0.len();
        Some(Self {
            form,
            includes_usage,
            finish,
            headers,
            frames,
            lengths_at: u32::try_from(lengths_at).ok()?,
            body_at: u32::try_from(body_at).ok()?,
            bytes,
        })
    }

    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// Whether the recorded stream was asked for with `include_usage`.
    pub(crate) fn includes_usage(&self) -> bool {
        self.includes_usage
    }

    /// Why the model ended its answer; `None` if the answer does not say so.
    pub(crate) fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    /// The record as it is stored.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub(crate) fn headers(&self) -> HeaderMap {
        // Room for those that the layer adds.
        let mut headers = HeaderMap::with_capacity(self.headers as usize + 4);
        let mut at = FIXED;
        for _ in 0..self.headers {
            let mut cursor = Cursor(&self.bytes[at..]);
            let (Some(name), Some(value)) = (cursor.short(), cursor.number()) else {
                break;
            };
            let name_at = at + 6;
            let value_at = name_at + name as usize;
            at = value_at + value as usize;
            let name = HeaderName::from_bytes(&self.bytes[name_at..value_at]);
            let value = HeaderValue::from_maybe_shared(self.bytes.slice(value_at..at));
            if let (Ok(name), Ok(value)) = (name, value) {
                headers.append(name, value);
            }
        }
        headers
    }

    pub(crate) fn body_len(&self) -> usize {
        self.bytes.len() - self.body_at as usize
    }

    /// The whole body.
    pub(crate) fn body(&self) -> Bytes {
        self.bytes.slice(self.body_at as usize..)
    }

    /// The frames as they were recorded; an object's body is one.
    pub(crate) fn frames(&self) -> Frames {
        Frames {
            record: self.clone(),
            index: 0,
            offset: 0,
        }
    }

    /// The length of a frame, if the body has that many.
    fn frame_len(&self, index: u32) -> Option<usize> {
        if self.form == Form::Object {
            return (index == 0).then(|| self.body_len());
        }
        if index >= self.frames {
            return None;
        }
        let at = self.lengths_at as usize + 4 * index as usize;
        Some(Cursor(&self.bytes[at..]).number()? as usize)
    }
}

/// Without the answer.
impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("form", &self.form)
            .field("len", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

/// The frames of a record that are yet to be read.
#[derive(Clone, Debug)]
pub(crate) struct Frames {
    record: Record,
    index: u32,
    offset: usize,
}

impl Frames {
    /// The bytes that are left.
    pub(crate) fn left(&self) -> usize {
        self.record.body_len() - self.offset
    }
}

impl Iterator for Frames {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let len = self.record.frame_len(self.index)?;
        self.index += 1;
        let at = self.record.body_at as usize + self.offset;
        self.offset += len;
        Some(self.record.bytes.slice(at..at + len))
    }
}

/// Reads from the front.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn short(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers() -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.append(
            "content-type",
            HeaderValue::from_static("text/event-stream"),
        );
        headers.append("x-two", HeaderValue::from_static("a"));
        headers.append("x-two", HeaderValue::from_bytes(b"\xff").unwrap());
        headers
    }

    fn frames(record: &Record) -> Vec<Bytes> {
        record.frames().collect()
    }

    proptest! {
        #[test]
        fn a_stream_is_read_as_it_was_written(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..20),
            finish in prop::sample::select(FINISHES.to_vec()),
        ) {
            let written: Vec<_> = bodies.into_iter().map(Bytes::from).collect();
            let record = Record::new(Form::Events, true, finish, &headers(), &written).unwrap();
            let read = Record::parse(record.bytes().clone()).unwrap();
            prop_assert_eq!(read.headers(), headers());
            prop_assert_eq!(&frames(&read), &written);
            prop_assert!(read.includes_usage());
            prop_assert_eq!(read.finish(), finish);
        }

        #[test]
        fn a_record_that_is_cut_or_changed_is_no_panic(
            cut in 0_usize..200,
            at in 0_usize..200,
            byte in any::<u8>(),
        ) {
            let frames_written = ["ab".into(), "c".into()];
            let record = Record::new(Form::Events, true, None, &headers(), &frames_written);
            let whole = record.unwrap().bytes().clone();
            prop_assert!(Record::parse(whole.slice(..cut.min(whole.len() - 1))).is_none());
            let mut changed = whole.to_vec();
            let at = at % changed.len();
            changed[at] = byte;
            if let Some(record) = Record::parse(changed.into()) {
                record.headers();
                frames(&record);
            }
        }
    }

    #[test]
    fn an_object_is_one_frame_however_it_came() {
        let parts = ["{\"a\"".into(), ":1}".into()];
        let record = Record::new(Form::Object, false, None, &HeaderMap::new(), &parts).unwrap();
        assert_eq!(frames(&record), ["{\"a\":1}"]);
        assert_eq!(record.body_len(), 7);
    }

    #[test]
    fn a_record_of_another_version_is_none() {
        let frames = ["{}".into()];
        let record = Record::new(Form::Object, false, None, &HeaderMap::new(), &frames).unwrap();
        let mut later = record.bytes().to_vec();
        later[4] += 1;
        assert!(Record::parse(later.into()).is_none());
    }
}
