//! What was found in a response body.

use std::time::Duration;

use super::{
    choices::Choices,
    counters::{Counters, larger},
    error_names::ErrorKind,
    json::{Sink, StringMode, Text},
    place::Place,
    provider_error::ProviderError,
    response_headers::MAX_RETRY_AFTER,
    retry_hint::RetryHint,
};
use crate::{FinishReason, Usage};

/// The terminal marker and other signs that a dialect gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    /// `data: [DONE]`.
    Done,
    /// OpenAI responses' `response.completed` or `response.incomplete`, Anthropic's `message_stop`, Cohere's
    /// `message-end`, Gemini's finish reason.
    Event,
}

/// The dialect of a stream, as its first events show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    /// Chat and legacy completions, which most providers end with `[DONE]`.
    Choices,
    /// Streams that end with an event of their own.
    Events,
}

/// What was found in a response so far.
#[derive(Debug, Default)]
pub(super) struct Facts {
    counters: Counters,
    /// The sum over the samplings of one Anthropic response; its own counters may leave some out.
    iterations: Counters,
    text_bytes: i64,
    /// The dialect is known from the request.
    is_known: bool,
    pub(super) has_output: bool,
    choices: Choices,
    finish: Option<FinishReason>,
    pub(super) speaks: Option<Speaks>,
    pub(super) terminal: Option<Marker>,
    error: Option<ProviderError>,
    /// A document is an object with a type or a state of its own, such as a job. Its error is part of that state.
    is_object: bool,
    /// The members at the root of the document; they are an error's if there is no answer.
    root: Root,
    hint: RetryHint,
    /// A string instead of an error object: its name or its message.
    error_text: Name,
}

/// The members at the root of a document, or of one event.
#[derive(Debug, Default)]
struct Root {
    /// What its members say if they are an error's.
    error: ProviderError,
    /// Its type, which is an error's name if there is one. Judged only then: every event has a type.
    name: Name,
    has_answer: bool,
    has_code: bool,
    has_message: bool,
    /// A message in a member that only errors have, such as `error_msg`.
    has_error_message: bool,
    /// The code beside it means success.
    is_fine: bool,
}

/// The beginning of a string that may be an error's name.
#[derive(Clone, Copy, Debug)]
struct Name {
    bytes: [u8; 64],
    len: usize,
}

impl Facts {
    /// Nothing yet; `is_known` if the dialect is known from the request.
    pub(super) fn new(is_known: bool) -> Self {
        Self {
            is_known,
            ..Self::default()
        }
    }

    /// The usage so far, counted the same for every provider.
    pub(super) fn usage(&self) -> Option<Usage> {
        let seen = self.output_seen();
        let mut usage = self.counters.usage(seen)?;
        if let Some(iterations) = self.iterations.usage(0) {
            usage = larger(usage, iterations);
        }
        if usage.output == 0 && seen > 0 {
            // Only zeros: the provider reports nothing.
            if usage.input == 0 {
                return None;
            }
            usage.output = seen;
        }
        Some(usage)
    }

    /// An estimate of the output tokens that passed.
    pub(super) fn output_seen(&self) -> u64 {
        u64::try_from(self.text_bytes).unwrap_or(0).div_ceil(4)
    }

    /// The bytes of content that passed; `None` in a dialect that is not known.
    pub(super) fn content_bytes(&self) -> Option<u64> {
        let is_known = self.is_known || self.speaks.is_some();
        is_known.then(|| u64::try_from(self.text_bytes).unwrap_or(0))
    }

    /// Why the model stopped.
    pub(super) fn finish(&self) -> Option<FinishReason> {
        let is_cut = self.choices.lack_a_reason();
        self.finish.filter(|reason| match reason {
            FinishReason::Stop | FinishReason::ToolCalls => !is_cut,
            FinishReason::Length | FinishReason::ContentFilter | FinishReason::Other => true,
        })
    }

    pub(super) fn finished_choices(&self) -> u32 {
        self.choices.finished()
    }

    /// Whether each choice that arrived has a finish reason.
    pub(super) fn has_finished(&self) -> bool {
        if self.choices.are_any() || self.speaks == Some(Speaks::Choices) {
            self.choices.have_finished()
        } else {
            self.finish.is_some()
        }
    }

