//! A JSON reader that is fed piece by piece and stores only its position.
//!
//! A response is read while it passes: cut at any byte, minutes apart, and never held. So this is a push reader:
//! [`Json::feed`] takes the next bytes and reports to a [`Sink`] the members that it asked for; all others are skipped at
//! the speed of a string search. Nothing is validated: what is not JSON is skipped, because a scanner does not decide what
//! the caller gets.
//!
//! Memory is constant: known members of a response lie at most [`MAX_DEPTH`] deep and their values are at most
//! [`MAX_CAPTURE`] bytes; what is deeper or longer is of no interest here. A request, whose schemas nest, has more room.

#[cfg(test)]
mod tests;

/// Deepest nesting at which members are read.
const MAX_DEPTH: usize = 12;

/// Longest key or value that is reported; a longer one is cut here, and so matches nothing.
const MAX_CAPTURE: usize = 64;

/// Selects the members to read, and receives their values.
pub(crate) trait Sink {
    /// A place in the document that matters.
    type Place: Copy;

    /// The place of member `key` of the object at `parent`; `None` to skip its value.
    fn member(&mut self, parent: Self::Place, key: &[u8]) -> Option<Self::Place>;

    /// The key of the member that was told just now, which lies in one piece, is longer than told by so many bytes.
    fn long_key(&mut self, parent: Self::Place, more: usize) {
        let _ = (parent, more);
    }

    /// The place of the items of the array at `parent`; `None` to skip them.
    fn item(&mut self, parent: Self::Place) -> Option<Self::Place>;

    /// How the string at `place` is wanted.
    fn string_mode(&self, place: Self::Place) -> StringMode;

    /// An object or array begins at `place`.
    fn open(&mut self, place: Self::Place);

    /// The object or array at `place` has ended.
    fn close(&mut self, place: Self::Place);

    /// A captured string as written: escapes are not decoded.
    fn string(&mut self, place: Self::Place, raw: &[u8]);

    /// A piece of a string that is passed on, as written.
    fn pass(&mut self, place: Self::Place, piece: &[u8]);

    /// A string that was passed on has ended.
    fn passed(&mut self, place: Self::Place);

    /// A piece of a counted string. Called once for a string that lies in one piece, and otherwise once or more.
    fn text(&mut self, place: Self::Place, piece: Text<'_>);

    /// A number that counts something: its whole part.
    fn number(&mut self, place: Self::Place, value: u64);

    /// `true`, `false`, `null` or any other bare word.
    fn word(&mut self, place: Self::Place, word: &[u8]);
}

/// A piece of a counted string.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text<'a> {
    pub(crate) written: &'a [u8],
    /// Its bytes of UTF-8 after its escapes are decoded; negative if a piece ends within one, but the sum is not.
    pub(crate) bytes: i64,
    /// It names characters by number, each of which counts as three bytes.
    pub(crate) has_numbers: bool,
}

/// How a string value is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StringMode {
    /// Reported whole, when it has ended.
    Capture,
    /// Only its length, as it passes.
    Count,
    /// In pieces, as it passes.
    Pass,
    /// Not at all.
    Skip,
}

/// Where the reader is in one document.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Json<P, const DEPTH: usize = MAX_DEPTH, const CAPTURE: usize = MAX_CAPTURE> {
    state: State<P>,
    root: P,
    /// The containers that are open and of interest, outermost first.
    stack: [Container<P>; DEPTH],
    depth: usize,
    /// A container of interest lay deeper than that, and was skipped.
    was_too_deep: bool,
    /// A token that the end of a piece has cut.
    capture: Capture<CAPTURE>,
    /// The last byte of the piece was a backslash, which escapes the next one.
    escaped: bool,
    /// The document's one value has begun.
    begun: bool,
}

#[derive(Clone, Copy, Debug)]
struct Container<P> {
    place: P,
    /// The place of the next value: of the member whose key was read, or of an array's items.
    next: Option<P>,
    array: bool,
    /// A string here is a key.
    expects_key: bool,
}

