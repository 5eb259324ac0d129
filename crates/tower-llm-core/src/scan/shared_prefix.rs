//! The prefix that the events of a stream share.
//!
//! Most bytes of an event are those of the event before: identifiers, the model, the path down to the few bytes that are
//! new. This prefix is stored, with the state in which it leaves the reader. An event that starts with it is compared at the
//! speed of memory, and read from where the prefix ends.
//!
//! The result is the same: the reader continues in that state, and what it reported about the prefix is reported again.

use super::{
    facts::Facts,
    json::{Json, Sink, StringMode, Text},
    place::Place,
};

/// Longest prefix that is stored.
const LONGEST: usize = 256;

/// Shortest prefix that is worth storing.
const SHORTEST: usize = 32;

/// Maximum number of reports about it that are stored.
const MOST_REPORTS: usize = 4;

/// Longest string in such a report.
const LONGEST_REPORT: usize = 40;

/// The prefix of the last events.
#[derive(Debug)]
pub(super) struct SharedPrefix {
    bytes: [u8; LONGEST],
    len: usize,
    /// The state in which it leaves the reader; `None` while only one event has started with it.
    after: Option<After>,
}

#[derive(Debug)]
struct After {
    json: Json<Place>,
    /// It shows a member of an answer.
    has_answer: bool,
    reports: Log,
}

/// What the reader reports about the prefix, except members and containers: what these change in [`Facts`] is never undone.
#[derive(Debug)]
struct Log {
    reports: [Report; MOST_REPORTS],
    len: usize,
    has_all: bool,
}

#[derive(Clone, Copy, Debug)]
enum Report {
    String {
        place: Place,
        raw: [u8; LONGEST_REPORT],
        len: usize,
    },
    Text(Place, i64),
    Number(Place, u64),
}

/// Passes on what the reader reports, and logs it.
struct Logged<'f> {
    facts: &'f mut Facts,
    log: Log,
}

impl SharedPrefix {
    pub(super) fn new() -> Self {
        Self {
            bytes: [0; LONGEST],
            len: 0,
            after: None,
        }
    }

    /// Reads the first line of an event with `json`, which has read nothing of it. The line must be whole: a part of it
    /// does not show what events share.
    pub(super) fn feed(&mut self, line: &[u8], json: &mut Json<Place>, facts: &mut Facts) {
        let known = &self.bytes[..self.len];
        if let (Some(after), Some(rest)) = (&self.after, line.strip_prefix(known)) {
            after.reports.replay(facts);
            if after.has_answer {
                facts.note_answer();
            }
            *json = after.json;
            json.feed(rest, facts);
            return;
        }
        let shared = known.iter().zip(line).take_while(|(a, b)| a == b).count();
        if shared < SHORTEST {
            self.start_with(line);
            json.feed(line, facts);
        } else {
            let (beginning, rest) = line.split_at(shared);
            self.learn(beginning, json, facts);
            json.feed(rest, facts);
        }
    }

    fn start_with(&mut self, line: &[u8]) {
        self.len = line.len().min(LONGEST);
        self.bytes[..self.len].copy_from_slice(&line[..self.len]);
        self.after = None;
    }

    /// Reads what an event shares with those before.
    fn learn(&mut self, beginning: &[u8], json: &mut Json<Place>, facts: &mut Facts) {
        let log = Log::new();
        let mut logged = Logged { facts, log };
        json.feed(beginning, &mut logged);
        let reports = logged.log;
        // If the log cannot hold all reports, half of the prefix may have fewer.
        (self.len, self.after) = if reports.has_all {
            let json = *json;
            let has_answer = facts.has_answer();
            (
                beginning.len(),
                Some(After {
                    json,
                    has_answer,
                    reports,
                }),
            )
        } else {
            (beginning.len() / 2, None)
        };
    }
}

impl Log {
    fn new() -> Self {
        Self {
            reports: [Report::Text(Place::Root, 0); MOST_REPORTS],
            len: 0,
            has_all: true,
        }
    }

    fn push(&mut self, report: Report) {
        match self.reports.get_mut(self.len) {
            Some(place) => {
                *place = report;
                self.len += 1;
            }
            None => self.has_all = false,
        }
    }

    fn replay(&self, facts: &mut Facts) {
        for report in &self.reports[..self.len] {
            match *report {
                Report::String { place, raw, len } => facts.string(place, &raw[..len]),
                Report::Text(place, bytes) => {
                    let text = Text {
                        written: &[],
                        bytes,
                        has_numbers: false,
                    };
                    facts.text(place, text);
                }
                Report::Number(place, value) => facts.number(place, value),
            }
        }
    }
}

