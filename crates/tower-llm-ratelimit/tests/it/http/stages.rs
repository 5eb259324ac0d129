//! What a call is charged if it is dropped or fails at any stage of its response.

use tower::ServiceExt;
use tower_llm_testkit::{Behavior, Fault, InBand, SimulatedProvider};

use crate::http_support::{
    APIS, Api, Cost, ESTIMATED, INPUT, OUTPUT, RESERVED, Seen, assert_settled, call, call_events,
    consumed, counting, settled, stack, tokens, whole,
};

fn behavior() -> Behavior {
    Behavior::new().input_tokens(INPUT).output_tokens(OUTPUT)
}

/// A stream as the provider sends it, to its end.
async fn whole_stream(provider: &SimulatedProvider, api: Api) -> (Seen, usize) {
    provider.set(behavior());
    whole(
        &stack(&counting().build().expect("legal settings")),
        api.request(provider, true),
    )
    .await
}

#[tokio::test]
async fn a_stream_that_ends_is_charged_what_its_provider_reports() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(behavior());
    for (api, streamed) in APIS.iter().flat_map(|&api| [(api, true), (api, false)]) {
        let layer = counting().build().unwrap();
        let seen = call(&stack(&layer), api.request(&provider, streamed)).await;
        let cost = match (api, streamed) {
            // Without a report: the estimate of the input, plus the output that passed, one token per four bytes.
            (Api::Chat, true) => seen.cost(api, streamed),
            _ => tokens(INPUT, OUTPUT),
        };
        assert_eq!(seen.cost(api, streamed), cost, "{api:?}");
        assert_settled(&layer.handle(), cost, &(api, streamed));
    }
}

