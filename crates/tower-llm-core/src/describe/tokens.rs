//! The number of tokens in a request's input.

use std::borrow::Cow;

use memchr::memchr;

use crate::scan::json::Text;

/// Maximum amount of text that is counted exactly; the rest is estimated, so that no request occupies a thread for long: dashes
/// take over a microsecond a byte.
#[cfg(feature = "tokenizer")]
const MAX_EXACT_BYTES: u64 = 32 * 1024;

/// Longest name that counts as a part of the request's form. The longest in use are identifiers of some 60 bytes.
const MAX_LABEL_BYTES: u64 = 128;

/// Longest media type in a data URL.
const MAX_MEDIA_TYPE_BYTES: usize = 100;

/// Shortest line of base64 that is broken into lines: MIME has 76 bytes a line, PEM 64.
const MIN_LINE_BYTES: usize = 60;

/// The input of a request.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// Text that is estimated, in bytes of UTF-8.
    bytes: u64,
    /// Tokens that were counted, or sent as token numbers.
    tokens: u64,
    /// Elements of the longest list of inputs; one if it is not a list.
    pub(super) items: u64,
    /// Those of the list that is read.
    in_list: u64,
    #[cfg_attr(
        not(feature = "tokenizer"),
        expect(dead_code, reason = "set only with it")
    )]
    exact: bool,
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// The list of inputs itself.
    List,
    /// One of them: a text, or a list of token numbers.
    Item,
    /// A part of such an item.
    Part,
    /// Messages, their parts, or texts.
    Texts,
    /// A schema, or a tool's data: its names count too.
    Schema,
    /// A member that may be a medium.
    Media,
    /// A name such as a role, a type or an identifier, which counts if it is long enough to be a text.
    Label,
}

impl Of {
    /// What the items of a list are.
    pub(super) fn item(self) -> Self {
        match self {
            Self::List => Self::Item,
            Self::Item => Self::Part,
            of => of,
        }
    }
}

impl Input {
    pub(super) fn new(exact: bool) -> Self {
        Self {
            exact,
            ..Self::default()
        }
    }

    /// The same inputs, of `bytes` of text that is not read.
    pub(super) fn of_bytes(self, bytes: usize) -> Self {
        Self {
            bytes: bytes as u64,
            tokens: 0,
            ..self
        }
    }

    /// The same inputs with `bytes` that cannot be read: one token a byte, since they may be compressed.
    pub(super) fn with_unreadable(self, bytes: u64) -> Self {
        Self {
            tokens: self.tokens.saturating_add(bytes),
            ..self
        }
    }

    /// Returns the estimate: one token for four bytes of UTF-8.
    ///
    /// By bytes and not by characters: on mixed text the error is 5 %; by characters it is 10 %, and 58 % on Chinese.
    pub(super) fn tokens(&self) -> u64 {
        self.tokens.saturating_add(self.bytes.div_ceil(4))
    }

    /// What the member `key` of an object is; `None` if the model does not read it.
    pub(super) fn member(&mut self, object: Of, key: &[u8]) -> Option<Of> {
        match key {
            _ if object == Of::Schema => {
                self.count(key, key.len() as u64);
                Some(Of::Schema)
            }
            _ if object == Of::Label || is_label(key) => Some(Of::Label),
            _ if is_reference(key) => None,
            _ if is_data(key) => Some(Of::Schema),
            _ if may_be_media(key) => Some(Of::Media),
            _ => Some(Of::Texts),
        }
    }

    /// The name of a member is longer than [`member`](Self::member) was told.
    pub(super) fn long_key(&mut self, object: Of, more: usize) {
        if object == Of::Schema {
            self.bytes = self.bytes.saturating_add(more as u64);
        }
    }

    /// A list or an object begins.
    pub(super) fn open(&mut self, of: Of) {
        match of {
            Of::List => self.in_list = 0,
            Of::Item => self.one_more(),
            _ => {}
        }
    }

    /// A whole string.
    pub(super) fn text(&mut self, of: Of, text: Text<'_>) {
        match of {
            Of::List => self.items = self.items.max(1),
            Of::Item => self.one_more(),
            _ => {}
        }
        if of == Of::Label && text.bytes.unsigned_abs() <= MAX_LABEL_BYTES {
            return;
        }
        let written = text.written;
        if may_be_medium(of, written) && is_medium(of, &decoded(written)) {
            return;
        }
        let bytes = match text.has_numbers {
            true => decoded(written).len() as u64,
            false => text.bytes.unsigned_abs(),
        };
        self.count(written, bytes);
    }

