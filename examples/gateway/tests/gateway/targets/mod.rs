//! Targets and models of a configuration file.

mod callers;
mod cascade;
mod ensemble;
mod health;
mod scripted;
mod valid;

use std::{
    env, fs,
    path::PathBuf,
    process,
    sync::atomic::{AtomicUsize, Ordering},
};

use tower_llm_testkit::{Behavior, Fault, SimulatedProvider};

use crate::{
    raw::{Raw, Reply, response},
    support::{Binary, Running, get, post, request},
};

const CHAT: &str = "/v1/chat/completions";
const CALL: &str =
    r#"{"model":"gpt-4","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;

/// A configuration file, deleted with this.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("gateway-targets-{}-{number}.toml", process::id());
        let file = Self(env::temp_dir().join(name));
        fs::write(&file.0, text).unwrap();
        file
    }

    fn flags(&self) -> [&str; 2] {
        ["--config", self.0.to_str().unwrap()]
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

async fn providers(number: usize) -> Vec<SimulatedProvider> {
    let mut providers = Vec::new();
    for _ in 0..number {
        providers.push(SimulatedProvider::start().await.unwrap());
    }
    providers
}

/// A target for each provider, with these settings, and one model that goes to all of them.
fn accounts(providers: &[SimulatedProvider], each: &str, model: &str) -> File {
    let mut text = String::new();
    let mut names = Vec::new();
    for (number, provider) in providers.iter().enumerate() {
        let url = provider.url();
        text += &format!(
            "[targets.a{number}]\nprovider = \"openai\"\nbase_url = \"{url}/v1\"\n{each}\n"
        );
        names.push(format!("\"a{number}\""));
    }
    let names = names.join(", ");
    File::new(&format!(
        "{text}[models.\"gpt-4\"]\ntargets = [{names}]\n{model}\n"
    ))
}

fn requests(providers: &[SimulatedProvider]) -> Vec<u64> {
    let counts = providers.iter().map(|provider| provider.counts().requests);
    counts.collect()
}

#[tokio::test]
async fn callers_see_no_error_of_two_dead_accounts_of_four() {
    let mut four = providers(4).await;
    let file = accounts(&four, "", "strategy = \"round_robin\"\nretries = 3");
    let gateway = Running::start(&file.flags()).await;
    for _ in 0..4 {
        assert_eq!(gateway.post(CHAT, CALL).await.status, 200);
    }
    assert_eq!(requests(&four), [1; 4]);
    // One does not answer any more, the other breaks every stream before its content.
    four.remove(0).shutdown().await;
    four[0].set(Fault::ErrorAfter(1, tower_llm_testkit::InBand::Overloaded));
    for call in 0..60 {
        let answer = gateway.post(CHAT, CALL).await;
        assert_eq!(answer.status, 200, "{call}: {}", answer.text());
        assert!(
            answer.complete && answer.text().contains("[DONE]"),
            "{call}"
        );
        assert!(
            !answer.text().contains("error"),
            "{call}: {}",
            answer.text()
        );
    }
    let [broken, ..] = requests(&four)[..] else {
        panic!()
    };
    // Its circuit opens after five failures in a row.
    assert!(broken <= 1 + 5, "{broken}");
    let metrics = get(gateway.addr, "/metrics").await.text();
    let open = r#"breaker_circuits{provider="a1",of="model",state="open"} 1"#;
    assert!(metrics.contains(open), "{metrics}");
}

#[tokio::test]
async fn four_accounts_of_60_requests_a_minute_take_240_and_then_refuse_with_a_time() {
    let four = providers(4).await;
    let file = accounts(&four, "rpm = 60", "strategy = \"failover\"\nretries = 0");
    let gateway = Running::start(&file.flags()).await;
    let mut served = 0;
    let refused = loop {
        let answer = gateway.post(CHAT, CALL).await;
        match answer.status {
            200 => served += 1,
            _ => break answer,
        }
        assert!(served < 400, "no limit holds");
    };
    // The first of a minute's requests become free again while the others are sent.
    assert!((240..=300).contains(&served), "{served}");
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert!(refused.headers.contains_key("retry-after"));
    // Nothing was sent that its account had no room for, and the first was asked first.
    let requests = requests(&four);
    assert_eq!(requests.iter().sum::<u64>(), served);
    assert!(
        requests
            .iter()
            .all(|&requests| (60..=75).contains(&requests)),
        "{requests:?}"
    );
}

#[tokio::test]
async fn each_account_gets_its_own_key_and_its_own_name_of_the_model() {
    let two = providers(2).await;
    let (one, other) = (two[0].url(), two[1].url());
    let file = File::new(&format!(
        r#"
        [targets.first]
        provider = "openai"
        base_url = "{one}/v1"
        api_key_env = "KEY_A"
        models = {{ "gpt-4" = "gpt-4-0613" }}

        [targets.second]
        provider = "acme"
        dialect = "openai"
        base_url = "{other}/v1"
        api_key_env = "KEY_B"

        [models."gpt-4"]
        targets = ["first", "second"]
        strategy = "round_robin"
        "#
    ));
    let envs = [
        ("KEY_A", "secret-a"),
        ("KEY_B", "secret-b"),
        ("GATEWAY_KEYS", "ours"),
    ];
    let gateway = Binary::start(&envs, &file.flags()).await;
    for _ in 0..2 {
        let answer = post(gateway.addr, CHAT, "authorization: Bearer ours\r\n", CALL).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    for (provider, key, model) in [
        (&two[0], "Bearer secret-a", "gpt-4-0613"),
        (&two[1], "Bearer secret-b", "gpt-4"),
    ] {
        let [request] = &provider.recorded()[..] else {
            panic!("{:?}", provider.recorded());
        };
        assert_eq!(request.headers["authorization"], key);
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(body["model"], model);
    }
}

#[tokio::test]
async fn a_model_that_is_not_listed_goes_to_the_first_target_of_its_dialect() {
    let two = providers(2).await;
    let file = accounts(&two, "", "");
    let gateway = Running::start(&file.flags()).await;
    let other = CALL.replace("gpt-4", "o3");
    assert_eq!(gateway.post(CHAT, &other).await.status, 200);
    assert_eq!(requests(&two), [1, 0]);
    // No target speaks Anthropic's.
    assert_eq!(gateway.post("/v1/messages", CALL).await.status, 404);
}

#[tokio::test]
async fn the_first_target_is_the_first_one_in_the_file() {
    let two = providers(2).await;
    let [first, second] = [&two[0], &two[1]].map(SimulatedProvider::url);
    let file = File::new(&format!(
        "[targets.z]\nprovider = \"openai\"\nbase_url = \"{first}/v1\"\n\
         [targets.a]\nprovider = \"openai\"\nbase_url = \"{second}/v1\"\n"
    ));
    let gateway = Running::start(&file.flags()).await;
    assert_eq!(gateway.post(CHAT, CALL).await.status, 200);
    assert_eq!(requests(&two), [1, 0]);
}

#[tokio::test]
async fn the_calls_that_are_proposed_at_the_start_are_those_that_have_a_target() {
    let one = providers(1).await;
    let file = accounts(&one, "", "");
    let mut gateway = Binary::start(&[], &file.flags()).await;
    // It serves once it has said all.
    assert_eq!(get(gateway.addr, "/healthz").await.status, 200);
    let said = gateway.said().await;
    assert!(said.contains("/v1/chat/completions"), "{said}");
    assert!(!said.contains("/v1/messages"), "{said}");
}

#[tokio::test]
async fn what_is_wrong_in_the_file_is_named_with_its_line_and_no_secret() {
    for (text, said) in [
        (
            "[targets.a]\nprovider = \"openai\"\nrmp = 60",
            "did you mean",
        ),
        (
            "[targets.a]\nprovider = \"openai\"\nrpm = 0",
            "targets.a.rpm",
        ),
        ("[models.m]\ntargets = [\"b\"]", "models.m.targets"),
        (
            "[targets.a]\nprovider = \"openai\"\napi_key_env = \"NOT_SET\"",
            "NOT_SET",
        ),
    ] {
        let file = File::new(text);
        let settings = gateway::Settings::from_flags(file.flags()).unwrap();
        let error = gateway::Gateway::bind(settings)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("--config"), "{error}");
        assert!(error.contains(said), "{error}");
    }
}

#[tokio::test]
async fn an_answer_after_the_gateways_own_retries_is_not_to_be_retried() {
    let two = providers(2).await;
    let file = accounts(&two, "", "retries = 1");
    let gateway = Running::start(&file.flags()).await;
    for provider in &two {
        provider.set(Fault::Status(500));
    }
    let answer = gateway.post(CHAT, CALL).await;
    assert_eq!(answer.status, 500);
    assert_eq!(answer.headers["x-should-retry"], "false");
    assert_eq!(requests(&two), [1, 1]);
    // One that was tried once may be retried by its caller.
    for provider in &two {
        provider.set(Behavior::new());
    }
    let answer = gateway.post(CHAT, CALL).await;
    assert_eq!(answer.status, 200);
    assert!(!answer.headers.contains_key("x-should-retry"));
}

#[test]
fn every_file_in_the_readme_is_valid() {
    let readme = include_str!("../../../../../README.md");
    let blocks: Vec<_> = readme.split("```toml\n").skip(1).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        let (text, _) = block.split_once("```").unwrap();
        if text.starts_with("[dependencies]") {
            let manifest: toml::Table = text.parse().unwrap();
            let path = manifest["dependencies"]["tower-llm-stack"]["path"].as_str();
            let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
            assert!(root.join(path.unwrap()).is_dir());
            continue;
        }
        let config = tower_llm_stack::config::Config::from_toml(text);
        let config = config.unwrap_or_else(|error| panic!("{error}\n{text}"));
        config
            .validate()
            .unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert!(!config.targets.is_empty(), "{text}");
    }
}

