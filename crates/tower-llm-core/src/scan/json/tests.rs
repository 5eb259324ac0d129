//! The reader against a walk over the parsed document.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Reads everything except values of keys that begin with `-`. Strings under keys that begin with `#` are counted, and those
/// under `+` are passed on in pieces.
#[derive(Debug, Default, PartialEq)]
struct Recorder {
    /// The known places, as paths of keys.
    paths: Vec<Vec<u8>>,
    events: Vec<Event>,
    counted: BTreeMap<Vec<u8>, i64>,
    /// The part so far of a string that is passed on in pieces.
    passing: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq)]
enum Event {
    Open(Vec<u8>),
    Close(Vec<u8>),
    Passed(Vec<u8>, Vec<u8>),
    String(Vec<u8>, Vec<u8>),
    Number(Vec<u8>, u64),
    Word(Vec<u8>, Vec<u8>),
}

impl Recorder {
    fn place(&mut self, path: Vec<u8>) -> usize {
        self.paths.push(path);
        self.paths.len() - 1
    }

    fn path(&self, place: usize) -> Vec<u8> {
        match place {
            ROOT => Vec::new(),
            place => self.paths[place].clone(),
        }
    }
}

const ROOT: usize = usize::MAX;

impl Sink for Recorder {
    type Place = usize;

    fn member(&mut self, parent: usize, key: &[u8]) -> Option<usize> {
        let path = below(&self.path(parent), key);
        (!key.starts_with(b"-")).then(|| self.place(path))
    }

    fn item(&mut self, parent: usize) -> Option<usize> {
        let path = below(&self.path(parent), b"[]");
        Some(self.place(path))
    }

    fn string_mode(&self, place: usize) -> StringMode {
        let path = self.path(place);
        if is_counted(&path) {
            StringMode::Count
        } else if is_passed(&path) {
            StringMode::Pass
        } else {
            StringMode::Capture
        }
    }

    fn open(&mut self, place: usize) {
        self.events.push(Event::Open(self.path(place)));
    }

    fn close(&mut self, place: usize) {
        self.events.push(Event::Close(self.path(place)));
    }

    fn pass(&mut self, _: usize, piece: &[u8]) {
        self.passing.extend_from_slice(piece);
    }

    fn passed(&mut self, place: usize) {
        let text = std::mem::take(&mut self.passing);
        self.events.push(Event::Passed(self.path(place), text));
    }

    fn string(&mut self, place: usize, raw: &[u8]) {
        self.events
            .push(Event::String(self.path(place), raw.into()));
    }

    fn text(&mut self, place: usize, Text { bytes, .. }: Text<'_>) {
        *self.counted.entry(self.path(place)).or_default() += bytes;
    }

    fn number(&mut self, place: usize, value: u64) {
        self.events.push(Event::Number(self.path(place), value));
    }

    fn word(&mut self, place: usize, word: &[u8]) {
        self.events.push(Event::Word(self.path(place), word.into()));
    }
}

fn below(path: &[u8], key: &[u8]) -> Vec<u8> {
    [path, b"/", key].concat()
}

fn is_counted(path: &[u8]) -> bool {
    path.starts_with(b"/#")
}

fn is_passed(path: &[u8]) -> bool {
    path.starts_with(b"/+")
}

/// The expected events of `value`: slow and obvious.
fn walk(value: &Value, path: &[u8], depth: usize, expected: &mut Recorder) {
    match value {
        Value::Null | Value::Bool(_) => {
            let word = value.to_string().into_bytes();
            expected.events.push(Event::Word(path.into(), word));
        }
        Value::Number(number) => {
            let text = number.to_string();
            if !text.starts_with('-') {
                let value = whole_part(&text);
                expected.events.push(Event::Number(path.into(), value));
            }
        }
        Value::String(text) if is_counted(path) => {
            *expected.counted.entry(path.into()).or_default() += counted(text);
        }
        Value::String(text) if is_passed(path) => {
            let event = Event::Passed(path.into(), quoted(text));
            expected.events.push(event);
        }
        Value::String(text) => {
            let event = Event::String(path.into(), spelt(text));
            expected.events.push(event);
        }
        Value::Array(_) | Value::Object(_) if depth == MAX_DEPTH => {}
        Value::Array(items) => {
            expected.events.push(Event::Open(path.into()));
            for item in items {
                walk(item, &below(path, b"[]"), depth + 1, expected);
            }
            expected.events.push(Event::Close(path.into()));
        }
        Value::Object(members) => {
            expected.events.push(Event::Open(path.into()));
            for (key, value) in members {
                let key = spelt(key);
                if !key.starts_with(b"-") {
                    walk(value, &below(path, &key), depth + 1, expected);
                }
            }
            expected.events.push(Event::Close(path.into()));
        }
    }
}

