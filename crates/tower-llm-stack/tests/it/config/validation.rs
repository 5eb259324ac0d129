use tower_llm_stack::config::{Config, InvalidConfig, Problem};

const TARGETS: &str = "
    [targets.openai-a]
    provider = 'openai'
    [targets.openai-b]
    provider = 'openai'
    [targets.claude]
    provider = 'anthropic'
";

fn validate(toml: &str) -> Result<(), InvalidConfig> {
    Config::from_toml(toml)
        .unwrap_or_else(|error| panic!("{error}\n{toml}"))
        .validate()
}

/// Each message of what is wrong.
fn problems(toml: &str) -> Vec<String> {
    let invalid = validate(toml).expect_err(toml);
    assert_eq!(
        invalid.to_string().lines().count(),
        invalid.settings().len()
    );
    invalid.settings().iter().map(ToString::to_string).collect()
}

#[test]
fn wrong_targets_are_told_by_setting_and_value() {
    let key = "api_key_env = 'KEY'";
    let oauth = "oauth = { token_url = 'https://login.test/token', client_id = 'me', client_secret_env = 'SECRET' }";
    validate(&format!("[targets.a]\nprovider = 'openai'\n{key}")).unwrap();
    validate(&format!("[targets.a]\nprovider = 'openai'\n{oauth}")).unwrap();
    for (settings, messages) in [
        (
            "rpm = 0",
            &["targets.a.rpm: must not be zero; leave it out to set no limit"][..],
        ),
        (
            "tpm = 0",
            &["targets.a.tpm: must not be zero; leave it out to set no limit"],
        ),
        (
            "itpm = 0",
            &["targets.a.itpm: must not be zero; leave it out to set no limit"],
        ),
        (
            "otpm = 0",
            &["targets.a.otpm: must not be zero; leave it out to set no limit"],
        ),
        (
            "concurrency = 0",
            &["targets.a.concurrency: must not be zero; leave it out to set no limit"],
        ),
        (
            "concurrency = 4294967296",
            &["targets.a.concurrency: is 4294967296, and must be at most 4294967295"],
        ),
        (
            "rpm = 9007199254740993",
            &["targets.a.rpm: is 9007199254740993, and must be at most 2^53"],
        ),
        (
            "timeouts = { first_token = '301s' }",
            &[
                "targets.a.timeouts.first_token: is 301s, and must be at most the longer of `total` and `total_streamed`",
            ],
        ),
        (
            "timeouts = { total = '1s', total_streamed = '2s', idle = '3s' }",
            &[
                "targets.a.timeouts.idle: is 3s, and must be at most the longer of `total` and `total_streamed`",
            ],
        ),
        (
            "weight = 0",
            &["targets.a.weight: is 0, and must be at least 1"],
        ),
        (
            "base_url = 'api.openai.com'",
            &["targets.a.base_url: base url lacks a scheme or a host"],
        ),
        (
            "base_url = 'ftp://models.test'",
            &["targets.a.base_url: base url has scheme `ftp`, not http or https"],
        ),
        (
            "base_url = 'https://me:hidden@models.test'",
            &["targets.a.base_url: base url holds a user or password"],
        ),
        (
            "proxy = 'ftp://me:hidden@proxy'",
            &[
                "targets.a.proxy: is not the URL of an http, https or socks5 proxy (the value is not shown)",
            ],
        ),
        (
            "proxy = 'hidden:3128'",
            &[
                "targets.a.proxy: is not the URL of an http, https or socks5 proxy (the value is not shown)",
            ],
        ),
        (
            "api_key_env = 'A'\napi_key_file = 'b'",
            &["targets.a.api_key_file: cannot be set together with `api_key_env`"],
        ),
        (
            "api_key_env = ''",
            &["targets.a.api_key_env: must not be empty"],
        ),
        (
            &format!("{key}\n{oauth}"),
            &["targets.a.oauth: cannot be set together with `api_key_env`"],
        ),
        (
            &format!("api_key_file = 'k'\n{oauth}"),
            &["targets.a.oauth: cannot be set together with `api_key_file`"],
        ),
        (
            "oauth = { }",
            &[
                "targets.a.oauth.client_id: must be set",
                "targets.a.oauth.token_url: must be set",
                "targets.a.oauth.client_secret_env: must be set",
            ],
        ),
        (
            "oauth = { token_url = 'login.test', client_id = 'me', client_secret_env = 'A', client_secret_file = 'b', scope = '' }",
            &[
                "targets.a.oauth.token_url: token url lacks a scheme or a host",
                "targets.a.oauth.client_secret_file: cannot be set together with `client_secret_env`",
                "targets.a.oauth.scope: must not be empty",
            ],
        ),
        (
            "price = { input = -1, output = 2 }",
            &["targets.a.price.input: is -1, and must be a number from 0"],
        ),
        (
            "price = { input = 1, output = inf }",
            &["targets.a.price.output: is inf, and must be a number from 0"],
        ),
        (
            "timeouts = { total = '0s' }",
            &["targets.a.timeouts.total: is 0ns, and must be longer than zero and at most a day"],
        ),
        (
            "timeouts = { total_streamed = '25h' }",
            &[
                "targets.a.timeouts.total_streamed: is 90000s, and must be longer than zero and at most a day",
            ],
        ),
        (
            "timeouts = { first_token = '0s', idle = '0s' }",
            &[
                "targets.a.timeouts.first_token: is 0ns, and must be longer than zero and at most a day",
                "targets.a.timeouts.idle: is 0ns, and must be longer than zero and at most a day",
            ],
        ),
        (
            "pool = { max_idle_per_host = 0, idle_timeout = '0s' }",
            &[
                "targets.a.pool.max_idle_per_host: must not be zero; leave it out to set no limit",
                "targets.a.pool.idle_timeout: is 0ns, and must be longer than zero and at most a day",
            ],
        ),
        (
            "models = { 'gpt-4' = '' }",
            &["targets.a.models.gpt-4: must not be empty"],
        ),
        (
            "models = { '' = 'gpt-4' }",
            &["targets.a.models: must not be empty"],
        ),
        ("health = { }", &["targets.a.health.path: must be set"]),
        (
            "health = { path = '/a', model = 'm', interval = '0s' }",
            &[
                "targets.a.health.interval: is 0ns, and must be longer than zero and at most a day",
                "targets.a.health.model: cannot be set together with `health.path`",
            ],
        ),
        (
            "health = { path = 'models' }",
            &["targets.a.health.path: must start with a slash"],
        ),
    ] {
        let found = problems(&format!("[targets.a]\nprovider = 'openai'\n{settings}"));
        assert_eq!(found, messages, "{settings}");
        assert!(!format!("{found:?}").contains("hidden"), "{found:?}");
    }
}