#[tokio::test]
async fn one_keyed_target_closes_the_gateway_for_every_dialect() {
    let two = providers(2).await;
    let (one, other) = (two[0].url(), two[1].url());
    // The first target of each dialect has no credential; a later one has.
    let file = File::new(&format!(
        r#"
        [targets.a]
        provider = "anthropic"
        base_url = "{one}"

        [targets.b]
        provider = "openai"
        base_url = "{one}/v1"

        [targets.c]
        provider = "openai"
        base_url = "{other}/v1"
        api_key_env = "KEY_C"

        [models."gpt-4"]
        targets = ["c"]
        "#
    ));
    let gateway = Binary::start(
        &[("KEY_C", "secret"), ("GATEWAY_KEYS", "ours")],
        &file.flags(),
    )
    .await;
    let own = "x-api-key: own\r\nanthropic-version: x\r\n";
    let ours = "authorization: Bearer ours\r\n";
    // Without a key of the gateway's.
    assert_eq!(post(gateway.addr, CHAT, own, CALL).await.status, 401);
    // Another path than inference, by the way of another dialect.
    let headers = format!("{ours}anthropic-version: x\r\n");
    for path in ["/v1/fine_tuning/jobs", "/v1/files"] {
        let answer = post(gateway.addr, path, &headers, CALL).await;
        assert!(
            [403, 404].contains(&answer.status),
            "{path}: {}",
            answer.status
        );
    }
    // A model of another dialect is none: the call stays with the target that its dialect has.
    let headers = format!("{ours}x-api-key: own\r\nanthropic-version: x\r\n");
    post(gateway.addr, "/v1/messages", &headers, CALL).await;
    assert_eq!(requests(&two)[1], 0);
    assert_eq!(post(gateway.addr, CHAT, ours, CALL).await.status, 200);
    assert_eq!(requests(&two)[1], 1);
}