#[tokio::test]
async fn a_stream_without_usage_is_charged_the_estimate_and_the_text_that_passed() {
    let provider = SimulatedProvider::start().await.unwrap();
    let (seen, _) = whole_stream(&provider, Api::Chat).await;
    let text: usize = seen
        .body
        .split(r#""delta":{"content":""#)
        .skip(1)
        .map(|piece| piece.find('"').unwrap())
        .sum();
    assert!(text > 14, "seven words: {text}");
    let cost = tokens(ESTIMATED, (text as u64).div_ceil(4));
    assert_eq!(seen.cost(Api::Chat, true), cost);
}

#[tokio::test]
async fn a_stream_dropped_after_any_event_is_charged_what_was_seen() {
    let provider = SimulatedProvider::start().await.unwrap();
    for api in APIS {
        let (_, events) = whole_stream(&provider, api).await;
        assert!(events >= 8, "{api:?}");
        let mut costs = Vec::new();
        for read in 0..=events {
            let layer = counting().build().unwrap();
            let service = stack(&layer);
            let seen = call_events(&service, api.request(&provider, true), read).await;
            let cost = seen.cost(api, true);
            assert_settled(&layer.handle(), cost, &(api, read));
            costs.push(cost);
        }
        // Only the response headers were read: the provider processes the input anyway.
        assert_eq!(costs[0], tokens(ESTIMATED, 0), "{api:?}");
        let last = costs[events];
        match api {
            Api::Chat => assert_eq!(last[1], ESTIMATED),
            _ => assert_eq!(last, tokens(INPUT, OUTPUT), "{api:?}"),
        }
        // The usage has arrived, and the end marker has not.
        if matches!(api, Api::ChatUsage | Api::Messages) {
            assert_eq!(costs[events - 1], tokens(INPUT, OUTPUT), "{api:?}");
        }
        if api == Api::Messages {
            // `message_start` reports the input, and one output token in any case.
            assert_eq!(costs[1], tokens(INPUT, 1));
        }
        assert!(distinct(&costs) >= 4, "{api:?}: {costs:?}");
    }
}

fn distinct(costs: &[Cost]) -> usize {
    let mut costs = costs.to_vec();
    costs.sort_unstable();
    costs.dedup();
    costs.len()
}

/// Breaks a stream of each API after each of its events, and checks the charge against what arrived.
async fn broken_after_any_event(fault: fn(usize) -> Fault) -> Vec<Cost> {
    let provider = SimulatedProvider::start().await.expect("a free port");
    let mut costs = Vec::new();
    for api in APIS {
        let (_, events) = whole_stream(&provider, api).await;
        for after in 0..events {
            provider.set(behavior().fault(fault(after)));
            let layer = counting().build().expect("legal settings");
            let seen = call(&stack(&layer), api.request(&provider, true)).await;
            let cost = seen.cost(api, true);
            assert_settled(&layer.handle(), cost, &(api, after, &seen));
            costs.push(cost);
        }
    }
    costs
}

#[tokio::test]
async fn a_stream_cut_after_any_event_is_charged_what_was_seen() {
    let costs = broken_after_any_event(Fault::CutAfter).await;
    assert!(distinct(&costs) >= 10, "{costs:?}");
}

#[tokio::test]
async fn a_stream_reset_after_any_event_is_charged_what_was_seen() {
    let costs = broken_after_any_event(Fault::ResetAfter).await;
    assert!(costs.iter().all(|cost| cost[0] == 1));
}

#[tokio::test]
async fn a_stream_that_fails_midway_is_charged_what_was_seen() {
    let error = |after| Fault::ErrorAfter(after, InBand::ServerError);
    let costs = broken_after_any_event(error).await;
    assert!(distinct(&costs) >= 10, "{costs:?}");
    let failed = |after| Fault::FailedAfter(after, InBand::ServerError);
    broken_after_any_event(failed).await;
}

#[tokio::test]
async fn a_stream_throttled_midway_is_charged_the_request_alone() {
    let costs = broken_after_any_event(|after| Fault::ErrorAfter(after, InBand::RateLimited)).await;
    assert!(
        costs
            .iter()
            .all(|&cost| cost == crate::http_support::REQUEST)
    );
    let costs =
        broken_after_any_event(|after| Fault::FailedAfter(after, InBand::RateLimited)).await;
    assert!(
        costs
            .iter()
            .all(|&cost| cost == crate::http_support::REQUEST)
    );
}

#[tokio::test]
async fn a_stream_overloaded_midway_costs_nothing() {
    let costs = broken_after_any_event(|after| Fault::ErrorAfter(after, InBand::Overloaded)).await;
    assert!(
        costs
            .iter()
            .all(|&cost| cost == crate::http_support::NOTHING)
    );
}

#[tokio::test]
async fn a_stalled_stream_holds_its_reservation_until_it_is_dropped() {
    let provider = SimulatedProvider::start().await.unwrap();
    for api in APIS {
        for after in 0..5 {
            provider.set(behavior().fault(Fault::StallAfter(after)));
            let layer = counting().build().unwrap();
            let handle = layer.handle();
            let response = stack(&layer).oneshot(api.request(&provider, true));
            let response = response.await.unwrap();
            assert_eq!(consumed(&handle), RESERVED);
            assert_eq!(settled(&handle), ([0; 4], [0; 4]));
            let seen = crate::http_support::read_events(response, after).await;
            assert_settled(&handle, seen.cost(api, true), &(api, after));
        }
    }
}

#[tokio::test]
async fn an_unstreamed_response_that_breaks_off_is_charged_what_was_seen() {
    let provider = SimulatedProvider::start().await.unwrap();
    let faults = [
        Fault::CutAfter(0),
        Fault::CutAfter(1),
        Fault::ResetAfter(0),
        Fault::ResetAfter(1),
        Fault::ErrorAfter(0, InBand::ServerError),
        Fault::ErrorAfter(1, InBand::Overloaded),
        Fault::ErrorAfter(1, InBand::RateLimited),
    ];
    for (api, fault) in APIS
        .iter()
        .flat_map(|&api| faults.map(|fault| (api, fault)))
    {
        provider.set(behavior().output_tokens(90).fault(fault));
        let layer = counting().build().unwrap();
        let seen = call(&stack(&layer), api.request(&provider, false)).await;
        assert_eq!(seen.status, Some(200), "{api:?} {fault:?}");
        let cost = seen.cost(api, false);
        assert_settled(&layer.handle(), cost, &(api, fault, &seen));
        match fault {
            Fault::ErrorAfter(_, InBand::ServerError) => assert_eq!(cost, tokens(ESTIMATED, 0)),
            Fault::ErrorAfter(_, InBand::Overloaded) => assert_eq!(cost, [0; 4]),
            Fault::ErrorAfter(..) => assert_eq!(cost, [1, 0, 0, 0]),
            Fault::CutAfter(0) => assert_eq!(cost, tokens(ESTIMATED, 0)),
            // Half of it has arrived, and most of that is text.
            Fault::CutAfter(_) => assert!(cost[2] >= 10, "{api:?}: {cost:?}"),
            _ => {}
        }
    }
}
