//! Where settings come from: flags, and the environment where there is no flag.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    path::Path,
};

use clap::{
    Arg, Command, CommandFactory, FromArgMatches,
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};

use super::Settings;

/// Variables that other programs know by their names in lower case too.
const ALSO_IN_LOWER_CASE: [&str; 4] = ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"];

/// What the variables of the gateway's own settings begin with.
const OURS: [&str; 6] = [
    "CACHE_",
    "GATEWAY_",
    "RATELIMIT_",
    "BULKHEAD_",
    "BREAKER_",
    "TIMEOUT_",
];

/// What begins the variables that the gateway shares with other programs, which have more of them.
const SHARED: [&str; 6] = [
    "REDIS_",
    "OPENAI_",
    "ANTHROPIC_",
    "GEMINI_",
    "GOOGLE_GEMINI_",
    "AZURE_OPENAI_",
];

/// At most so many letters make a name of a client's a misspelt one of ours.
const MISSPELT: usize = 2;

/// The variables that gave settings, by the settings' flags.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names(HashMap<String, String>);

impl Names {
    /// What the setting of `flag` was given by: its variable, or the flag itself.
    pub(crate) fn of<'a>(&'a self, flag: &'a str) -> &'a str {
        self.0.get(flag).map_or(flag, String::as_str)
    }

    pub(crate) fn is_variable(&self, flag: &str) -> bool {
        self.0.contains_key(flag)
    }
}

impl Settings {
    /// Reads the flags of this process, and its environment where a flag is not given.
    ///
    /// Ends the process where it is asked for help or the version.
    ///
    /// # Errors
    ///
    /// What is wrong, naming the flag or the variable that was used, and the value.
    pub fn load() -> Result<Self, clap::Error> {
        let args: Vec<OsString> = std::env::args_os().skip(1).collect();
        match Self::read(args, std::env::vars_os()) {
            // Help shows the variables, which the command that is read with does not know.
            Err(error) if !error.use_stderr() => {
                Self::command().get_matches();
                Err(error)
            }
            read => read.map(Self::or_found),
        }
    }

    /// Takes the file in the working directory, if no other one is named.
    fn or_found(mut self) -> Self {
        const FOUND: &str = "gateway.toml";
        if self.config.is_none() && Path::new(FOUND).is_file() {
            self.config = Some(FOUND.into());
        }
        self
    }

    /// Reads flags alone, without the program's name and without the environment: for tests.
    ///
    /// # Errors
    ///
    /// What is wrong with them, naming flag and value.
    pub fn from_flags<I>(flags: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        Self::read(flags, [])
    }

    /// Reads flags and variables. One that is empty counts as not set.
    pub(super) fn read<I>(
        flags: I,
        vars: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, clap::Error>
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        let full = Self::command();
        let bare = Self::command()
            .no_binary_name(true)
            .mut_args(|arg| arg.env(None::<&'static str>));
        let flags = without_empty(&full, flags.into_iter().map(Into::into));
        let given = bare.clone().try_get_matches_from(&flags)?;
        let vars: HashMap<OsString, OsString> = vars.into_iter().collect();

        let mut names = Names::default();
        let mut all = Vec::new();
        for arg in full.get_arguments() {
            if given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine) {
                continue;
            }
            let (Some(flag), Some((variable, value))) = (arg.get_long(), variable(arg, &vars))
            else {
                continue;
            };
            let value = check(&bare, flag, &variable, value)?;
            names.0.insert(format!("--{flag}"), variable);
            all.push(value);
        }
        all.extend(flags);
        let mut settings = Self::from_arg_matches(&bare.try_get_matches_from(all)?)?;
        settings.names = names;
        settings.notices = misspelt(&full, &vars);
        Ok(settings)
    }
}

/// The variable that sets `arg`, and its value; none if it is empty.
fn variable<'a>(arg: &Arg, vars: &'a HashMap<OsString, OsString>) -> Option<(String, &'a OsStr)> {
    let name = arg.get_env()?.to_str()?;
    let lower = ALSO_IN_LOWER_CASE
        .contains(&name)
        .then(|| name.to_lowercase());
    [Some(name.to_owned()), lower]
        .into_iter()
        .flatten()
        .find_map(|name| {
            let value = vars.get(OsStr::new(&name))?;
            let is_empty = value.to_str().is_some_and(|value| value.trim().is_empty());
            (!is_empty).then_some((name, value.as_os_str()))
        })
}