    /// Whether the terminal marker came; `expected` is the dialect that the request asked for.
    pub(super) fn has_marker(&self, expected: Option<Speaks>) -> bool {
        match self.speaks.or(expected) {
            Some(Speaks::Choices) => self.terminal == Some(Marker::Done),
            // A stream of Gemini ends when every candidate has finished.
            _ => self.terminal.is_some() || self.choices.have_finished(),
        }
    }

    /// The error that came, if one did.
    pub(super) fn error(&self) -> Option<ProviderError> {
        match (self.error, self.root.error()) {
            (Some(error), _) => Some(error.and(self.root.named())),
            (None, root) => root,
        }
    }

    /// The error that came where the documents are not known: none that is part of an object's state, and of members at the
    /// root only those that say so by a name or number.
    pub(super) fn certain_error(&self) -> Option<ProviderError> {
        let is_certain = |error: &ProviderError| self.has_error() || error.is_certain();
        self.error().filter(is_certain).filter(|_| !self.is_object)
    }

    /// Whether an error came that is one by itself.
    pub(super) fn has_error(&self) -> bool {
        self.error.is_some()
    }

    /// The wait that an error's text names.
    pub(super) fn hint(&self) -> &RetryHint {
        &self.hint
    }

    /// Reads a text that is all of an error's body.
    pub(super) fn error_text(&mut self, piece: &[u8]) {
        self.hint.feed(piece);
    }

    /// Notes an error, to add to it.
    pub(super) fn note_error(&mut self) -> &mut ProviderError {
        self.error.get_or_insert_default()
    }

    /// An event has ended. In an unknown dialect every event counts as content, since content cannot be recognised.
    pub(super) fn end_event(&mut self) {
        self.error = self.error();
        let is_readable = self.is_known || self.speaks.is_some() || self.terminal.is_some();
        self.has_output |= !is_readable && self.error.is_none();
        // The event may have ended inside a choice.
        self.choices.abandon();
        self.error_text.clear();
        self.root.reset();
    }

    /// Whether the document has shown a member of an answer.
    pub(super) fn has_answer(&self) -> bool {
        self.root.has_answer
    }

    /// Notes that it has shown one.
    pub(super) fn note_answer(&mut self) {
        self.root.has_answer = true;
    }

    fn note_event(&mut self, event: &[u8]) {
        if let b"message_start" | b"message-start" = event {
            self.speaks = Some(Speaks::Events);
        }
        match event {
            b"message_stop"
            | b"message-end"
            | b"response.completed"
            | b"response.incomplete"
            | b"interaction.completed"
            | b"interaction.complete" => {
                self.terminal = Some(Marker::Event);
                self.speaks.get_or_insert(Speaks::Events);
                if event == b"response.completed" {
                    self.finish.get_or_insert(FinishReason::Stop);
                }
            }
            b"error" | b"response.failed" => {
                self.note_error();
            }
            _ if event.starts_with(b"response.") || event.starts_with(b"interaction.") => {
                self.speaks = Some(Speaks::Events);
                // The `code` of such an event is the interpreter's.
                self.root.has_answer = true;
            }
            // The common events of a stream are not errors.
            _ if event.starts_with(b"content_") || event.starts_with(b"message_") => {}
            // vLLM's `type: "BadRequestError"`, beside `object: "error"`.
            _ => {
                self.root.name.clear();
                self.root.name.push(event);
            }
        }
    }

    fn note_finish(&mut self, reason: &[u8]) {
        match FinishReason::parse(reason) {
            Some(reason) => self.finished(reason),
            None => self.note_error().name(reason),
        }
    }

    /// Notes why a choice has ended. Of several, the one that is least an answer counts: it must not look whole.
    fn finished(&mut self, reason: FinishReason) {
        let rank = |reason| match reason {
            FinishReason::ContentFilter => 3,
            FinishReason::Length => 2,
            FinishReason::ToolCalls => 1,
            FinishReason::Stop | FinishReason::Other => 0,
        };
        if self.finish.is_none_or(|known| rank(reason) >= rank(known)) {
            self.finish = Some(reason);
        }
    }
}

impl Sink for Facts {
    type Place = Place;

