//! Requests that state their length in two ways.
//!
//! A request with both `content-length` and `transfer-encoding` is read as one request by some servers and as two by
//! others, so it can smuggle one past a proxy. hyper takes the chunks and removes the length, wherever it stands, so a
//! service cannot see that there were both. [`Framing`] reads the request headers as they pass on the socket.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much of a line is stored: enough for both names, a length, and a chunk's size.
const LINE_BYTES: usize = 64;

/// A socket whose requests are checked as they are read.
#[derive(Debug)]
pub(crate) struct Framing<S> {
    inner: S,
    scan: Scan,
    ambiguous: Ambiguous,
}

/// Whether a connection has carried an ambiguous request. Once it has, nothing on it can be trusted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ambiguous(Arc<AtomicBool>);

/// The position in the requests of a connection.
///
/// hyper parses them; this follows only as far as needed to know where headers begin.
#[derive(Debug, Default)]
struct Scan {
    state: State,
    line: Line,
    has_begun: bool,
    length: Option<u64>,
    is_chunked: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Headers,
    /// The remaining bytes of a body, or of a chunk.
    Data {
        left: u64,
        chunked: bool,
    },
    ChunkSize,
    ChunkEnd,
    Trailers,
    /// HTTP/2, or broken: nothing more is read.
    Over,
}

/// The beginning of the current line.
#[derive(Debug)]
struct Line {
    bytes: [u8; LINE_BYTES],
    len: usize,
}

/// The result of a piece of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    Ambiguous,
}

// === impl Framing ===

impl<S> Framing<S> {
    pub(crate) fn new(inner: S) -> (Self, Ambiguous) {
        let ambiguous = Ambiguous::default();
        let framing = Self {
            inner,
            scan: Scan::default(),
            ambiguous: ambiguous.clone(),
        };
        (framing, ambiguous)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Framing<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        if self.scan.read(&buf.filled()[before..]) == Verdict::Ambiguous {
            self.ambiguous.0.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Framing<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

// === impl Ambiguous ===

impl Ambiguous {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

// === impl Scan ===

impl Scan {
    fn read(&mut self, mut input: &[u8]) -> Verdict {
        while !input.is_empty() {
            match self.state {
                State::Over => return Verdict::Fine,
                State::Data { left, chunked } => {
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                    input = &input[taken..];
                    let left = left - taken as u64;
                    self.state = match (left, chunked) {
                        (0, true) => State::ChunkEnd,
                        (0, false) => State::Headers,
                        _ => State::Data { left, chunked },
                    };
                }
                _ => {
                    let end = input.iter().position(|byte| *byte == b'\n');
                    self.line.push(&input[..end.unwrap_or(input.len())]);
                    let Some(end) = end else {
                        return Verdict::Fine;
                    };
                    input = &input[end + 1..];
                    let verdict = self.end_line();
                    self.line.len = 0;
                    if verdict == Verdict::Ambiguous {
                        self.state = State::Over;
                        return verdict;
                    }
                }
            }
        }
        Verdict::Fine
    }

    fn end_line(&mut self) -> Verdict {
        let line = self.line.trimmed();
        match self.state {
            State::Headers if !self.has_begun => {
                // Blank lines before a request mean nothing.
                if line.starts_with(b"PRI * HTTP/2") {
                    self.state = State::Over;
                }
                self.has_begun = !line.is_empty();
            }
            State::Headers if line.is_empty() => return self.end_headers(),
            State::Headers => {
                let Some(colon) = line.iter().position(|byte| *byte == b':') else {
                    return Verdict::Fine;
                };
                let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
                if name.eq_ignore_ascii_case(b"transfer-encoding") {
                    self.is_chunked = true;
                } else if name.eq_ignore_ascii_case(b"content-length") {
                    // hyper refuses a length that is none, and two that differ.
                    self.length = Some(parse(value, 10).unwrap_or(u64::MAX));
                }
            }
            State::ChunkSize => {
                let size = line
                    .split(|byte| matches!(byte, b';' | b' ' | b'\t'))
                    .next();
                self.state = match size.and_then(|size| parse(size, 16)) {
                    Some(0) => State::Trailers,
                    Some(left) => State::Data {
                        left,
                        chunked: true,
                    },
                    None => State::Over,
                };
            }
            State::ChunkEnd => self.state = State::ChunkSize,
            State::Trailers if line.is_empty() => self.state = State::Headers,
            State::Trailers | State::Data { .. } | State::Over => {}
        }
        Verdict::Fine
    }

    fn end_headers(&mut self) -> Verdict {
        let (length, is_chunked) = (self.length.take(), self.is_chunked);
        (self.has_begun, self.is_chunked) = (false, false);
        self.state = match (length, is_chunked) {
            (Some(_), true) => return Verdict::Ambiguous,
            (None, true) => State::ChunkSize,
            (None | Some(0), false) => State::Headers,
            (Some(left), false) => State::Data {
                left,
                chunked: false,
            },
        };
        Verdict::Fine
    }
}

// === impl Line ===

impl Line {
    fn push(&mut self, bytes: &[u8]) {
        let taken = bytes.len().min(LINE_BYTES - self.len);
        self.bytes[self.len..self.len + taken].copy_from_slice(&bytes[..taken]);
        self.len += taken;
    }

    /// Without the carriage return at its end, if that is within what is kept.
    fn trimmed(&self) -> &[u8] {
        let line = &self.bytes[..self.len];
        line.strip_suffix(b"\r").unwrap_or(line)
    }
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; LINE_BYTES],
            len: 0,
        }
    }
}

fn parse(digits: &[u8], radix: u32) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &str =
        "POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n";

