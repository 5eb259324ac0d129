//! That a key does not depend on how a body is written, and does on all that is written.

use proptest::{collection, prelude::*, sample::Index};
use serde_json::Value;

use super::*;

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-1000..1000_i32, 0..4_u32)
            .prop_map(|(n, e)| (f64::from(n) / 10_f64.powi(e as i32)).into()),
        "[a-c]{0,3}".prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ]
}

fn json() -> impl Strategy<Value = Value> {
    // A third of the names are ones that have rules.
    let name = prop_oneof![
        "[a-c]{1,2}",
        any::<String>(),
        prop::sample::select(vec!["messages", "content", "type", "text", "role", "name"])
            .prop_map(String::from),
    ];
    let tree = scalar().prop_recursive(4, 40, 5, move |inner| {
        prop_oneof![
            collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            collection::hash_map(name.clone(), inner, 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    });
    collection::vec(tree, 1..4).prop_map(|values| {
        let names = ["messages", "x", "y"].map(String::from);
        Value::Object(names.into_iter().zip(values).collect())
    })
}

/// Writes a body in another way that means the same.
fn spell(value: &Value, random: &mut impl FnMut(usize) -> usize, out: &mut String) {
    let space = |out: &mut String, random: &mut dyn FnMut(usize) -> usize| {
        out.push_str(["", "", " ", "\n\t", "\r\n  "][random(5)]);
    };
    space(out, random);
    match value {
        Value::Null | Value::Bool(_) => out.push_str(&value.to_string()),
        Value::Number(number) => out.push_str(&spell_number(&number.to_string(), random(6))),
        Value::String(text) => spell_text(text, random, out),
        Value::Array(elements) => {
            out.push('[');
            for (at, element) in elements.iter().enumerate() {
                out.push_str(if at == 0 { "" } else { "," });
                spell(element, random, out);
            }
            space(out, random);
            out.push(']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            for at in (1..members.len()).rev() {
                members.swap(at, random(at + 1));
            }
            out.push('{');
            for (at, (name, value)) in members.into_iter().enumerate() {
                out.push_str(if at == 0 { "" } else { "," });
                space(out, random);
                spell_text(name, random, out);
                space(out, random);
                out.push(':');
                spell(value, random, out);
            }
            space(out, random);
            out.push('}');
        }
    }
    space(out, random);
}

fn spell_number(number: &str, way: usize) -> String {
    match (way, number.contains('.'), number.contains('e')) {
        (0, ..) | (_, _, true) => number.into(),
        (1, ..) => format!("{number}e0"),
        (2, true, _) => format!("{number}00"),
        (2, false, _) => format!("{number}.000"),
        (3, true, _) => format!("{number}E+00"),
        (3, false, _) => format!("{number}000e-3"),
        (4, true, _) => format!("{number}0e-0"),
        (_, true, _) => number.into(),
        (_, false, _) => format!("{number}0.0E-1"),
    }
}

fn spell_text(text: &str, random: &mut impl FnMut(usize) -> usize, out: &mut String) {
    out.push('"');
    for char in text.chars() {
        let must = (char as u32) < 0x20 || char == '"' || char == '\\';
        match (char, random(4)) {
            ('/', 0) => out.push_str("\\/"),
            ('\n', 0) => out.push_str("\\n"),
            (char, way) if must || way == 0 => {
                let mut units = [0; 2];
                for unit in char.encode_utf16(&mut units) {
                    match way {
                        1 => out.push_str(&format!("\\u{unit:04X}")),
                        _ => out.push_str(&format!("\\u{unit:04x}")),
                    }
                }
            }
            (char, _) => out.push(char),
        }
    }
    out.push('"');
}

/// Returns how many leaves a body has; an empty container is one.
fn leaves(value: &Value) -> usize {
    match value {
        Value::Array(elements) if !elements.is_empty() => elements.iter().map(leaves).sum(),
        Value::Object(members) if !members.is_empty() => members.values().map(leaves).sum(),
        _ => 1,
    }
}

/// Puts `other` in the place of a leaf, counted from zero; returns the leaf.
fn replace(value: &mut Value, at: &mut usize, other: &Value) -> Option<Value> {
    match value {
        Value::Array(elements) if !elements.is_empty() => elements
            .iter_mut()
            .find_map(|value| replace(value, at, other)),
        Value::Object(members) if !members.is_empty() => members
            .values_mut()
            .find_map(|value| replace(value, at, other)),
        leaf if *at == 0 => Some(std::mem::replace(leaf, other.clone())),
        _ => {
            *at -= 1;
            None
        }
    }
}

/// Whether one of the two is a number with a fraction of zero, and the other the same without.
fn is_same_number(one: &Value, other: &Value) -> bool {
    one.is_f64() != other.is_f64()
        && matches!((one.as_f64(), other.as_f64()), (Some(one), Some(other)) if one == other)
}

fn digest(body: &Value) -> [u8; 32] {
    Case::chat(&body.to_string()).digest()
}

proptest! {
    #[test]
    fn how_a_body_is_written_does_not_matter(body in json(), seeds: [u8; 64]) {
        let mut at = 0;
        let mut random = |below: usize| {
            at += 1;
            usize::from(seeds[at % 64].rotate_left(at as u32 / 64)) % below
        };
        let mut spelled = String::new();
        spell(&body, &mut random, &mut spelled);
        prop_assert_eq!(Case::chat(&spelled).digest(), digest(&body), "{}", spelled);
    }

    #[test]
    fn every_leaf_matters(body in json(), leaf: Index, other in scalar()) {
        let mut changed = body.clone();
        let mut at = leaf.index(leaves(&body));
        let leaf = replace(&mut changed, &mut at, &other).unwrap();
        let is_same = leaf == other || is_same_number(&leaf, &other);
        // A text is short for one part, which `members` tests.
        if !is_short_for(&body, &changed) {
            prop_assert_eq!(digest(&changed) == digest(&body), is_same);
        }
    }

    #[test]
    fn different_bodies_differ(one in json(), other in json()) {
        if !is_short_for(&one, &other) {
            prop_assert_eq!(digest(&one) == digest(&other), one == other);
        }
    }

    #[test]
    fn a_member_belongs_to_its_object(name in "[a-c]{1,2}", value in scalar()) {
        let (name, value) = (Value::from(name).to_string(), value.to_string());
        all_differ(&[
            format!(r#"{{"x":{{{name}:{value}}},"y":{{}}}}"#),
            format!(r#"{{"x":{{}},"y":{{{name}:{value}}}}}"#),
            format!(r#"{{"x":{{}},"y":{{}},{name}:{value}}}"#),
            format!(r#"{{"x":{{"y":{{{name}:{value}}}}}}}"#),
            format!(r#"{{"x":[{name},{value}],"y":{{}}}}"#),
            format!(r#"{{"x":[{{{name}:{value}}}],"y":{{}}}}"#),
        ].map(|body| Case::chat(&body)));
    }

    #[test]
    fn a_text_belongs_to_its_element(text in ".{2,12}", one: Index, other: Index) {
        let ends: Vec<_> = text.char_indices().map(|(at, _)| at).collect();
        let one = one.index(ends.len());
        let other = (one + 1 + other.index(ends.len() - 1)) % ends.len();
        let (one, other) = (ends[one], ends[other]);
        let cut = |at| digest(&serde_json::json!({ "x": [text[..at], text[at..]] }));
        prop_assert_ne!(cut(one), cut(other));
    }
}

/// Whether a text of one body may stand for a list of parts in the other.
fn is_short_for(one: &Value, other: &Value) -> bool {
    let parts = |body: &Value| -> Option<Vec<bool>> {
        let messages = body["messages"].as_array()?;
        Some(
            messages
                .iter()
                .map(|message| message["content"].is_array())
                .collect(),
        )
    };
    matches!((parts(one), parts(other)), (Some(one), Some(other)) if one != other)
}