    fn member(&mut self, parent: Place, key: &[u8]) -> Option<Place> {
        let place = parent.member(key)?;
        match place {
            Place::Choices => {
                self.speaks.get_or_insert(Speaks::Choices);
                self.root.has_answer = true;
            }
            Place::Candidates => {
                self.speaks = Some(Speaks::Events);
                self.root.has_answer = true;
            }
            Place::Usage | Place::Delta | Place::Texts | Place::Response => {
                self.root.has_answer = true;
            }
            _ => {}
        }
        Some(place)
    }

    fn item(&mut self, parent: Place) -> Option<Place> {
        parent.item()
    }

    fn string_mode(&self, place: Place) -> StringMode {
        place.string_mode()
    }

    fn open(&mut self, place: Place) {
        match place {
            // Not for an error: an empty object is none, and neither is one whose members are null.
            Place::Payload => self.has_output = true,
            // Each report has all of them.
            Place::Iterations => self.iterations = Counters::default(),
            Place::Message => self.root.has_answer = true,
            _ => {}
        }
    }

    #[inline]
    fn close(&mut self, place: Place) {
        if matches!(place, Place::Choice | Place::Candidate) {
            self.choices.close();
        }
    }

    fn string(&mut self, place: Place, raw: &[u8]) {
        if let Place::RootObject | Place::ResponseStatus = place {
            self.is_object |= !matches!(raw, b"" | b"error");
        }
        match place {
            Place::Root if raw == b"[DONE]" => self.terminal = Some(Marker::Done),
            Place::EventType => self.note_event(raw),
            // Some providers write this while there is no reason.
            Place::Finish | Place::ChoiceFinish if matches!(raw, b"" | b"null") => {}
            Place::Finish => self.note_finish(raw),
            Place::ChoiceFinish => {
                self.note_finish(raw);
                self.choices.finish();
            }
            Place::Blocked => {
                self.finished(FinishReason::ContentFilter);
                self.speaks = Some(Speaks::Events);
                self.terminal = Some(Marker::Event);
            }
            Place::ResponseStatus => match raw {
                b"completed" | b"incomplete" => {
                    self.finish.get_or_insert(match raw {
                        b"completed" => FinishReason::Stop,
                        _ => FinishReason::Other,
                    });
                }
                b"failed" | b"error" => {
                    self.note_error();
                }
                _ => {}
            },
            _ if raw.is_empty() => {}
            Place::ErrorName | Place::ErrorCode => self.note_error().name(raw),
            Place::RootObject if raw == b"error" => {
                self.note_error();
            }
            Place::RootCode => self.root.code(raw),
            Place::RootErrorName => self.note_error().name(raw),
            Place::RootErrorCode if is_fine(raw) => self.root.is_fine = true,
            Place::RootErrorCode => self.note_error().name(raw),
            Place::RetryDelay => self.note_error().delay(parse_seconds(raw)),
            Place::QuotaId => {
                // A daily quota is refilled at midnight, whatever the delay beside it says.
                if memchr::memmem::find(raw, b"PerDay").is_some() {
                    self.note_error().of_day();
                }
                if memchr::memmem::find(raw, b"PerModel").is_some() {
                    self.note_error().of_model();
                }
            }
            Place::QuotaModel => self.note_error().of_model(),
            // A text that passed has ended.
            _ => {}
        }
    }

    fn pass(&mut self, place: Place, piece: &[u8]) {
        self.hint.feed(piece);
        match place {
            Place::Error => self.error_text.push(piece),
            // Its presence makes it an error; its text may change.
            Place::ErrorMessage if !piece.is_empty() => {
                self.note_error();
            }
            Place::RootErrorMessage => self.root.has_error_message |= !piece.is_empty(),
            Place::Message => self.root.has_message |= !piece.is_empty(),
            _ => {}
        }
    }

    fn passed(&mut self, place: Place) {
        if place == Place::Error && !self.error_text.is_empty() {
            let text = self.error_text;
            self.error_text.clear();
            self.note_error().text(text.bytes());
        }
    }

    fn text(&mut self, place: Place, Text { bytes, .. }: Text<'_>) {
        if place == Place::Refusal && bytes > 0 {
            self.finished(FinishReason::ContentFilter);
        }
        self.text_bytes = self.text_bytes.saturating_add(bytes);
        self.has_output |= bytes > 0;
    }

