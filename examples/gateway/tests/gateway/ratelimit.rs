//! Limits, from outside.

use std::{net::SocketAddr, time::Duration};

use tokio::time::Instant;
use tower_llm_testkit::{Behavior, Fault, RetryAfter, SimulatedProvider};

use crate::support::{self, Answer, Binary, Connection, Running, eventually, get, post};

/// Each with ten tokens of input by estimate, and a maximum of a hundred.
const CHAT: (&str, &str) = (
    "/v1/chat/completions",
    r#"{"model":"m","max_tokens":100,"stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"forty bytes of text are ten tokens or so"}]}"#,
);
const AZURE: (&str, &str) = ("/openai/deployments/d/chat/completions", CHAT.1);
const MESSAGES: (&str, &str) = (
    "/v1/messages",
    r#"{"model":"m","max_tokens":100,"messages":[{"role":"user","content":"forty bytes of text are ten tokens or so"}]}"#,
);
const GENERATE: (&str, &str) = (
    "/v1beta/models/m:generateContent",
    r#"{"contents":[{"parts":[{"text":"forty bytes of text are ten tokens or so"}]}],"generationConfig":{"maxOutputTokens":100}}"#,
);

type Call = (&'static str, &'static str);

/// Makes a call with a key of the caller's.
async fn call(addr: SocketAddr, key: &str, (path, body): Call) -> Answer {
    let header = match path {
        "/v1/messages" => format!("x-api-key: {key}\r\n"),
        _ => format!("authorization: Bearer {key}\r\n"),
    };
    post(addr, path, &header, body).await
}

/// The value of a sample, which must be there.
async fn sample(addr: SocketAddr, sample: &str) -> f64 {
    let value = support::sample(addr, sample).await;
    value.unwrap_or_else(|| panic!("no {sample}"))
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer
        .headers
        .get(name)
        .map(|value| value.to_str().unwrap())
}

// === providers ===

#[tokio::test]
async fn the_third_of_two_requests_a_minute_is_refused_in_its_dialect_by_environment() {
    for (name, limited, other, pointer, value) in [
        (
            "RATELIMIT_OPENAI_RPM",
            CHAT,
            MESSAGES,
            "/error/code",
            "rate_limit_exceeded",
        ),
        (
            "RATELIMIT_AZURE_RPM",
            AZURE,
            CHAT,
            "/error/code",
            "rate_limit_exceeded",
        ),
        (
            "RATELIMIT_ANTHROPIC_RPM",
            MESSAGES,
            CHAT,
            "/error/type",
            "rate_limit_error",
        ),
        (
            "RATELIMIT_GEMINI_RPM",
            GENERATE,
            CHAT,
            "/error/status",
            "RESOURCE_EXHAUSTED",
        ),
    ] {
        let provider = SimulatedProvider::start().await.unwrap();
        let url = provider.url();
        let envs = [
            ("OPENAI_BASE_URL", url.as_str()),
            ("ANTHROPIC_BASE_URL", &url),
            ("GOOGLE_GEMINI_BASE_URL", &url),
            ("AZURE_OPENAI_ENDPOINT", &url),
            (name, "2"),
        ];
        let gateway = Binary::start(&envs, &[]).await;
        // One limit for all callers.
        for key in ["one", "another"] {
            assert_eq!(call(gateway.addr, key, limited).await.status, 200, "{name}");
        }

        let refused = call(gateway.addr, "a third", limited).await;

        assert_eq!(refused.status, 429, "{name}");
        assert_eq!(refused.json().pointer(pointer).unwrap(), value, "{name}");
        let seconds: u64 = header(&refused, "retry-after").unwrap().parse().unwrap();
        // A window of a minute lets go of what is older, and of up to a thirteenth later.
        assert!((1..=65).contains(&seconds), "{name}: {seconds}");
        assert_eq!(provider.counts().requests, 2, "{name}");
        assert_eq!(call(gateway.addr, "one", other).await.status, 200, "{name}");
    }
}

