//! A value that a JSON schema allows: the arguments of a tool call, or a structured answer.

use serde_json::{Map, Number, Value};

/// Deeper than this, recursive schemas end in `null`.
const DEEPEST: usize = 12;

/// The shortest value that says something, for the schema of tools and structured answers as providers take them.
pub(super) fn example(schema: &Value) -> Value {
    value(schema, schema, DEEPEST)
}

fn value(schema: &Value, root: &Value, depth: usize) -> Value {
    let Some(depth) = depth.checked_sub(1) else {
        return Value::Null;
    };
    if let Some(reference) = schema["$ref"].as_str() {
        let pointed = root.pointer(reference.trim_start_matches('#'));
        return pointed.map_or(Value::Null, |pointed| value(pointed, root, depth));
    }
    let first = |name: &str| schema[name].as_array().and_then(|values| values.first());
    if let Some(known) = schema.get("const").or(schema.get("default")) {
        return known.clone();
    }
    if let Some(known) = first("enum").or(first("examples")) {
        return known.clone();
    }
    // `anyOf` and `any_of` of Gemini alike.
    for name in ["anyOf", "oneOf", "allOf", "any_of"] {
        let mut all = schema[name].as_array().into_iter().flatten();
        if let Some(one) = all.find(|one| one["type"] != "null") {
            return value(one, root, depth);
        }
    }
    match kind(schema).as_str() {
        "object" => object(schema, root, depth),
        "array" => array(schema, root, depth),
        "string" => Value::from(string(schema)),
        "integer" => Value::from(schema["minimum"].as_i64().unwrap_or(1)),
        "number" => schema["minimum"]
            .as_number()
            .cloned()
            .or(Number::from_f64(1.5))
            .into(),
        "boolean" => Value::from(true),
        _ => Value::Null,
    }
}

/// The type's name: Gemini writes `STRING`, and some write `["string", "null"]`.
fn kind(schema: &Value) -> String {
    let of = &schema["type"];
    let named = of.as_str().or_else(|| of[0].as_str());
    let guessed = if schema["properties"].is_object() {
        "object"
    } else {
        "null"
    };
    named.unwrap_or(guessed).to_ascii_lowercase()
}

fn object(schema: &Value, root: &Value, depth: usize) -> Value {
    let properties = schema["properties"].as_object();
    let filled: Map<String, Value> = properties
        .into_iter()
        .flatten()
        .map(|(name, schema)| (name.clone(), value(schema, root, depth)))
        .collect();
    Value::Object(filled)
}

fn array(schema: &Value, root: &Value, depth: usize) -> Value {
    let fewest = schema["minItems"].as_u64().unwrap_or(1).clamp(1, 16);
    Value::Array(
        (0..fewest)
            .map(|_| value(&schema["items"], root, depth))
            .collect(),
    )
}

fn string(schema: &Value) -> String {
    let text = match schema["format"].as_str() {
        Some("date-time") => "2026-09-21T14:13:20Z",
        Some("date") => "2026-09-21",
        Some("time") => "14:13:20Z",
        Some("email") => "miller@example.com",
        Some("uri" | "url") => "https://example.com/river",
        Some("uuid") => "6f1c1f4e-7a52-4f0b-9d53-0c5a1d2e3f40",
        _ => "river",
    };
    let bound = |name: &str| schema[name].as_u64().and_then(|n| usize::try_from(n).ok());
    let shortest = bound("minLength").unwrap_or(0).min(1_000);
    let longest = bound("maxLength").unwrap_or(usize::MAX);
    text.chars()
        .cycle()
        .take(text.len().max(shortest).min(longest))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_property_is_filled_by_its_type() {
        let schema = json!({
            "type": "object",
            "properties": {
                "place": {"type": "string"},
                "unit": {"type": "string", "enum": ["celsius", "kelvin"]},
                "days": {"type": "integer", "minimum": 3},
                "exact": {"type": "boolean"},
                "heights": {"type": "array", "items": {"type": "number"}, "minItems": 2},
                "note": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 3}]},
                "since": {"type": ["string", "null"], "format": "date"},
            },
        });
        let expected = json!({
            "place": "river", "unit": "celsius", "days": 3, "exact": true, "heights": [1.5, 1.5],
            "note": "riv", "since": "2026-09-21",
        });
        assert_eq!(example(&schema), expected);
    }

    #[test]
    fn gemini_s_types_are_upper_case() {
        let schema = json!({"type": "OBJECT", "properties": {"n": {"type": "INTEGER"}}});
        assert_eq!(example(&schema), json!({"n": 1}));
    }

    #[test]
    fn references_are_followed_and_recursion_ends() {
        let schema = json!({
            "$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}, "id": {"type": "integer"}}}},
            "$ref": "#/$defs/node",
        });
        let node = example(&schema);
        assert_eq!((&node["id"], &node["next"]["id"]), (&json!(1), &json!(1)));
        assert_eq!(example(&json!({"$ref": "#/nowhere"})), Value::Null);
    }

    #[test]
    fn no_schema_is_no_value() {
        assert_eq!(example(&Value::Null), Value::Null);
        assert_eq!(example(&json!({"type": "object"})), json!({}));
    }
}
