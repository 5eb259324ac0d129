//! Costs at the edges of what numbers hold; what calls cost is tested through HTTP.

use super::*;

pub(crate) fn request() -> Amounts {
    Amounts::REQUEST
}

pub(crate) fn of_a_request() -> Estimate {
    Estimate {
        reserved: request(),
        ..Estimate::default()
    }
}

fn pricing() -> Pricing {
    Pricing {
        reserve: Reserve::InputAndMaximum,
        cut_short: CutShort::ChargeSeen,
        count_cached_input: None,
        output_weight: u32::MAX,
    }
}

fn chat(input: u64, maximum: u64) -> Call {
    let call = Call::builder(Provider::ANTHROPIC, Operation::CHAT);
    call.input_tokens(input).max_output_tokens(maximum).build()
}

fn of_all(cost: &Amounts) -> [u64; 5] {
    Unit::ALL.map(|unit| cost.of(unit))
}

#[test]
fn huge_demands_and_reports_do_not_wrap_around() {
    let (pricing, most) = (pricing(), u64::MAX);
    let estimate = pricing.estimate(
        Some(&chat(most, most)),
        Some(|| unreachable!("a maximum is named")),
    );
    assert_eq!(of_all(&estimate.reserved), [1, most, most, most, 1]);

    // A report of a provider is accepted up to a maximum.
    let used = MAX_USED * u64::from(pricing.output_weight);
    let mut completion = Completion::new(Outcome::Success);
    completion.usage = Some(Usage::new(most, most));
    assert_eq!(
        of_all(&pricing.settle(&estimate, &completion)),
        [1, MAX_USED, used, used + MAX_USED, 1]
    );
    completion.outcome = Outcome::Abandoned;
    completion.output_seen = most;
    assert_eq!(
        of_all(&pricing.settle(&estimate, &completion)),
        [1, MAX_USED, used, used + MAX_USED, 1]
    );
}

#[test]
fn more_cached_input_than_input_is_none() {
    let pricing = pricing();
    let estimate = pricing.estimate(Some(&chat(10, 0)), Some(|| 0));
    let mut usage = Usage::new(5, 0);
    usage.cached_input = 9;
    let mut completion = Completion::new(Outcome::Success);
    completion.usage = Some(usage);
    assert_eq!(
        of_all(&pricing.settle(&estimate, &completion)),
        [1, 0, 0, 0, 1]
    );
}

#[test]
fn expected_output_is_read_only_if_it_matters() {
    let asked = |reserve, call: &Call| {
        let pricing = Pricing {
            reserve,
            ..pricing()
        };
        let mut asked = false;
        let expected = || {
            asked = true;
            7
        };
        pricing.estimate(Some(call), Some(expected));
        asked
    };
    let unbounded = Call::builder(Provider::OPENAI, Operation::CHAT).build();
    assert!(asked(Reserve::InputAndMaximum, &unbounded));
    assert!(asked(Reserve::LargerOfInputAndMaximum, &unbounded));
    assert!(asked(Reserve::InputAndExpected, &chat(1, 1)));
    assert!(!asked(Reserve::InputAndMaximum, &chat(1, 1)));
    assert!(!asked(Reserve::Input, &unbounded));
    let embeddings = Call::builder(Provider::OPENAI, Operation::EMBEDDINGS).build();
    assert!(!asked(Reserve::InputAndExpected, &embeddings));
}

#[test]
fn a_call_whose_usage_is_not_reported_reserves_no_guess() {
    let tokens = |reserve, call: &Call| {
        let pricing = Pricing {
            reserve,
            ..pricing()
        };
        let estimate = pricing.estimate(Some(call), None::<fn() -> u64>);
        estimate.reserved.of(Unit::Tokens)
    };
    let unbounded = Call::builder(Provider::OPENAI, Operation::CHAT).input_tokens(4);
    let unbounded = unbounded.build();
    for reserve in [
        Reserve::InputAndMaximum,
        Reserve::LargerOfInputAndMaximum,
        Reserve::InputAndExpected,
        Reserve::Input,
    ] {
        assert_eq!(tokens(reserve, &unbounded), 4, "{reserve:?}");
    }
    // What the call names is no guess.
    assert_eq!(tokens(Reserve::InputAndMaximum, &chat(4, 6)), 10);
    assert_eq!(tokens(Reserve::InputAndExpected, &chat(4, 6)), 10);
    assert_eq!(tokens(Reserve::Input, &chat(4, 6)), 4);
}

#[test]
fn a_cost_is_charged_in_full_or_not_at_all() {
    let pricing = pricing();
    let call = Call::builder(Provider::OPENAI, Operation::CHAT).cost(7);
    let estimate = pricing.estimate(Some(&call.build()), Some(|| 0));
    let charged = |outcome| {
        let mut completion = Completion::new(outcome);
        completion.status = Some(200);
        pricing.settle(&estimate, &completion).of(Unit::Cost)
    };
    let was_at_work = [
        Outcome::Success,
        Outcome::Abandoned,
        Outcome::Superseded,
        Outcome::Failed(Failure::Timeout),
    ];
    for outcome in was_at_work {
        assert_eq!(charged(outcome), 7, "{outcome:?}");
    }
    let did_nothing = [
        Outcome::ClientError,
        Outcome::Throttled { retry_after: None },
        Outcome::Overloaded { retry_after: None },
        Outcome::Refused,
    ];
    for outcome in did_nothing {
        assert_eq!(charged(outcome), 0, "{outcome:?}");
    }
}

#[test]
fn a_maximum_that_is_not_reserved_is_not_needed() {
    let needed = |reserve| {
        let pricing = Pricing {
            reserve,
            ..pricing()
        };
        of_all(&pricing.needed(Some(&chat(4, 100))))
    };
    // The provider's cache may have the input.
    assert_eq!(needed(Reserve::InputAndExpected), [1, 0, 0, 0, 1]);
    assert_eq!(needed(Reserve::InputAndMaximum), [1, 0, 100, 100, 1]);
}

#[test]
fn a_compact_estimate_is_exact_or_says_that_it_is_not() {
    let most = u64::from(u32::MAX);
    for (cost, is_exact) in [(1, true), (most, true), (most + 1, false)] {
        let estimate = Estimate {
            reserved: Amounts::new(20, 50, 70, cost),
            input: 20,
            ..Estimate::default()
        };
        let compact = CompactEstimate::new(&estimate);
        assert_eq!(compact.is_exact(), is_exact, "{cost}");
        let expanded = compact.expand();
        assert_eq!(expanded.reserved == estimate.reserved, is_exact, "{cost}");
    }
    let mut capped = Estimate {
        reserved: Amounts::new(20, 50, 70, 1),
        input: 20,
        ..Estimate::default()
    };
    capped.reserved.cap(Unit::InputTokens, 10);
    assert!(!CompactEstimate::new(&capped).is_exact(), "the input is 20");
}