#[derive(Clone, Copy, Debug)]
enum State<P> {
    /// Between tokens.
    Between,
    Key,
    String {
        place: P,
        mode: StringMode,
    },
    /// In a string that does not matter.
    SkipString,
    Number {
        place: P,
        number: Number,
    },
    /// A bare word; without a place it is a number that counts nothing: a negative one.
    Word {
        place: Option<P>,
    },
    /// In a container that does not matter. Braces and brackets need not be distinguished: in JSON, an array ends where its
    /// brackets balance, whatever braces it contains, and vice versa.
    SkipContainer {
        open: u8,
        close: u8,
        depth: u32,
        in_string: bool,
    },
}

impl<P: Copy> Json<P> {
    /// A reader before a document whose value lies at `root`.
    pub(crate) fn new(root: P) -> Self {
        Self::with_room(root)
    }
}

impl<P: Copy, const DEPTH: usize, const CAPTURE: usize> Json<P, DEPTH, CAPTURE> {
    /// The same, with another depth and another length of what is captured.
    pub(crate) fn with_room(root: P) -> Self {
        let container = Container {
            place: root,
            next: None,
            array: false,
            expects_key: false,
        };
        Self {
            state: State::Between,
            root,
            stack: [container; DEPTH],
            depth: 0,
            was_too_deep: false,
            capture: Capture::new(),
            escaped: false,
            begun: false,
        }
    }

    /// Discards the document and waits for the next one, whose value lies at `root`.
    pub(crate) fn reset_at(&mut self, root: P) {
        self.root = root;
        self.reset();
    }

    /// Discards the document and waits for the next one.
    pub(crate) fn reset(&mut self) {
        self.state = State::Between;
        self.depth = 0;
        self.was_too_deep = false;
        self.capture.clear();
        self.escaped = false;
        self.begun = false;
    }

    /// Whether a value has begun and not ended: the document was cut if nothing follows.
    pub(crate) fn is_open(&self) -> bool {
        self.depth > 0
            || !matches!(
                self.state,
                State::Between | State::Word { .. } | State::Number { .. }
            )
    }

    /// Whether the document's value has ended.
    pub(crate) fn is_complete(&self) -> bool {
        self.begun && !self.is_open()
    }

    /// Whether something of interest lay too deep to be read.
    pub(crate) fn was_too_deep(&self) -> bool {
        self.was_too_deep
    }

    /// Reads the next piece of the document.
    pub(crate) fn feed<S: Sink<Place = P>>(&mut self, piece: &[u8], sink: &mut S) {
        let mut rest = piece;
        while !rest.is_empty() {
            rest = match self.state {
                State::Between => self.between(rest, sink),
                State::Key => self.key(rest, sink),
                State::String { place, mode } => self.string(rest, place, mode, sink),
                State::SkipString => match self.skip_string(rest) {
                    Some(after) => {
                        self.state = State::Between;
                        after
                    }
                    None => return,
                },
                State::Number { place, number } => self.number(rest, place, number, sink),
                State::Word { place } => self.word(rest, place, sink),
                State::SkipContainer { .. } => self.skip_container(rest),
            };
        }
    }

