//! Detects the format of a body by its first bytes.
//!
//! The content type can be wrong: proxies send event streams as JSON, JSON as plain text, and error pages as either. It
//! decides only what the first bytes leave open.

use http::HeaderMap;

use super::{facts::Facts, grpc::Grpc, json::Json, place::Place, sse::Sse};

/// The format of a body.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a response's scanner lies in one allocation"
)]
pub(super) enum Format {
    /// Not enough has arrived to decide.
    Undecided(Beginning),
    Sse(Sse),
    Json {
        json: Json<Place>,
        /// An array, which Gemini streams if SSE was not requested.
        is_list: bool,
    },
    Grpc(Grpc),
    /// A body that cannot be read here: audio, a web page, a compressed body.
    Opaque {
        compressed: bool,
    },
}

/// The content type in the response headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Label {
    Events,
    Json,
    Compressed,
    Other,
}

/// The first bytes of a body, while its format is undecided.
#[derive(Debug)]
pub(super) struct Beginning {
    label: Label,
    /// Without the white space that came first.
    bytes: [u8; LONGEST],
    len: usize,
}

/// A byte order mark and the longest name of a field.
const LONGEST: usize = MARK.len() + 6;

const MARK: &[u8] = "\u{feff}".as_bytes();

/// The names with which a line of an event stream begins, and that of a comment.
const FIELDS: [&[u8]; 6] = [b"data:", b"event:", b"id:", b"retry:", b"error:", b":"];

/// The first byte of gzip.
const GZIP: u8 = 0x1f;

impl Format {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let value = |name| headers.get(name).map_or(&b""[..], |value| value.as_bytes());
        let media_type = value(http::header::CONTENT_TYPE).trim_ascii_start();
        let is = |prefix: &[u8]| {
            media_type
                .get(..prefix.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        };
        // Not gRPC-web, whose status comes within the body.
        if is(b"application/grpc") && !is(b"application/grpc-web") {
            return Self::Grpc(Grpc::new(headers));
        }
        let coding = value(http::header::CONTENT_ENCODING).trim_ascii();
        // Brotli may begin with any byte. Other codings do not begin like text, and some bodies are not encoded although
        // the header says so.
        if coding.eq_ignore_ascii_case(b"br") {
            return Self::Opaque { compressed: true };
        }
        let label = if !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity") {
            Label::Compressed
        } else if is(b"text/event-stream") {
            Label::Events
        } else if is(b"application/json") || is(b"application/problem+json") {
            Label::Json
        } else {
            Label::Other
        };
        Self::Undecided(Beginning::new(label))
    }

    /// Reads the next piece of the body.
    pub(super) fn feed(&mut self, piece: &[u8], facts: &mut Facts) {
        match self {
            Self::Undecided(beginning) => {
                let Some((decided, read)) = beginning.feed(piece) else {
                    return;
                };
                let (bytes, len) = (beginning.bytes, beginning.len);
                *self = decided;
                self.feed(&bytes[..len], facts);
                self.feed(&piece[read..], facts);
            }
            Self::Sse(sse) => sse.feed(piece, facts),
            Self::Json { json, .. } => json.feed(piece, facts),
            Self::Grpc(_) => facts.has_output |= !piece.is_empty(),
            Self::Opaque { .. } => {}
        }
    }
}

impl Beginning {
    fn new(label: Label) -> Self {
        Self {
            label,
            bytes: [0; LONGEST],
            len: 0,
        }
    }

    pub(super) fn label(&self) -> Label {
        self.label
    }

    /// Returns the format once it is decided, and how much of `piece` was used to decide.
    fn feed(&mut self, piece: &[u8]) -> Option<(Format, usize)> {
        for (at, &byte) in piece.iter().enumerate() {
            if byte.is_ascii_whitespace() && self.text().is_empty() {
                continue;
            }
            self.bytes[self.len] = byte;
            self.len += 1;
            if let Some(format) = self.decide() {
                return Some((format, at + 1));
            }
        }
        None
    }

    /// What has arrived, without a byte order mark.
    fn text(&self) -> &[u8] {
        let bytes = &self.bytes[..self.len];
        bytes.strip_prefix(MARK).unwrap_or(bytes)
    }

