//! The strategy `cascade`: a cheap target first, and a stronger one if a rule rejects its answer.

use serde_json::{Value, json};
use tower_llm_testkit::{Behavior, Fault};

use super::{
    CALL, CHAT, File, accounts, providers, requests,
    scripted::{ASKED, file, says, text},
};
use crate::{
    raw::{Raw, Reply, response},
    support::{Running, sample},
};

/// One cascade over all targets but the judges.
fn tiers(upstreams: &[(&str, &Raw)], cascade: &str) -> File {
    file(upstreams, "cascade", cascade)
}

#[tokio::test]
async fn an_answer_that_matches_is_followed_by_a_stronger_one() {
    let cheap = Raw::start([says("I do not know."), says("Lima.")]).await;
    let strong = Raw::start([says("Lima, of course.")]).await;
    let file = tiers(
        &[("cheap", &cheap), ("strong", &strong)],
        "regex = \"(?i)i (don't|do not) know\"",
    );
    let gateway = Running::start(&file.flags()).await;
    let answer = gateway.post(CHAT, ASKED).await;
    assert_eq!(text(&answer.json()), "Lima, of course.");
    assert_eq!((cheap.requests().len(), strong.requests().len()), (1, 1));
    // The caller pays for both.
    for (direction, tokens) in [("input", 18.0), ("output", 6.0)] {
        let counted = format!(r#"llm_tokens_total{{provider="openai",direction="{direction}"}}"#);
        assert_eq!(sample(gateway.addr, &counted).await, Some(tokens));
    }
    let answer = gateway.post(CHAT, ASKED).await;
    assert_eq!(text(&answer.json()), "Lima.");
    assert_eq!((cheap.requests().len(), strong.requests().len()), (2, 1));
}

#[tokio::test]
async fn the_tiers_keep_their_order_whatever_their_priorities_are_elsewhere() {
    let cheap = Raw::start([says("Lima.")]).await;
    let strong = Raw::start([says("Lima, of course.")]).await;
    let (one, other) = (cheap.addr, strong.addr);
    let file = File::new(&format!(
        r#"
        [targets.cheap]
        provider = "openai"
        base_url = "http://{one}/v1"
        priority = 1

        [targets.strong]
        provider = "openai"
        base_url = "http://{other}/v1"

        [models."gpt-4"]
        strategy = "cascade"
        targets = ["cheap", "strong"]
        cascade = {{ finish_reasons = ["length"] }}
        "#
    ));
    let gateway = Running::start(&file.flags()).await;
    assert_eq!(gateway.post(CHAT, CALL).await.status, 200);
    assert_eq!((cheap.requests().len(), strong.requests().len()), (1, 0));
}

#[tokio::test]
async fn an_answer_with_that_finish_reason_is_followed_by_a_stronger_one_streamed_or_not() {
    for stream in [false, true] {
        let two = providers(2).await;
        let cascade = "strategy = \"cascade\"\ncascade = { finish_reasons = [\"length\"] }";
        let file = accounts(&two, "", cascade);
        let gateway = Running::start(&file.flags()).await;
        two.iter()
            .for_each(|one| one.set(Behavior::new().output_tokens(9)));
        let ask = async |max: u64| {
            let messages = json!([{"role": "user", "content": "hello"}]);
            let body = json!({"model": "gpt-4", "messages": messages, "max_tokens": max, "stream": stream});
            let answer = gateway.post(CHAT, &body.to_string()).await;
            assert_eq!((answer.status, answer.complete), (200, true));
            answer.text()
        };
        let whole = ask(9).await;
        assert!(whole.contains("\"stop\""), "{whole}");
        assert_eq!(requests(&two), [1, 0]);
        // The last target's answer is taken as it is.
        let cut = ask(3).await;
        assert!(cut.contains("\"length\""), "{cut}");
        assert_eq!(cut.matches("[DONE]").count(), usize::from(stream));
        assert_eq!(requests(&two), [2, 1], "{stream}");
    }
}

#[tokio::test]
async fn the_length_of_the_prompt_decides_before_anything_is_sent() {
    let two = providers(2).await;
    let cascade = "strategy = \"cascade\"\n[models.\"gpt-4\".cascade]\nmin_prompt_tokens = 20\n\
                   max_prompt_tokens = 100\nregex = \".\"";
    let file = accounts(&two, "", cascade);
    let gateway = Running::start(&file.flags()).await;
    let ask = async |letters: usize| {
        let messages = json!([{"role": "user", "content": "a".repeat(letters)}]);
        let body = json!({"model": "gpt-4", "messages": messages});
        assert_eq!(gateway.post(CHAT, &body.to_string()).await.status, 200);
    };
    // Short: the first answer is taken, though the rule rejects every one.
    ask(4).await;
    assert_eq!(requests(&two), [1, 0]);
    ask(4 * 50).await;
    assert_eq!(requests(&two), [2, 1]);
    // Long: the last target alone.
    ask(4 * 200).await;
    assert_eq!(requests(&two), [2, 2]);
}

#[tokio::test]
async fn a_judge_reads_the_request_and_the_answer_and_says_yes_or_no() {
    let cheap = Raw::start([says("Quito."), says("Lima.")]).await;
    let strong = Raw::start([says("Lima, of course.")]).await;
    let judge = Raw::start([says("No."), says("Yes.")]).await;
    let upstreams = [("cheap", &cheap), ("judge", &judge), ("strong", &strong)];
    let rule = "judge = { target = \"judge\", model = \"tiny\" }";
    let file = tiers(&upstreams, rule);
    let gateway = Running::start(&file.flags()).await;
    let answer = gateway.post(CHAT, ASKED).await;
    assert_eq!(text(&answer.json()), "Lima, of course.");
    let answer = gateway.post(CHAT, ASKED).await;
    assert_eq!(text(&answer.json()), "Lima.");
    assert_eq!((cheap.requests().len(), strong.requests().len()), (2, 1));
    // The answer of the last target is not judged.
    let [first, _] = &judge.bodies()[..] else {
        panic!("{:?}", judge.bodies());
    };
    let asked: Value = serde_json::from_str(first).unwrap();
    assert_eq!(asked["model"], "tiny");
    let question = asked["messages"][1]["content"].as_str().unwrap();
    assert!(question.contains("capital of Peru"), "{question}");
    assert!(question.contains("Quito."), "{question}");

    let prompt = "judge = { target = \"judge\", model = \"tiny\", prompt = \"Is it short?\" }";
    let file = tiers(&upstreams, prompt);
    let gateway = Running::start(&file.flags()).await;
    gateway.post(CHAT, ASKED).await;
    let asked: Value = serde_json::from_str(&judge.bodies()[2]).unwrap();
    assert_eq!(asked["messages"][0]["content"], "Is it short?");
}

#[tokio::test]
async fn an_answer_that_a_judge_cannot_judge_is_taken() {
    let error = response("500 Internal Server Error", "", b"{}");
    for judged in [says("Perhaps."), error, Reply::Close] {
        let cheap = Raw::start([says("Quito.")]).await;
        let strong = Raw::start([says("Lima.")]).await;
        let judge = Raw::start([judged.clone()]).await;
        let file = tiers(
            &[("cheap", &cheap), ("judge", &judge), ("strong", &strong)],
            "judge = { target = \"judge\", model = \"tiny\" }",
        );
        let gateway = Running::start(&file.flags()).await;
        let answer = gateway.post(CHAT, ASKED).await;
        assert_eq!(text(&answer.json()), "Quito.", "{judged:?}");
        assert_eq!(judge.requests().len(), 1);
        assert_eq!(strong.requests().len(), 0);
    }
}

#[tokio::test]
async fn without_a_good_answer_the_last_one_is_taken_and_failures_go_on() {
    // The strong target fails: the weak answer is better than none.
    let cheap = Raw::start([says("I do not know.")]).await;
    let broken = Raw::start([response("500 Internal Server Error", "", b"{}")]).await;
    let file = tiers(
        &[("cheap", &cheap), ("strong", &broken)],
        "regex = \"know\"",
    );
    let gateway = Running::start(&file.flags()).await;
    let answer = gateway.post(CHAT, ASKED).await;
    assert_eq!(text(&answer.json()), "I do not know.");
    assert_eq!(broken.requests().len(), 1);

    // The cheap one fails: the strong one is asked, without a rule.
    let two = providers(2).await;
    let cascade = "strategy = \"cascade\"\ncascade = { finish_reasons = [\"length\"] }";
    let file = accounts(&two, "", cascade);
    let gateway = Running::start(&file.flags()).await;
    two[0].set(Fault::Status(500));
    assert_eq!(gateway.post(CHAT, ASKED).await.status, 200);
    assert_eq!(requests(&two), [1, 1]);
    // Embeddings say nothing that a rule could read: one answer is enough.
    two[0].set(Behavior::new());
    let embed = r#"{"model":"gpt-4","input":"hello"}"#;
    assert_eq!(gateway.post("/v1/embeddings", embed).await.status, 200);
    assert_eq!(requests(&two), [2, 1]);
}