    /// Reads tokens that are complete in `piece`; the state continues one that is not.
    fn between<'a, S: Sink<Place = P>>(&mut self, piece: &'a [u8], sink: &mut S) -> &'a [u8] {
        let mut rest = piece;
        while let Some((&byte, after)) = rest.split_first() {
            match byte {
                b'"' => {
                    self.begun = true;
                    match self.whole_string(after, sink) {
                        Ok(after) => rest = after,
                        Err(unread) => return unread,
                    }
                }
                b'{' | b'[' => {
                    self.begun = true;
                    self.open_container(byte, sink);
                    rest = after;
                    if matches!(self.state, State::SkipContainer { .. }) {
                        return after;
                    }
                }
                b'}' | b']' => {
                    if let Some(depth) = self.depth.checked_sub(1) {
                        self.depth = depth;
                        sink.close(self.stack[depth].place);
                    }
                    rest = after;
                }
                b',' => {
                    if let Some(top) = self.top() {
                        top.expects_key = !top.array;
                    }
                    rest = after;
                }
                b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' => {
                    self.begun = true;
                    if let Some(place) = self.value_place() {
                        if let Some(after) = whole_scalar(rest, place, sink) {
                            rest = after;
                            continue;
                        }
                        self.state = if byte.is_ascii_digit() {
                            State::Number {
                                place,
                                number: Number::default(),
                            }
                        } else {
                            let place = Some(place).filter(|_| byte != b'-');
                            State::Word { place }
                        };
                        return rest;
                    }
                    let end = after.iter().position(|byte| !byte.is_ascii_alphanumeric());
                    rest = &after[end.unwrap_or(after.len())..];
                }
                _ => rest = after,
            }
        }
        &[]
    }

    /// Reads a string that ends in `text` and returns what follows it. If it does not end there, the state is that of the
    /// string, and the error is the part still to be read.
    #[inline]
    fn whole_string<'a, S: Sink<Place = P>>(
        &mut self,
        text: &'a [u8],
        sink: &mut S,
    ) -> Result<&'a [u8], &'a [u8]> {
        self.open_string(sink);
        if let State::String {
            place,
            mode: StringMode::Count,
        } = self.state
        {
            return match self.count_string(text, place, sink) {
                [] => Err(&[]),
                after => Ok(after),
            };
        }
        let Some(end) = end_of_string(text) else {
            return Err(text);
        };
        let mut after = &text[end + 1..];
        if let State::String {
            place,
            mode: StringMode::Pass,
        } = self.state
        {
            sink.pass(place, &text[..end]);
            sink.passed(place);
            self.state = State::Between;
            return Ok(after);
        }
        // Cut as a string in several pieces is, so that the result does not depend on where pieces end.
        let raw = &text[..end.min(CAPTURE)];
        match self.state {
            State::Key => {
                self.end_key(raw, sink);
                if let Some(top) = self.top()
                    && end > CAPTURE
                {
                    sink.long_key(top.place, end - CAPTURE);
                }
                after = after.strip_prefix(b":").unwrap_or(after);
            }
            State::String { place, .. } => sink.string(place, raw),
            _ => {}
        }
        self.state = State::Between;
        Ok(after)
    }

    #[inline]
    fn open_string<S: Sink<Place = P>>(&mut self, sink: &S) {
        self.state = match self.top() {
            Some(top) if top.expects_key => State::Key,
            _ => match self
                .value_place()
                .map(|place| (place, sink.string_mode(place)))
            {
                None | Some((_, StringMode::Skip)) => State::SkipString,
                Some((place, mode)) => State::String { place, mode },
            },
        };
    }

    fn open_container<S: Sink<Place = P>>(&mut self, open: u8, sink: &mut S) {
        let array = open == b'[';
        match self.value_place() {
            Some(place) if self.depth < DEPTH => {
                sink.open(place);
                self.stack[self.depth] = Container {
                    place,
                    next: if array { sink.item(place) } else { None },
                    array,
                    expects_key: !array,
                };
                self.depth += 1;
            }
            of_interest => {
                self.was_too_deep |= of_interest.is_some();
                self.state = State::SkipContainer {
                    open,
                    close: if array { b']' } else { b'}' },
                    depth: 1,
                    in_string: false,
                };
            }
        }
    }

    fn key<'a, S: Sink<Place = P>>(&mut self, rest: &'a [u8], sink: &mut S) -> &'a [u8] {
        let Some(after) = self.captured(rest) else {
            return &[];
        };
        let capture = std::mem::replace(&mut self.capture, Capture::new());
        self.end_key(capture.bytes(), sink);
        self.state = State::Between;
        after
    }

    #[inline]
    fn end_key<S: Sink<Place = P>>(&mut self, key: &[u8], sink: &mut S) {
        if let Some(top) = self.top() {
            top.next = sink.member(top.place, key);
            top.expects_key = false;
        }
    }

    fn string<'a, S: Sink<Place = P>>(
        &mut self,
        rest: &'a [u8],
        place: P,
        mode: StringMode,
        sink: &mut S,
    ) -> &'a [u8] {
        if mode == StringMode::Count {
            return self.count_string(rest, place, sink);
        }
        if mode == StringMode::Pass {
            return self.pass_string(rest, place, sink);
        }
        let Some(after) = self.captured(rest) else {
            return &[];
        };
        sink.string(place, self.capture.bytes());
        self.capture.clear();
        self.state = State::Between;
        after
    }

    fn pass_string<'a, S: Sink<Place = P>>(
        &mut self,
        rest: &'a [u8],
        place: P,
        sink: &mut S,
    ) -> &'a [u8] {
        let Some(after) = self.skip_string(rest) else {
            sink.pass(place, rest);
            return &[];
        };
        sink.pass(place, &rest[..rest.len() - after.len() - 1]);
        sink.passed(place);
        self.state = State::Between;
        after
    }

    fn count_string<'a, S: Sink<Place = P>>(
        &mut self,
        rest: &'a [u8],
        place: P,
        sink: &mut S,
    ) -> &'a [u8] {
        let mut bytes = 0;
        let mut has_numbers = false;
        let mut from = 0;
        if self.escaped {
            self.escaped = false;
            bytes += escape_bytes(rest[0]);
            has_numbers = rest[0] == b'u';
            from = 1;
        }
        let after = loop {
            let Some(found) = find_quote_or_backslash(&rest[from..]) else {
                bytes += length(&rest[from..]);
                break None;
            };
            let at = from + found;
            bytes += length(&rest[from..at]);
            if rest[at] == b'"' {
                break Some(&rest[at + 1..]);
            }
            let Some(&escape) = rest.get(at + 1) else {
                self.escaped = true;
                break None;
            };
            bytes += escape_bytes(escape);
            has_numbers |= escape == b'u';
            from = at + 2;
        };
        let end = rest.len() - after.map_or(0, |after| after.len() + 1);
        let text = Text {
            written: &rest[..end],
            bytes,
            has_numbers,
        };
        sink.text(place, text);
        if after.is_some() {
            self.state = State::Between;
        }
        after.unwrap_or_default()
    }

    /// Continues a string that the end of a piece has cut, into `self.capture`. Returns what follows it, if it ends here.
    fn captured<'a>(&mut self, rest: &'a [u8]) -> Option<&'a [u8]> {
        let after = self.skip_string(rest);
        let text = match after {
            Some(after) => &rest[..rest.len() - after.len() - 1],
            None => rest,
        };
        self.capture.push(text);
        after
    }

    /// What follows the string's closing quote, if it is in `rest`.
    fn skip_string<'a>(&mut self, rest: &'a [u8]) -> Option<&'a [u8]> {
        let from = usize::from(self.escaped);
        self.escaped = false;
        match end_of_string(&rest[from..]) {
            Some(end) => Some(&rest[from + end + 1..]),
            None => {
                self.escaped = ends_in_escape(&rest[from..]);
                None
            }
        }
    }

    fn number<'a, S: Sink<Place = P>>(
        &mut self,
        rest: &'a [u8],
        place: P,
        mut number: Number,
        sink: &mut S,
    ) -> &'a [u8] {
        let end = rest.iter().position(|&byte| !number.push(byte));
        let Some(end) = end else {
            self.state = State::Number { place, number };
            return &[];
        };
        sink.number(place, number.whole_part());
        self.state = State::Between;
        &rest[end..]
    }

    fn word<'a, S: Sink<Place = P>>(
        &mut self,
        rest: &'a [u8],
        place: Option<P>,
        sink: &mut S,
    ) -> &'a [u8] {
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
        let end = rest.iter().position(|byte| !is_part(byte));
        self.capture.push(&rest[..end.unwrap_or(rest.len())]);
        let Some(end) = end else { return &[] };
        if let Some(place) = place {
            sink.word(place, self.capture.bytes());
        }
        self.capture.clear();
        self.state = State::Between;
        &rest[end..]
    }

    fn skip_container<'a>(&mut self, mut rest: &'a [u8]) -> &'a [u8] {
        let State::SkipContainer {
            open,
            close,
            mut depth,
            mut in_string,
        } = self.state
        else {
            return rest;
        };
        loop {
            if in_string {
                let Some(after) = self.skip_string(rest) else {
                    break;
                };
                rest = after;
                in_string = false;
            }
            let Some(at) = memchr::memchr3(b'"', open, close, rest) else {
                break;
            };
            let byte = rest[at];
            rest = &rest[at + 1..];
            if byte == b'"' {
                in_string = true;
            } else if byte == open {
                depth = depth.saturating_add(1);
            } else {
                depth -= 1;
                if depth == 0 {
                    self.state = State::Between;
                    return rest;
                }
            }
        }
        self.state = State::SkipContainer {
            open,
            close,
            depth,
            in_string,
        };
        &[]
    }

    fn top(&mut self) -> Option<&mut Container<P>> {
        self.depth.checked_sub(1).map(|top| &mut self.stack[top])
    }

    /// The place of the value that begins now; `None` if it does not matter.
    fn value_place(&mut self) -> Option<P> {
        let root = self.root;
        match self.top() {
            Some(top) => top.next,
            None => Some(root),
        }
    }
}

