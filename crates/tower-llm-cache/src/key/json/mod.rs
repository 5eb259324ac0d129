//! A body as a tree whose objects are sorted.
//!
//! `serde_json` would lose digits: it gives integers above 64 bits as doubles, and what it gives for a number at all depends on
//! features that any other crate of the build may enable. This reader takes exactly the same texts (a test compares the two),
//! hands on numbers as they are written, and refuses duplicate members, which `serde_json` leaves to each visitor.
//!
//! Members are sorted by name, so that their order does not matter, and numbered as they are written, for where it does.
//!
//! Values are places in the body, so the tree borrows nothing, and a thread can reuse its memory.

mod number;
mod parse;

use self::number::Decimal;
use super::{buffer::Buffer, bypass::Bypass};

/// The memory of a tree.
#[derive(Debug, Default)]
pub(super) struct Arena {
    /// The children of all arrays and objects; those of one are neighbours.
    entries: Vec<Entry>,
    /// Children of what is still being read.
    pending: Vec<Entry>,
    /// Strings with escapes, decoded.
    decoded: String,
}

/// A tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Json<'a> {
    body: &'a str,
    arena: &'a Arena,
}

/// A value in a tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node<'a> {
    json: Json<'a>,
    value: Value,
}

/// What a value is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape<'a> {
    Null,
    Bool(bool),
    Number(Number<'a>),
    String(&'a str),
    Array(Children<'a>),
    Object(Children<'a>),
}

/// A number as it is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number<'a>(&'a str);

/// The elements of an array, or the members of an object in the order of their names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Children<'a> {
    json: Json<'a>,
    entries: &'a [Entry],
}

/// A child: the name of an element is empty.
#[derive(Clone, Copy, Debug)]
struct Entry {
    name: Name,
    value: Value,
}

/// The name of a member, and its number as members are written.
#[derive(Clone, Copy, Debug)]
struct Name {
    span: Span,
    /// Twice the number, and one more if the name is in [`Arena::decoded`]. A body of 4 GiB has no 2^31 members.
    number_and_kind: u32,
}

#[derive(Clone, Copy, Debug)]
enum Value {
    Null,
    False,
    True,
    Number(Span),
    String(Text),
    Array(Span),
    Object(Span),
}

// Tags as wide as what follows them, and nothing of one byte beside it, in errors neither: values are then copied word by
// word. Otherwise they are copied in pieces that overlap, and each copy waits for the one before.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
enum Text {
    /// In the body.
    Plain(Span),
    /// In [`Arena::decoded`].
    Decoded(Span),
}

/// A range that takes half the memory of one: a body of numbers becomes ten times as large as a tree.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    len: u32,
}

const _: () = assert!(size_of::<Entry>() == 24);

// === impl Arena ===

impl Arena {
    /// Reads a body.
    pub(super) fn read<'a>(&'a mut self, body: &'a [u8]) -> Result<Node<'a>, Bypass> {
        let body = std::str::from_utf8(body).map_err(|_| Bypass::NotJson)?;
        self.entries.clear();
        self.pending.clear();
        self.decoded.clear();
        let value = parse::document(body, self)?;
        let json = Json { body, arena: self };
        Ok(Node { json, value })
    }

    pub(super) fn memory_bytes(&self) -> usize {
        (self.entries.capacity() + self.pending.capacity()) * size_of::<Entry>()
            + self.decoded.capacity()
    }
}

// === impl Json ===

impl<'a> Json<'a> {
    fn text(self, text: Text) -> &'a str {
        match text {
            Text::Plain(span) => span.of(self.body),
            Text::Decoded(span) => span.of(&self.arena.decoded),
        }
    }

    fn children(self, span: Span) -> Children<'a> {
        let (start, len) = (span.start as usize, span.len as usize);
        Children {
            json: self,
            entries: &self.arena.entries[start..start + len],
        }
    }

    fn node(self, entry: &Entry) -> Node<'a> {
        Node {
            json: self,
            value: entry.value,
        }
    }
}

// === impl Node ===

