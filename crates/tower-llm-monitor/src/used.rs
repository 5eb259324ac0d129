//! What a call has used, and what that costs.

use tower_llm_core::{Completion, Outcome, Usage};

use crate::{Price, Usd};

/// What is known of a call before it is sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Request {
    /// The estimate.
    pub(crate) input_tokens: u64,
    pub(crate) body_bytes: u64,
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
        let own = seen(request, completion);
        if completion.served.is_some() {
            used.saved = own.map_or(Usage::default(), |(usage, _)| usage);
            used.saved_cost = pricing.cost(&used.saved).unwrap_or_default();
        } else if let Some((usage, is_final)) = own {
            used.paid = usage;
            used.is_estimated = !is_final;
        } else {
            used.is_unknown = completion.outcome == Outcome::Success;
        }
        if let Some(extra) = &completion.extra_usage {
            used.paid = used.paid.plus(extra);
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

/// What the provider reported or, without a report, what was seen; and whether that is final.
fn seen(request: &Request, completion: &Completion) -> Option<(Usage, bool)> {
    let is_charged = !matches!(
        completion.outcome,
        Outcome::Refused
            | Outcome::ClientError
            | Outcome::Throttled { .. }
            | Outcome::Exhausted
            | Outcome::Overloaded { .. }
    );
    if !is_charged {
        return None;
    }
    let output_seen = completion.output_seen;
    match completion.usage {
        // A provider that reports usage has done so once the finish reason has arrived.
        Some(usage)
            if completion.outcome == Outcome::Success
                || completion.finish.is_some() && usage.output > 0 =>
        {
            Some((usage, true))
        }
        // A report at the beginning of a stream contains its input, and little of its output.
        Some(mut usage) => {
            usage.output = usage.output.max(output_seen);
            Some((usage, false))
        }
        None if output_seen > 0 => Some((Usage::new(request.input_tokens, output_seen), false)),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use tower_llm_core::{Failure, Served};

    use super::*;

    const REQUEST: Request = Request {
        input_tokens: 50,
        body_bytes: 200,
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
            (broken, None, 0, Usage::default(), false),
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
        let used = Used::of(&REQUEST, &ended(Outcome::Success, None, 0), known());
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
