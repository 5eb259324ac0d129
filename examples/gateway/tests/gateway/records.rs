//! A record of each call, in a file.

use serde_json::Value;
use tower_llm_testkit::{Behavior, Fault, SimulatedProvider};

use crate::support::{Running, post};

const PATH: &str = "/v1/chat/completions";

/// One that is answered, one that the provider refuses, and one that its limit refuses.
#[tokio::test]
async fn each_call_leaves_a_record_without_its_text_or_credential() {
    let name = format!("gateway-records-{}.jsonl", std::process::id());
    let file = std::env::temp_dir().join(name);
    let provider = SimulatedProvider::start().await.unwrap();
    let flags = [
        "--records",
        file.to_str().unwrap(),
        "--ratelimit-openai-rpm",
        "2",
    ];
    let flags = [&flags[..], &["--ratelimit-queue", "0"]].concat();
    let gateway = Running::over(&provider, &flags).await;
    let headers = "authorization: Bearer alice\r\n";
    let body = r#"{"model":"gpt-5-mini","messages":[{"role":"user","content":"a secret plan"}]}"#;
    for (fault, status) in [(None, 200), (Some(Fault::Status(500)), 500), (None, 429)] {
        let behavior = Behavior::new().output_tokens(5);
        provider.set(match fault {
            Some(fault) => behavior.fault(fault),
            None => behavior,
        });
        let answer = post(gateway.addr, PATH, headers, body).await;
        assert_eq!(answer.status, status);
    }
    gateway.stop().await;

    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    for hidden in ["alice", "secret plan"] {
        assert!(!text.contains(hidden), "{hidden}: {text}");
    }
    let records: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let ends: Vec<_> = records
        .iter()
        .map(|record| {
            let of = |name: &str| record[name].as_str();
            (
                of("outcome").unwrap(),
                of("refused_by"),
                record["tokens"]["output"].as_u64(),
            )
        })
        .collect();
    let expected = [
        ("success", None, Some(5)),
        ("failed_status", None, Some(0)),
        ("refused", Some("ratelimit"), Some(0)),
    ];
    assert_eq!(ends, expected);
    assert!(records.iter().all(|record| record["model"] == "gpt-5-mini"));
    assert!(
        records[0]["cost_usd"].as_f64().unwrap() > 0.0,
        "{}",
        records[0]
    );
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_found_at_the_start() {
    let settings = gateway::Settings::from_flags(["--records", "/nowhere/records.jsonl"]).unwrap();
    let error = gateway::Gateway::bind(settings).await.unwrap_err();
    let error = error.to_string();
    assert!(error.starts_with("--records: "), "{error}");
}
