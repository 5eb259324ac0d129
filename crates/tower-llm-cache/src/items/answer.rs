//! Answers, taken apart by item and put together.

use std::io::Write as _;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, header::CONTENT_TYPE};

use super::{json::Document, usage};
use crate::{flight::Recorded, form::Form, record::Record};

/// The answer to one item: a document that has no other item.
///
/// ```text
/// {"object":"list","model":"m","data":[{"index":0    ,"embedding":[..]}    ],"usage":{..}}
/// ```
#[derive(Clone, Debug)]
pub(crate) struct ItemAnswer {
    record: Record,
    /// Up to the index, which is 0.
    open: Bytes,
    /// What follows the index in the item.
    rest: Bytes,
    /// What follows the item.
    close: Bytes,
}

/// The answer to all items of one call, in the order in which they were sent.
#[derive(Debug)]
pub(crate) struct Answers {
    pub(super) items: Vec<ItemAnswer>,
    /// What the call has used, as the provider writes it.
    pub(super) usage: Option<String>,
}

impl ItemAnswer {
    /// Reads a record; `None` if it is not that of an item.
    pub(super) fn read(record: &Record) -> Option<Self> {
        let mut frames = record.frames();
        let answer = Self {
            record: record.clone(),
            open: frames.next()?,
            rest: frames.next()?,
            close: frames.next()?,
        };
        (record.form() == Form::Item && frames.next().is_none()).then_some(answer)
    }

    pub(super) fn record(&self) -> &Record {
        &self.record
    }
}

impl Answers {
    /// Takes apart an answer to `sent` items; `None` unless it has one vector for each of them.
    pub(super) fn split(answer: &Recorded, sent: usize) -> Option<Self> {
        let body = match &answer.frames[..] {
            [whole] => whole.clone(),
            parts => parts.concat().into(),
        };
        let document: Document<'_> = serde_json::from_slice(&body).ok()?;
        if document.data.len() != sent {
            return None;
        }
        let usage = document.members.get("usage");
        let mut open = vec![b'{'];
        document.members.write_without("usage", &mut open);
        if open.len() > 1 {
            open.push(b',');
        }
        open.extend_from_slice(b"\"data\":[{\"index\":0");
        let mut close = vec![b']'];
        if let Some(usage) = usage {
            close.extend_from_slice(b",\"usage\":");
            close.extend_from_slice(usage::zero(usage)?.as_bytes());
        }
        close.push(b'}');
        let (open, close) = (Bytes::from(open), Bytes::from(close));

        let headers = of_an_item(&answer.head.headers);
        let mut items = vec![None; sent];
        let mut rest = Vec::new();
        for item in &document.data {
            let index: usize = item.get("index")?.parse().ok()?;
            let vector = item.get("embedding")?;
            let is_vector =
                vector.starts_with('"') || vector.starts_with('[') && has_elements(vector);
            let place = items.get_mut(index).filter(|place| place.is_none())?;
            if !is_vector {
                return None;
            }
            rest.clear();
            rest.push(b',');
            item.write_without("index", &mut rest);
            rest.push(b'}');
            let parts = [open.clone(), Bytes::copy_from_slice(&rest), close.clone()];
            let record = Record::new(Form::Item, false, None, &headers, &parts)?;
            *place = Some(ItemAnswer::read(&record)?);
        }
        Some(Self {
            items: items.into_iter().collect::<Option<_>>()?,
            usage: usage.map(str::to_owned),
        })
    }
}

fn has_elements(array: &str) -> bool {
    array[1..].trim_start() != "]"
}

/// The headers that an item keeps; the others are about the call that it was a part of.
fn of_an_item(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::with_capacity(1);
    if let Some(kind) = headers.get(CONTENT_TYPE) {
        kept.insert(CONTENT_TYPE, kind.clone());
    }
    kept
}

/// The body of the answer to several items: `envelope`'s, with the vectors of `items` in their order. `usage` takes the place
/// of what the envelope says of it.
pub(super) fn merge<'a>(
    envelope: &ItemAnswer,
    items: impl ExactSizeIterator<Item = &'a ItemAnswer>,
    usage: Option<&str>,
) -> Vec<Bytes> {
    let mut frames = Vec::with_capacity(2 * items.len() + 1);
    // All that is written here, in one allocation.
    let mut written = BytesMut::with_capacity(20 * items.len() + usage.map_or(0, str::len) + 16);
    for (index, item) in items.enumerate() {
        if index == 0 {
            frames.push(envelope.open.clone());
        } else {
            // Writing into memory does not fail.
            let _ = write!((&mut written).writer(), ",{{\"index\":{index}");
            frames.push(written.split().freeze());
        }
        frames.push(item.rest.clone());
    }
    frames.push(match usage {
        None => envelope.close.clone(),
        Some(usage) => {
            written.put_slice(b"],\"usage\":");
            written.put_slice(usage.as_bytes());
            written.put_slice(b"}");
            written.freeze()
        }
    });
    frames
}