/// The whole part of a number as it is written, which a float may not have exactly.
fn whole_part(text: &str) -> u64 {
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let point = whole.len() as i64 + exponent.parse::<i64>().unwrap();
    let Ok(point) = usize::try_from(point) else {
        return 0;
    };
    let shifted = format!("{digits:0<point$}");
    match shifted[..point].trim_start_matches('0') {
        "" => 0,
        whole => whole.parse().unwrap_or(u64::MAX),
    }
}

/// A string between its quotes, up to the length that is stored.
fn spelt(text: &str) -> Vec<u8> {
    let mut raw = quoted(text);
    raw.truncate(MAX_CAPTURE);
    raw
}

/// A string between its quotes.
fn quoted(text: &str) -> Vec<u8> {
    let quoted = Value::from(text).to_string();
    quoted.as_bytes()[1..quoted.len() - 1].to_vec()
}

/// The bytes of a string; what JSON must write as `\u001f` counts as three.
fn counted(text: &str) -> i64 {
    let is_short = |byte| b"\x08\t\n\x0c\r".contains(&byte);
    text.bytes()
        .map(|byte| if byte < b' ' && !is_short(byte) { 3 } else { 1 })
        .sum()
}

/// Reads `document` in pieces of the given lengths, and then the rest of it.
fn read(document: &[u8], lengths: &[usize]) -> (Recorder, Json<usize>) {
    let mut recorder = Recorder::default();
    let mut json = Json::new(ROOT);
    let mut rest = document;
    for &length in lengths {
        let (piece, after) = rest.split_at(length.min(rest.len()));
        json.feed(piece, &mut recorder);
        rest = after;
    }
    json.feed(rest, &mut recorder);
    // Ends a number or a bare word at the root.
    json.feed(b"\n", &mut recorder);
    recorder.paths.clear();
    (recorder, json)
}

