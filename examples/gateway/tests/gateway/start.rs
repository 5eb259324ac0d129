//! What it says when it starts, and when it can't.

use std::net::TcpListener;

use tokio::io::AsyncReadExt;

use crate::support::{Binary, COMPLETE, SOON, post, within};

/// Runs the binary until it gives up: its exit code and what it said.
async fn fails(envs: &[(&str, &str)], flags: &[&str]) -> (Option<i32>, String) {
    let mut child = Binary::command(envs, flags).spawn().unwrap();
    let status = within(SOON, child.wait()).await.unwrap();
    let mut said = String::new();
    let mut stderr = child.stderr.take().unwrap();
    stderr.read_to_string(&mut said).await.unwrap();
    (status.code(), said)
}

#[tokio::test]
async fn a_setting_that_can_t_work_is_named_with_its_value() {
    for (name, value) in [
        ("BULKHEAD_OPENAI_CONCURRENT", "0"),
        ("BULKHEAD_ANTHROPIC_CONCURRENT", "-1"),
        ("BULKHEAD_GEMINI_CONCURRENT", "many"),
        ("BULKHEAD_AZURE_CONCURRENT", "4294967296"),
        ("BULKHEAD_DEFAULT_CONCURRENT", "0"),
        ("BULKHEAD_DEFAULT_QUEUE", "some"),
        ("BULKHEAD_DEFAULT_TIMEOUT", "0"),
        ("RATELIMIT_OPENAI_RPM", "0"),
        ("RATELIMIT_OPENAI_TPM", "-1"),
        ("RATELIMIT_ANTHROPIC_RPM", "0"),
        ("RATELIMIT_ANTHROPIC_TPM", "many"),
        ("RATELIMIT_ANTHROPIC_ITPM", "0"),
        ("RATELIMIT_ANTHROPIC_OTPM", "0"),
        ("RATELIMIT_GEMINI_RPM", "9007199254740993"),
        ("RATELIMIT_GEMINI_TPM", "18446744073709551616"),
        ("RATELIMIT_AZURE_RPM", "1.5"),
        ("RATELIMIT_AZURE_TPM", "0"),
        ("RATELIMIT_CALLER_RPM", "0"),
        ("RATELIMIT_CALLER_TPM", "0"),
        ("RATELIMIT_QUEUE", "-1"),
        ("RATELIMIT_TIMEOUT", "0"),
        ("RATELIMIT_LEARN", "perhaps"),
        ("GATEWAY_SIMULATE", "perhaps"),
        ("GATEWAY_DRAIN_DELAY", "-1"),
        ("BREAKER", "perhaps"),
        ("RATELIMIT_TIERS", "free:0"),
        ("RATELIMIT_TIERS", "free:100,free:200"),
        ("TIMEOUT_FIRST_TOKEN", "inf"),
        ("TIMEOUT_IDLE", "NaN"),
        ("TIMEOUT_TOTAL", "1e300"),
        ("GATEWAY_MAX_BODY_BYTES", "0"),
        ("GATEWAY_MAX_CONNECTIONS", "0"),
        ("GATEWAY_SHUTDOWN_DEADLINE", "-5"),
        ("GATEWAY_CALLER_TIMEOUT", "0"),
    ] {
        let (code, said) = fails(&[(name, value)], &[]).await;
        assert_eq!(code, Some(2), "{name}: {said}");
        assert!(said.contains(&format!("for '{name}'")), "{name}: {said}");
        assert!(said.contains(&format!("'{value}'")), "{name}: {said}");
        // The flag was not used.
        assert!(
            !said.contains("--ratelimit") && !said.contains("--bulkhead"),
            "{said}"
        );
    }
    // By the flag, as well as by the environment.
    let (code, said) = fails(&[], &["--listen", "somewhere"]).await;
    assert_eq!(code, Some(2));
    assert!(
        said.contains("--listen") && said.contains("somewhere"),
        "{said}"
    );
}

#[tokio::test]
async fn settings_that_can_t_work_together_are_named() {
    let (code, said) = fails(&[("TIMEOUT_IDLE", "20"), ("TIMEOUT_TOTAL", "10")], &[]).await;
    assert_eq!(code, Some(2));
    assert!(
        said.contains("error: TIMEOUT_IDLE: ") && said.contains("20s"),
        "{said}"
    );
    let flags = ["--timeout-idle", "20", "--timeout-total", "10"];
    let (_, said) = fails(&[], &flags).await;
    assert!(said.contains("error: --timeout-idle: "), "{said}");
    let (_, said) = fails(&[("BREAKER_FAILURE_RATIO", "2")], &[]).await;
    assert!(said.contains("error: BREAKER_FAILURE_RATIO: "), "{said}");

    let (code, said) = fails(&[("AZURE_OPENAI_API_KEY", "hidden-key")], &[]).await;
    assert_eq!(code, Some(2));
    assert!(said.contains("error: AZURE_OPENAI_ENDPOINT: "), "{said}");
    assert!(!said.contains("hidden-key"), "{said}");

    let (code, said) = fails(&[("OPENAI_BASE_URL", "api.openai.com/v1")], &[]).await;
    assert_eq!(code, Some(2));
    assert!(said.contains("error: OPENAI_BASE_URL: "), "{said}");
    let (code, said) = fails(&[], &["--openai-base-url", "api.openai.com/v1"]).await;
    assert_eq!(code, Some(2));
    assert!(said.contains("error: --openai-base-url: "), "{said}");
}