#[test]
fn a_provider_that_is_not_known_needs_a_dialect_and_an_address() {
    for (settings, messages) in [
        ("", &["targets.a.provider: must be set"][..]),
        (
            "provider = 'groq'",
            &[
                "targets.a.dialect: must be set",
                "targets.a.base_url: must be set",
            ],
        ),
        (
            "provider = 'antropic'",
            &[
                "targets.a.provider: `antropic` does not exist; did you mean `anthropic`?",
                "targets.a.base_url: must be set",
            ],
        ),
        ("provider = 'azure'", &["targets.a.base_url: must be set"]),
    ] {
        assert_eq!(
            problems(&format!("[targets.a]\n{settings}")),
            messages,
            "{settings}"
        );
    }
    let named = "[targets.a]\nprovider = 'openia'\ndialect = 'openai'\nbase_url = 'http://h'";
    validate(named).unwrap();
}

#[test]
fn wrong_models_are_told_by_setting_and_value() {
    for (settings, messages) in [
        ("", &["models.m.targets: must not be empty"][..]),
        ("targets = []", &["models.m.targets: must not be empty"]),
        (
            "targets = ['openai-a', 'opnai-b']",
            &["models.m.targets: `opnai-b` does not exist; did you mean `openai-b`?"],
        ),
        (
            "targets = ['else']",
            &["models.m.targets: `else` does not exist"],
        ),
        (
            "targets = ['openai-a', 'openai-b', 'openai-a']",
            &["models.m.targets: `openai-a` is listed twice"],
        ),
        (
            "targets = ['openai-a', 'openai-b', 'claude']",
            &["models.m.targets: `openai-a` and `claude` speak different dialects"],
        ),
        (
            "targets = ['claude']\nbudget = 1.5",
            &["models.m.budget: is 1.5, and must be from 0 to 1"],
        ),
        (
            "targets = ['claude']\nbudget = nan",
            &["models.m.budget: is NaN, and must be from 0 to 1"],
        ),
        (
            "targets = ['claude']\ndeadline = '0s'",
            &["models.m.deadline: is 0ns, and must be longer than zero and at most a day"],
        ),
        (
            "targets = ['claude']\nstrategy = 'hedge'",
            &["models.m.hedge: must be set"],
        ),
        (
            "targets = ['claude']\nstrategy = 'hedge'\nhedge = { percent = 0 }",
            &["models.m.hedge.percent: is 0, and must be over 0 and under 100"],
        ),
        (
            "targets = ['claude']\nretries = 1000",
            &["models.m.retries: is 1000, and must be at most 999"],
        ),
        (
            "targets = ['claude']\nstrategy = 'hedge'\nhedge = { percent = 100 }",
            &["models.m.hedge.percent: is 100, and must be over 0 and under 100"],
        ),
        (
            "targets = ['claude']\nstrategy = 'hedge'\nhedge = { percent = 101 }",
            &["models.m.hedge.percent: is 101, and must be over 0 and under 100"],
        ),
        (
            "targets = ['claude']\nstrategy = 'hedge'\nhedge = { delay = '0s' }",
            &["models.m.hedge.delay: is 0ns, and must be longer than zero and at most a day"],
        ),
        (
            "targets = ['claude']\nhedge = { delay = '1s' }\nsticky_key = 'caller'\ncascade = { regex = 'x' }\nensemble = { majority = true }",
            &[
                "models.m.hedge: has no effect without `strategy = \"hedge\"`",
                "models.m.sticky_key: has no effect without `strategy = \"sticky\"`",
                "models.m.cascade: has no effect without `strategy = \"cascade\"`",
                "models.m.ensemble: has no effect without `strategy = \"ensemble\"`",
            ],
        ),
        (
            "targets = ['claude']\nstrategy = 'sticky'\nsticky_key = { header = 'x y' }",
            &["models.m.sticky_key.header: is not the name of a header"],
        ),
        (
            "targets = ['claude']\nstrategy = 'cheapest'",
            &["targets.claude.price: must be set"],
        ),
        (
            "targets = ['claude']\nstrategy = 'cascade'",
            &["models.m.cascade: must be set"],
        ),
        (
            "targets = ['claude']\nstrategy = 'cascade'\ncascade = { min_prompt_tokens = 5 }",
            &["models.m.cascade: must not be empty"],
        ),
        (
            "targets = ['claude']\nstrategy = 'cascade'\ncascade = { min_prompt_tokens = 5, max_prompt_tokens = 4, finish_reasons = [''], regex = '(' }",
            &[
                "models.m.cascade.min_prompt_tokens: is 5, and must be at most `max_prompt_tokens`",
                "models.m.cascade.finish_reasons: must not be empty",
                "models.m.cascade.regex: is not a regular expression: unclosed group",
            ],
        ),
        (
            "targets = ['claude']\nstrategy = 'cascade'\ncascade = { max_prompt_tokens = 0 }",
            &["models.m.cascade.max_prompt_tokens: must not be zero; leave it out to set no limit"],
        ),
        (
            "targets = ['claude']\nstrategy = 'cascade'\ncascade = { judge = { target = 'claud', prompt = '' } }",
            &[
                "models.m.cascade.judge.target: `claud` does not exist; did you mean `claude`?",
                "models.m.cascade.judge.model: must be set",
                "models.m.cascade.judge.prompt: must not be empty",
            ],
        ),
        (
            "targets = ['claude']\nstrategy = 'ensemble'",
            &["models.m.ensemble: must be set"],
        ),
        (
            "targets = ['claude']\nstrategy = 'ensemble'\nensemble = { }",
            &["models.m.ensemble.majority: must be set"],
        ),
        (
            "targets = ['claude']\nstrategy = 'ensemble'\nensemble = { majority = true, judge = { model = 'm' } }",
            &[
                "models.m.ensemble.judge: cannot be set together with `majority`",
                "models.m.ensemble.judge.target: must be set",
            ],
        ),
        (
            "targets = ['openai-a', 'openai-b']\nstrategy = 'ensemble'\nensemble = { majority = true, min_ok = 3 }",
            &[
                "models.m.ensemble.min_ok: is 3, and must be from 1 to the number of targets that are asked",
            ],
        ),
        (
            "targets = ['openai-a', 'openai-b']\nstrategy = 'ensemble'\nensemble = { majority = true, min_ok = 2, max_providers = 1 }",
            &[
                "models.m.ensemble.min_ok: is 2, and must be from 1 to the number of targets that are asked",
            ],
        ),
        (
            "targets = ['openai-a']\nstrategy = 'ensemble'\nensemble = { majority = true, min_ok = 0, max_providers = 0, timeout = '0s' }",
            &[
                "models.m.ensemble.timeout: is 0ns, and must be longer than zero and at most a day",
                "models.m.ensemble.max_providers: must not be zero; leave it out to set no limit",
                "models.m.ensemble.min_ok: is 0, and must be from 1 to the number of targets that are asked",
            ],
        ),
        (
            "targets = ['claude']\nstrategy = 'ensemble'\nensemble = { judge = { target = 'claude', model = 'm' }, extract = '[' }",
            &[
                "models.m.ensemble.judge.target: has no credential of its own, and a judge's calls have no caller's",
                "models.m.ensemble.extract: is not a regular expression: unclosed character class",
                "models.m.ensemble.extract: has no effect without `majority = true`",
            ],
        ),
    ] {
        assert_eq!(
            problems(&format!("{TARGETS}[models.m]\n{settings}")),
            messages,
            "{settings}"
        );
    }
}

