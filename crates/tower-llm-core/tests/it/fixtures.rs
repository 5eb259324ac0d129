//! Bodies as providers send them are read correctly.

use std::{fmt::Debug, time::Duration};

use tower_llm_core::{Call, Completion, Outcome, Usage};
use tower_llm_testkit::fixtures::{self, Fixture};

use crate::support::{answer, call_of, expected, watch_to_end};

fn read_whole(call: Option<&Call>, fixture: &Fixture) -> Completion {
    let (completion, frames) = watch_to_end(call, answer(fixture, [fixture.body]));
    assert_eq!(frames, [fixture.body]);
    completion
}

fn usage(fixture: &Fixture) -> Option<Usage> {
    let expected = fixture.expect.usage?;
    let mut usage = Usage::new(expected.input, expected.output);
    usage.cached_input = expected.cached_input;
    usage.cache_write = expected.cache_write;
    usage.reasoning = expected.reasoning;
    Some(usage)
}

/// Whether two outcomes agree: the tables round a wait down to milliseconds, and the reported wait is rounded up.
fn agree(actual: Outcome, expected: Outcome) -> bool {
    use Outcome::{Overloaded, Throttled};
    match (actual, expected) {
        (
            Throttled {
                retry_after: Some(actual),
            },
            Throttled {
                retry_after: Some(expected),
            },
        )
        | (
            Overloaded {
                retry_after: Some(actual),
            },
            Overloaded {
                retry_after: Some(expected),
            },
        ) => actual >= expected && actual - expected <= Duration::from_millis(1),
        _ => actual == expected,
    }
}

/// Everything that is read wrongly, so that one run shows all fixtures.
fn faults(fixture: &Fixture, completion: &Completion, streamed: bool) -> Vec<String> {
    let mut faults = Vec::new();
    let mut check = |agrees: bool, what: &dyn Debug, expected: &dyn Debug| {
        if !agrees {
            faults.push(format!("{}: {what:?}, not {expected:?}", fixture.name));
        }
    };
    let outcome = expected(fixture);
    check(
        agree(completion.outcome, outcome),
        &completion.outcome,
        &outcome,
    );
    let usage = usage(fixture);
    check(completion.usage == usage, &completion.usage, &usage);
    let status = Some(fixture.status);
    check(completion.status == status, &completion.status, &status);
    let first_token = streamed && fixture.expect.has_first_token;
    let has_first_token = completion.first_token_at.is_some();
    check(
        has_first_token == first_token,
        &completion.first_token_at,
        &first_token,
    );
    faults
}

#[test]
fn every_fixture_is_read_as_expected() {
    let fixtures = fixtures::all();
    assert!(fixtures.len() > 50, "only {} fixtures", fixtures.len());
    let faulty: Vec<_> = fixtures
        .iter()
        .flat_map(|fixture| faults(fixture, &read_whole(Some(&call_of(fixture)), fixture), true))
        .collect();
    assert!(faulty.is_empty(), "{}", faulty.join("\n"));
}

/// Except that a JSON array is a stream, which cannot be known then.
#[test]
fn every_fixture_is_read_the_same_without_a_described_request() {
    let faulty: Vec<_> = fixtures::all()
        .iter()
        .flat_map(|fixture| {
            faults(
                fixture,
                &read_whole(None, fixture),
                fixture.is_event_stream(),
            )
        })
        .collect();
    assert!(faulty.is_empty(), "{}", faulty.join("\n"));
}

#[test]
fn output_is_seen_in_every_stream_that_has_some() {
    for fixture in fixtures::all()
        .iter()
        .filter(|fixture| fixture.expect.has_first_token)
    {
        let completion = read_whole(None, fixture);
        // A function call that arrives as an object is output whose size is not estimated.
        let is_object = fixture.name == "gemini_stream_tools";
        assert_eq!(completion.output_seen == 0, is_object, "{}", fixture.name);
    }
}

#[test]
fn no_output_is_seen_in_an_error() {
    for fixture in fixtures::all()
        .iter()
        .filter(|fixture| fixture.status >= 400)
    {
        assert_eq!(read_whole(None, fixture).output_seen, 0, "{}", fixture.name);
    }
}
