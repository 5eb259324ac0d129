//! The reader beside `serde_json`, which takes the same texts.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn value_of(node: Node<'_>) -> Value {
    match node.shape() {
        Shape::Null => Value::Null,
        Shape::Bool(value) => value.into(),
        Shape::Number(Number(number)) => serde_json::from_str(number).unwrap_or_default(),
        Shape::String(text) => text.into(),
        Shape::Array(children) => children.values().map(value_of).collect(),
        Shape::Object(children) => {
            let members = children.members();
            Value::Object(
                members
                    .map(|(name, value)| (name.into(), value_of(value)))
                    .collect(),
            )
        }
    }
}

fn read(body: &[u8]) -> Result<Value, Bypass> {
    Arena::default().read(body).map(value_of)
}

/// Compares with `serde_json`, which takes duplicates, but no number that is too large for a double.
fn check(body: &[u8]) {
    match (read(body), serde_json::from_slice::<Value>(body)) {
        (Ok(ours), Ok(theirs)) => assert_eq!(ours, theirs),
        (Err(Bypass::DuplicateMember), _) => {}
        (Ok(_), Err(error)) if error.to_string().contains("out of range") => {}
        (Err(_), Err(_)) => {}
        (ours, theirs) => panic!(
            "{:?}: {ours:?}, serde_json {theirs:?}",
            String::from_utf8_lossy(body)
        ),
    }
}

#[test]
fn takes_what_serde_json_takes() {
    for body in [
        "",
        " ",
        "null",
        " true ",
        "falsey",
        "nul",
        "tru",
        "-",
        "-0",
        "01",
        "1.",
        ".5",
        "1.5e",
        "1e+",
        "1E-5",
        "1.25e+2",
        "--1",
        "+1",
        "0x1",
        "NaN",
        "1 2",
        "[",
        "[]",
        "[,]",
        "[1,]",
        "[1 2]",
        "{",
        "{}",
        "{,}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{a:1}",
        "{1:1}",
        "{\"a\":1 \"b\":2}",
        "\"",
        "\"a",
        "\"a\\",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\\u+123\"",
        "\"\\ud83d\\ude00\"",
        "\"\\ud83d\"",
        "\"\\ude00\"",
        "\"\\ud83d\\u0041\"",
        "\"\\ud83d\\n\"",
        "\"\\ud83dx\"",
        "\"\\b\\f\\n\\r\\t\\/\\\\\\\"\"",
        "\"\t\"",
        "\"\u{7f}\"",
        "\"\\u0000\"",
        "'a'",
        "\u{a0}1",
        "1\u{c}",
        "// x\n1",
        "\u{feff}1",
        "\"a long text, é\n\"",
        "\"sixteen bytes and\\nmore\"",
        "[1,[2,[3]],{\"a\":[]}]",
    ] {
        check(body.as_bytes());
    }
    check(b"\"\xff\"");
    check(b"\"\xed\xa0\xbd\"");
}

#[test]
fn numbers_keep_their_digits() {
    let mut arena = Arena::default();
    let body = "[18446744073709551616,1e999,-0.10]";
    let numbers = arena.read(body.as_bytes()).unwrap().elements();
    let numbers: Vec<_> = numbers
        .map(|number| match number.shape() {
            Shape::Number(Number(number)) => number,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(numbers, ["18446744073709551616", "1e999", "-0.10"]);
    let exponent = Arena::default().read(b"1e1000000000").map(value_of);
    assert_eq!(exponent, Err(Bypass::NotJson));
}

#[test]
fn members_are_sorted_by_their_decoded_names() {
    let mut arena = Arena::default();
    let body = br#"{"b":1,"\u0061b":2,"":3,"a":4,"\u00e9":5,"z":6}"#;
    let Shape::Object(members) = arena.read(body).unwrap().shape() else {
        panic!("an object");
    };
    let names: Vec<_> = members.members().map(|(name, _)| name).collect();
    assert_eq!(names, ["", "a", "ab", "b", "z", "é"]);
}

#[test]
fn an_arena_can_be_used_again() {
    let mut arena = Arena::default();
    for body in [
        r#"{"a":["\n",{"b":1}]}"#,
        "[[[",
        r#"{"a":1,"a":1}"#,
        r#"["\t"]"#,
    ] {
        let again = arena.read(body.as_bytes()).map(value_of);
        assert_eq!(again, read(body.as_bytes()));
    }
}

proptest! {
    #[test]
    fn takes_any_text_that_serde_json_takes(
        text in r#"([\[\]{},:"\\ \n0-9.eE+\-aué]|true|null|"[a-c]":|\\u[dD][89c][0-9]{2}){0,24}"#,
    ) {
        check(text.as_bytes());
    }

    #[test]
    fn takes_any_string(text: String, pad in 0..40_usize) {
        let text = " ".repeat(pad) + &text;
        let written = serde_json::to_string(&text).unwrap();
        prop_assert_eq!(read(written.as_bytes()), Ok(Value::from(text)));
    }

    #[test]
    fn reads_any_bytes_without_a_panic(bytes: Vec<u8>) {
        check(&bytes);
    }
}
