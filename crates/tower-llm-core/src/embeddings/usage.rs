//! What several calls have used, as their provider writes it.

use serde_json::{Number, Value};

/// The usage of two calls together, number by number; `None` if one of them is no JSON.
///
/// ```
/// let sum = tower_llm_core::sum_usages(r#"{"details":{"cached":3}}"#, r#"{"details":{"cached":1}}"#);
/// assert_eq!(sum.unwrap(), r#"{"details":{"cached":4}}"#);
/// ```
#[must_use]
pub fn sum_usages(one: &str, other: &str) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usages_are_added_number_by_number() {
        let sum = sum_usages(
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