    fn number(&mut self, place: Place, value: u64) {
        match place {
            Place::Count(counter) => self.counters.report(counter, value),
            Place::IterationCount(counter) => self.iterations.add(counter, value),
            Place::ChoiceIndex => self.choices.index(value),
            Place::RootErrorCode if value == 0 => self.root.is_fine = true,
            _ if value == 0 => {}
            Place::ErrorCode | Place::Error => self.note_error().number(value),
            Place::RootCode | Place::ResponseStatus => self.root.number(value),
            Place::RootErrorCode => self.note_error().add(ErrorKind::of_baidu(value)),
            Place::BaseRespCode => self.note_error().add(ErrorKind::of_minimax(value)),
            // An event that is nothing but a number; it counts if the event is an error's.
            Place::Root => self.root.number(value),
            _ => {}
        }
    }

    fn word(&mut self, place: Place, word: &[u8]) {
        match (place, word) {
            // `data: [DONE]` reads as an array of one bare word.
            (Place::Root, b"DONE") => self.terminal = Some(Marker::Done),
            (Place::Error, b"true") | (Place::RootSuccess, b"false") => {
                self.note_error();
            }
            _ => {}
        }
    }
}

impl Root {
    /// The error that its members describe, with its type.
    fn named(&self) -> ProviderError {
        let mut error = self.error;
        if !self.name.is_empty() {
            error.name(self.name.bytes());
        }
        error
    }

    /// The error, if it is one and no answer: it has a message in a member that only errors have, or a message and a code,
    /// or a name or number of an error.
    fn error(&self) -> Option<ProviderError> {
        if self.has_answer || self.is_fine {
            return None;
        }
        let has_one = self.has_error_message || self.has_message && self.has_code;
        if has_one || self.error.is_certain() {
            return Some(self.named());
        }
        let is_named = self.has_message && self.named().is_certain();
        is_named.then(|| self.named())
    }

    fn code(&mut self, code: &[u8]) {
        match std::str::from_utf8(code)
            .ok()
            .and_then(|code| code.parse().ok())
        {
            Some(number) => self.number(number),
            None if is_fine(code) => self.is_fine = true,
            None => {
                self.has_code = true;
                self.error.name(code);
            }
        }
    }

    fn number(&mut self, number: u64) {
        // HTTP's other statuses.
        if (100..400).contains(&number) {
            return;
        }
        self.has_code = true;
        self.error.number(number);
    }

    fn reset(&mut self) {
        self.error = ProviderError::default();
        self.name.clear();
        self.has_answer = false;
        self.has_code = false;
        self.has_message = false;
        self.has_error_message = false;
        self.is_fine = false;
    }
}

/// Whether a code means success.
fn is_fine(code: &[u8]) -> bool {
    [&b"0"[..], b"200", b"ok", b"success", b"null"]
        .iter()
        .any(|fine| code.eq_ignore_ascii_case(fine))
}

impl Name {
    fn push(&mut self, piece: &[u8]) {
        let free = &mut self.bytes[self.len..];
        let taken = piece.len().min(free.len());
        free[..taken].copy_from_slice(&piece[..taken]);
        self.len += taken;
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn clear(&mut self) {
        self.len = 0;
    }
}

impl Default for Name {
    fn default() -> Self {
        Self {
            bytes: [0; 64],
            len: 0,
        }
    }
}

/// A protobuf duration such as `57.238747106s`, rounded up to milliseconds.
fn parse_seconds(text: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(text).ok()?;
    let seconds: f64 = text.strip_suffix('s')?.parse().ok()?;
    let exact = Duration::try_from_secs_f64(seconds).ok()?;
    let millis = u64::try_from(exact.as_nanos().div_ceil(1_000_000)).ok()?;
    Some(Duration::from_millis(millis).min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_delay_is_rounded_up_to_milliseconds() {
        assert_eq!(parse_seconds(b"36s"), Some(Duration::from_secs(36)));
        assert_eq!(
            parse_seconds(b"57.238747106s"),
            Some(Duration::from_millis(57_239))
        );
        for odd in [&b"-1s"[..], b"1", b"s", b"NaNs", b"infs", b""] {
            assert_eq!(parse_seconds(odd), None, "{odd:?}");
        }
    }
}