#[tokio::test]
async fn what_would_send_a_callers_key_to_several_providers_is_refused() {
    let two = "[targets.a]\nprovider = \"openai\"\n[targets.b]\nprovider = \"groq\"\n\
               dialect = \"openai\"\nbase_url = \"http://groq.example/v1\"\n";
    let model = "[models.m]\ntargets = [\"a\", \"b\"]\n";
    let start = async |text: &str| {
        let file = File::new(text);
        let settings = gateway::Settings::from_flags(file.flags()).unwrap();
        gateway::Gateway::bind(settings)
            .await
            .unwrap_err()
            .to_string()
    };
    let error = start(&format!("{two}{model}")).await;
    assert!(
        error.starts_with("--config: models.m.targets: they are at several"),
        "{error}"
    );
    let named = "[targets.caller]\nprovider = \"openai\"\n";
    let error = start(named).await;
    assert!(error.starts_with("--config: targets.caller"), "{error}");
}

#[tokio::test]
async fn a_reused_connection_that_is_closed_is_tried_once_more_for_get_and_head_alone() {
    for (method, path, sent, status) in [
        ("GET", "/v1/models", 3, 200),
        ("HEAD", "/v1/models", 3, 200),
        ("POST", CHAT, 2, 502),
        ("DELETE", "/v1/files/f", 2, 502),
    ] {
        let ok = |body: &str| response("200 OK", "", body.as_bytes());
        let upstream = Raw::start([ok("{}"), Reply::Close, ok("")]).await;
        let addr = upstream.addr;
        let file = File::new(&format!(
            "[targets.a]\nprovider = \"openai\"\nbase_url = \"http://{addr}/v1\"\n\
             [models.\"gpt-4\"]\ntargets = [\"a\"]\nretries = 0\n"
        ));
        let gateway = Running::start(&file.flags()).await;
        assert_eq!(gateway.post(CHAT, "{}").await.status, 200);
        let answer = request(gateway.addr, method, path, "", CALL).await;
        assert_eq!(answer.status, status, "{method} {path}");
        let requests = upstream.requests();
        assert_eq!(requests.len(), sent, "{method}: {requests:?}");
    }
}

#[tokio::test]
async fn simulate_wins_over_a_file() {
    let one = providers(1).await;
    let file = accounts(&one, "", "");
    let mut flags = file.flags().to_vec();
    flags.push("--simulate");
    let gateway = Running::start(&flags).await;
    assert_eq!(gateway.post(CHAT, CALL).await.status, 200);
    assert_eq!(requests(&one), [0]);
}

#[tokio::test]
async fn dead_accounts_are_not_to_be_retried_either() {
    let two = providers(2).await;
    let file = accounts(&two, "", "retries = 1");
    let gateway = Running::start(&file.flags()).await;
    for provider in two {
        provider.shutdown().await;
    }
    let answer = gateway.post(CHAT, CALL).await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert_eq!(answer.headers["x-should-retry"], "false");
}

#[tokio::test]
async fn targets_that_may_take_a_day_answer_many_calls_in_one_request() {
    let one = providers(1).await;
    let each = "timeouts = { total_streamed = \"24h\" }";
    let file = accounts(&one, each, "");
    let gateway = Running::start(&file.flags()).await;
    let body = r#"{"requests":[{"prompt":"one"}],"model":"gpt-4"}"#;
    let answer = gateway.post("/v1/batch/chat", body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["succeeded"], 1);
}
