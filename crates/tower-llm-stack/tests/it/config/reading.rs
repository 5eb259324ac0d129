use std::time::Duration;

use tower_llm_stack::{
    Dialect, Provider,
    config::{ClientAuth, Config, HedgeConfig, Problem, StickyKey, Strategy},
};

const EXAMPLE: &str = include_str!("../../../src/config/example.toml");

#[test]
fn the_documented_example_is_valid_and_means_what_it_says() {
    let config = Config::from_toml(EXAMPLE).unwrap();
    config.validate().unwrap();

    let openai = &config.targets["openai-a"];
    assert_eq!(openai.provider(), Provider::OPENAI);
    assert_eq!(openai.dialect(), Some(Dialect::OpenAi));
    assert_eq!(openai.base_url(), Some("https://api.openai.com/v1"));
    assert_eq!(openai.api_key_env.as_deref(), Some("OPENAI_KEY_A"));
    assert_eq!(openai.proxy.as_ref().unwrap().expose(), "http://proxy:3128");
    assert_eq!((openai.rpm, openai.tpm), (Some(60), Some(90_000)));
    assert_eq!((openai.itpm, openai.otpm), (Some(60_000), Some(30_000)));
    assert_eq!(openai.concurrency, Some(10));
    assert_eq!((openai.weight, openai.priority), (3, 0));
    let price = openai.price.unwrap();
    assert_eq!((price.input, price.output), (2.5, 10.0));
    assert_eq!(openai.models["gpt-4"], "gpt-4-0613");
    assert_eq!(openai.timeouts.first_token, Some(Duration::from_secs(30)));
    let health = openai.health.as_ref().unwrap();
    assert_eq!(health.path.as_deref(), Some("/models"));

    let corp = &config.targets["corp"];
    assert_eq!(corp.provider(), Provider::new("corp"));
    let oauth = corp.oauth.as_ref().unwrap();
    assert_eq!(oauth.client_id, "gateway");
    assert_eq!(oauth.auth, ClientAuth::Basic);

    assert_eq!(config.models["gpt-4"].strategy, Strategy::Failover);
    assert_eq!(config.models["gpt-4"].targets, ["openai-a", "corp"]);
    assert_eq!(config.models["fast"].hedge, Some(HedgeConfig::Percent(5.0)));
    assert_eq!(
        config.models["with-memory"].sticky_key,
        Some(StickyKey::Header("x-session-id".into()))
    );
    let ensemble = config.models["careful"].ensemble.as_ref().unwrap();
    assert_eq!(ensemble.extract.as_deref(), Some(r"answer: (\w+)"));
}

#[test]
fn targets_have_the_order_of_the_file_however_they_are_written() {
    let names = |text: &str| {
        let config = Config::from_toml(text).unwrap();
        let names = config.targets_in_order().map(|(name, _)| name.to_owned());
        names.collect::<Vec<_>>()
    };
    for text in [
        "[targets.b]\nprovider = 'openai'\n[targets.c]\n[targets.a]",
        "[targets]\nb = { provider = 'openai' }\nc.rpm = 1\na.rpm = 1",
        "[targets.b]\n[targets.c]\n[models.m]\n[targets.a]\n[targets.b.pool]",
        "targets = { b = {}, \"c\" = {}, a = {} }",
    ] {
        assert_eq!(names(text), ["b", "c", "a"], "{text}");
    }
    let mut config = Config::from_toml("[targets.b]").unwrap();
    for name in ["d", "a"] {
        config.targets.insert(name.to_owned(), Default::default());
    }
    let names: Vec<_> = config.targets_in_order().map(|(name, _)| name).collect();
    assert_eq!(names, ["b", "a", "d"]);
}

/// The example states the defaults of what it says is one.
#[test]
fn what_is_not_set_has_the_documented_default() {
    let text = "[targets.a]\nprovider = 'anthropic'\n[models.m]\ntargets = ['a']";
    let config = Config::from_toml(text).unwrap();
    config.validate().unwrap();
    let target = &config.targets["a"];
    assert_eq!(target.dialect(), Some(Dialect::Anthropic));
    assert_eq!(target.base_url(), Some("https://api.anthropic.com"));
    assert_eq!((target.weight, target.priority), (1, 0));
    assert_eq!(target.timeouts.total, Duration::from_secs(60));
    assert_eq!(target.timeouts.total_streamed, Duration::from_secs(300));
    assert_eq!(target.timeouts.first_token, None);
    assert_eq!(target.pool.max_idle_per_host, 100);
    assert_eq!(target.pool.idle_timeout, Duration::from_secs(90));
    let limits = [target.rpm, target.tpm, target.itpm, target.otpm];
    assert_eq!(limits, [None; 4]);
    let model = &config.models["m"];
    assert_eq!(model.strategy, Strategy::Failover);
    assert_eq!((model.retries, model.budget), (2, None));

    let empty = Config::from_toml("").unwrap();
    assert!(empty.targets.is_empty() && empty.models.is_empty());
    empty.validate().unwrap();
}

#[test]
fn providers_have_their_dialect_and_address() {
    for (toml, dialect, url) in [
        (
            "provider = 'gemini'",
            Some(Dialect::Gemini),
            Some("https://generativelanguage.googleapis.com"),
        ),
        (
            "provider = 'gemini'\ndialect = 'openai'",
            Some(Dialect::OpenAi),
            Some("https://generativelanguage.googleapis.com/v1beta/openai"),
        ),
        ("provider = 'azure'", Some(Dialect::OpenAi), None),
        ("provider = 'groq'", None, None),
        (
            "provider = 'groq'\ndialect = 'openai'\nbase_url = 'https://api.groq.com/openai/v1'",
            Some(Dialect::OpenAi),
            Some("https://api.groq.com/openai/v1"),
        ),
    ] {
        let config = Config::from_toml(&format!("[targets.a]\n{toml}")).unwrap();
        let target = &config.targets["a"];
        assert_eq!(
            (target.dialect(), target.base_url()),
            (dialect, url),
            "{toml}"
        );
    }
}

