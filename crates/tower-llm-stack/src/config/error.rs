//! What is wrong with a configuration.

use std::{error::Error, fmt, io};

/// A setting that cannot be used.
///
/// Its text may change; its getters will not. It never holds a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingError {
    setting: String,
    line: Option<usize>,
    problem: Problem,
}

/// Everything that is wrong with a configuration; at least one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidConfig(Vec<SettingError>);

/// What is wrong with a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The file cannot be read.
    Unreadable(io::ErrorKind),
    /// The text is not TOML, or a value has a wrong type.
    Syntax(String),
    /// There is no such setting.
    UnknownSetting {
        /// The known name that is nearest to it.
        nearest: Option<String>,
    },
    /// The value names something that does not exist.
    UnknownName {
        /// The value.
        value: String,
        /// The known name that is nearest to it.
        nearest: Option<String>,
    },
    /// The setting is required.
    Missing,
    /// The list or the text is empty.
    Empty,
    /// The value is zero, which would admit nothing.
    Zero,
    /// The value is outside of its range.
    OutOfRange {
        /// The value.
        value: String,
        /// The values that it may have.
        allowed: &'static str,
    },
    /// The value stands twice in a list.
    Duplicate {
        /// The value.
        value: String,
    },
    /// Another setting excludes it.
    Conflict {
        /// The other setting.
        with: &'static str,
    },
    /// The setting has no effect.
    Unused {
        /// What it takes to have one.
        needs: &'static str,
    },
    /// The value is not what it should be. It is not shown where it may hold a credential.
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// The targets of one model speak different dialects.
    MixedDialects {
        /// A target, and another one with another dialect.
        targets: (String, String),
    },
    /// The environment variable is not set, or empty.
    NotSet {
        /// The variable; `None` if the value does not look like the name of one, and may be a credential.
        variable: Option<String>,
    },
}

// === impl SettingError ===

impl SettingError {
    pub(crate) fn new(setting: impl Into<String>, problem: Problem) -> Self {
        Self {
            setting: setting.into(),
            line: None,
            problem,
        }
    }

    pub(super) fn at_line(mut self, line: Option<usize>) -> Self {
        self.line = line;
        self
    }

    /// Returns the path of the setting, such as `targets.openai-a.rpm`; the path of the file if that cannot be read, and
    /// nothing if the text is not TOML.
    #[must_use]
    pub fn setting(&self) -> &str {
        &self.setting
    }

    /// Returns the line of the setting, from 1, if it was found while the text was read.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        self.line
    }

    /// Returns what is wrong.
    #[must_use]
    pub fn problem(&self) -> &Problem {
        &self.problem
    }
}

impl fmt::Display for SettingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.setting.is_empty() {
            write!(f, "{}: ", self.setting)?;
        }
        self.problem.fmt(f)
    }
}

impl Error for SettingError {}

// === impl Problem ===

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let did_you_mean = |f: &mut fmt::Formatter<'_>, nearest: &Option<String>| match nearest {
            Some(nearest) => write!(f, "; did you mean `{nearest}`?"),
            None => Ok(()),
        };
        match self {
            Self::Unreadable(kind) => write!(f, "cannot be read: {kind}"),
            Self::Syntax(what) => f.write_str(what),
            Self::UnknownSetting { nearest } => {
                f.write_str("no such setting")?;
                did_you_mean(f, nearest)
            }
            Self::UnknownName { value, nearest } => {
                write!(f, "`{value}` does not exist")?;
                did_you_mean(f, nearest)
            }
            Self::Missing => f.write_str("must be set"),
            Self::Empty => f.write_str("must not be empty"),
            Self::Zero => f.write_str("must not be zero; leave it out to set no limit"),
            Self::OutOfRange { value, allowed } => write!(f, "is {value}, and must be {allowed}"),
            Self::Duplicate { value } => write!(f, "`{value}` is listed twice"),
            Self::Conflict { with } => write!(f, "cannot be set together with `{with}`"),
            Self::Unused { needs } => write!(f, "has no effect without {needs}"),
            Self::Invalid { reason } => f.write_str(reason),
            Self::MixedDialects { targets: (a, b) } => {
                write!(f, "`{a}` and `{b}` speak different dialects")
            }
            Self::NotSet {
                variable: Some(variable),
            } => write!(f, "the variable {variable} is not set, or empty"),
            Self::NotSet { variable: None } => {
                f.write_str("there is no variable of that name (the name is not shown)")
            }
        }
    }
}

// === impl InvalidConfig ===

impl InvalidConfig {
    /// `Ok` if nothing is wrong.
    pub(super) fn check(problems: Vec<SettingError>) -> Result<(), Self> {
        match problems.is_empty() {
            true => Ok(()),
            false => Err(Self(problems)),
        }
    }

    /// Returns what is wrong, in the order of the settings' names.
    #[must_use]
    pub fn settings(&self) -> &[SettingError] {
        &self.0
    }
}

/// One setting a line.
impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl Error for InvalidConfig {}