/// The flag that stands for a variable, whose value is checked by itself: so that an error can name the variable.
fn check(
    bare: &Command,
    flag: &str,
    variable: &str,
    value: &OsStr,
) -> Result<OsString, clap::Error> {
    let Some(value) = value.to_str() else {
        let what = format!("{variable} is not valid UTF-8");
        return Err(bare.clone().error(ErrorKind::InvalidUtf8, what));
    };
    let given = OsString::from(format!("--{flag}={}", value.trim()));
    match bare.clone().try_get_matches_from([&given]) {
        Ok(_) => Ok(given),
        Err(mut error) => {
            let name = ContextValue::String(variable.to_owned());
            error.insert(ContextKind::InvalidArg, name);
            Err(error)
        }
    }
}

/// The flags that have a value, or need none.
fn without_empty(command: &Command, flags: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let takes_value = |flag: &OsStr| {
        let flag = flag.to_str().and_then(|flag| flag.strip_prefix("--"));
        let arg = command
            .get_arguments()
            .find(|arg| arg.get_long().is_some() && arg.get_long() == flag);
        arg.is_some_and(|arg| !arg.is_require_equals_set())
    };
    let mut kept: Vec<OsString> = Vec::new();
    for flag in flags {
        let is_empty = flag.to_str().is_some_and(|flag| flag.trim().is_empty());
        if is_empty && kept.last().is_some_and(|last| takes_value(last)) {
            kept.pop();
        } else if !flag
            .to_str()
            .is_some_and(|flag| flag.starts_with("--") && flag.ends_with('='))
        {
            kept.push(flag);
        }
    }
    kept
}

/// What to say of variables that look like settings and are none.
fn misspelt(command: &Command, vars: &HashMap<OsString, OsString>) -> Vec<String> {
    let known: Vec<&str> = command
        .get_arguments()
        .filter_map(|arg| arg.get_env()?.to_str())
        .collect();
    let mut notices: Vec<String> = vars
        .iter()
        .filter_map(|(name, value)| Some((name.to_str()?, value.to_str().unwrap_or_default())))
        .filter(|(name, value)| !known.contains(name) && !is_of_kubernetes(name, value))
        .filter_map(|(name, _)| {
            let upper = name.to_uppercase();
            let upper = upper.strip_prefix("CIRCUIT_").unwrap_or(&upper);
            let nearest = known
                .iter()
                .map(|known| (strsim::damerau_levenshtein(upper, known), *known))
                .min()?;
            let (distance, nearest) = nearest;
            let is_meant = looks_like_ours(upper)
                || distance <= MISSPELT && SHARED.iter().any(|prefix| upper.starts_with(prefix));
            is_meant
                .then(|| format!("{name} is not a setting of the gateway. Did you mean {nearest}?"))
        })
        .collect();
    notices.sort();
    notices
}

/// Whether a name begins like one of ours, wherever its underscores are.
fn looks_like_ours(name: &str) -> bool {
    OURS.iter().any(|prefix| {
        let without = prefix.trim_end_matches('_');
        name.starts_with(prefix)
            || name
                .replacen('_', "", 1)
                .starts_with(&format!("{without}_"))
    })
}

