use std::{ffi::OsString, fs};

use tower_llm_stack::{
    Secret,
    config::{Config, Problem},
};

fn env(name: &str) -> Option<OsString> {
    match name {
        "KEY" => Some("  sk-hidden\n".into()),
        "EMPTY" => Some("".into()),
        "BLANK" => Some(" \n".into()),
        "TWO_LINES" => Some("hidden\nhidden".into()),
        "UMLAUT" => Some("hiddän".into()),
        _ => None,
    }
}

#[test]
fn secrets_come_from_variables_and_files_without_white_space() {
    let path = std::env::temp_dir().join(format!("tower-llm-secret-{}", std::process::id()));
    fs::write(&path, "file-hidden\r\n").unwrap();
    let toml = format!(
        "[targets.a]
        api_key_env = 'KEY'
        [targets.b]
        api_key_file = '{path}'
        [targets.c.oauth]
        client_secret_env = 'KEY'
        [targets.d.oauth]
        client_secret_file = '{path}'
        [targets.e]
        provider = 'openai'",
        path = path.display()
    );
    let config = Config::from_toml(&toml).unwrap();
    let secrets = config.secrets(env);
    fs::remove_file(&path).unwrap();
    let secrets = secrets.unwrap();
    let shown: Vec<_> = secrets
        .iter()
        .map(|(name, secret)| (&**name, secret.expose()))
        .collect();
    let expected = [
        ("a", "sk-hidden"),
        ("b", "file-hidden"),
        ("c", "sk-hidden"),
        ("d", "file-hidden"),
    ];
    assert_eq!(shown, expected);
    assert!(!format!("{secrets:?}").contains("hidden"));
}

#[test]
fn a_secret_that_cannot_be_had_is_told_by_the_name_of_its_source() {
    let empty = std::env::temp_dir().join(format!("tower-llm-empty-{}", std::process::id()));
    fs::write(&empty, "\n").unwrap();
    for (setting, message) in [
        (
            "api_key_env = 'NOT_SET'",
            "targets.a.api_key_env: the variable NOT_SET is not set, or empty",
        ),
        (
            "api_key_env = 'EMPTY'",
            "targets.a.api_key_env: the variable EMPTY is not set, or empty",
        ),
        (
            "api_key_env = 'BLANK'",
            "targets.a.api_key_env: the variable BLANK is not set, or empty",
        ),
        (
            "api_key_env = 'TWO_LINES'",
            "targets.a.api_key_env: the secret has characters that a header must not have (the value is not shown)",
        ),
        (
            "api_key_env = 'UMLAUT'",
            "targets.a.api_key_env: the secret has characters that a header must not have (the value is not shown)",
        ),
        // The key itself, where the name of its variable belongs.
        (
            "api_key_env = 'sk-hidden'",
            "targets.a.api_key_env: there is no variable of that name (the name is not shown)",
        ),
        (
            "api_key_env = 'c0ffee'",
            "targets.a.api_key_env: there is no variable of that name (the name is not shown)",
        ),
        (
            "api_key_file = '/no/such/file'",
            "targets.a.api_key_file: cannot be read: entity not found",
        ),
        (
            &format!("api_key_file = '{}'", empty.display()),
            "targets.a.api_key_file: the file is empty",
        ),
        (
            "oauth = { client_secret_env = 'NOT_SET' }",
            "targets.a.oauth.client_secret_env: the variable NOT_SET is not set, or empty",
        ),
    ] {
        let config = Config::from_toml(&format!("[targets.a]\n{setting}")).unwrap();
        let error = config.secrets(env).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert!(!format!("{error:?}").contains("hidden"), "{error:?}");
    }
    fs::remove_file(&empty).unwrap();

    let both = "[targets.a]\napi_key_env = 'A'\n[targets.b]\napi_key_env = 'B'";
    let error = Config::from_toml(both).unwrap().secrets(env).unwrap_err();
    assert_eq!(error.settings().len(), 2);
    let variable = Some("A".to_owned());
    assert_eq!(error.settings()[0].problem(), &Problem::NotSet { variable });
}

#[test]
fn a_configuration_shows_no_secret() {
    let toml = "[targets.a]\nprovider = 'openai'\nproxy = 'http://me:hidden@proxy:3128'";
    let config = Config::from_toml(toml).unwrap();
    config.validate().unwrap();
    assert!(!format!("{config:?}").contains("hidden"));
    let secret = Secret::new("hidden");
    assert_eq!(format!("{secret:?}"), "Secret(..)");
}
