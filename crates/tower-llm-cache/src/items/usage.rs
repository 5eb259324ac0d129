//! What calls have used, as the provider writes it.

use serde_json::{Number, Value};

/// The same usage, with every number in it zero.
pub(super) fn zero(usage: &str) -> Option<String> {
    let mut usage = serde_json::from_str(usage).ok()?;
    clear(&mut usage);
    Some(usage.to_string())
}

/// The usage of two calls together.
pub(super) fn sum(one: &str, other: &str) -> Option<String> {
    let mut sum: Value = serde_json::from_str(one).ok()?;
    add(&mut sum, serde_json::from_str(other).ok()?);
    Some(sum.to_string())
}

fn add(to: &mut Value, other: Value) {
    match (to, other) {
        (Value::Object(to), Value::Object(other)) => {
            for (name, value) in other {
                match to.get_mut(&name) {
                    Some(to) => add(to, value),
                    None => drop(to.insert(name, value)),
                }
            }
        }
        (Value::Number(to), Value::Number(other)) => {
            if let Some(sum) = added(to, &other) {
                *to = sum;
            }
        }
        _ => {}
    }
}

fn added(one: &Number, other: &Number) -> Option<Number> {
    match (one.as_u64(), other.as_u64()) {
        (Some(one), Some(other)) => Some(one.saturating_add(other).into()),
        // A cost, say.
        _ => Number::from_f64(one.as_f64()? + other.as_f64()?),
    }
}

fn clear(value: &mut Value) {
    match value {
        Value::Number(number) => *number = 0.into(),
        Value::Array(values) => values.iter_mut().for_each(clear),
        Value::Object(members) => members.values_mut().for_each(clear),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usage_of_nothing_has_the_same_members() {
        let zero =
            zero(r#"{"prompt_tokens":8,"details":{"cached":3},"cost":0.25,"tier":"a","x":null}"#);
        assert_eq!(
            serde_json::from_str::<Value>(&zero.unwrap()).unwrap(),
            serde_json::json!({"prompt_tokens":0,"details":{"cached":0},"cost":0,"tier":"a","x":null})
        );
    }

    #[test]
    fn usages_are_added_number_by_number() {
        let sum = sum(
            r#"{"prompt_tokens":8,"details":{"cached":3},"cost":0.25}"#,
            r#"{"prompt_tokens":2,"details":{"cached":1,"audio":2},"cost":0.5,"total_tokens":2}"#,
        );
        assert_eq!(
            serde_json::from_str::<Value>(&sum.unwrap()).unwrap(),
            serde_json::json!({
                "prompt_tokens": 10,
                "details": {"cached": 4, "audio": 2},
                "cost": 0.75,
                "total_tokens": 2,
            })
        );
    }
}