/// Kubernetes sets variables that are named after services, and one may be named `gateway`.
fn is_of_kubernetes(name: &str, value: &str) -> bool {
    let is_address = ["tcp://", "udp://", "sctp://"]
        .iter()
        .any(|scheme| value.starts_with(scheme));
    let of_port = name
        .rsplit_once("_PORT_")
        .is_some_and(|(_, rest)| rest.starts_with(|first: char| first.is_ascii_digit()));
    name.contains("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || is_address || of_port
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::BreakerMode;

    fn read(flags: &[&str], vars: &[(&str, &str)]) -> Result<Settings, clap::Error> {
        let vars = vars.iter().map(|(name, value)| (name.into(), value.into()));
        Settings::read(flags.iter().copied(), vars)
    }

    fn notices(vars: &[(&str, &str)]) -> Vec<String> {
        read(&[], vars).unwrap().notices
    }

    #[test]
    fn a_flag_is_stronger_than_its_variable() {
        let vars = [("RATELIMIT_OPENAI_RPM", "10"), ("TIMEOUT_TOTAL", "20")];
        let settings = read(&["--ratelimit-openai-rpm", "5"], &vars).unwrap();
        assert_eq!(settings.ratelimit.openai_rpm, Some(5));
        assert_eq!(settings.timeout.total, Duration::from_secs(20));
        assert_eq!(
            settings.names.of("--ratelimit-openai-rpm"),
            "--ratelimit-openai-rpm"
        );
        assert_eq!(settings.names.of("--timeout-total"), "TIMEOUT_TOTAL");
        assert_eq!(settings.names.of("--timeout-idle"), "--timeout-idle");
        // Even a wrong variable then.
        assert!(read(&["--timeout-total", "5"], &[("TIMEOUT_TOTAL", "many")]).is_ok());
    }

    #[test]
    fn an_error_names_what_was_used() {
        for (name, flag, value) in [
            ("RATELIMIT_OPENAI_RPM", "--ratelimit-openai-rpm", "0"),
            ("BREAKER", "--breaker", "perhaps"),
            ("BREAKER_FAILURE_RATIO", "--breaker-failure-ratio", "half"),
            ("RATELIMIT_LEARN", "--ratelimit-learn", "maybe"),
            ("GATEWAY_SIMULATE", "--simulate", "maybe"),
            ("GATEWAY_LISTEN", "--listen", "somewhere"),
            ("GATEWAY_ALLOW_PATHS", "--allow-paths", "v1"),
        ] {
            let error = read(&[], &[(name, value)]).unwrap_err().to_string();
            let said = error.contains(name) && error.contains(value);
            assert!(said && !error.contains(flag), "{error}");
            let given = format!("{flag}={value}");
            let error = read(&[&given], &[]).unwrap_err().to_string();
            let said = error.contains(flag) && error.contains(value);
            assert!(said && !error.contains(name), "{error}");
        }
    }

    #[test]
    fn empty_counts_as_not_set_for_every_setting() {
        let command = Settings::command();
        let names = command.get_arguments().filter_map(Arg::get_env);
        let vars: Vec<_> = names
            .map(|name| (name.to_owned(), OsString::from(" ")))
            .collect();
        assert!(vars.len() > 40);
        let settings = Settings::read::<[&str; 0]>([], vars).unwrap();
        assert!(settings.upstreams.is_empty() && settings.ratelimit.learn && !settings.simulate);
        assert_eq!(settings.timeout.total, Duration::from_secs(600));

        let flags = [
            "--openai-base-url",
            "",
            "--ratelimit-openai-rpm=",
            "--timeout-total",
            "",
        ];
        let settings = read(&flags, &[("TIMEOUT_TOTAL", "5")]).unwrap();
        assert!(settings.upstreams.is_empty());
        assert_eq!(settings.ratelimit.openai_rpm, None);
        assert_eq!(settings.timeout.total, Duration::from_secs(5));
    }

    #[test]
    fn switches_are_taken_as_people_mean_them() {
        for (value, is_on) in [
            ("1", true),
            ("on", true),
            ("Yes", true),
            ("0", false),
            ("OFF", false),
        ] {
            let vars = [
                ("RATELIMIT_LEARN", value),
                ("GATEWAY_SIMULATE", value),
                ("BREAKER", value),
            ];
            let settings = read(&[], &vars).unwrap();
            assert_eq!(
                (settings.ratelimit.learn, settings.simulate),
                (is_on, is_on),
                "{value}"
            );
            let mode = if is_on {
                BreakerMode::On
            } else {
                BreakerMode::Off
            };
            assert_eq!(settings.breaker.mode, mode);
        }
        assert!(read(&["--simulate"], &[]).unwrap().simulate);
        assert!(
            read(&["--simulate"], &[("GATEWAY_SIMULATE", "off")])
                .unwrap()
                .simulate
        );
        assert!(
            !read(&["--simulate=no"], &[("GATEWAY_SIMULATE", "on")])
                .unwrap()
                .simulate
        );
        assert!(
            read(&["--simulate", "--listen", "127.0.0.1:0"], &[])
                .unwrap()
                .simulate
        );
    }

    #[test]
    fn proxies_are_known_in_lower_case_too() {
        let https = |vars: &[(&str, &str)]| {
            let settings = read(&[], vars).unwrap();
            let name = settings.names.of("--https-proxy").to_owned();
            (settings.proxy.https.unwrap().expose().to_owned(), name)
        };
        let named = |value: &str, name: &str| (value.to_owned(), name.to_owned());
        assert_eq!(https(&[("https_proxy", "a")]), named("a", "https_proxy"));
        assert_eq!(
            https(&[("HTTPS_PROXY", "A"), ("https_proxy", "a")]),
            named("A", "HTTPS_PROXY")
        );
        assert_eq!(
            https(&[("HTTPS_PROXY", ""), ("https_proxy", "a")]),
            named("a", "https_proxy")
        );
    }

    #[test]
    fn a_variable_that_looks_like_a_setting_is_reported_with_the_nearest_name() {
        for (name, nearest) in [
            ("RATELIMIT_OPENAI_RMP", "RATELIMIT_OPENAI_RPM"),
            ("RATE_LIMIT_OPENAI_RPM", "RATELIMIT_OPENAI_RPM"),
            ("ratelimit_openai_rpm", "RATELIMIT_OPENAI_RPM"),
            ("GATEWAY_KEY", "GATEWAY_KEYS"),
            ("GATEWAY_ALLOWED_PATHS", "GATEWAY_ALLOW_PATHS"),
            ("BULKHEAD_OPENAI_CONCURRENCY", "BULKHEAD_OPENAI_CONCURRENT"),
            ("CIRCUIT_BREAKER_TIMEOUT", "BREAKER_TIMEOUT"),
            ("BREAKER_TIMEOUTS", "BREAKER_TIMEOUT"),
            ("OPENAI_APIKEY", "OPENAI_API_KEY"),
            ("ANTHROPIC_BASEURL", "ANTHROPIC_BASE_URL"),
        ] {
            let notices = notices(&[(name, "hidden")]);
            assert_eq!(notices.len(), 1, "{name}");
            assert!(notices[0].starts_with(name), "{notices:?}");
            assert!(notices[0].contains(nearest), "{notices:?}");
            assert!(!notices[0].contains("hidden"), "{notices:?}");
        }
        for (name, value) in [
            ("PATH", "/bin"),
            ("GATEWAY", "target/release/gateway"),
            ("GATEWAY_LISTEN", "127.0.0.1:0"),
            ("OPENAI_ORG_ID", "org"),
            ("OPENAI_PROJECT_ID", "proj"),
            ("ANTHROPIC_AUTH_TOKEN", "token"),
            ("AZURE_OPENAI_DEPLOYMENT_NAME", "d"),
            ("https_proxy", "http://proxy"),
            ("TIMEOUT", "5"),
            // Of Kubernetes, for a service that is named `gateway`.
            ("GATEWAY_SERVICE_HOST", "10.0.0.1"),
            ("GATEWAY_SERVICE_PORT_HTTP", "80"),
            ("GATEWAY_PORT", "tcp://10.0.0.1:80"),
            ("GATEWAY_PORT_80_TCP_ADDR", "10.0.0.1"),
        ] {
            assert_eq!(
                notices(&[(name, value)]),
                <[String; 0]>::default(),
                "{name}"
            );
        }
    }

    #[test]
    fn keys_are_not_shown() {
        let flags = [
            "--keys",
            "sk-hidden",
            "--openai-api-key",
            "sk-hidden",
            "--ratelimit-caller-tiers",
            "sk-hidden:pro",
            "--https-proxy",
            "http://me:sk-hidden@proxy",
            "--redis-url",
            "redis://:sk-hidden@store",
            "--caller-secret",
            "sk-hidden",
            "--admin-token",
            "sk-hidden",
            "--cache-secret",
            "sk-hidden",
        ];
        assert!(!format!("{:?}", read(&flags, &[]).unwrap()).contains("hidden"));
    }
}