    /// A number in a list of inputs is a token, and a list of numbers is one input.
    pub(super) fn number(&mut self, of: Of) {
        match of {
            Of::Item => self.items = self.items.max(1),
            Of::List | Of::Part => {}
            _ => return,
        }
        self.tokens += 1;
    }

    /// `true`, `false` or `null`.
    pub(super) fn word(&mut self, of: Of) {
        if of == Of::Item {
            self.one_more();
        }
    }

    fn one_more(&mut self) {
        self.in_list += 1;
        self.items = self.items.max(self.in_list);
    }

    /// Counts a text of so many bytes.
    fn count(&mut self, written: &[u8], bytes: u64) {
        if bytes == 0 {
            return;
        }
        #[cfg(feature = "tokenizer")]
        if self.exact && self.tokens.saturating_mul(4) + bytes <= MAX_EXACT_BYTES {
            let text = decoded(written);
            let text = String::from_utf8_lossy(&text);
            self.tokens += bpe_openai::o200k_base().count(&text) as u64;
            return;
        }
        let _ = written;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// A string with its escapes undone; as it is if they are not JSON's.
pub(super) fn decoded(written: &[u8]) -> Cow<'_, [u8]> {
    if memchr(b'\\', written).is_none() {
        return Cow::Borrowed(written);
    }
    let quoted = [b"\"", written, b"\""].concat();
    match serde_json::from_slice::<String>(&quoted) {
        Ok(text) => Cow::Owned(text.into_bytes()),
        Err(_) => Cow::Borrowed(written),
    }
}

/// Whether a string stands where media do. In a message, a data URL is text like any other: the model reads it.
fn may_be_medium(of: Of, written: &[u8]) -> bool {
    match of {
        Of::Media => true,
        Of::List | Of::Item => written.starts_with(b"data:"),
        Of::Part | Of::Texts | Of::Schema | Of::Label => false,
    }
}

fn is_medium(of: Of, text: &[u8]) -> bool {
    is_data_url(text) || of == Of::Media && is_encoded(text)
}

/// Whether a member names what a text is.
fn is_label(key: &[u8]) -> bool {
    matches!(
        key,
        b"role"
            | b"type"
            | b"id"
            | b"model"
            | b"call_id"
            | b"tool_call_id"
            | b"tool_use_id"
            | b"detail"
            | b"format"
            | b"media_type"
            | b"mime_type"
            | b"mimeType"
            | b"taskType"
    )
}

/// Whether a member points to a medium, or is for the provider alone: the model does not read it as text.
fn is_reference(key: &[u8]) -> bool {
    matches!(
        key,
        b"cache_control"
            | b"image_url"
            | b"url"
            | b"file_id"
            | b"file_uri"
            | b"fileUri"
            | b"outputDimensionality"
    )
}

/// Whether a member of a message holds data of a tool, or of a stored prompt: the model reads all of it, names included.
fn is_data(key: &[u8]) -> bool {
    matches!(
        key,
        b"args" | b"response" | b"input" | b"arguments" | b"output" | b"variables"
    )
}

/// Whether a member of a message holds a medium, or data that only the provider reads.
fn may_be_media(key: &[u8]) -> bool {
    matches!(
        key,
        b"data"
            | b"file_data"
            | b"b64_json"
            | b"bytes"
            | b"signature"
            | b"thoughtSignature"
            | b"thought_signature"
            | b"encrypted_content"
    )
}

/// Whether it is a data URL.
fn is_data_url(text: &[u8]) -> bool {
    const BASE64: &[u8] = b";base64,";
    let Some(url) = text.strip_prefix(b"data:") else {
        return false;
    };
    let beginning = &url[..url.len().min(MAX_MEDIA_TYPE_BYTES + BASE64.len())];
    let data = beginning
        .windows(BASE64.len())
        .position(|part| part == BASE64);
    let is_type = |byte: &u8| byte.is_ascii_alphanumeric() || b"/+-.;=".contains(byte);
    data.is_some_and(|at| url[..at].iter().all(is_type) && is_encoded(&url[at + BASE64.len()..]))
}

/// Whether it is all base64, in one line or in long ones: documents are sent in the same members as text, and may have a word
/// a line.
fn is_encoded(text: &[u8]) -> bool {
    let looks_encoded = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=-_".contains(byte);
    let mut lines = text
        .split(|&byte| byte == b'\n')
        .map(|line| line.trim_ascii_end())
        .peekable();
    let mut is_encoded = !text.is_empty();
    while let Some(line) = lines.next() {
        let is_last = lines.peek().is_none_or(|next| next.is_empty());
        is_encoded &= line.iter().all(looks_encoded) && (is_last || line.len() >= MIN_LINE_BYTES);
    }
    is_encoded
}

#[cfg(test)]
mod tests {
    fn tokens(json: &str) -> u64 {
        crate::describe::body::input_tokens(&format!(r#"{{"messages":{json}}}"#))
    }

    #[test]
    fn texts_count_by_their_bytes_once_escapes_are_undone() {
        assert_eq!(tokens(r#""12345678""#), 2);
        assert_eq!(tokens(r#""123456789""#), 3);
        // Twelve bytes, which JSON writes as 24.
        assert_eq!(tokens(r#""\u4f60\u597d\u4f60\u597d""#), 3);
    }

    #[test]
    fn media_do_not_count_in_any_member() {
        let media = "QUJD".repeat(10_000);
        for json in [
            format!(
                r#"[{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{media}"}}}}]"#
            ),
            format!(r#"[{{"type":"image","source":{{"type":"base64","data":"{media}"}}}}]"#),
            format!(
                r#"[{{"parts":[{{"inlineData":{{"mimeType":"image/png","data":"{media}"}}}}]}}]"#
            ),
            format!(r#"[{{"input_audio":{{"data":"{media}","format":"wav"}}}}]"#),
        ] {
            assert_eq!(tokens(&json), 0, "{}", &json[..80]);
        }
    }

    #[test]
    fn a_text_is_a_text_whatever_it_looks_like() {
        let text = "QUJD".repeat(200);
        assert_eq!(tokens(&format!("\"{text}\"")), 200);
        assert_eq!(
            tokens(&format!(r#"[{{"role":"user","content":"{text}"}}]"#)),
            200
        );
        assert_eq!(tokens("\"data:,ten\""), 3);
        // A document in a member for media.
        assert_eq!(
            tokens(r#"[{"source":{"type":"text","data":"a document"}}]"#),
            3
        );
    }

    #[test]
    fn no_text_is_free_because_it_is_written_like_a_medium() {
        let words = "word\\n".repeat(100);
        for (json, least) in [
            // The model reads it, wherever a caller writes it.
            (
                r#"[{"content":"data: do this ;base64,QUJD"}]"#.to_owned(),
                6,
            ),
            (
                r#"[{"content":"data:text/plain;base64,QUJD"}]"#.to_owned(),
                6,
            ),
            (
                r#"[{"arguments":"data: do this ;base64,QUJD"}]"#.to_owned(),
                6,
            ),
            (
                r#"[{"file_data":"data: do this ;base64,QUJD"}]"#.to_owned(),
                6,
            ),
            (
                format!(r#"[{{"source":{{"type":"text","data":"{words}"}}}}]"#),
                125,
            ),
        ] {
            assert!(tokens(&json) >= least, "{json}");
        }
        let lines = format!("{}\\r\\n", "QUJD".repeat(19)).repeat(20);
        assert_eq!(tokens(&format!(r#"[{{"data":"{lines}QUI="}}]"#)), 0);
    }

    #[test]
    fn all_data_of_a_tool_counts() {
        let json =
            r#"[{"functionResponse":{"name":"f","response":{"detail":"12345","id":"123"}}}]"#;
        // The function's name, and the names and values of its response.
        assert_eq!(tokens(json), (1 + 6 + 5 + 2 + 3_u64).div_ceil(4));
    }

    #[test]
    fn a_long_text_without_spaces_is_still_a_text() {
        let chinese = "你好".repeat(500);
        assert_eq!(tokens(&format!("\"{chinese}\"")), 750);
    }
}
