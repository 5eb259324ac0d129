//! What calls have used, as the provider writes it.

use serde_json::Value;

/// The same usage, with every number in it zero.
pub(super) fn zero(usage: &str) -> Option<String> {
    let mut usage = serde_json::from_str(usage).ok()?;
    clear(&mut usage);
    Some(usage.to_string())
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
}