#[test]
fn endpoints_that_are_compatible_with_openai_count_as_openais() {
    let toml = format!(
        "{TARGETS}
        api_key_env = 'A'
        [targets.gemini]
        provider = 'gemini'
        dialect = 'openai'
        api_key_env = 'G'
        [targets.azure]
        provider = 'azure'
        base_url = 'https://me.openai.azure.com'
        api_key_env = 'Z'
        [models.m]
        targets = ['claude', 'gemini', 'azure']"
    )
    .replace("provider = 'anthropic'", "provider = 'anthropic'\n        dialect = 'openai'\n        base_url = 'https://api.anthropic.com/v1'");
    validate(&toml).unwrap();
}

#[test]
fn targets_that_would_get_another_ones_credential_are_no_targets_of_one_model() {
    let key = "api_key_env = 'KEY'";
    let keyed = format!("[targets.a]\nprovider = 'openai'\n{key}\n");
    let passing = "[targets.b]\nprovider = 'openai'\n";
    let elsewhere = "[targets.c]\nprovider = 'openai'\nbase_url = 'https://else.test/v1'\n";
    let model = |targets: &str| format!("[models.m]\ntargets = [{targets}]\n");
    for (toml, why) in [
        (
            format!("{keyed}{passing}{}", model("'a', 'b'")),
            "give all or none of them one",
        ),
        (
            format!("{passing}{elsewhere}{}", model("'b', 'c'")),
            "give each one of its own",
        ),
    ] {
        let [problem] = &problems(&toml)[..] else {
            panic!("{toml}");
        };
        assert!(problem.starts_with("models.m.targets: "), "{problem}");
        assert!(problem.ends_with(why), "{problem}");
    }
    validate(&format!("{keyed}{elsewhere}{key}\n{}", model("'a', 'c'"))).unwrap();
}

#[test]
fn a_name_that_the_metrics_have_taken_is_refused() {
    let problems = problems("[targets.caller]\nprovider = 'openai'");
    assert_eq!(
        problems,
        ["targets.caller: is the name of the callers' own limits"]
    );
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let toml = "[targets.a]\nprovider = 'openai'\nrpm = 0\n[targets.b]\nprovider = 'openai'\nweight = 0\n[models.m]";
    let invalid = validate(toml).unwrap_err();
    let settings: Vec<_> = invalid
        .settings()
        .iter()
        .map(|error| error.setting())
        .collect();
    assert_eq!(
        settings,
        ["targets.a.rpm", "targets.b.weight", "models.m.targets"]
    );
    assert_eq!(invalid.settings()[0].problem(), &Problem::Zero);
    assert_eq!(invalid.settings()[0].line(), None);
}