    /// Whether the bytes are found ambiguous, in whatever pieces they come.
    fn is_ambiguous(bytes: &str) -> bool {
        let whole = Scan::default().read(bytes.as_bytes());
        for size in [1, 2, 3, 7, 64] {
            let mut scan = Scan::default();
            let mut pieces = bytes.as_bytes().chunks(size);
            let found = pieces.any(|piece| scan.read(piece) == Verdict::Ambiguous);
            assert_eq!(
                found,
                whole == Verdict::Ambiguous,
                "in pieces of {size}: {bytes}"
            );
        }
        whole == Verdict::Ambiguous
    }

    #[test]
    fn both_are_ambiguous_in_either_order_and_spelling() {
        for headers in [
            "content-length: 4\r\ntransfer-encoding: chunked",
            "transfer-encoding: chunked\r\ncontent-length: 4",
            "TRANSFER-ENCODING:chunked\r\nContent-Length:4",
            "content-length: 0\r\ntransfer-encoding: gzip, chunked",
            "content-length: four\r\ntransfer-encoding: chunked",
            "content-length: 4\r\nx: y\r\ncontent-length: 4\r\ntransfer-encoding: identity",
        ] {
            assert!(
                is_ambiguous(&format!("POST /a HTTP/1.1\r\n{headers}\r\n\r\n")),
                "{headers}"
            );
            let bare = headers.replace("\r\n", "\n");
            assert!(
                is_ambiguous(&format!("POST /a HTTP/1.1\n{bare}\n\n")),
                "{headers}"
            );
        }
        let spaces = " ".repeat(200);
        assert!(is_ambiguous(&format!(
            "POST /a HTTP/1.1\r\ncontent-length:{spaces}4\r\ntransfer-encoding:{spaces}chunked\r\n\r\n"
        )));
    }

    #[test]
    fn the_second_request_of_a_connection_is_checked_too() {
        for first in [
            "GET /a HTTP/1.1\r\nhost: x\r\n\r\n",
            "POST /a HTTP/1.1\r\ncontent-length: 0\r\n\r\n",
            "POST /a HTTP/1.1\r\ncontent-length: 5\r\n\r\n12345",
            "\r\nPOST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5;x=y\r\n12345\r\nA \r\n0123456789\r\n0\r\nt: 1\r\n\r\n",
        ] {
            assert!(!is_ambiguous(first), "{first}");
            assert!(is_ambiguous(&format!("{first}{BOTH}")), "{first}");
        }
    }

    #[test]
    fn the_content_of_a_body_does_not_count() {
        for request in [
            format!("POST /a HTTP/1.1\r\ncontent-length: {}\r\n\r\n{BOTH}", BOTH.len()),
            format!(
                "POST /a HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{BOTH}\r\n0\r\n\r\n",
                BOTH.len()
            ),
            format!("POST /{}content-length: 1 HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", "x".repeat(80)),
            "POST /a HTTP/1.1\r\nx-content-length: 1\r\nx: content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n".to_owned(),
            format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{BOTH}"),
        ] {
            assert!(!is_ambiguous(&request), "{request}");
        }
    }
}