#[tokio::test]
async fn a_call_that_is_larger_than_a_limit_of_tokens_is_refused_for_good_by_environment() {
    for (name, limited, unit) in [
        ("RATELIMIT_OPENAI_TPM", CHAT, "100 tokens"),
        ("RATELIMIT_AZURE_TPM", AZURE, "110 tokens"),
        ("RATELIMIT_GEMINI_TPM", GENERATE, "10 tokens"),
        ("RATELIMIT_CALLER_TPM", CHAT, "110 tokens"),
    ] {
        let gateway = Binary::start(&[(name, "9"), ("GATEWAY_SIMULATE", "true")], &[]).await;
        let refused = call(gateway.addr, "one", limited).await;
        assert_eq!(refused.status, 429, "{name}");
        assert_eq!(header(&refused, "x-should-retry"), Some("false"), "{name}");
        assert_eq!(header(&refused, "retry-after"), None, "{name}");
        let text = refused.text();
        assert!(text.contains(&format!("needs {unit}")), "{name}: {text}");
    }
    // Its input may be cached and cost nothing there, and its output be less than the maximum.
    for name in [
        "RATELIMIT_ANTHROPIC_TPM",
        "RATELIMIT_ANTHROPIC_ITPM",
        "RATELIMIT_ANTHROPIC_OTPM",
    ] {
        let gateway = Binary::start(&[(name, "9"), ("GATEWAY_SIMULATE", "true")], &[]).await;
        let status = call(gateway.addr, "one", MESSAGES).await.status;
        assert_eq!(status, 200, "{name}");
    }
}

#[tokio::test]
async fn tokens_are_settled_when_the_stream_has_ended() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Behavior::new().input_tokens(10).output_tokens(5));
    let flags = ["--ratelimit-openai-tpm", "130"];
    let gateway = Running::over(&provider, &flags).await;
    // A hundred are reserved each time and fifteen used: there is room for a third, and for no fourth.
    for calls in 1..=3 {
        assert_eq!(call(gateway.addr, "one", CHAT).await.status, 200, "{calls}");
    }
    assert_eq!(call(gateway.addr, "one", CHAT).await.status, 429);

    let of =
        |name: &str| format!(r#"ratelimit_{name}{{of="openai",unit="tokens",period="minute"}}"#);
    assert_eq!(sample(gateway.addr, &of("consumed")).await, 45.0);
    assert_eq!(sample(gateway.addr, &of("refunded_total")).await, 255.0);
    assert_eq!(sample(gateway.addr, &of("admitted_total")).await, 3.0);
    assert_eq!(sample(gateway.addr, &of("refused_total")).await, 1.0);
    assert_eq!(sample(gateway.addr, &of("violations_total")).await, 0.0);
    assert_eq!(sample(gateway.addr, &of("waiting")).await, 0.0);
}

#[tokio::test]
async fn a_stream_that_its_caller_leaves_gives_its_tokens_back() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.push(Fault::StallAfter(3));
    let flags = ["--ratelimit-openai-tpm", "130"];
    let gateway = Running::over(&provider, &flags).await;
    let consumed = r#"ratelimit_consumed{of="openai",unit="tokens",period="minute"}"#;
    let mut leaves = Connection::open(gateway.addr).await;
    leaves.send("POST", CHAT.0, "", CHAT.1).await;
    leaves.head(false).await.unwrap();
    assert_eq!(sample(gateway.addr, consumed).await, 100.0);
    // Another call waits for what the first one does not use.
    let addr = gateway.addr;
    let waits = tokio::spawn(async move { call(addr, "one", CHAT).await.status });
    let waiting = r#"ratelimit_waiting{of="openai",unit="tokens",period="minute"}"#;
    eventually("it waits", async || sample(addr, waiting).await == 1.0).await;

    drop(leaves);

    assert_eq!(waits.await.unwrap(), 200);
    // The input by estimate, and at most a few tokens of what was to be a hundred.
    eventually("both are settled", async || {
        let used = sample(addr, consumed).await;
        (20.0..=60.0).contains(&used)
    })
    .await;
}

