//! What a merged call has used, divided among its calls.

use serde_json::{Map, Number, Value};

/// Divides every number in a usage in proportion to `parts`; the numbers of all calls add up to that of the usage.
///
/// What does not divide goes to the first. A number that is no integer, such as a cost, is divided as exactly as floats are.
pub(super) fn divide(usage: &Value, parts: &[u64]) -> Vec<Value> {
    match usage {
        Value::Number(number) => divide_number(number, parts),
        Value::Object(members) => {
            let mut divided = vec![Map::with_capacity(members.len()); parts.len()];
            for (name, value) in members {
                for (part, value) in divided.iter_mut().zip(divide(value, parts)) {
                    part.insert(name.clone(), value);
                }
            }
            divided.into_iter().map(Value::Object).collect()
        }
        other => vec![other.clone(); parts.len()],
    }
}

fn divide_number(number: &Number, parts: &[u64]) -> Vec<Value> {
    let all: u128 = parts.iter().copied().map(u128::from).sum();
    let Some(whole) = number.as_u64() else {
        let ratio = |part: u64| part as f64 / all as f64;
        let whole = number.as_f64().unwrap_or_default();
        let divided = parts.iter().map(|&part| Value::from(whole * ratio(part)));
        return divided.collect();
    };
    let part = |part: u64| (u128::from(whole) * u128::from(part) / all.max(1)) as u64;
    let mut divided: Vec<u64> = parts.iter().map(|&of| part(of)).collect();
    let rest = whole - divided.iter().sum::<u64>();
    if let Some(first) = divided.first_mut() {
        *first += rest;
    }
    divided.into_iter().map(Value::from).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_pays_what_does_not_divide() {
        let usage =
            json!({"prompt_tokens": 10, "total_tokens": 10, "details": {"cached": 1}, "tier": "a"});
        let divided = divide(&usage, &[1, 1, 1]);
        let first =
            json!({"prompt_tokens": 4, "total_tokens": 4, "details": {"cached": 1}, "tier": "a"});
        let other =
            json!({"prompt_tokens": 3, "total_tokens": 3, "details": {"cached": 0}, "tier": "a"});
        assert_eq!(divided, [first, other.clone(), other]);
    }

    #[test]
    fn a_cost_is_divided_too() {
        let divided = divide(&json!({"cost": 0.5}), &[3, 1]);
        assert_eq!(divided, [json!({"cost": 0.375}), json!({"cost": 0.125})]);
    }

    proptest! {
        #[test]
        fn the_parts_add_up(whole: u64, parts in prop::collection::vec(0_u64..=u64::MAX, 1..40)) {
            let divided = divide(&json!({ "total_tokens": whole }), &parts);
            let tokens = divided.iter().map(|part| part["total_tokens"].as_u64().unwrap());
            prop_assert_eq!(tokens.map(u128::from).sum::<u128>(), u128::from(whole));
        }
    }
}
