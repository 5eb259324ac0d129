//! The name of a circuit in the store: its scope, the lengths of the first parts of its key, and the parts.

use tower_llm_core::Key;

use crate::{CircuitId, Scope};

pub(super) fn of(circuit: &CircuitId) -> String {
    let [first, second, third] = circuit.key().parts();
    let scope = letter(circuit.scope());
    let ends = (first.len(), second.len());
    format!("{scope}:{}:{}:{first}{second}{third}", ends.0, ends.1)
}

/// Returns the circuit with that name; `None` if the name is in an unknown format, such as that of a later version.
pub(super) fn read(name: &[u8]) -> Option<CircuitId> {
    let name = std::str::from_utf8(name).ok()?;
    let mut fields = name.splitn(4, ':');
    let scope = fields.next()?;
    let first: usize = fields.next()?.parse().ok()?;
    let second: usize = fields.next()?.parse().ok()?;
    let parts = fields.next()?;
    let (first, rest) = parts.split_at_checked(first)?;
    let (second, third) = rest.split_at_checked(second)?;
    let scope = SCOPES.into_iter().find(|of| letter(*of) == scope)?;
    Some(CircuitId::new(scope, Key::triple(first, second, third)))
}

const SCOPES: [Scope; 5] = [
    Scope::Provider,
    Scope::ProviderAndModel,
    Scope::Account,
    Scope::AccountAndModel,
    Scope::Key,
];

fn letter(scope: Scope) -> &'static str {
    match scope {
        Scope::Provider => "p",
        Scope::ProviderAndModel => "m",
        Scope::Account => "a",
        Scope::AccountAndModel => "am",
        Scope::Key => "k",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_parsed_as_it_was_written() {
        for scope in SCOPES {
            for key in [
                Key::new(""),
                Key::new("a:b"),
                Key::pair("openai", "gpt:5"),
                Key::triple("", "ä", "x"),
            ] {
                let circuit = CircuitId::new(scope, key);
                assert_eq!(read(of(&circuit).as_bytes()), Some(circuit));
            }
        }
    }

    #[test]
    fn an_invalid_name_is_no_circuit() {
        for name in ["", "p", "x:0:0:a", "p:9:0:a", "p:1:0:ä", "p:-1:0:a"] {
            assert_eq!(read(name.as_bytes()), None, "{name}");
        }
    }
}
