//! The events of a complete event stream.
//!
//! Source: WHATWG HTML, section 9.2.6, "Interpreting an event stream". One rule is wider: an event that the end of the
//! stream cuts before its blank line counts, because providers are seen to leave that line out.

use std::{borrow::Cow, ops::Range};

use bytes::Bytes;
use serde_json::Value;

/// An event, or what stands between two blank lines without being one.
#[derive(Debug, Default)]
pub(super) struct Event<'a> {
    /// Where it lies in the stream, blank line included.
    pub(super) range: Range<usize>,
    /// The data, if there is any.
    pub(super) data: Option<Cow<'a, [u8]>>,
    /// It has a line that no provider sends in a good stream: a field of another name, where some servers report errors, or
    /// `event: error`.
    pub(super) is_suspect: bool,
}

/// Cuts a stream behind each blank line.
pub(super) fn split(stream: &[u8]) -> Vec<Event<'_>> {
    let mut events = Vec::new();
    let mut event = Event::default();
    let mut at = if stream.starts_with("\u{feff}".as_bytes()) {
        3
    } else {
        0
    };
    while at < stream.len() {
        let (line, next) = line(stream, at);
        at = next;
        event.range.end = at;
        if line.is_empty() {
            events.push(event);
            event = Event {
                range: at..at,
                ..Event::default()
            };
        } else {
            event.read(line);
        }
    }
    if !event.range.is_empty() {
        events.push(event);
    }
    events
}

/// The line that begins at `from`, and where the next one begins.
fn line(stream: &[u8], from: usize) -> (&[u8], usize) {
    let rest = &stream[from..];
    let Some(end) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
        return (rest, stream.len());
    };
    let ending = if rest[end..].starts_with(b"\r\n") {
        2
    } else {
        1
    };
    (&rest[..end], from + end + ending)
}

impl<'a> Event<'a> {
    fn read(&mut self, line: &'a [u8]) {
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = match colon {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (line, &line[line.len()..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => match &mut self.data {
                None => self.data = Some(Cow::Borrowed(value)),
                Some(data) => {
                    let data = data.to_mut();
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
            },
            b"event" => self.is_suspect |= value == b"error",
            b"" | b"id" | b"retry" => {}
            _ => self.is_suspect = true,
        }
    }
}

/// The data of all events; `None` if anything else than an event is in the stream.
pub(super) fn data(stream: &[u8]) -> Option<Vec<Cow<'_, [u8]>>> {
    let events = split(stream);
    let is_clean = events.iter().all(|event| !event.is_suspect);
    is_clean.then(|| events.into_iter().filter_map(|event| event.data).collect())
}

/// An event without a name.
pub(super) fn unnamed(data: &Value) -> Bytes {
    Bytes::from(format!("data: {data}\n\n"))
}

/// An event with a name.
pub(super) fn named(name: &str, data: &Value) -> Bytes {
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data_of(stream: &str) -> Vec<String> {
        let events = split(stream.as_bytes()).into_iter();
        events
            .filter_map(|event| event.data)
            .map(|data| String::from_utf8(data.into_owned()).unwrap())
            .collect()
    }

    #[test]
    fn lines_end_in_any_of_three_ways() {
        for end in ["\n", "\r", "\r\n"] {
            let stream =
                "\u{feff}: hello|data: a||data:b|id: 1|data: c|||event: x|data|".replace('|', end);
            assert_eq!(data_of(&stream), ["a", "b\nc", ""], "{end:?}");
        }
    }

    #[test]
    fn the_last_event_needs_no_blank_line() {
        assert_eq!(data_of("data: a\n\ndata: b"), ["a", "b"]);
    }

    #[test]
    fn ranges_cover_the_stream_without_a_gap() {
        let stream = "data: a\r\n\r\n: x\n\n\ndata: b\rdata: c\r\rdata: d";
        let events = split(stream.as_bytes());
        let ends: Vec<usize> = events.iter().map(|event| event.range.end).collect();
        let starts: Vec<usize> = events.iter().map(|event| event.range.start).collect();
        assert_eq!(starts[0], 0);
        assert_eq!(starts[1..], ends[..ends.len() - 1]);
        assert_eq!(ends.last(), Some(&stream.len()));
    }

    #[test]
    fn errors_outside_of_data_are_suspect() {
        for stream in [
            "error: {}\n\n",
            "{\"error\":{}}\n",
            "event: error\ndata: {}\n\n",
        ] {
            assert_eq!(data(stream.as_bytes()), None, "{stream}");
        }
        assert!(data(b": ping\n\nevent: ping\ndata: {}\n\nretry: 5\n\n").is_some());
    }
}
