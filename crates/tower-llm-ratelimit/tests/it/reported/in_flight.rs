//! What a provider reports about its limits while other calls are in flight.

use std::{collections::VecDeque, time::Duration};

use tower_llm_ratelimit::{RateLimitBuilder, RateLimitLayer};

use crate::http_support::timeline::{Answer, Millis, Timeline, chat, ended, reported, settle};

fn timeline(builder: RateLimitBuilder) -> Timeline {
    Timeline::new(builder.build().expect("legal settings"))
}

#[tokio::test(start_paused = true)]
async fn a_report_includes_its_own_call() {
    let timeline = timeline(RateLimitLayer::for_providers());
    for _ in 0..5 {
        // Another user of the account uses the limit too: one request is left each time.
        timeline.push(reported("requests", 10, 1, "9s"));
    }
    timeline.calls(6).await;
    assert_eq!(timeline.times(), [0; 6]);
    timeline.calls(1).await;
    assert_eq!(timeline.times()[6], 1_000);
}

#[tokio::test(start_paused = true)]
async fn calls_in_flight_before_the_first_report_count() {
    let timeline = timeline(RateLimitLayer::for_providers());
    let holds: Vec<_> = (0..10).map(|_| timeline.hold()).collect();
    let mut calls = Vec::new();
    for _ in 0..10 {
        calls.push(timeline.start(chat("m")).await);
    }
    // As far as is known, the first call that is answered was alone.
    let mut answers = holds.into_iter().zip(calls);
    let (hold, call) = answers.next().unwrap();
    hold.send(reported("requests", 10, 9, "6s")).unwrap();
    ended(call).await.unwrap();
    let waits = timeline.start(chat("m")).await;
    settle().await;
    assert_eq!(timeline.times(), [0; 10]);
    for (index, (hold, call)) in answers.enumerate() {
        hold.send(reported("requests", 10, 8 - index as u64, "60s"))
            .unwrap();
        ended(call).await.unwrap();
    }
    ended(waits).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn responses_out_of_order_admit_no_more_than_remains() {
    for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 4, 0, 3, 1]] {
        let timeline = timeline(RateLimitLayer::for_providers());
        timeline.push(reported("requests", 5, 5, "0s"));
        timeline.calls(1).await;
        // All five that remain, at once; the provider handles them in its own order.
        let mut holds: Vec<_> = (0..5).map(|_| Some(timeline.hold())).collect();
        let mut calls = Vec::new();
        for _ in 0..5 {
            calls.push(Some(timeline.start(chat("m")).await));
        }
        let next = timeline.start(chat("m")).await;
        for (met, index) in order.into_iter().enumerate() {
            let hold = holds[index].take().unwrap();
            hold.send(reported("requests", 5, 4 - met as u64, "12s"))
                .unwrap();
            ended(calls[index].take().unwrap()).await.unwrap();
            settle().await;
            assert_eq!(timeline.times().len(), 6, "{order:?}: after {met}");
            assert_eq!(timeline.now(), 0);
        }
        ended(next).await.unwrap();
        assert!(timeline.times()[6] > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn the_report_of_an_earlier_call_does_not_raise_that_of_a_later_one() {
    let timeline = timeline(RateLimitLayer::for_providers());
    let [early, late] = [timeline.hold(), timeline.hold()];
    let [first, second] = [
        timeline.start(chat("m")).await,
        timeline.start(chat("m")).await,
    ];
    // Between the two, another user of the account used the rest.
    late.send(reported("requests", 10, 0, "10s")).unwrap();
    ended(second).await.unwrap();
    early.send(reported("requests", 10, 9, "1s")).unwrap();
    ended(first).await.unwrap();
    timeline.calls(1).await;
    // It is also unknown whether the later report included the earlier call: two have to refill.
    assert_eq!(timeline.times(), [0, 0, 2_000]);
}

#[tokio::test(start_paused = true)]
async fn unanswered_calls_do_not_stay_in_flight() {
    let timeline = timeline(RateLimitLayer::for_providers());
    for _ in 0..5 {
        let hold = timeline.hold();
        let call = timeline.start(chat("m")).await;
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        drop(hold);
    }
    timeline.push(reported("requests", 10, 3, "7s"));
    timeline.calls(5).await;
    assert_eq!(timeline.times()[5..], [0, 0, 0, 0, 1_000]);
}

/// A call that had not reached the provider was not included in its report, and reopened the limit.
#[tokio::test(start_paused = true)]
async fn unsent_calls_do_not_reopen_a_limit_that_was_reported_used_up() {
    let patient = RateLimitLayer::for_providers().max_wait(Duration::from_secs(300));
    let timeline = timeline(patient);
    timeline.push(reported("requests", 10, 10, "0s"));
    timeline.calls(1).await;
    // One is sent; five others wait in an inner layer, for example a bulkhead's queue.
    let sent = timeline.hold();
    let first = timeline.start(chat("m")).await;
    let mut inside = Vec::new();
    for _ in 0..5 {
        let hold = timeline.hold();
        inside.push((hold, timeline.start(chat("m")).await));
    }
    // Another user of the account has used up the rest.
    sent.send(reported("requests", 10, 0, "100s")).unwrap();
    ended(first).await.unwrap();
    for (hold, call) in inside {
        drop(hold);
        ended(call).await.unwrap_err();
    }
    timeline.calls(2).await;
    assert_eq!(timeline.times()[..7], [0; 7]);
    assert_eq!(timeline.times()[7..], [10_000, 20_000]);
}

/// A provider with a bucket of ten that refills by one a second, and answers within 700 ms.
struct Bucket {
    remaining: f64,
    at: Millis,
    came: usize,
    due: VecDeque<(Millis, Answer)>,
}

impl Bucket {
    /// Counts the calls that arrived by `now`, and reports to each what remains.
    fn count(&mut self, came: usize, now: Millis) {
        self.remaining = (self.remaining + (now - self.at) as f64 / 1_000.0).min(10.0);
        self.at = now;
        while self.came < came {
            self.came += 1;
            self.remaining -= 1.0;
            assert!(
                self.remaining > -0.001,
                "call {} at {now} ms exceeds the provider's limit",
                self.came
            );
            let full_in = (10.0 - self.remaining) * 1_000.0;
            let answer = reported(
                "requests",
                10,
                self.remaining as u64,
                &format!("{full_in:.0}ms"),
            );
            self.due.push_back((now + 700, answer));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn under_a_steady_load_the_provider_refuses_nothing_and_little_stays_unused() {
    let patient = RateLimitLayer::for_providers().max_wait(Duration::from_secs(300));
    let timeline = timeline(patient);
    timeline.push(reported("requests", 10, 9, "1s"));
    timeline.calls(1).await;
    let mut bucket = Bucket {
        remaining: 9.0,
        at: 0,
        came: 1,
        due: VecDeque::new(),
    };
    let mut holds: VecDeque<_> = (0..59).map(|_| timeline.hold()).collect();
    let mut calls = Vec::new();
    for _ in 0..59 {
        calls.push(timeline.start(chat("m")).await);
    }
    while !holds.is_empty() {
        settle().await;
        let now = timeline.now();
        assert!(now < 100_000, "{} came", bucket.came);
        bucket.count(timeline.times().len(), now);
        while bucket.due.front().is_some_and(|(at, _)| *at <= now) {
            let (_, answer) = bucket.due.pop_front().unwrap();
            holds.pop_front().unwrap().send(answer).unwrap();
        }
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    for call in calls {
        ended(call).await.unwrap();
    }
    // Ten at once and then one each second.
    let last = *timeline.times().last().unwrap();
    assert!((50_000..60_000).contains(&last), "{last}");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_is_admitted_once_a_response_reports_room() {
    let timeline = timeline(RateLimitLayer::for_providers());
    let [one, other] = [timeline.hold(), timeline.hold()];
    let [first, second] = [
        timeline.start(chat("m")).await,
        timeline.start(chat("m")).await,
    ];
    one.send(reported("requests", 10, 0, "100s")).unwrap();
    ended(first).await.unwrap();
    // For 20 s, by what is known.
    let waits = timeline.start(chat("m")).await;
    tokio::time::advance(Duration::from_secs(5)).await;
    other.send(reported("requests", 10, 10, "0s")).unwrap();
    ended(second).await.unwrap();
    ended(waits).await.unwrap();
    assert_eq!(timeline.times(), [0, 0, 5_000]);
}