#[test]
fn every_strategy_has_its_name() {
    for (name, strategy) in [
        ("failover", Strategy::Failover),
        ("round_robin", Strategy::RoundRobin),
        ("weighted", Strategy::Weighted),
        ("least_busy", Strategy::LeastBusy),
        ("latency", Strategy::Latency),
        ("sticky", Strategy::Sticky),
        ("cheapest", Strategy::Cheapest),
        ("hedge", Strategy::Hedge),
        ("race", Strategy::Race),
        ("cascade", Strategy::Cascade),
        ("ensemble", Strategy::Ensemble),
    ] {
        let config = Config::from_toml(&format!("[models.m]\nstrategy = '{name}'")).unwrap();
        assert_eq!(config.models["m"].strategy, strategy);
    }
}

#[test]
fn durations_are_written_with_their_units() {
    let read = |text: &str| {
        let toml = format!("[models.m]\ndeadline = {text}");
        Config::from_toml(&toml).map(|config| config.models["m"].deadline)
    };
    for (text, millis) in [
        ("'60s'", 60_000),
        ("'1.5s'", 1_500),
        ("'250ms'", 250),
        ("'2m 30s'", 150_000),
        ("'1h'", 3_600_000),
        ("' 5 minutes '", 300_000),
        ("'0s'", 0),
    ] {
        assert_eq!(
            read(text),
            Ok(Some(Duration::from_millis(millis))),
            "{text}"
        );
    }
    for text in [
        "60",
        "1.5",
        "'60'",
        "'-1s'",
        "'soon'",
        "''",
        "'99999999999999999999s'",
    ] {
        let error = read(text).unwrap_err();
        assert_eq!(
            (error.setting(), error.line()),
            ("models.m.deadline", Some(2)),
            "{text}"
        );
        assert!(error.to_string().contains("a duration such as"), "{error}");
    }
}

#[test]
fn what_cannot_be_read_is_told_with_line_setting_and_nearest_name() {
    for (toml, message) in [
        (
            "[targets.openai-a]\nprovider = 'openai'\n\nrmp = 60",
            "line 4: targets.openai-a.rmp: no such setting; did you mean `rpm`?",
        ),
        (
            "[targets.a.oauth]\nclient_secret = 'hidden'",
            "line 2: targets.a.oauth.client_secret: no such setting",
        ),
        (
            "[targets.a]\napi_key = 'hidden'",
            "line 2: targets.a.api_key: no such setting",
        ),
        (
            "[target.a]\nprovider = 'openai'",
            "line 1: target: no such setting; did you mean `targets`?",
        ),
        (
            "[targets.a.timeouts]\ntotl = '1s'",
            "line 2: targets.a.timeouts.totl: no such setting; did you mean `total`?",
        ),
        ("[targets.a.zzz]", "line 1: targets.a.zzz: no such setting"),
        (
            "\n[models.\"gpt-4\"]\nstrategy = 'failovr'",
            "line 3: models.gpt-4.strategy: `failovr` does not exist; did you mean `failover`?",
        ),
        (
            "[targets.a]\ndialect = 'opnai'",
            "line 2: targets.a.dialect: `opnai` does not exist; did you mean `openai`?",
        ),
        (
            "[models.m.hedge]\ndelays = '1s'",
            "line 2: models.m.hedge: `delays` does not exist; did you mean `delay`?",
        ),
        (
            "[targets.a]\nrpm = '60'",
            "line 2: targets.a.rpm: invalid type: string (not shown), expected u64",
        ),
        (
            "[targets.a]\nrpm = -1",
            "line 2: targets.a.rpm: invalid value: integer `-1`, expected u64",
        ),
        (
            "[targets.a]\noauth = 'hidden'",
            "line 2: targets.a.oauth: invalid type: string (not shown), expected a table",
        ),
        (
            "targets = 'hidden'",
            "line 1: targets: invalid type: string (not shown), expected a map",
        ),
        ("[targets.a]\nrpm = 1\nrpm = 2", "line 3: duplicate key"),
        ("[targets.a]\n[targets.a]", "line 2: duplicate key"),
    ] {
        let error = Config::from_toml(toml).unwrap_err();
        assert_eq!(error.to_string(), message, "{toml}");
        assert!(!format!("{error:?}").contains("hidden"), "{error:?}");
    }
    for toml in [
        "[targets.a",
        "api_key hidden",
        "[targets.a]\nprovider = \"hidden",
        "= 'hidden'",
    ] {
        let error = Config::from_toml(toml).unwrap_err();
        assert!(matches!(error.problem(), Problem::Syntax(_)), "{error:?}");
        assert_eq!(error.line(), Some(toml.lines().count()), "{error}");
        assert!(!format!("{error}{error:?}").contains("hidden"), "{error:?}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = Config::load("/no/such/gateway.toml").unwrap_err();
    assert_eq!(
        error.to_string(),
        "/no/such/gateway.toml: cannot be read: entity not found"
    );

    let path = std::env::temp_dir().join(format!("tower-llm-config-{}", std::process::id()));
    std::fs::write(&path, EXAMPLE).unwrap();
    let config = Config::load(&path);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(config.unwrap().targets.len(), 3);
}
