//! What a call has used, and what that costs.

use tower_llm_core::{Completion, Outcome, Usage};

use crate::{Price, Usd};

/// What is known of a call before it is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    /// The estimate.
    pub(crate) input_tokens: u64,
    pub(crate) body_bytes: u64,
    /// Whether its response can say what it used.
    pub(crate) reports_usage: bool,
}

/// How the tokens of a call are priced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pricing {
    /// The call uses no tokens: it counts them, or reads what is stored.
    Free,
    Unknown,
    Known(Price),
}

/// What a call has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    /// What the provider charges for.
    pub(crate) paid: Usage,
    /// What it would have charged for without a cache.
    pub(crate) saved: Usage,
    /// The provider reported no usage, or no final one.
    pub(crate) is_estimated: bool,
    /// The call was answered, and what it used is not known.
    pub(crate) is_unknown: bool,
    /// `None` if it is not known.
    pub(crate) cost: Option<Usd>,
    pub(crate) saved_cost: Usd,
}

impl Used {
    pub(crate) fn of(request: &Request, completion: &Completion, pricing: Pricing) -> Self {
        let mut used = Self {
            cost: Some(Usd::default()),
            ..Self::default()
        };
        if pricing == Pricing::Free {
            return used;
        }
        used.paid = completion.used(request.input_tokens);
        if completion.served.is_some() {
            used.saved = completion.usage.unwrap_or_default();
            used.saved_cost = pricing.cost(&used.saved).unwrap_or_default();
        } else if completion.usage.is_none() && completion.outcome == Outcome::Success {
            used.is_unknown = !request.reports_usage || completion.output_seen == 0;
        }
        if used.is_unknown {
            used.paid = completion.extra_usage.unwrap_or_default();
        } else {
            used.is_estimated = used.paid != Usage::default() && is_estimate(completion);
        }
        used.cost = match used.is_unknown {
            true => None,
            false => pricing.cost(&used.paid),
        };
        used
    }
}

impl Pricing {
    fn cost(self, usage: &Usage) -> Option<Usd> {
        match self {
            _ if *usage == Usage::default() => Some(Usd::default()),
            Self::Known(price) => Some(price.cost(usage)),
            Self::Free | Self::Unknown => None,
        }
    }
}

/// Whether the provider has not reported all that was used.
fn is_estimate(completion: &Completion) -> bool {
    match completion.usage {
        _ if completion.served.is_some() => false,
        // A provider that reports usage has done so once the finish reason has arrived.
        Some(usage) => {
            let is_final = completion.finish.is_some() && usage.output > 0;
            completion.outcome != Outcome::Success && !is_final
        }
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use tower_llm_core::{Failure, Served};

    use super::*;

    const REQUEST: Request = Request {
        input_tokens: 50,
        body_bytes: 200,
        reports_usage: true,
    };

    fn known() -> Pricing {
        Pricing::Known(Price::per_million(1.0, 10.0).unwrap())
    }

    fn ended(outcome: Outcome, usage: Option<Usage>, output_seen: u64) -> Completion {
        let mut completion = Completion::new(outcome);
        (completion.usage, completion.output_seen) = (usage, output_seen);
        completion
    }

    fn cost(completion: &Completion, pricing: Pricing) -> Option<u64> {
        Used::of(&REQUEST, completion, pricing)
            .cost
            .map(Usd::as_nanos)
    }

    #[test]
    fn a_call_costs_what_its_provider_reported() {
        let call = ended(Outcome::Success, Some(Usage::new(40, 6)), 5);
        assert_eq!(cost(&call, known()), Some(40_000 + 60_000));
        assert_eq!(cost(&call, Pricing::Unknown), None);
        assert_eq!(cost(&call, Pricing::Free), Some(0));
    }

    #[test]
    fn a_call_that_broke_off_costs_what_was_seen() {
        let broken = Outcome::Failed(Failure::Truncated);
        for (outcome, usage, seen, paid, is_estimated) in [
            (Outcome::Abandoned, None, 9, Usage::new(50, 9), true),
            (
                Outcome::Abandoned,
                Some(Usage::new(40, 1)),
                9,
                Usage::new(40, 9),
                true,
            ),
            (broken, None, 0, Usage::new(50, 0), true),
            (Outcome::Success, None, 9, Usage::new(50, 9), true),
            (
                Outcome::ClientError,
                Some(Usage::new(40, 1)),
                9,
                Usage::default(),
                false,
            ),
            (Outcome::Refused, None, 0, Usage::default(), false),
        ] {
            let used = Used::of(&REQUEST, &ended(outcome, usage, seen), known());
            assert_eq!(
                (used.paid, used.is_estimated),
                (paid, is_estimated),
                "{outcome:?}"
            );
            assert!(used.cost.is_some() && !used.is_unknown, "{outcome:?}");
        }
    }

    #[test]
    fn the_cost_of_an_answer_without_usage_is_unknown_and_not_zero() {
        let silent = ended(Outcome::Success, None, 0);
        let used = Used::of(&REQUEST, &silent, known());
        assert_eq!(
            (used.paid, used.cost, used.is_unknown),
            (Usage::default(), None, true)
        );
        let typed = Request {
            reports_usage: false,
            ..REQUEST
        };
        let used = Used::of(&typed, &ended(Outcome::Success, None, 9), known());
        assert_eq!((used.cost, used.is_unknown), (None, true));
    }

    #[test]
    fn a_cached_answer_saves_what_it_would_have_cost() {
        let mut call = ended(Outcome::Success, Some(Usage::new(40, 6)), 5);
        call.served = Some(Served::Hit);
        let used = Used::of(&REQUEST, &call, known());
        assert_eq!(
            (used.paid, used.saved),
            (Usage::default(), Usage::new(40, 6))
        );
        assert_eq!(
            (used.cost, used.saved_cost.as_nanos()),
            (Some(Usd::default()), 100_000)
        );
        // Another call was made for a part of it.
        call.extra_usage = Some(Usage::new(7, 0));
        let used = Used::of(&REQUEST, &call, known());
        assert_eq!(
            (used.paid, used.cost.map(Usd::as_nanos)),
            (Usage::new(7, 0), Some(7_000))
        );
    }
}