/// A number that is not negative, as it is read.
#[derive(Clone, Copy, Debug, Default)]
struct Number {
    /// Its digits, without those of a fraction that are too many to matter.
    digits: u64,
    /// How many of them are a fraction's.
    fraction: u32,
    exponent: u32,
    part: Part,
}

/// The part of a number that is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Whole,
    Fraction,
    Exponent,
    NegativeExponent,
}

impl Number {
    /// Adds a byte; returns false if it is not part of the number.
    fn push(&mut self, byte: u8) -> bool {
        /// A fraction's digits beyond are not counted, and exponents beyond are as good as this one.
        const MOST: u64 = 1_000_000_000_000_000_000;
        const MOST_EXPONENT: u32 = 1_000;
        match (byte, self.part) {
            (b'0'..=b'9', part) => {
                let digit = byte - b'0';
                let longer = |digits: u64| digits.saturating_mul(10).saturating_add(digit.into());
                match part {
                    Part::Whole => self.digits = longer(self.digits),
                    Part::Fraction if self.digits < MOST => {
                        self.digits = longer(self.digits);
                        self.fraction += 1;
                    }
                    Part::Fraction => {}
                    Part::Exponent | Part::NegativeExponent => {
                        let longer = self.exponent * 10 + u32::from(digit);
                        self.exponent = longer.min(MOST_EXPONENT);
                    }
                }
            }
            (b'.', Part::Whole) => self.part = Part::Fraction,
            (b'e' | b'E', Part::Whole | Part::Fraction) => self.part = Part::Exponent,
            (b'-', Part::Exponent) => self.part = Part::NegativeExponent,
            (b'+', Part::Exponent) => {}
            _ => return false,
        }
        true
    }

