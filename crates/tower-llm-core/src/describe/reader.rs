//! Reading a request body as far as the layers need it.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header, request::Parts};
use http_body::Body;

use super::layer::Settings;
use crate::{
    BoxError, Operation, RequestBody, TooLarge, dialect::Route, request_body::callers_fault,
};

/// Reads a body until its kind is known, and JSON to its end.
pub(super) struct Reader<B> {
    body: B,
    form: Form,
    read: Gathered,
    /// The length of the body, as far as it is known: announced, or already read.
    at_least: u64,
}

/// What a body is.
///
/// Clients send JSON with any content type or none, so the first bytes decide if the content type is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Nothing but white space so far.
    Unknown,
    Json,
    Other,
}

/// The bytes that have been read.
#[derive(Default)]
struct Gathered {
    // Most bodies arrive in one frame, which is then passed on as it is.
    first: Bytes,
    more: BytesMut,
}

// === impl Reader ===

impl<B> Reader<B>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    pub(super) fn new(headers: &HeaderMap, body: B) -> Self {
        let announced = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        Self {
            form: Form::of(headers),
            read: Gathered::default(),
            at_least: body.size_hint().lower().max(announced.unwrap_or(0)),
            body,
        }
    }

    /// Reads on; ready with the body once it is held or known to be streamed.
    ///
    /// JSON over the limit is refused if a layer has to read it. Otherwise it is a file that begins like JSON, and is
    /// streamed.
    ///
    /// Must not be polled again after it was ready.
    pub(super) fn poll(
        &mut self,
        parts: &Parts,
        settings: &Settings,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Held, BoxError>> {
        let limit = settings.max_body_bytes as u64;
        loop {
            let is_over = self.form == Form::Json && self.at_least > limit;
            if is_over || self.read.len() > limit {
                if is_for_layers(parts) {
                    return Poll::Ready(Err(TooLarge::new(settings.max_body_bytes).into()));
                }
                self.form = Form::Other;
            }
            if self.form == Form::Other {
                return Poll::Ready(Ok(Held::No));
            }
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else {
                return Poll::Ready(Ok(Held::Yes));
            };
            // No dialect uses trailers of a request.
            if let Ok(mut data) = frame.map_err(callers_fault)?.into_data() {
                let piece = data.copy_to_bytes(data.remaining());
                if self.form == Form::Unknown {
                    self.form = Form::of_first(&piece);
                }
                self.read.push(piece);
                self.at_least = self.at_least.max(self.read.len());
            }
        }
    }

    /// The length of the body, as far as it is known.
    pub(super) fn at_least(&self) -> u64 {
        self.at_least
    }

    /// Returns the body to pass on.
    pub(super) fn finish(
        self,
        held: Held,
        settings: &Settings,
    ) -> Result<RequestBody<B>, TooLarge> {
        let limit = settings.max_streamed_bytes;
        match held {
            Held::Yes => Ok(RequestBody::held(self.read.into_bytes())),
            Held::No if self.at_least > limit as u64 => Err(TooLarge::new(limit)),
            Held::No => {
                let first = self.read.into_bytes();
                Ok(RequestBody::streamed_after(first, self.body, limit))
            }
        }
    }
}

/// Whether a body was read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    Yes,
    No,
}

/// Whether the layers have to read the body: its content type is JSON, or its path is one of inference.
fn is_for_layers(parts: &Parts) -> bool {
    let operation = || Route::of(&parts.method, &parts.uri, &parts.headers).operation;
    let is_read =
        |operation: Operation| operation.is_inference() || operation == Operation::COUNT_TOKENS;
    is_json(&parts.headers) || is_read(operation())
}

fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE);
    let content_type = content_type.map_or(&b""[..], HeaderValue::as_bytes);
    let essence = content_type.split(|&byte| byte == b';').next();
    let essence = essence.unwrap_or_default().trim_ascii();
    let ends_with = |suffix: &[u8]| {
        let start = essence.len().checked_sub(suffix.len());
        start.is_some_and(|start| essence[start..].eq_ignore_ascii_case(suffix))
    };
    ends_with(b"/json") || ends_with(b"+json")
}

// === impl Form ===

impl Form {
    fn of(headers: &HeaderMap) -> Self {
        match is_json(headers) {
            true => Self::Json,
            false => Self::Unknown,
        }
    }

    fn of_first(bytes: &[u8]) -> Self {
        // White space that JSON allows, and the bytes of a byte order mark.
        let is_skipped = |byte: &&u8| !b" \t\r\n\xef\xbb\xbf".contains(byte);
        match bytes.iter().find(is_skipped) {
            None => Self::Unknown,
            Some(b'{' | b'[') => Self::Json,
            Some(_) => Self::Other,
        }
    }
}

// === impl Gathered ===

impl Gathered {
    fn push(&mut self, piece: Bytes) {
        if self.first.is_empty() {
            self.first = piece;
        } else {
            self.more.extend_from_slice(&piece);
        }
    }

    fn len(&self) -> u64 {
        (self.first.len() + self.more.len()) as u64
    }

    fn into_bytes(self) -> Bytes {
        if self.more.is_empty() {
            return self.first;
        }
        let mut whole = BytesMut::with_capacity(self.first.len() + self.more.len());
        whole.extend_from_slice(&self.first);
        whole.extend_from_slice(&self.more);
        whole.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types_of_json_are_known_in_every_spelling() {
        for (content_type, expected) in [
            ("application/json", true),
            ("Application/JSON ; charset=utf-8", true),
            ("application/vnd.api+json", true),
            ("text/json", true),
            ("application/jsonl", false),
            ("application/x-ndjson", false),
            ("multipart/form-data; boundary=/json", false),
            ("application/octet-stream", false),
            ("json", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
            assert_eq!(is_json(&headers), expected, "{content_type}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }

    #[test]
    fn the_first_byte_after_white_space_shows_json() {
        for (bytes, expected) in [
            (&b"{"[..], Form::Json),
            (b" \r\n\t[1]", Form::Json),
            (b"\xef\xbb\xbf {}", Form::Json),
            (b"", Form::Unknown),
            (b" \n", Form::Unknown),
            (b"\xef", Form::Unknown),
            (b"--boundary", Form::Other),
            (b"RIFF", Form::Other),
            (b"\0", Form::Other),
            (b"\xff\xfb", Form::Other),
            (b"model=m", Form::Other),
        ] {
            assert_eq!(Form::of_first(bytes), expected, "{bytes:?}");
        }
    }
}
