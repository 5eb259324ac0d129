//! Lines of an event stream, cut wherever the network likes.
//!
//! What the specification allows is taken: lines that end with LF, CR or CRLF, comments, a value with or without a
//! space before it, data over several lines, several events in a frame and an event over several frames. An event
//! that the end of the stream cuts before its blank line counts too: providers are seen to leave it out.
//!
//! Source: WHATWG HTML, section 9.2.6, "Interpreting an event stream".

use super::{
    beginning::Beginning,
    fields::{Facts, Place},
    json::Json,
};

/// Longest field name that is told apart, with its colon.
const LONGEST_NAME: usize = 6;

#[derive(Debug)]
pub(super) struct Sse {
    json: Json<Place>,
    beginning: Beginning,
    line: Line,
    /// The last line ended with CR: an LF that follows belongs to it.
    after_cr: bool,
    /// The event has data.
    in_event: bool,
    /// How much of a byte order mark the stream began with; `None` once it has begun with something else.
    mark: Option<usize>,
}

/// Where in a line the reader is.
#[derive(Clone, Copy, Debug)]
enum Line {
    /// In the field's name, of which this much came.
    Name {
        name: [u8; LONGEST_NAME],
        len: usize,
    },
    /// Before the value, where one space is not part of it.
    Space(Field),
    Value(Field),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Data,
    /// The event's name, of which this much agrees with `error`; `None` once it does not.
    Event(Option<usize>),
    /// A comment, or a field that means nothing here.
    Other,
}

/// Which part of a line came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Its end, or all of it.
    Last,
    /// One that more may follow.
    Open,
}

const START: Line = Line::Name {
    name: [0; LONGEST_NAME],
    len: 0,
};

const ERROR: &[u8] = b"error";

const MARK: &[u8] = "\u{feff}".as_bytes();

impl Sse {
    pub(super) fn new() -> Self {
        Self {
            json: Json::new(Place::Root),
            beginning: Beginning::new(),
            line: START,
            after_cr: false,
            in_event: false,
            mark: Some(0),
        }
    }

    pub(super) fn feed(&mut self, piece: &[u8], facts: &mut Facts) {
        let mut rest = self.skip_mark(piece);
        if self.after_cr && !rest.is_empty() {
            self.after_cr = false;
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        while !rest.is_empty() {
            // Every event ends with an empty line, which needs no search.
            let end = match rest[0] {
                b'\n' => Some(0),
                _ => memchr::memchr2(b'\n', b'\r', rest),
            };
            let Some(end) = end else {
                self.part_of_line(rest, Part::Open, facts);
                return;
            };
            self.part_of_line(&rest[..end], Part::Last, facts);
            self.end_of_line(facts);
            let ended_by = rest[end];
            rest = &rest[end + 1..];
            if ended_by == b'\r' {
                self.after_cr = rest.is_empty();
                rest = rest.strip_prefix(b"\n").unwrap_or(rest);
            }
        }
    }

    /// A byte order mark before the first line is no part of it.
    fn skip_mark<'a>(&mut self, mut piece: &'a [u8]) -> &'a [u8] {
        while let (Some(seen), Some((byte, rest))) = (self.mark, piece.split_first()) {
            self.mark = (MARK.get(seen) == Some(byte)).then_some(seen + 1);
            if self.mark.is_some() {
                piece = rest;
            }
        }
        piece
    }

    fn part_of_line(&mut self, mut part: &[u8], which: Part, facts: &mut Facts) {
        if let Line::Name { mut name, mut len } = self.line {
            // Nearly every line of a stream starts in one of two ways, and whole.
            if let (0, Some(value)) = (len, part.strip_prefix(b"data: ")) {
                self.line = Line::Value(Field::Data);
                part = value;
            } else if let (0, Some(value)) = (len, part.strip_prefix(b"event: ")) {
                self.line = Line::Value(Field::Event(Some(0)));
                part = value;
            } else {
                while let Some((&byte, rest)) = part.split_first() {
                    part = rest;
                    if len < LONGEST_NAME {
                        name[len] = byte;
                    }
                    len = (len + 1).min(LONGEST_NAME + 1);
                    if byte == b':' {
                        let field = Field::named(name.get(..len).unwrap_or_default());
                        self.line = Line::Space(field);
                        break;
                    }
                    self.line = Line::Name { name, len };
                }
            }
        }
        if part.is_empty() {
            return;
        }
        if let Line::Space(field) = self.line {
            self.line = Line::Value(field);
            part = part.strip_prefix(b" ").unwrap_or(part);
        }
        if let Line::Value(field) = &mut self.line {
            match field {
                Field::Data if !self.in_event && which == Part::Last => {
                    self.in_event = true;
                    self.beginning.feed(part, &mut self.json, facts);
                }
                Field::Data => {
                    self.in_event = true;
                    self.json.feed(part, facts);
                }
                Field::Event(agreed) => {
                    *agreed = agreed
                        .filter(|&agreed| ERROR[agreed..].starts_with(part))
                        .map(|agreed| agreed + part.len());
                }
                Field::Other => {}
            }
        }
    }

    fn end_of_line(&mut self, facts: &mut Facts) {
        match self.line {
            Line::Name { len: 0, .. } => self.end_of_event(facts),
            Line::Value(Field::Event(Some(agreed))) if agreed == ERROR.len() => {
                facts.note_error();
            }
            // The line's end is white space to JSON: it ends a number or a word.
            Line::Value(Field::Data) => self.json.feed(b"\n", facts),
            _ => {}
        }
        self.line = START;
    }

    fn end_of_event(&mut self, facts: &mut Facts) {
        if self.in_event {
            self.in_event = false;
            self.json.reset();
            facts.note_unknown_event();
        }
    }
}

