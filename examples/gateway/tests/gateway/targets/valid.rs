//! What a configuration file may say: all that is accepted starts, and all that is wrong is named at once.

use gateway::{Gateway, Settings};
use tower_llm_stack::config::Config;

use super::File;

/// Values at the edges of what each setting takes.
const TARGET: &[&str] = &[
    "rpm = 0",
    "rpm = 1",
    "tpm = 9007199254740992",
    "tpm = 9007199254740993",
    "itpm = 9223372036854775807",
    "otpm = 1",
    "concurrency = 0",
    "concurrency = 4294967295",
    "concurrency = 4294967296",
    "weight = 0",
    "weight = 4294967295",
    "priority = 4294967295",
    "price = { input = 0, output = 0 }",
    "price = { input = -1, output = 0 }",
    "price = { input = inf, output = 0 }",
    "timeouts = { first_token = \"400s\" }",
    "timeouts = { first_token = \"300s\" }",
    "timeouts = { idle = \"301s\" }",
    "timeouts = { total = \"1s\", total_streamed = \"1s\" }",
    "timeouts = { total = \"1s\", total_streamed = \"1s\", idle = \"2s\" }",
    "timeouts = { total = \"0s\" }",
    "timeouts = { total = \"24h\", total_streamed = \"1ms\" }",
    "timeouts = { total = \"25h\" }",
    "pool = { max_idle_per_host = 0 }",
    "pool = { idle_timeout = \"1ms\" }",
    "health = { path = \"/models\" }",
    "health = { path = \"models\" }",
    "health = { path = \"/a b\" }",
    "health = { path = \"/models\", interval = \"0s\" }",
    "health = { model = \"\" }",
    "health = { model = \"m\", interval = \"24h\" }",
    "proxy = \"http://127.0.0.1:1\"",
    "proxy = \"http://\"",
    "proxy = \"ftp://127.0.0.1:1\"",
    "proxy = \"socks5://me:and@127.0.0.1:1\"",
    "models = { \"a\" = \"b\" }",
    "models = { \"a\" = \"\" }",
];

const MODEL: &[&str] = &[
    "retries = 0",
    "retries = 999",
    "retries = 1000",
    "retries = 4294967295",
    "budget = 0.0",
    "budget = 1.0",
    "budget = 1.1",
    "budget = nan",
    "deadline = \"0s\"",
    "deadline = \"24h\"",
    "strategy = \"hedge\"\nhedge = { percent = 100 }",
    "strategy = \"hedge\"\nhedge = { percent = 99.9 }",
    "strategy = \"hedge\"\nhedge = { percent = 0 }",
    "strategy = \"hedge\"\nhedge = { percent = nan }",
    "strategy = \"hedge\"\nhedge = { delay = \"0s\" }",
    "strategy = \"hedge\"\nhedge = { delay = \"1ms\" }\nretries = 999",
    "strategy = \"hedge\"",
    "strategy = \"cascade\"",
    "strategy = \"cascade\"\ncascade = { }",
    "strategy = \"cascade\"\ncascade = { min_prompt_tokens = 10 }",
    "strategy = \"cascade\"\ncascade = { max_prompt_tokens = 0 }",
    "strategy = \"cascade\"\ncascade = { max_prompt_tokens = 10 }",
    "strategy = \"cascade\"\ncascade = { min_prompt_tokens = 11, max_prompt_tokens = 10 }",
    "strategy = \"cascade\"\ncascade = { finish_reasons = [\"length\"] }",
    "strategy = \"cascade\"\ncascade = { finish_reasons = [\"\"] }",
    "strategy = \"cascade\"\ncascade = { regex = \"a+\" }",
    "strategy = \"cascade\"\ncascade = { regex = \"[\" }",
    "strategy = \"cascade\"\ncascade = { regex = \"(a{1000}){1000}\" }",
    "strategy = \"cascade\"\ncascade = { judge = { target = \"b\", model = \"m\" } }",
    "strategy = \"cascade\"\ncascade = { judge = { target = \"c\", model = \"m\" } }",
    "strategy = \"cascade\"\ncascade = { judge = { target = \"b\" } }",
    "strategy = \"failover\"\ncascade = { regex = \"a\" }",
    "strategy = \"ensemble\"",
    "strategy = \"ensemble\"\nensemble = { }",
    "strategy = \"ensemble\"\nensemble = { majority = true }",
    "strategy = \"ensemble\"\nensemble = { majority = true, max_providers = 0 }",
    "strategy = \"ensemble\"\nensemble = { majority = true, max_providers = 1 }",
    "strategy = \"ensemble\"\nensemble = { majority = true, max_providers = 9 }",
    "strategy = \"ensemble\"\nensemble = { majority = true, min_ok = 0 }",
    "strategy = \"ensemble\"\nensemble = { majority = true, min_ok = 2 }",
    "strategy = \"ensemble\"\nensemble = { majority = true, min_ok = 3 }",
    "strategy = \"ensemble\"\nensemble = { majority = true, timeout = \"0s\" }",
    "strategy = \"ensemble\"\nensemble = { majority = true, timeout = \"24h\" }",
    "strategy = \"ensemble\"\nensemble = { majority = true, extract = \"(\" }",
    "strategy = \"ensemble\"\nensemble = { majority = true, judge = { target = \"b\", model = \"m\" } }",
    "strategy = \"ensemble\"\nensemble = { judge = { target = \"b\", model = \"m\" } }",
    "strategy = \"ensemble\"\nensemble = { judge = { target = \"b\", model = \"m\" }, extract = \"a\" }",
    "strategy = \"race\"",
    "strategy = \"round_robin\"",
    "strategy = \"weighted\"",
    "strategy = \"least_busy\"",
    "strategy = \"latency\"",
    "strategy = \"cheapest\"",
    "strategy = \"sticky\"",
    "strategy = \"sticky\"\nsticky_key = { header = \"x-session\" }",
    "strategy = \"sticky\"\nsticky_key = { header = \"no header\" }",
];

