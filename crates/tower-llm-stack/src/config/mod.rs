//! The types of `gateway.toml`: targets, which are accounts at providers, and models, which name targets and a strategy.
//!
//! A configuration is made in three steps, so that each error can name its setting:
//!
//! 1. [`Config::from_toml`] reads the text. An unknown setting is refused with its line and the nearest known name.
//! 2. [`Config::validate`] checks what the types cannot, and reports everything that is wrong.
//! 3. [`Config::secrets`] reads the credentials from the environment and from files.
//!
//! No output of this module shows a credential: the file has only the names of variables and files, and what may hold a
//! password is a [`Secret`](crate::Secret).
//!
//! # Example
//!
//! Everything that a file can set; `provider` and a model's `targets` are required.
//!
#![doc = concat!("```toml\n", include_str!("example.toml"), "```")]
//!
//! ```
//! use tower_llm_stack::config::{Config, Strategy};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config::from_toml(
//!     r#"
//!     [targets.openai-a]
//!     provider = "openai"
//!     api_key_env = "OPENAI_KEY_A"
//!     rpm = 60
//!
//!     [models."gpt-4"]
//!     strategy = "failover"
//!     targets = ["openai-a"]
//!     "#,
//! )?;
//! config.validate()?;
//! assert_eq!(config.models["gpt-4"].strategy, Strategy::Failover);
//!
//! // A program passes `|name| std::env::var_os(name)`.
//! let secrets = config.secrets(|name| (name == "OPENAI_KEY_A").then(|| "sk-1234".into()))?;
//! assert_eq!(secrets["openai-a"].expose(), "sk-1234");
//!
//! let error = Config::from_toml("[targets.a]\nprovider = 'openai'\nrmp = 60").unwrap_err();
//! assert_eq!(error.to_string(), "line 3: targets.a.rmp: no such setting; did you mean `rpm`?");
//! # Ok(())
//! # }
//! ```

mod duration;
mod error;
mod layers;
mod model;
mod parse;
mod secrets;
mod target;
mod validate;

use std::{collections::BTreeMap, fs, path::Path};

use serde::Deserialize;

pub use self::{
    error::{InvalidConfig, Problem, SettingError},
    model::{
        CascadeConfig, EnsembleConfig, HedgeConfig, JudgeConfig, ModelConfig, StickyKey, Strategy,
    },
    target::{
        ClientAuth, HealthConfig, OAuthConfig, PoolConfig, PriceConfig, TargetConfig, TimeoutConfig,
    },
};

/// A configuration, as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
#[non_exhaustive]
pub struct Config {
    /// The accounts at providers, by name.
    pub targets: BTreeMap<String, TargetConfig>,
    /// What callers ask for, by the model's name. A model that is not listed goes to the first target that speaks its
    /// dialect, in the [order](Self::targets_in_order) of the file.
    pub models: BTreeMap<String, ModelConfig>,
    /// The names of the targets, as the file has them.
    #[serde(skip)]
    order: Vec<String>,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    ///
    /// [`SettingError`] if `text` is not TOML, has a setting that does not exist, or one of a wrong type.
    pub fn from_toml(text: &str) -> Result<Self, SettingError> {
        let config = parse::parse(text)?;
        Ok(Self {
            order: parse::targets_in_order(text),
            ..config
        })
    }

    /// Returns the targets in the order in which the file has them. Those that were added later follow, by name.
    pub fn targets_in_order(&self) -> impl Iterator<Item = (&str, &TargetConfig)> {
        let targets = self.targets.iter();
        let mut targets: Vec<_> = targets.map(|(name, target)| (&**name, target)).collect();
        // Stable: what has no place stays sorted by name.
        targets.sort_by_key(|&(name, _)| {
            let place = self.order.iter().position(|other| other == name);
            place.unwrap_or(usize::MAX)
        });
        targets.into_iter()
    }

    /// Reads the configuration in a file.
    ///
    /// # Errors
    ///
    /// [`SettingError`] if the file cannot be read, or as for [`from_toml`](Self::from_toml).
    pub fn load(path: impl AsRef<Path>) -> Result<Self, SettingError> {
        let path = path.as_ref();
        let text = fs::read_to_string(path).map_err(|error| {
            SettingError::new(
                path.display().to_string(),
                Problem::Unreadable(error.kind()),
            )
        })?;
        Self::from_toml(&text)
    }
}