    fn decide(&self) -> Option<Format> {
        let text = self.text();
        let may_become = |whole: &[u8]| whole.len() > text.len() && whole.starts_with(text);
        let first = *text.first()?;
        if MARK.starts_with(text) {
            return None;
        }
        if matches!(first, b'{' | b'[') {
            return Some(json(first));
        }
        if FIELDS.contains(&text) {
            return Some(Format::Sse(Sse::new()));
        }
        if FIELDS.iter().any(|field| may_become(field)) {
            return None;
        }
        Some(match self.label {
            _ if first == GZIP => Format::Opaque { compressed: true },
            Label::Compressed => Format::Opaque { compressed: true },
            Label::Events => Format::Sse(Sse::new()),
            // An answer is an object or a list. Of other JSON values, only a string cannot be a word of plain text.
            Label::Json if first == b'"' => json(first),
            Label::Json | Label::Other => Format::Opaque { compressed: false },
        })
    }
}

fn json(first: u8) -> Format {
    Format::Json {
        json: Json::new(Place::Root),
        is_list: first == b'[',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(format: &Format) -> &'static str {
        match format {
            Format::Undecided(_) => "undecided",
            Format::Sse(_) => "sse",
            Format::Json { .. } => "json",
            Format::Grpc(_) => "grpc",
            Format::Opaque { compressed: true } => "compressed",
            Format::Opaque { compressed: false } => "opaque",
        }
    }

    /// The format of `body` under `label`, which must be the same when it comes byte by byte.
    fn read(label: Option<&str>, body: &[u8]) -> &'static str {
        let mut headers = HeaderMap::new();
        if let Some(label) = label {
            headers.insert("content-type", label.parse().unwrap());
        }
        let mut whole = Format::of(&headers);
        whole.feed(body, &mut Facts::default());
        let mut by_bytes = Format::of(&headers);
        for byte in body.chunks(1) {
            by_bytes.feed(byte, &mut Facts::default());
        }
        assert_eq!(name(&whole), name(&by_bytes), "{label:?} {body:?}");
        name(&whole)
    }

    const LABELS: [Option<&str>; 6] = [
        None,
        Some(""),
        Some("text/plain; charset=utf-8"),
        Some("application/json"),
        Some("text/event-stream"),
        Some("application/octet-stream"),
    ];

    #[test]
    fn content_beats_its_label() {
        for label in LABELS {
            for json in [&b"{}"[..], b" \r\n\t[1]", "\u{feff}{\"a\":1}".as_bytes()] {
                assert_eq!(read(label, json), "json", "{label:?}");
            }
            for events in [
                &b"data: {}"[..],
                b"data:",
                b"\n\nevent: ping",
                b": comment",
                b"id: 1",
                b"retry:10",
                b"error: {}",
                "\u{feff}data: x".as_bytes(),
            ] {
                assert_eq!(read(label, events), "sse", "{label:?} {events:?}");
            }
            assert_eq!(read(label, b"\x1f\x8b\x08"), "compressed", "{label:?}");
            for open in [
                &b""[..],
                b" \n",
                b"dat",
                b"retry",
                "\u{feff}".as_bytes(),
                b"\xef",
            ] {
                assert_eq!(read(label, open), "undecided", "{label:?} {open:?}");
            }
        }
    }

    #[test]
    fn the_label_decides_what_the_bytes_leave_open() {
        assert_eq!(read(Some("Application/JSON"), b"\"text\""), "json");
        for body in [&b"<html>"[..], b"database", b"too many", b"ID3", b"\xefx"] {
            assert_eq!(read(Some("text/event-stream"), body), "sse");
            assert_eq!(read(Some("application/json"), body), "opaque");
            assert_eq!(read(Some("text/html"), body), "opaque");
            assert_eq!(read(None, body), "opaque");
        }
    }

    #[test]
    fn codings_are_compared_without_case() {
        for (coding, expected) in [
            ("identity", "json"),
            ("Identity", "json"),
            ("", "json"),
            ("br", "compressed"),
            ("BR", "compressed"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("content-encoding", coding.parse().unwrap());
            let mut format = Format::of(&headers);
            format.feed(b"{}", &mut Facts::default());
            assert_eq!(name(&format), expected, "{coding:?}");
        }
    }

    #[test]
    fn what_is_called_compressed_is_read_if_it_is_text() {
        for coding in ["gzip", "none", "utf-8", "aws-chunked"] {
            for (body, expected) in [
                (&b"{}"[..], "json"),
                (b"data: {}", "sse"),
                (b"\x1f\x8b\x08", "compressed"),
                (b"x\x9c\xab", "compressed"),
            ] {
                let mut headers = HeaderMap::new();
                headers.insert("content-encoding", coding.parse().unwrap());
                let mut format = Format::of(&headers);
                format.feed(body, &mut Facts::default());
                assert_eq!(name(&format), expected, "{coding:?} {body:?}");
            }
        }
    }
}