    fn whole_part(&self) -> u64 {
        let (fraction, exponent) = (i64::from(self.fraction), i64::from(self.exponent));
        let shift = match self.part {
            Part::NegativeExponent => -exponent - fraction,
            _ => exponent - fraction,
        };
        let power = 10_u64.checked_pow(shift.unsigned_abs().try_into().unwrap_or(u32::MAX));
        match power {
            _ if self.digits == 0 => 0,
            Some(power) if shift < 0 => self.digits / power,
            Some(power) => self.digits.saturating_mul(power),
            None if shift < 0 => 0,
            None => u64::MAX,
        }
    }
}

/// The beginning of a token whose end has not arrived yet.
#[derive(Clone, Copy, Debug)]
struct Capture<const MOST: usize> {
    bytes: [u8; MOST],
    len: usize,
}

impl<const MOST: usize> Capture<MOST> {
    fn new() -> Self {
        Self {
            bytes: [0; MOST],
            len: 0,
        }
    }

    fn push(&mut self, piece: &[u8]) {
        let taken = piece.len().min(MOST - self.len);
        self.bytes[self.len..self.len + taken].copy_from_slice(&piece[..taken]);
        self.len += taken;
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn clear(&mut self) {
        self.len = 0;
    }
}

/// Reads one of the two scalars that streams are full of, if it is whole in `text`: `null`, or a number of a few digits.
/// Returns what follows it.
#[inline]
fn whole_scalar<'a, S: Sink>(text: &'a [u8], place: S::Place, sink: &mut S) -> Option<&'a [u8]> {
    const MOST_DIGITS: usize = 9;
    let ends = |byte: Option<&u8>| matches!(byte, Some(b',' | b'}' | b']'));
    if let Some(after) = text.strip_prefix(b"null") {
        return ends(after.first()).then(|| {
            sink.word(place, b"null");
            after
        });
    }
    let mut value = 0;
    for (at, &byte) in text.iter().enumerate().take(MOST_DIGITS + 1) {
        if !byte.is_ascii_digit() {
            return (at > 0 && ends(Some(&byte))).then(|| {
                sink.number(place, value);
                &text[at..]
            });
        }
        value = value * 10 + u64::from(byte - b'0');
    }
    None
}