impl<'a> Node<'a> {
    pub(super) fn shape(self) -> Shape<'a> {
        let json = self.json;
        match self.value {
            Value::Null => Shape::Null,
            Value::False => Shape::Bool(false),
            Value::True => Shape::Bool(true),
            Value::Number(span) => Shape::Number(Number(span.of(json.body))),
            Value::String(text) => Shape::String(json.text(text)),
            Value::Array(span) => Shape::Array(json.children(span)),
            Value::Object(span) => Shape::Object(json.children(span)),
        }
    }

    /// Returns the member, if this is an object that has it.
    pub(super) fn get(self, name: &str) -> Option<Self> {
        let Shape::Object(members) = self.shape() else {
            return None;
        };
        let json = self.json;
        let found = members
            .entries
            .binary_search_by(|entry| json.text(entry.name.text()).cmp(name));
        found.ok().map(|at| json.node(&members.entries[at]))
    }

    /// Returns the elements, none if this is no array.
    pub(super) fn elements(self) -> impl Iterator<Item = Self> {
        let children = match self.shape() {
            Shape::Array(children) => Some(children),
            _ => None,
        };
        children.into_iter().flat_map(Children::values)
    }

    pub(super) fn as_str(self) -> Option<&'a str> {
        match self.shape() {
            Shape::String(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn is_object(self) -> bool {
        matches!(self.value, Value::Object(_))
    }

    pub(super) fn is_null(self) -> bool {
        matches!(self.value, Value::Null)
    }

    pub(super) fn is_bool(self, value: bool) -> bool {
        matches!(self.shape(), Shape::Bool(other) if other == value)
    }
}

// === impl Number ===

impl Number<'_> {
    /// As a number of things, cut down to what fits.
    pub(super) fn as_count(self) -> u64 {
        let float = || self.0.parse::<f64>().unwrap_or_default() as u64;
        self.0.parse().unwrap_or_else(|_| float())
    }

    pub(super) fn is_zero(self) -> bool {
        Decimal::read(self.0).is_zero()
    }

    pub(super) fn write(self, out: &mut Buffer) {
        Decimal::read(self.0).write(out);
    }
}

// === impl Children ===

impl<'a> Children<'a> {
    pub(super) fn members(self) -> impl Iterator<Item = (&'a str, Node<'a>)> {
        let json = self.json;
        let named = move |entry: &Entry| (json.text(entry.name.text()), json.node(entry));
        self.entries.iter().map(named)
    }

    /// Returns the members, each with its number in the body.
    pub(super) fn numbered_members(self) -> impl Iterator<Item = (u32, &'a str, Node<'a>)> {
        let numbers = self.entries.iter().map(|entry| entry.name.number());
        let members = numbers.zip(self.members());
        members.map(|(number, (name, value))| (number, name, value))
    }

    pub(super) fn values(self) -> impl Iterator<Item = Node<'a>> {
        let json = self.json;
        self.entries.iter().map(move |entry| json.node(entry))
    }

    pub(super) fn is_empty(self) -> bool {
        self.entries.is_empty()
    }
}

// === impl Name ===

impl Name {
    const NONE: Self = Self {
        span: Span::EMPTY,
        number_and_kind: 0,
    };

    fn new(text: Text, number: usize) -> Result<Self, Bypass> {
        let (span, kind) = match text {
            Text::Plain(span) => (span, 0),
            Text::Decoded(span) => (span, 1),
        };
        let number_and_kind = u32::try_from(number << 1 | kind).map_err(|_| Bypass::NotJson)?;
        Ok(Self {
            span,
            number_and_kind,
        })
    }

    fn text(self) -> Text {
        match self.number_and_kind & 1 {
            0 => Text::Plain(self.span),
            _ => Text::Decoded(self.span),
        }
    }

    fn number(self) -> u32 {
        self.number_and_kind >> 1
    }
}

// === impl Span ===

impl Span {
    const EMPTY: Self = Self { start: 0, len: 0 };

    fn new(start: usize, end: usize) -> Result<Self, Bypass> {
        let small = |number| u32::try_from(number).map_err(|_| Bypass::NotJson);
        Ok(Self {
            start: small(start)?,
            len: small(end - start)?,
        })
    }

    fn of(self, text: &str) -> &str {
        let start = self.start as usize;
        &text[start..start + self.len as usize]
    }
}

#[cfg(test)]
mod tests;