#[tokio::test]
async fn a_provider_that_asks_to_wait_is_not_asked_again_for_that_model_and_key() {
    let provider = SimulatedProvider::start().await.unwrap();
    let other_model: Call = ("/v1/chat/completions", r#"{"model":"other"}"#);
    let gateway = Running::over(&provider, &["--ratelimit-timeout", "1"]).await;
    provider.push(Fault::Throttled(RetryAfter::Seconds(20)));
    assert_eq!(call(gateway.addr, "one", CHAT).await.status, 429);

    let refused = call(gateway.addr, "one", CHAT).await;

    assert_eq!(refused.status, 429);
    assert!(refused.text().contains("the provider asked to wait"));
    let seconds: u64 = header(&refused, "retry-after").unwrap().parse().unwrap();
    assert!((19..=20).contains(&seconds), "{seconds}");
    assert_eq!(provider.counts().requests, 1);
    // It is the account of that caller that is throttled, and that model.
    assert_eq!(call(gateway.addr, "another", CHAT).await.status, 200);
    assert_eq!(call(gateway.addr, "one", other_model).await.status, 200);

    // With the owner's credential, it is that account for all.
    let flags = [
        "--ratelimit-timeout",
        "1",
        "--openai-api-key",
        "ours",
        "--keys",
        "none",
    ];
    let gateway = Running::over(&provider, &flags).await;
    provider.push(Fault::Throttled(RetryAfter::Seconds(20)));
    assert_eq!(call(gateway.addr, "one", CHAT).await.status, 429);
    assert_eq!(call(gateway.addr, "another", CHAT).await.status, 429);
    assert_eq!(call(gateway.addr, "another", other_model).await.status, 200);
    assert_eq!(provider.counts().requests, 5);
}

#[tokio::test]
async fn a_short_wait_that_the_provider_asks_for_is_waited_out() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &[]).await;
    provider.push(Fault::Throttled(RetryAfter::Seconds(1)));
    let since = Instant::now();
    assert_eq!(call(gateway.addr, "one", MESSAGES).await.status, 429);
    assert_eq!(call(gateway.addr, "one", MESSAGES).await.status, 200);
    let took = since.elapsed();
    assert!(took >= Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn reported_limits_can_be_left_to_the_caller() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &["--ratelimit-learn", "false"]).await;
    provider.push(Fault::Throttled(RetryAfter::Seconds(20)));
    assert_eq!(call(gateway.addr, "one", CHAT).await.status, 429);
    assert_eq!(call(gateway.addr, "one", CHAT).await.status, 200);
    // Nothing is limited, so nothing is shown.
    let metrics = get(gateway.addr, "/metrics").await.text();
    assert!(!metrics.contains("\nratelimit_"), "{metrics}");
}

// === callers ===

#[tokio::test]
async fn each_caller_has_its_own_limit_and_gets_its_status() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &["--ratelimit-caller-rpm", "2"]).await;
    for left in ["1", "0"] {
        let answer = call(gateway.addr, "one", CHAT).await;
        assert_eq!(answer.status, 200);
        assert_eq!(header(&answer, "x-ratelimit-limit-requests"), Some("2"));
        assert_eq!(
            header(&answer, "x-ratelimit-remaining-requests"),
            Some(left)
        );
    }
    // Of all providers together.
    let generate = ("/v1beta/models/m:generateContent", GENERATE.1);
    assert_eq!(call(gateway.addr, "one", generate).await.status, 429);
    assert_eq!(call(gateway.addr, "another", CHAT).await.status, 200);
    assert_eq!(provider.counts().requests, 3);
    let refused = r#"ratelimit_refused_total{of="caller",unit="requests",period="minute"}"#;
    assert_eq!(sample(gateway.addr, refused).await, 1.0);
}

#[tokio::test]
async fn callers_have_what_their_tier_has() {
    let provider = SimulatedProvider::start().await.unwrap();
    let flags = [
        "--ratelimit-tiers",
        "free:1,pro:3,enterprise:5",
        "--ratelimit-caller-tiers",
        "sk-pro:pro,sk-large:enterprise, sk-free:free",
    ];
    let gateway = Running::over(&provider, &flags).await;
    for (key, requests) in [
        ("sk-pro", 3),
        ("sk-large", 5),
        ("sk-free", 1),
        // Not listed: the first tier's.
        ("sk-stranger", 1),
    ] {
        // By either header in which a key is sent.
        for limited in [CHAT, MESSAGES] {
            for _ in 0..requests {
                assert_eq!(call(gateway.addr, key, limited).await.status, 200, "{key}");
            }
            let refused = call(gateway.addr, key, limited).await;
            assert_eq!(refused.status, 429, "{key}");
            let seconds: u64 = header(&refused, "retry-after").unwrap().parse().unwrap();
            assert!(seconds > 3_000, "an hour's window: {seconds}");
        }
    }
    assert_eq!(provider.counts().requests, 20);
    let refused = r#"ratelimit_refused_total{of="caller",unit="requests",period="hour"}"#;
    assert_eq!(sample(gateway.addr, refused).await, 8.0);
}

#[tokio::test]
async fn a_provider_s_limit_takes_nothing_of_the_caller_s() {
    let provider = SimulatedProvider::start().await.unwrap();
    let flags = [
        "--ratelimit-openai-rpm",
        "1",
        "--ratelimit-caller-rpm",
        "10",
    ];
    let gateway = Running::over(&provider, &flags).await;
    assert_eq!(call(gateway.addr, "one", CHAT).await.status, 200);
    for _ in 0..20 {
        assert_eq!(call(gateway.addr, "one", CHAT).await.status, 429);
    }
    let consumed = r#"ratelimit_consumed{of="caller",unit="requests",period="minute"}"#;
    assert_eq!(sample(gateway.addr, consumed).await, 1.0);
    assert_eq!(call(gateway.addr, "one", MESSAGES).await.status, 200);
}