#[tokio::test]
async fn a_misspelt_variable_is_reported_with_the_nearest_name() {
    let envs = [
        ("RATELIMIT_OPENAI_RMP", "10"),
        ("GATEWAY_SERVICE_HOST", "10.0.0.1"),
        ("RUST_LOG", "off"),
    ];
    let said = Binary::start(&envs, &[]).await.said().await;
    let notice = "warning: RATELIMIT_OPENAI_RMP is not a setting of the gateway. Did you mean RATELIMIT_OPENAI_RPM?";
    assert!(said.contains(notice), "{said}");
    assert_eq!(said.matches("warning").count(), 1, "{said}");
}

#[tokio::test]
async fn switches_and_empty_values_are_taken_as_people_mean_them() {
    let envs = [
        ("GATEWAY_SIMULATE", "1"),
        ("RATELIMIT_LEARN", "off"),
        ("BREAKER", "0"),
        ("BREAKER_MINIMUM_CALLS", ""),
        ("TIMEOUT_TOTAL", ""),
        ("RATELIMIT_TIERS", ""),
        ("HTTPS_PROXY", ""),
        ("OPENAI_BASE_URL", "http://127.0.0.1:1"),
    ];
    let gateway = Binary::start(&envs, &[]).await;
    let answer = post(gateway.addr, "/v1/messages", "", COMPLETE).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn tiers_of_callers_that_can_t_be_are_named_without_their_keys() {
    const TIERS: (&str, &str) = ("RATELIMIT_TIERS", "free:100,pro:1000");
    for list in [
        "hidden:gold",
        "pro:hidden",
        "hidden",
        ":pro",
        "hidden\u{7f}:pro",
        "hidden:pro,hidden:",
    ] {
        let (code, said) = fails(&[TIERS, ("RATELIMIT_CALLER_TIERS", list)], &[]).await;
        assert_eq!(code, Some(2), "{list}");
        assert!(said.contains("RATELIMIT_CALLER_TIERS: entry"), "{said}");
        assert!(!said.contains("hidden"), "{said}");
    }
    // There are no tiers.
    let (code, said) = fails(&[("RATELIMIT_CALLER_TIERS", "hidden:pro")], &[]).await;
    assert_eq!(code, Some(2));
    assert!(
        said.contains("RATELIMIT_TIERS") && !said.contains("hidden"),
        "{said}"
    );
}

#[tokio::test]
async fn a_shorter_total_alone_shortens_the_others() {
    let gateway = Binary::start(&[("TIMEOUT_TOTAL", "5")], &[]).await;
    assert_eq!(
        post(gateway.addr, "/v1/messages", "", COMPLETE)
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn a_port_in_use_is_reported() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let (code, said) = fails(&[], &["--listen", &addr]).await;
    assert_eq!(code, Some(1));
    assert!(said.contains(&format!("{addr} is in use")), "{said}");
}

#[tokio::test]
async fn it_does_not_call_itself() {
    let free = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let itself = format!("http://localhost:{}/v1", free.port());
    let envs = [("OPENAI_BASE_URL", itself.as_str())];
    let (code, said) = fails(&envs, &["--listen", &free.to_string()]).await;
    assert_eq!(code, Some(2));
    assert!(
        said.contains("error: OPENAI_BASE_URL: ") && said.contains("itself"),
        "{said}"
    );
}

#[tokio::test]
async fn keys_appear_neither_in_what_it_prints_nor_in_its_help() {
    let envs = [
        ("OPENAI_API_KEY", "hidden-key"),
        ("GEMINI_API_KEY", "hidden-key"),
        ("RATELIMIT_TIERS", "free:100,pro:1000"),
        ("RATELIMIT_CALLER_TIERS", "hidden-key:pro"),
    ];
    let output = Binary::command(&envs, &["--help"]).output().await.unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(help.contains("OPENAI_API_KEY"));
    assert!(!help.contains("hidden-key"), "{help}");

    let (code, said) = fails(&[("OPENAI_API_KEY", "hidden\nkey")], &[]).await;
    assert_eq!(code, Some(2));
    assert!(
        said.contains("OPENAI_API_KEY") && !said.contains("hidden"),
        "{said}"
    );
}

#[tokio::test]
async fn by_default_it_answers_with_no_key_and_no_network() {
    let gateway = Binary::start(&[], &[]).await;
    for path in [
        "/v1/chat/completions",
        "/v1/messages",
        "/v1beta/models/m:generateContent",
    ] {
        let answer = post(gateway.addr, path, "", COMPLETE).await;
        assert_eq!(answer.status, 200, "{path}");
    }
    // An empty name is one that is not set.
    let gateway = Binary::start(&[("OPENAI_BASE_URL", ""), ("OPENAI_API_KEY", "")], &[]).await;
    assert_eq!(
        post(gateway.addr, "/v1/messages", "", COMPLETE)
            .await
            .status,
        200
    );
}