impl Field {
    /// The field whose name, with its colon, is `name`.
    fn named(name: &[u8]) -> Self {
        match name {
            b"data:" => Self::Data,
            b"event:" => Self::Event(Some(0)),
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Usage, scan::fields::ErrorKind};

    /// What is found in `stream`, which must be the same when it comes byte by byte.
    fn read(stream: &str) -> Facts {
        let mut whole = Facts::default();
        Sse::new().feed(stream.as_bytes(), &mut whole);
        let mut by_bytes = Facts::default();
        let mut sse = Sse::new();
        for byte in stream.as_bytes().chunks(1) {
            sse.feed(byte, &mut by_bytes);
        }
        assert_eq!(format!("{by_bytes:?}"), format!("{whole:?}"), "{stream:?}");
        whole
    }

    #[test]
    fn only_data_is_read() {
        const USAGE: &str = r#"{"usage":{"input_tokens":3,"output_tokens":4}}"#;
        for name in [
            "data:",
            "data: ",
            ": comment\ndata:",
            "id: 1\r\ndata: ",
            "\n\ndata: ",
        ] {
            let facts = read(&format!("{name}{USAGE}\n\n"));
            assert_eq!(facts.usage(), Some(Usage::new(3, 4)), "{name:?}");
        }
        for name in [
            "data", "datum: ", "xdata: ", " data: ", ": data: ", ":", "", "data ", "DATA: ",
        ] {
            let facts = read(&format!("{name}{USAGE}\n\n"));
            assert_eq!(facts.usage(), None, "{name:?}");
        }
    }

    #[test]
    fn only_the_event_error_is_one() {
        for line in [
            "event: error\n",
            "event:error\n",
            "event: error\r",
            "event: error\r\n",
        ] {
            let error = read(line).error.expect(line);
            assert_eq!(error.kind, ErrorKind::Unknown);
        }
        for line in [
            "event: errors\n",
            "event: err\n",
            "event:  error\n",
            "event: \n",
            "event:\n",
            "event\n",
            "id: error\n",
        ] {
            assert_eq!(read(line).error, None, "{line:?}");
        }
    }

    #[test]
    fn an_event_that_was_cut_does_not_spoil_the_next() {
        let facts = read("data: {\"usage\":[{\"a\n\ndata: {\"usage\":{\"output_tokens\":4}}\n\n");
        assert_eq!(facts.usage(), Some(Usage::new(0, 4)));
    }
}