impl Sink for Logged<'_> {
    type Place = Place;

    fn member(&mut self, parent: Place, key: &[u8]) -> Option<Place> {
        self.facts.member(parent, key)
    }

    fn item(&mut self, parent: Place) -> Option<Place> {
        self.facts.item(parent)
    }

    fn string_mode(&self, place: Place) -> StringMode {
        self.facts.string_mode(place)
    }

    fn open(&mut self, place: Place) {
        self.facts.open(place);
        // Each of them begins a sum of its own.
        self.log.has_all &= place != Place::Iterations;
    }

    fn close(&mut self, place: Place) {
        self.facts.close(place);
        self.log.has_all &= !matches!(place, Place::Choice | Place::Candidate);
    }

    fn pass(&mut self, place: Place, piece: &[u8]) {
        self.facts.pass(place, piece);
        self.log.has_all = false;
    }

    fn passed(&mut self, place: Place) {
        self.facts.passed(place);
    }

    fn string(&mut self, place: Place, raw: &[u8]) {
        self.facts.string(place, raw);
        let mut kept = [0; LONGEST_REPORT];
        let len = raw.len();
        match kept.get_mut(..len) {
            Some(kept) => kept.copy_from_slice(raw),
            None => return self.log.has_all = false,
        }
        self.log.push(Report::String {
            place,
            raw: kept,
            len,
        });
    }

    fn text(&mut self, place: Place, piece: Text<'_>) {
        self.facts.text(place, piece);
        self.log.push(Report::Text(place, piece.bytes));
    }

    fn number(&mut self, place: Place, value: u64) {
        self.facts.number(place, value);
        self.log.push(Report::Number(place, value));
    }

    fn word(&mut self, place: Place, word: &[u8]) {
        self.facts.word(place, word);
        // Other words end a stream, or break it.
        self.log.has_all &= word == b"null";
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads events with the shared prefix; each must be read as if it were the first.
    fn check(events: &[String]) {
        let mut beginning = SharedPrefix::new();
        let mut json = Json::new(Place::Root);
        let mut facts = Facts::default();
        let mut plain = Facts::default();
        for event in events {
            json.reset();
            beginning.feed(event.as_bytes(), &mut json, &mut facts);
            let mut fresh = Json::new(Place::Root);
            fresh.feed(event.as_bytes(), &mut plain);
            assert_eq!(format!("{facts:?}"), format!("{plain:?}"), "{events:#?}");
            let ends = |json: &Json<Place>| (json.is_open(), json.is_complete());
            assert_eq!(ends(&json), ends(&fresh), "{events:#?}");
        }
    }

    fn chunk(content: &str, usage: &str) -> String {
        format!(
            r#"{{"id":"chatcmpl-1","object":"chat.completion.chunk","model":"m","choices":[{{"index":0,"delta":{{"content":"{content}"}},"finish_reason":null}}],"usage":{usage}}}"#
        )
    }

    #[test]
    fn what_events_share_is_found_in_each() {
        let usage = r#"{"prompt_tokens":7,"completion_tokens":9}"#;
        for contents in [
            ["a", "b", "c"],
            ["ab", "ac", "ad"],
            ["same", "same", "same"],
        ] {
            let mut events: Vec<String> = contents.iter().map(|text| chunk(text, "null")).collect();
            events.push(chunk("", usage));
            events.push("[DONE]".to_owned());
            check(&events);
        }
    }

    #[test]
    fn is_remembered_from_the_third_event_on() {
        let mut beginning = SharedPrefix::new();
        let mut facts = Facts::default();
        for text in ["one", "two", "six"] {
            let mut json = Json::new(Place::Root);
            beginning.feed(chunk(text, "null").as_bytes(), &mut json, &mut facts);
        }
        assert!(beginning.after.is_some());
        let known = &beginning.bytes[..beginning.len];
        assert!(
            known.ends_with(br#""content":""#),
            "{}",
            known.escape_ascii()
        );
        assert_eq!(facts.output_seen(), 3);
    }

    proptest! {
        #[test]
        fn no_order_of_events_makes_a_difference(picks in prop::collection::vec((0..8_usize, 0..3_usize), 1..24)) {
            let texts = ["a", "a\\u00e9\\\"", ""];
            let events: Vec<String> = picks
                .iter()
                .map(|&(kind, text)| {
                    let text = texts[text];
                    match kind {
                        0 => chunk(text, "null"),
                        1 => chunk(text, r#"{"prompt_tokens":12,"completion_tokens":3}"#),
                        2 => format!(r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":"{text}"}}}}"#),
                        3 => format!(r#"{{"type":"message_delta","delta":{{"stop_reason":"end_turn"}},"usage":{{"output_tokens":{}}}}}"#, text.len()),
                        4 => format!(r#"{{"type":"response.output_text.delta","sequence_number":{},"delta":"{text}"}}"#, text.len()),
                        5 => format!(r#"{{"candidates":[{{"content":{{"parts":[{{"text":"{text}"}}],"role":"model"}}}}],"usageMetadata":{{"promptTokenCount":{}}}}}"#, text.len()),
                        6 => r#"{"type":"error","error":{"type":"overloaded_error","message":"later"},"request_id":"r"}"#.to_owned(),
                        _ => r#"{"type":"message_stop","is":"the same each time, and long"#.to_owned(),
                    }
                })
                .collect();
            check(&events);
        }

        #[test]
        fn no_bytes_make_a_difference(
            beginning in r#"[\x00-\x7f]{32,64}"#,
            ends in prop::collection::vec(r#"[{}\[\]",:\\a0 ]{0,12}"#, 1..8),
        ) {
            let events: Vec<String> = ends.iter().map(|end| format!("{beginning}{end}")).collect();
            check(&events);
        }
    }
}