/// What a backslash and the byte after it stand for, in bytes of UTF-8.
///
/// `\u` stands for about three bytes; the four digits after it are counted as they pass.
fn escape_bytes(escape: u8) -> i64 {
    if escape == b'u' { -1 } else { 1 }
}

fn length(text: &[u8]) -> i64 {
    i64::try_from(text.len()).unwrap_or(i64::MAX)
}

/// Returns where the string that begins here ends.
#[inline]
fn end_of_string(text: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + find_quote_or_backslash(text.get(from..)?)?;
        if text[at] == b'"' {
            return Some(at);
        }
        from = at + 2;
    }
}

/// Whether the last byte is a backslash that escapes what follows, and is not escaped itself.
fn ends_in_escape(text: &[u8]) -> bool {
    let backslashes = text.iter().rev().take_while(|&&byte| byte == b'\\');
    backslashes.count() % 2 == 1
}

/// Where the next `"` or `\` is.
///
/// Most strings of a stream are keys and identifiers of a few bytes, for which setting up a vector search
/// costs more than it saves: they are looked through by the word.
#[inline]
fn find_quote_or_backslash(text: &[u8]) -> Option<usize> {
    const WORD: usize = size_of::<u64>();
    const WORDS: usize = 8;
    let (words, _) = text.as_chunks::<WORD>();
    let words = &words[..words.len().min(WORDS)];
    for (i, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let found = bytes_equal(word, b'"') | bytes_equal(word, b'\\');
        if found != 0 {
            return Some(i * WORD + found.trailing_zeros() as usize / 8);
        }
    }
    let from = words.len() * WORD;
    let rest = &text[from..];
    let found = if rest.len() < WORD {
        rest.iter().position(|&byte| byte == b'"' || byte == b'\\')
    } else {
        memchr::memchr2(b'"', b'\\', rest)
    };
    found.map(|at| from + at)
}

/// The high bit of the lowest byte in `word` that is `byte`, perhaps with others above it (Mycroft's test).
fn bytes_equal(word: u64, byte: u8) -> u64 {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGHS: u64 = u64::from_ne_bytes([0x80; 8]);
    let zero_if_equal = word ^ (ONES * u64::from(byte));
    zero_if_equal.wrapping_sub(ONES) & !zero_if_equal & HIGHS
}
