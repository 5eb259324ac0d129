//! Credentials, from the environment and from files.

use std::{collections::BTreeMap, ffi::OsString, fs, path::Path};

use super::{Config, InvalidConfig, Problem, SettingError};
use crate::Secret;

/// What an environment has: a function, so that a test needs no variables.
type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

impl Config {
    /// Reads each target's secret: its key, or that of its OAuth client. A target that passes the caller's credential has
    /// none.
    ///
    /// `env` returns the value of a variable: `|name| std::env::var_os(name)`. White space around a secret is removed, such
    /// as the line end of a file.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`] with every variable that is not set or empty, every file that cannot be read or is empty, and every
    /// secret that cannot stand in a header. It names variables and files, and shows no secret.
    pub fn secrets(
        &self,
        env: impl Fn(&str) -> Option<OsString>,
    ) -> Result<BTreeMap<String, Secret>, InvalidConfig> {
        let mut problems = Vec::new();
        let mut secrets = BTreeMap::new();
        for (name, target) in &self.targets {
            let oauth = target.oauth.as_ref();
            let of_key = [
                ("api_key_env", Source::env(target.api_key_env.as_deref())),
                ("api_key_file", Source::file(target.api_key_file.as_deref())),
            ];
            let of_client = [
                (
                    "oauth.client_secret_env",
                    Source::env(oauth.and_then(|oauth| oauth.client_secret_env.as_deref())),
                ),
                (
                    "oauth.client_secret_file",
                    Source::file(oauth.and_then(|oauth| oauth.client_secret_file.as_deref())),
                ),
            ];
            let sources = of_key.into_iter().chain(of_client);
            for (setting, source) in sources {
                match source.map(|source| source.read(&env)).transpose() {
                    Ok(Some(secret)) => drop(secrets.insert(name.clone(), secret)),
                    Ok(None) => {}
                    Err(problem) => {
                        let setting = format!("targets.{name}.{setting}");
                        problems.push(SettingError::new(setting, problem));
                    }
                }
            }
        }
        InvalidConfig::check(problems)?;
        Ok(secrets)
    }
}

/// Where a secret is.
enum Source<'a> {
    Variable(&'a str),
    File(&'a Path),
}

impl<'a> Source<'a> {
    fn env(variable: Option<&'a str>) -> Option<Self> {
        variable.map(Self::Variable)
    }

    fn file(path: Option<&'a Path>) -> Option<Self> {
        path.map(Self::File)
    }

    fn read(&self, env: Env<'_>) -> Result<Secret, Problem> {
        let not_text = || Problem::Invalid {
            reason: "the secret is not text (the value is not shown)".to_owned(),
        };
        let text = match *self {
            Self::Variable(name) => {
                let value = env(name).ok_or_else(|| not_set(name))?;
                value.into_string().map_err(|_| not_text())?
            }
            Self::File(path) => {
                let bytes = fs::read(path).map_err(|error| Problem::Unreadable(error.kind()))?;
                String::from_utf8(bytes).map_err(|_| not_text())?
            }
        };
        let secret = text.trim();
        if secret.is_empty() {
            return Err(match self {
                Self::Variable(name) => not_set(name),
                Self::File(_) => Problem::Invalid {
                    reason: "the file is empty".to_owned(),
                },
            });
        }
        if !secret.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            let reason =
                "the secret has characters that a header must not have (the value is not shown)";
            return Err(Problem::Invalid {
                reason: reason.to_owned(),
            });
        }
        Ok(Secret::new(secret))
    }
}

fn not_set(name: &str) -> Problem {
    Problem::NotSet {
        variable: looks_like_variable(name).then(|| name.to_owned()),
    }
}

/// Whether `name` is written as variables are: someone may have put the key itself where its name belongs.
fn looks_like_variable(name: &str) -> bool {
    name.len() <= 64
        && name.contains(|first: char| first.is_ascii_uppercase())
        && name
            .chars()
            .all(|letter| matches!(letter, 'A'..='Z' | '0'..='9' | '_'))
}
