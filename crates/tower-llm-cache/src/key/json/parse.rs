//! RFC 8259, strictly.

use super::{Arena, Entry, Name, Span, Text, Value};
use crate::key::bypass::Bypass;

/// As deep as `serde_json` goes.
const MAX_DEPTH: usize = 127;

/// An exponent of more digits is none that a provider would take.
const MAX_EXPONENT_DIGITS: usize = 9;

/// Reads a text that is one value.
pub(super) fn document(body: &str, arena: &mut Arena) -> Result<Value, Bypass> {
    let mut parser = Parser {
        text: body,
        bytes: body.as_bytes(),
        at: 0,
        arena,
    };
    let value = parser.value(0)?;
    match parser.next_token() {
        None => Ok(value),
        Some(_) => Err(Bypass::NotJson),
    }
}

struct Parser<'p> {
    text: &'p str,
    bytes: &'p [u8],
    at: usize,
    arena: &'p mut Arena,
}

impl Parser<'_> {
    fn value(&mut self, depth: usize) -> Result<Value, Bypass> {
        match self.next_token().ok_or(Bypass::NotJson)? {
            b'"' => Ok(Value::String(self.string()?)),
            b'{' => self.object(depth + 1),
            b'[' => self.array(depth + 1),
            b'-' | b'0'..=b'9' => self.number(),
            b't' => self.literal("true", Value::True),
            b'f' => self.literal("false", Value::False),
            b'n' => self.literal("null", Value::Null),
            _ => Err(Bypass::NotJson),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, Bypass> {
        let first = self.open(depth)?;
        let mut token = self.next_token();
        if token == Some(b'}') {
            self.at += 1;
            return Ok(Value::Object(Span::EMPTY));
        }
        loop {
            if token != Some(b'"') {
                return Err(Bypass::NotJson);
            }
            let name = self.string()?;
            if self.next_token() != Some(b':') {
                return Err(Bypass::NotJson);
            }
            self.at += 1;
            let value = self.value(depth)?;
            let name = Name::new(name, self.arena.pending.len() - first)?;
            self.arena.pending.push(Entry { name, value });
            match self.next_token() {
                Some(b',') => self.at += 1,
                Some(b'}') => break,
                _ => return Err(Bypass::NotJson),
            }
            token = self.next_token();
        }
        self.at += 1;
        self.sort(first)?;
        Ok(Value::Object(self.close(first)?))
    }

    fn array(&mut self, depth: usize) -> Result<Value, Bypass> {
        let first = self.open(depth)?;
        if self.next_token() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(Span::EMPTY));
        }
        loop {
            let value = self.value(depth)?;
            let name = Name::NONE;
            self.arena.pending.push(Entry { name, value });
            match self.next_token() {
                Some(b',') => self.at += 1,
                Some(b']') => break,
                _ => return Err(Bypass::NotJson),
            }
        }
        self.at += 1;
        Ok(Value::Array(self.close(first)?))
    }

    /// Enters a container; returns where its children start among the pending ones.
    fn open(&mut self, depth: usize) -> Result<usize, Bypass> {
        self.at += 1;
        match depth > MAX_DEPTH {
            true => Err(Bypass::TooDeep),
            false => Ok(self.arena.pending.len()),
        }
    }

    fn close(&mut self, first: usize) -> Result<Span, Bypass> {
        let start = self.arena.entries.len();
        let children = self.arena.pending.drain(first..);
        self.arena.entries.extend(children);
        Span::new(start, self.arena.entries.len())
    }

    fn sort(&mut self, first: usize) -> Result<(), Bypass> {
        let Arena {
            pending, decoded, ..
        } = &mut *self.arena;
        let name = |entry: &Entry| match entry.name.text() {
            Text::Plain(span) => span.of(self.text),
            Text::Decoded(span) => span.of(decoded),
        };
        let members = &mut pending[first..];
        members.sort_unstable_by(|one, other| name(one).cmp(name(other)));
        let twice = |pair: &[Entry]| name(&pair[0]) == name(&pair[1]);
        match members.windows(2).any(twice) {
            true => Err(Bypass::DuplicateMember),
            false => Ok(()),
        }
    }

    fn string(&mut self) -> Result<Text, Bypass> {
        self.at += 1;
        let start = self.at;
        self.at += plain_len(&self.bytes[start..]);
        if self.peek() == Some(b'"') {
            let text = Span::new(start, self.at)?;
            self.at += 1;
            return Ok(Text::Plain(text));
        }
        let decoded = self.arena.decoded.len();
        let mut plain = start;
        loop {
            self.arena.decoded.push_str(&self.text[plain..self.at]);
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => self.escape()?,
                // A control character, or the end.
                _ => return Err(Bypass::NotJson),
            }
            plain = self.at;
            self.at += plain_len(&self.bytes[plain..]);
        }
        self.at += 1;
        Ok(Text::Decoded(Span::new(decoded, self.arena.decoded.len())?))
    }

    fn escape(&mut self) -> Result<(), Bypass> {
        self.at += 1;
        let escape = self.peek().ok_or(Bypass::NotJson)?;
        self.at += 1;
        let decoded = match escape {
            b'"' | b'\\' | b'/' => char::from(escape),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => self.unicode()?,
            _ => return Err(Bypass::NotJson),
        };
        self.arena.decoded.push(decoded);
        Ok(())
    }

    /// Reads what stands after `\u`: half a pair is no character.
    fn unicode(&mut self) -> Result<char, Bypass> {
        let mut units = [self.hex()?, 0];
        let mut len = 1;
        if (0xd800..0xdc00).contains(&units[0]) && self.bytes[self.at..].starts_with(b"\\u") {
            self.at += 2;
            units[1] = self.hex()?;
            len = 2;
        }
        let mut decoded = char::decode_utf16(units.into_iter().take(len));
        match (decoded.next(), decoded.next()) {
            (Some(Ok(decoded)), None) => Ok(decoded),
            _ => Err(Bypass::NotJson),
        }
    }

    fn hex(&mut self) -> Result<u16, Bypass> {
        let digits = self.bytes.get(self.at..self.at + 4);
        let mut unit = 0;
        for &digit in digits.ok_or(Bypass::NotJson)? {
            let digit = char::from(digit).to_digit(16).ok_or(Bypass::NotJson)?;
            unit = unit << 4 | digit as u16;
        }
        self.at += 4;
        Ok(unit)
    }

    fn number(&mut self) -> Result<Value, Bypass> {
        let start = self.at;
        self.skip_any(b"-");
        let integer = self.at;
        let digits = self.digits()?;
        if digits > 1 && self.bytes[integer] == b'0' {
            return Err(Bypass::NotJson);
        }
        if self.skip_any(b".") {
            self.digits()?;
        }
        if self.skip_any(b"eE") {
            self.skip_any(b"+-");
            if self.digits()? > MAX_EXPONENT_DIGITS {
                return Err(Bypass::NotJson);
            }
        }
        Ok(Value::Number(Span::new(start, self.at)?))
    }

    /// Skips digits, at least one; returns how many.
    fn digits(&mut self) -> Result<usize, Bypass> {
        let rest = &self.bytes[self.at..];
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += digits;
        match digits {
            0 => Err(Bypass::NotJson),
            digits => Ok(digits),
        }
    }

    fn literal(&mut self, literal: &str, value: Value) -> Result<Value, Bypass> {
        if !self.bytes[self.at..].starts_with(literal.as_bytes()) {
            return Err(Bypass::NotJson);
        }
        self.at += literal.len();
        Ok(value)
    }

    fn skip_any(&mut self, any: &[u8]) -> bool {
        let found = self.peek().is_some_and(|byte| any.contains(&byte));
        self.at += usize::from(found);
        found
    }

    fn next_token(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
        self.peek()
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }
}

/// How many bytes stand before the first quote, backslash or control character.
fn plain_len(bytes: &[u8]) -> usize {
    let mut plain = 0;
    // Most strings are short: a step of one word finds their end.
    for word in bytes.chunks_exact(8) {
        let found = special(u64::from_le_bytes(word.try_into().unwrap_or_default()));
        if found != 0 {
            return plain + found.trailing_zeros() as usize / 8;
        }
        plain += 8;
    }
    let rest = &bytes[plain..];
    let special = |&byte: &u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    plain + rest.iter().position(special).unwrap_or(rest.len())
}

/// Marks the highest bit of the first byte that is a quote, a backslash or a control character; no byte before it.
fn special(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 0xff;
    const HIGH: u64 = ONES << 7;
    // What a subtraction borrows reaches the bytes after the first one found alone.
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word;
    let equals = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    (below(word, 0x20) | equals(b'"') | equals(b'\\')) & HIGH
}