fn file(target: &str, model: &str) -> String {
    format!(
        "[targets.a]\nprovider = \"openai\"\nbase_url = \"http://127.0.0.1:1/v1\"\n{target}\n\
         [targets.b]\nprovider = \"openai\"\nbase_url = \"http://127.0.0.1:1/v1\"\n\
         [models.m]\ntargets = [\"a\", \"b\"]\n{model}\n"
    )
}

/// Whether the file is accepted by the check, and whether a gateway starts with it.
async fn tried(text: &str) -> (bool, bool) {
    let config = Config::from_toml(text).unwrap();
    let file = File::new(text);
    let mut flags = file.flags().to_vec();
    flags.extend(["--listen", "127.0.0.1:0"]);
    let started = Gateway::bind(Settings::from_flags(flags).unwrap()).await;
    (config.validate().is_ok(), started.is_ok())
}

#[tokio::test]
async fn what_the_check_accepts_starts() {
    let files = TARGET.iter().map(|target| file(target, ""));
    let files = files.chain(MODEL.iter().map(|model| file("", model)));
    let (mut accepted, mut refused) = (0, 0);
    for text in files {
        match tried(&text).await {
            (true, true) => accepted += 1,
            (false, false) => refused += 1,
            (_, starts) => panic!("starts: {starts}, with\n{text}"),
        }
    }
    assert!(accepted > 25 && refused > 25, "{accepted}, {refused}");
}

#[tokio::test]
async fn all_that_is_wrong_is_named_at_once_by_setting_and_value() {
    let text = r#"
        [targets.a]
        provider = "openai"
        rpm = 18014398509481984
        concurrency = 4294967296
        timeouts = { first_token = "400s" }
        health = { path = "/a b" }

        [models.m]
        targets = ["a"]
        strategy = "hedge"
        hedge = { percent = 100 }
        retries = 1000
    "#
    .replace("18014398509481984", &(1_u64 << 54).to_string());
    let file = File::new(&text);
    let settings = Settings::from_flags(file.flags()).unwrap();
    let error = Gateway::bind(settings).await.unwrap_err().to_string();
    for wrong in [
        "targets.a.rpm: is 18014398509481984, and must be at most 2^53",
        "targets.a.concurrency: is 4294967296, and must be at most 4294967295",
        "targets.a.timeouts.first_token: is 400s, and must be at most the longer of",
        "models.m.hedge.percent: is 100, and must be over 0 and under 100",
        "models.m.retries: is 1000, and must be at most 999",
    ] {
        assert!(error.contains(wrong), "{wrong}\n{error}");
    }
}
