//! Reads the lines of an event stream, cut anywhere.
//!
//! It accepts what the specification allows: lines that end with LF, CR or CRLF, comments, a value with or without a space
//! before it, data over several lines, several events in a frame and an event over several frames. The last event counts
//! even without its blank line, because some providers leave it out.
//!
//! It also accepts what some servers send to report an error, although the specification does not allow it: a field named
//! `error`, and JSON without a field.
//!
//! Source: WHATWG HTML, section 9.2.6, "Interpreting an event stream".

use super::{facts::Facts, json::Json, place::Place, shared_prefix::SharedPrefix};

/// Longest known field name, with its colon.
const LONGEST_NAME: usize = 6;

#[derive(Debug)]
pub(super) struct Sse {
    json: Json<Place>,
    prefix: SharedPrefix,
    line: Line,
    /// The last line ended with CR: an LF that follows belongs to it.
    after_cr: bool,
    /// The event has data.
    in_event: bool,
    /// The current JSON is the value of a field `error`.
    in_error: bool,
    /// The event is named `error`.
    names_error: bool,
    /// This line of unframed JSON is empty so far.
    is_blank: bool,
    /// How much of a byte order mark the stream began with; `None` once it has begun with something else.
    mark: Option<usize>,
}

/// Where in a line the reader is.
#[derive(Clone, Copy, Debug)]
enum Line {
    /// In the field's name, of which this much has arrived.
    Name {
        name: [u8; LONGEST_NAME],
        len: usize,
    },
    /// Before the value, where one space is not part of it.
    Space(Field),
    Value(Field),
    /// In JSON without a field's name, over as many lines as it takes.
    Unframed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Data,
    /// An error, in a field of its own.
    Error,
    /// The event's name, of which this much agrees with `error`; `None` once it does not.
    Event(Option<usize>),
    /// A comment, or a field that means nothing here.
    Other,
}

/// Which part of a line has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Its end, or all of it.
    Last,
    /// A part that more may follow.
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
            prefix: SharedPrefix::new(),
            line: START,
            after_cr: false,
            in_event: false,
            in_error: false,
            names_error: false,
            is_blank: false,
            mark: Some(0),
        }
    }

    /// Whether the data of an event has begun, or was announced, and has not arrived whole.
    pub(super) fn is_in_data(&self) -> bool {
        let is_announced = match self.line {
            Line::Value(Field::Error) => !self.json.is_complete(),
            _ => self.names_error && !self.in_event,
        };
        is_announced || self.json.is_open()
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

    /// A byte order mark before the first line is not part of it.
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
        match self.line {
            Line::Name { name, len } => part = self.field_name(part, name, len, facts),
            Line::Unframed => {
                self.is_blank &= part.is_empty();
                self.json.feed(part, facts);
                return;
            }
            Line::Space(_) | Line::Value(_) => {}
        }
        if part.is_empty() {
            return;
        }
        if let Line::Space(field) = self.line {
            self.begin_value(field, facts);
            part = part.strip_prefix(b" ").unwrap_or(part);
            // A value that is empty so far is not content, in however many pieces it arrives.
            if part.is_empty() {
                return;
            }
        }
        if let Line::Value(field) = &mut self.line {
            match field {
                Field::Data if !self.in_event && which == Part::Last => {
                    self.in_event = true;
                    self.prefix.feed(part, &mut self.json, facts);
                }
                Field::Data => {
                    self.in_event = true;
                    self.json.feed(part, facts);
                }
                Field::Error => self.json.feed(part, facts),
                Field::Event(agreed) => {
                    *agreed = agreed
                        .filter(|&agreed| ERROR[agreed..].starts_with(part))
                        .map(|agreed| agreed + part.len());
                }
                Field::Other => {}
            }
        }
    }

    /// Reads the name of a line's field, of which `len` bytes have arrived, and returns what follows it in `part`.
    #[inline]
    fn field_name<'a>(
        &mut self,
        mut part: &'a [u8],
        mut name: [u8; LONGEST_NAME],
        mut len: usize,
        facts: &mut Facts,
    ) -> &'a [u8] {
        if len == 0 {
            // Nearly every line of a stream starts in one of two ways, and whole.
            if let Some(value) = part.strip_prefix(b"data: ") {
                self.begin_value(Field::Data, facts);
                return value;
            }
            if let Some(value) = part.strip_prefix(b"event: ") {
                self.line = Line::Value(Field::Event(Some(0)));
                return value;
            }
            if let Some(b'{' | b'[') = part.first() {
                self.begin_unframed(facts);
                self.json.feed(part, facts);
                return &[];
            }
        }
        while let Some((&byte, rest)) = part.split_first() {
            part = rest;
            if len < LONGEST_NAME {
                name[len] = byte;
            }
            len = (len + 1).min(LONGEST_NAME + 1);
            if byte == b':' {
                let field = Field::named(name.get(..len).unwrap_or_default());
                self.line = Line::Space(field);
                return part;
            }
            self.line = Line::Name { name, len };
        }
        part
    }

    /// The event before it, which was cut, is over.
    fn begin_unframed(&mut self, facts: &mut Facts) {
        self.end_of_event(facts);
        self.line = Line::Unframed;
        self.in_event = true;
        self.is_blank = false;
    }

    #[inline]
    fn begin_value(&mut self, field: Field, facts: &mut Facts) {
        self.line = Line::Value(field);
        if field == Field::Error {
            self.json.reset_at(Place::Error);
            facts.note_error();
            self.in_event = true;
            self.in_error = true;
        } else if field == Field::Data && self.in_error {
            self.json.reset_at(Place::Root);
            self.in_error = false;
        }
    }

    fn end_of_line(&mut self, facts: &mut Facts) {
        match self.line {
            // It continues until it is complete. A blank line ends it too: otherwise JSON that never is complete would
            // swallow the stream.
            Line::Unframed if self.json.is_open() && !self.is_blank => {
                self.json.feed(b"\n", facts);
                self.is_blank = true;
                return;
            }
            Line::Unframed => self.end_of_event(facts),
            Line::Name { len: 0, .. } => self.end_of_event(facts),
            Line::Value(Field::Event(Some(agreed))) if agreed == ERROR.len() => {
                facts.note_error();
                self.names_error = true;
            }
            // The line's end is white space to JSON: it ends a number or a word.
            Line::Value(Field::Data | Field::Error) => self.json.feed(b"\n", facts),
            _ => {}
        }
        self.line = START;
    }

    fn end_of_event(&mut self, facts: &mut Facts) {
        self.names_error = false;
        if self.in_event {
            self.in_event = false;
            self.in_error = false;
            self.json.reset_at(Place::Root);
            facts.end_event();
        }
    }
}

