//! The closed sets of labels.

use tower_llm_core::{Failure, Outcome};

/// How a call ended.
pub(crate) const OUTCOMES: [&str; 17] = [
    "success",
    "throttled",
    "exhausted",
    "overloaded",
    "failed_status",
    "failed_transport",
    "failed_in_band",
    "failed_truncated",
    "failed_stalled",
    "failed_timeout",
    "failed_slow",
    "failed_panic",
    "client_error",
    "refused",
    "abandoned",
    "superseded",
    "other",
];

/// Which layer refused a call.
pub(crate) const LAYERS: [&str; 12] = [
    "account",
    "batch",
    "breaker",
    "bulkhead",
    "cache",
    "describe",
    "fanout",
    "load_shed",
    "ratelimit",
    "timeout",
    // Given up while it waited in a layer.
    "waiting",
    "other",
];

pub(crate) const fn outcome(outcome: Outcome) -> usize {
    match outcome {
        Outcome::Success => 0,
        Outcome::Throttled { .. } => 1,
        Outcome::Exhausted => 2,
        Outcome::Overloaded { .. } => 3,
        Outcome::Failed(Failure::Status) => 4,
        Outcome::Failed(Failure::Transport) => 5,
        Outcome::Failed(Failure::InBand) => 6,
        Outcome::Failed(Failure::Truncated) => 7,
        Outcome::Failed(Failure::Stalled) => 8,
        Outcome::Failed(Failure::Timeout) => 9,
        Outcome::Failed(Failure::Slow) => 10,
        Outcome::Failed(Failure::Panic) => 11,
        Outcome::ClientError => 12,
        Outcome::Refused => 13,
        Outcome::Abandoned => 14,
        Outcome::Superseded => 15,
        _ => 16,
    }
}

pub(crate) fn layer(name: Option<&str>) -> usize {
    let name = name.unwrap_or("waiting");
    let known = LAYERS.iter().position(|layer| *layer == name);
    known.unwrap_or(LAYERS.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_its_own_label() {
        let failures = [
            (Failure::Status, "failed_status"),
            (Failure::Transport, "failed_transport"),
            (Failure::InBand, "failed_in_band"),
            (Failure::Truncated, "failed_truncated"),
            (Failure::Stalled, "failed_stalled"),
            (Failure::Timeout, "failed_timeout"),
            (Failure::Slow, "failed_slow"),
            (Failure::Panic, "failed_panic"),
        ];
        let failures = failures.map(|(failure, label)| (Outcome::Failed(failure), label));
        let others = [
            (Outcome::Success, "success"),
            (Outcome::Throttled { retry_after: None }, "throttled"),
            (Outcome::Exhausted, "exhausted"),
            (Outcome::Overloaded { retry_after: None }, "overloaded"),
            (Outcome::ClientError, "client_error"),
            (Outcome::Refused, "refused"),
            (Outcome::Abandoned, "abandoned"),
            (Outcome::Superseded, "superseded"),
        ];
        for (of, label) in failures.into_iter().chain(others) {
            assert_eq!(OUTCOMES[outcome(of)], label);
        }
    }

    #[test]
    fn a_layer_that_is_not_known_is_other() {
        assert_eq!(LAYERS[layer(Some("bulkhead"))], "bulkhead");
        assert_eq!(LAYERS[layer(Some("a layer of the user's"))], "other");
        assert_eq!(LAYERS[layer(None)], "waiting");
    }
}
