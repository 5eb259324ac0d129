//! Costs at the edges of what numbers hold; what calls cost is tested through HTTP.

use super::*;

pub(crate) fn request() -> Cost {
    Cost::REQUEST
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

fn of_all(cost: &Cost) -> [u64; 4] {
    Unit::ALL.map(|unit| cost.of(unit))
}

#[test]
fn what_is_asked_for_or_reported_beyond_all_measure_does_not_wrap_around() {
    let (pricing, most) = (pricing(), u64::MAX);
    let estimate = pricing.estimate(Some(&chat(most, most)), || {
        unreachable!("a maximum is named")
    });
    assert_eq!(of_all(&estimate.reserved), [1, most, most, most]);

    // What a provider reports is believed up to a bound.
    let used = MAX_USED * u64::from(pricing.output_weight);
    let mut completion = Completion::new(Outcome::Success);
    completion.usage = Some(Usage::new(most, most));
    assert_eq!(
        of_all(&pricing.settle(&estimate, &completion)),
        [1, MAX_USED, used, used + MAX_USED]
    );
    completion.outcome = Outcome::Abandoned;
    completion.output_seen = most;
    assert_eq!(
        of_all(&pricing.settle(&estimate, &completion)),
        [1, MAX_USED, used, used + MAX_USED]
    );
}

#[test]
fn more_cached_input_than_input_is_none() {
    let pricing = pricing();
    let estimate = pricing.estimate(Some(&chat(10, 0)), || 0);
    let mut usage = Usage::new(5, 0);
    usage.cached_input = 9;
    let mut completion = Completion::new(Outcome::Success);
    completion.usage = Some(usage);
    assert_eq!(
        of_all(&pricing.settle(&estimate, &completion)),
        [1, 0, 0, 0]
    );
}

#[test]
fn what_others_produce_is_asked_for_only_where_it_matters() {
    let asked = |reserve, call: &Call| {
        let pricing = Pricing {
            reserve,
            ..pricing()
        };
        let mut asked = false;
        pricing.estimate(Some(call), || {
            asked = true;
            7
        });
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