impl Field {
    /// The field whose name, with its colon, is `name`.
    fn named(name: &[u8]) -> Self {
        match name {
            b"data:" => Self::Data,
            b"error:" => Self::Error,
            b"event:" => Self::Event(Some(0)),
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Failure, Outcome, Usage};

    /// What lines of an event stream are made of, and what they should not be.
    fn fragment() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "data",
            "data:",
            "data: ",
            "data:  ",
            "event",
            "event:",
            "event: error",
            "error:",
            "error: ",
            ":",
            ": x",
            "id: 1",
            "retry",
            " ",
            "\n",
            "\r",
            "\r\n",
            "\n\n",
            "\r\r",
            "{",
            "}",
            "[",
            "[DONE]",
            "{}",
            "\"",
            "400",
            "x",
            "\u{feff}",
            "{\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}",
            "{\"error\":{\"code\":400}}",
            "{\"usage\":{\"input_tokens\":3}}",
            "{\"type\":\"message_stop\"}",
        ])
    }

    proptest! {
        // Such as `data: ` ended by CR CR, which was content if it came byte by byte.
        #[test]
        fn no_bytes_are_read_otherwise_for_where_they_are_cut(
            fragments in prop::collection::vec(fragment(), 0..24),
            lengths in prop::collection::vec(0_usize..7, 0..40),
        ) {
            let stream = fragments.concat();
            let whole = read(&stream);
            let mut rest = stream.as_bytes();
            let mut pieces = Facts::default();
            let mut sse = Sse::new();
            for length in lengths {
                let (piece, after) = rest.split_at(length.min(rest.len()));
                sse.feed(piece, &mut pieces);
                rest = after;
            }
            sse.feed(rest, &mut pieces);
            prop_assert_eq!(format!("{pieces:?}"), format!("{whole:?}"), "{:?}", stream);
        }
    }

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
            "data", "datum: ", "xdata: ", " data: ", ": data: ", ":", "data ", "DATA: ",
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
            let facts = read(line);
            let verdict = facts.error().expect(line).in_band(facts.hint());
            assert_eq!(verdict.outcome, Outcome::Failed(Failure::InBand));
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
            assert_eq!(read(line).error(), None, "{line:?}");
        }
    }

    #[test]
    fn an_error_is_read_where_no_event_stream_may_have_one() {
        for stream in [
            "error: {\"code\": 400, \"message\": \"too long\"}\n\n",
            "error:{\"code\":400}\ndata: {\"choices\":[]}\n\n",
            "data: {\"choices\":[]}\nerror: {\"code\":400}\n\n",
            "{\"error\": {\"code\": 400}}",
            "{\n  \"error\": {\n    \"code\": 400\n  }\n}\n",
            "data: {\"choices\":[]}\n\n{\"error\": {\"code\": 400}}\n",
            "data: {\"choices\":[{\"del\n{\"error\": {\"code\": 400}}\n\ndata: [DONE]\n\n",
            "event: error\ndata: 400\n\n",
            "event: error\ndata: {\"code\": 400}\n\n",
        ] {
            let facts = read(stream);
            let verdict = facts.error().expect(stream).in_band(facts.hint());
            assert_eq!(verdict.outcome, Outcome::ClientError, "{stream:?}");
        }
    }

    #[test]
    fn json_without_a_field_does_not_swallow_what_follows_it() {
        const USAGE: &str = "data: {\"usage\":{\"input_tokens\":3,\"output_tokens\":4}}\n\n";
        for unframed in [
            "{\"a\":1}\n",
            "{\"a\":\n\n",
            "{\n\"a\": [\n1\n]}\n",
            "[1, 2]\n\n",
        ] {
            let facts = read(&format!("{unframed}{USAGE}"));
            assert_eq!(facts.usage(), Some(Usage::new(3, 4)), "{unframed:?}");
        }
    }

    #[test]
    fn a_value_that_is_empty_is_no_content() {
        for value in [
            "data:",
            "data: ",
            "data",
            "data: \ndata:",
            "event: \ndata: ",
        ] {
            for end in ["\n\n", "\r\r", "\r\n\r\n"] {
                let facts = read(&format!("{value}{end}"));
                assert!(!facts.has_output, "{value:?}{end:?}");
            }
        }
        assert!(read("data: x\r\r").has_output);
    }

    #[test]
    fn an_event_that_was_cut_does_not_spoil_the_next() {
        let facts = read("data: {\"usage\":[{\"a\n\ndata: {\"usage\":{\"output_tokens\":4}}\n\n");
        assert_eq!(facts.usage(), Some(Usage::new(0, 4)));
    }
}