/// Keys and texts with everything that could mislead a reader.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::sample::select(vec!["usage", "error", "#", "#text", "+", "+text", "-", "-skipped", ""]).prop_map(String::from),
        2 => "[#+-]?[a-z\"\\\\{}\\[\\]:,/ \n\r\t]{0,12}",
        2 => any::<String>(),
        1 => "[#+-]?[a-z\"\\\\]{50,140}",
        1 => "[😀é\u{1}\u{7f}你]{0,20}",
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::num::f64::NORMAL.prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(16, 80, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((text(), inner), 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn assert_reads(value: &Value, lengths: &[usize]) {
    let mut expected = Recorder::default();
    walk(value, b"", 0, &mut expected);
    let pretty = serde_json::to_vec_pretty(value).unwrap();
    for document in [value.to_string().into_bytes(), pretty] {
        let (recorder, json) = read(&document, lengths);
        assert_eq!(recorder, expected, "{}", String::from_utf8_lossy(&document));
        assert!(json.is_complete());
        assert!(!json.is_open());
    }
}

proptest! {
    #[test]
    fn what_is_read_is_what_a_parser_finds(
        value in value(),
        lengths in prop::collection::vec(0_usize..30, 0..40),
    ) {
        assert_reads(&value, &lengths);
    }

    #[test]
    fn a_document_may_come_byte_by_byte(value in value()) {
        let length = serde_json::to_vec_pretty(&value).unwrap().len();
        assert_reads(&value, &vec![1; length]);
    }

    #[test]
    fn where_pieces_end_makes_no_difference_to_what_is_not_json_either(
        document in "[{}\\[\\]\",:\\\\ \n0-9eE.+u\\-truefalsn😀]{0,60}",
        lengths in prop::collection::vec(0_usize..9, 0..20),
    ) {
        let (whole, at_end) = read(document.as_bytes(), &[]);
        let (recorder, json) = read(document.as_bytes(), &lengths);
        prop_assert_eq!(recorder, whole);
        prop_assert_eq!(json.is_open(), at_end.is_open());
        prop_assert_eq!(json.is_complete(), at_end.is_complete());
    }

    #[test]
    fn a_document_is_open_until_its_last_byte(value in value()) {
        let document = json!({ "value": value }).to_string();
        for end in 0..document.len() {
            let mut json = Json::new(ROOT);
            json.feed(&document.as_bytes()[..end], &mut Recorder::default());
            prop_assert_eq!(json.is_open(), end > 0);
            prop_assert!(!json.is_complete());
        }
    }
}

#[test]
fn members_below_the_maximum_depth_are_skipped() {
    for depth in MAX_DEPTH - 1..MAX_DEPTH + 3 {
        let mut value = json!({ "usage": 7 });
        for _ in 1..depth {
            value = json!({ "a": value });
        }
        let both = json!({ "deep": value, "z": 8 });
        assert_reads(&both, &[]);
        let (recorder, _) = read(both.to_string().as_bytes(), &[]);
        let sees = |number| {
            recorder
                .events
                .iter()
                .any(|event| matches!(event, Event::Number(_, value) if *value == number))
        };
        assert_eq!(sees(7), depth < MAX_DEPTH, "depth {depth}");
        assert!(sees(8), "what follows is lost at depth {depth}");
    }
}

#[test]
fn a_skipped_value_hides_all_that_is_in_it() {
    let value = json!({ "-": { "usage": [{ "a": "]}\\\"" }, 1], "b": "}" }, "after": 2 });
    let document = value.to_string();
    let bytes_alone = vec![1; document.len()];
    for lengths in [&[][..], &bytes_alone] {
        let (recorder, _) = read(document.as_bytes(), lengths);
        let after = Event::Number(b"/after".into(), 2);
        let (open, close) = (Event::Open(Vec::new()), Event::Close(Vec::new()));
        assert_eq!(recorder.events, [open, after, close]);
    }
}

#[test]
fn a_number_too_large_is_the_largest() {
    let (recorder, _) = read(b"[18446744073709551615, 18446744073709551616]", &[]);
    let numbers = recorder.events[1..3].iter().map(|event| match event {
        Event::Number(_, value) => *value,
        other => panic!("{other:?}"),
    });
    assert!(numbers.eq([u64::MAX, u64::MAX]));
}

#[test]
fn of_a_number_with_an_exponent_the_whole_part_counts() {
    for (number, value) in [
        ("1e3", 1_000),
        ("1.2345E+3", 1_234),
        ("12345e-2", 123),
        ("0e999", 0),
        ("0.000e5", 0),
        ("1e-1", 0),
        ("1e19", 10_000_000_000_000_000_000),
        ("1e20", u64::MAX),
        ("9e99999999999", u64::MAX),
        ("9e-99999999999", 0),
        ("1.00000000000000000000000001e2", 100),
        ("18446744073709551615.9", u64::MAX),
    ] {
        let document = format!("[{number}]");
        let bytes_alone = vec![1; document.len()];
        for lengths in [&[][..], &bytes_alone] {
            let (recorder, _) = read(document.as_bytes(), lengths);
            assert_eq!(
                recorder.events[1],
                Event::Number(b"/[]".into(), value),
                "{document}"
            );
        }
    }
}

#[test]
fn a_negative_number_counts_nothing() {
    for document in ["[-1]", "[-0.5]", "[-1e3]", "[-]"] {
        let bytes_alone = vec![1; document.len()];
        for lengths in [&[][..], &bytes_alone] {
            let (recorder, _) = read(document.as_bytes(), lengths);
            let (open, close) = (Event::Open(Vec::new()), Event::Close(Vec::new()));
            assert_eq!(recorder.events, [open, close], "{document}");
        }
    }
}

#[test]
fn a_reset_forgets_a_document_that_was_cut() {
    for cut in [
        r#"{"a":[{"b"#,
        r#"{"a":"b\"#,
        r#"{"-":{"#,
        r#"{"a":12"#,
        "tru",
    ] {
        let mut json = Json::new(ROOT);
        json.feed(cut.as_bytes(), &mut Recorder::default());
        json.reset();
        let mut recorder = Recorder::default();
        json.feed(br#"{"c":"d"}"#, &mut recorder);
        let d = Event::String(b"/c".into(), b"d".into());
        let (open, close) = (Event::Open(Vec::new()), Event::Close(Vec::new()));
        assert_eq!(recorder.events, [open, d, close], "after {cut}");
        assert!(json.is_complete());
    }
}
