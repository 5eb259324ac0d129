//! The strategy `ensemble`: several targets answer, and a vote or a judge chooses.

use serde_json::Value;
use tower_llm_testkit::{Behavior, Fault};

use super::{
    CHAT, accounts, providers, requests,
    scripted::{ASKED, fails, file, says, text},
};
use crate::{
    raw::{Raw, Reply},
    support::{Running, SOON, sample},
};

/// Upstreams that say this.
async fn upstreams(replies: impl IntoIterator<Item = Reply>) -> Vec<Raw> {
    let mut upstreams = Vec::new();
    for reply in replies {
        upstreams.push(Raw::start([reply]).await);
    }
    upstreams
}

fn calls(upstreams: &[Raw]) -> Vec<usize> {
    let calls = upstreams.iter().map(|upstream| upstream.requests().len());
    calls.collect()
}

#[tokio::test]
async fn the_answer_that_most_targets_gave_is_taken_and_all_are_paid_for() {
    let said = ["It is Quito.", "The answer: Lima", "answer: lima, surely"];
    let three = upstreams(said.map(says)).await;
    let named = [("a", &three[0]), ("b", &three[1]), ("c", &three[2])];
    let rules = "majority = true\nextract = \"answer: (\\\\w+)\"";
    let file = file(&named, "ensemble", rules);
    let gateway = Running::start(&file.flags()).await;
    let answer = gateway.post(CHAT, ASKED).await;
    assert_eq!(text(&answer.json()), "The answer: Lima");
    assert_eq!(calls(&three), [1, 1, 1]);
    for (direction, tokens) in [("input", 27.0), ("output", 9.0)] {
        let counted = format!(r#"llm_tokens_total{{provider="openai",direction="{direction}"}}"#);
        assert_eq!(sample(gateway.addr, &counted).await, Some(tokens));
    }
    let success = r#"llm_calls_total{provider="openai",operation="chat",outcome="success"}"#;
    assert_eq!(sample(gateway.addr, success).await, Some(1.0));
}

#[tokio::test]
async fn no_more_providers_are_asked_than_the_maximum() {
    let three = upstreams(["Lima.", "Quito.", "Quito."].map(says)).await;
    let named = [("a", &three[0]), ("b", &three[1]), ("c", &three[2])];
    let file = file(&named, "ensemble", "majority = true\nmax_providers = 2");
    let gateway = Running::start(&file.flags()).await;
    // One vote each: the first target's.
    let answer = gateway.post(CHAT, ASKED).await;
    assert_eq!(text(&answer.json()), "Lima.");
    assert_eq!(calls(&three), [1, 1, 0]);
}

#[tokio::test]
async fn what_has_not_answered_in_time_has_no_vote() {
    let three = providers(3).await;
    let rules = "strategy = \"ensemble\"\nensemble = { majority = true, timeout = \"300ms\" }";
    let file = accounts(&three, "", rules);
    let gateway = Running::start(&file.flags()).await;
    three[1].set(Fault::NoAnswer);
    let answer = gateway.post(CHAT, ASKED).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(requests(&three), [1, 1, 1]);
    let given_up = three[1].wait_for(SOON, |counts| counts.closed_before_head == 1);
    given_up.await.unwrap();
}

#[tokio::test]
async fn a_failure_fails_the_call_if_it_is_to_or_too_few_are_left() {
    for (rules, status) in [
        ("majority = true", 200),
        ("majority = true\nfail_fast = false\nmin_ok = 2", 200),
        ("majority = true\nfail_fast = true", 500),
        ("majority = true\nmin_ok = 3", 500),
    ] {
        let three = upstreams([says("Lima."), fails(), says("Lima.")]).await;
        let named = [("a", &three[0]), ("b", &three[1]), ("c", &three[2])];
        let file = file(&named, "ensemble", rules);
        let gateway = Running::start(&file.flags()).await;
        let answer = gateway.post(CHAT, ASKED).await;
        let is_ok = answer.status == 200;
        assert_eq!(is_ok, status == 200, "{rules}: {}", answer.text());
        assert!(is_ok || answer.status >= 500, "{rules}: {}", answer.status);
    }
}

#[tokio::test]
async fn a_judge_chooses_by_number_among_the_answers_that_are_good() {
    let judge = Raw::start([says("Answer 2 is best.")]).await;
    let three = upstreams([says("Quito."), fails(), says("Lima.")]).await;
    let named = [
        ("a", &three[0]),
        ("b", &three[1]),
        ("c", &three[2]),
        ("judge", &judge),
    ];
    let rules = "judge = { target = \"judge\", model = \"tiny\" }";
    let file = file(&named, "ensemble", rules);
    let gateway = Running::start(&file.flags()).await;
    let answer = gateway.post(CHAT, ASKED).await;
    assert_eq!(text(&answer.json()), "Lima.");
    let [asked] = &judge.bodies()[..] else {
        panic!("{:?}", judge.bodies());
    };
    let asked: Value = serde_json::from_str(asked).unwrap();
    assert_eq!(asked["model"], "tiny");
    let question = asked["messages"][1]["content"].as_str().unwrap();
    for part in ["capital of Peru", "Answer 1:\nQuito.", "Answer 2:\nLima."] {
        assert!(question.contains(part), "{question}");
    }
    // Both answers, and the judge's: what a failure has used is not known, but for its input.
    let output = r#"llm_tokens_total{provider="openai",direction="output"}"#;
    assert_eq!(sample(gateway.addr, output).await, Some(9.0));
}

#[tokio::test]
async fn a_judge_is_not_asked_about_one_answer_and_if_it_fails_the_first_is_taken() {
    for (second, judged, asked) in [
        (fails(), says("2"), 0),
        (says("Quito."), fails(), 1),
        (says("Quito."), says("neither"), 1),
        (says("Quito."), says("Answer 7"), 1),
    ] {
        let judge = Raw::start([judged.clone()]).await;
        let two = upstreams([says("Lima."), second]).await;
        let named = [("a", &two[0]), ("b", &two[1]), ("judge", &judge)];
        let rules = "judge = { target = \"judge\", model = \"tiny\" }";
        let file = file(&named, "ensemble", rules);
        let gateway = Running::start(&file.flags()).await;
        let answer = gateway.post(CHAT, ASKED).await;
        assert_eq!(text(&answer.json()), "Lima.", "{judged:?}");
        assert_eq!(judge.requests().len(), asked, "{judged:?}");
    }
}

#[tokio::test]
async fn a_stream_is_one_of_the_answers_whole_and_embeddings_are_asked_for_once() {
    let three = providers(3).await;
    let rules = "strategy = \"ensemble\"\nensemble = { majority = true }";
    let file = accounts(&three, "", rules);
    let gateway = Running::start(&file.flags()).await;
    three.iter().for_each(|one| one.set(Behavior::new()));
    let stream = ASKED.replace("\"model\"", "\"stream\":true,\"model\"");
    let answer = gateway.post(CHAT, &stream).await;
    assert_eq!((answer.status, answer.complete), (200, true));
    assert_eq!(answer.text().matches("[DONE]").count(), 1);
    assert_eq!(requests(&three), [1, 1, 1]);
    let embed = r#"{"model":"gpt-4","input":"hello"}"#;
    assert_eq!(gateway.post("/v1/embeddings", embed).await.status, 200);
    assert_eq!(requests(&three), [2, 1, 1]);
}
