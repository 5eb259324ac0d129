//! What calls cost, in US dollars.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize, Serializer};
use tower_llm_core::{ConfigError, Usage};

/// An amount of US dollars, exact to a billionth. In JSON it is a number of dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Usd {
    nanos: u64,
}

/// What tokens of one model cost, in US dollars for a million tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Price {
    input: Usd,
    output: Usd,
    cached_input: Usd,
    cache_write: Usd,
}

/// The prices of models.
///
/// The [default](Self::default) is a table of list prices of OpenAI, Anthropic and Gemini that comes with this crate, as of
/// [`as_of`](Self::as_of). Replace single prices with [`set`](Self::set), or read a table of your own with
/// [`from_json`](Self::from_json). The table knows neither discounts for batches nor surcharges for long prompts.
#[derive(Clone, Debug)]
pub struct PriceTable {
    as_of: String,
    models: BTreeMap<Box<str>, Price>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    as_of: String,
    #[serde(default = "dollars")]
    currency: String,
    #[serde(default = "million")]
    per_tokens: u64,
    models: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    model: Box<str>,
    input: f64,
    #[serde(default)]
    output: f64,
    cached_input: Option<f64>,
    cache_write: Option<f64>,
}

fn dollars() -> String {
    "USD".to_owned()
}

const fn million() -> u64 {
    1_000_000
}

// === impl Usd ===

impl Usd {
    /// Creates an amount from billionths of a dollar.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self { nanos }
    }

    /// Returns it in billionths of a dollar.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.nanos
    }

    /// Returns it in dollars.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "nine million dollars are exact")]
    pub fn as_dollars(self) -> f64 {
        self.nanos as f64 / 1e9
    }

    /// Reads an amount of dollars, rounded to a billionth.
    fn from_dollars(dollars: f64) -> Option<Self> {
        const MAX: f64 = 1e9;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is in the range"
        )]
        let usd = Self {
            nanos: (dollars * 1e9).round() as u64,
        };
        (0.0..=MAX).contains(&dollars).then_some(usd)
    }

    pub(crate) const fn plus(self, other: Self) -> Self {
        Self {
            nanos: self.nanos.saturating_add(other.nanos),
        }
    }
}

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dollars, nanos) = (self.nanos / 1_000_000_000, self.nanos % 1_000_000_000);
        write!(f, "${dollars}.{nanos:09}")
    }
}

impl Serialize for Usd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.as_dollars())
    }
}

// === impl Price ===

impl Price {
    /// Creates the price of a model, in dollars for a million tokens. Tokens that are read from the provider's prompt cache, or
    /// written to it, cost as much as other input unless set.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming the price if it is negative, not a number, or over a billion.
    pub fn per_million(input: f64, output: f64) -> Result<Self, ConfigError> {
        let input = check("input", input)?;
        Ok(Self {
            input,
            output: check("output", output)?,
            cached_input: input,
            cache_write: input,
        })
    }

    /// Sets the price of input that is read from the provider's prompt cache.
    ///
    /// # Errors
    ///
    /// As [`per_million`](Self::per_million).
    pub fn cached_input(mut self, dollars: f64) -> Result<Self, ConfigError> {
        self.cached_input = check("cached_input", dollars)?;
        Ok(self)
    }

    /// Sets the price of input that is written to the provider's prompt cache.
    ///
    /// # Errors
    ///
    /// As [`per_million`](Self::per_million).
    pub fn cache_write(mut self, dollars: f64) -> Result<Self, ConfigError> {
        self.cache_write = check("cache_write", dollars)?;
        Ok(self)
    }

    /// What this use costs, rounded half up to a billionth of a dollar.
    #[must_use]
    pub fn cost(&self, usage: &Usage) -> Usd {
        let cached = usage.cached_input.min(usage.input);
        let written = usage.cache_write.min(usage.input - cached);
        let parts = [
            (usage.input - cached - written, self.input),
            (cached, self.cached_input),
            (written, self.cache_write),
            (usage.output, self.output),
        ];
        let each = parts.map(|(tokens, price)| u128::from(tokens) * u128::from(price.nanos));
        let nanos = (each.iter().sum::<u128>() + 500_000) / 1_000_000;
        Usd {
            nanos: u64::try_from(nanos).unwrap_or(u64::MAX),
        }
    }
}

fn check(field: &'static str, dollars: f64) -> Result<Usd, ConfigError> {
    let reason = "it must be a number of dollars from zero to a billion";
    Usd::from_dollars(dollars).ok_or_else(|| ConfigError::new(field, dollars, reason))
}

// === impl PriceTable ===

impl PriceTable {
    /// Creates a table without prices: every cost is unknown.
    #[must_use]
    pub const fn empty() -> Self {
        Self {
            as_of: String::new(),
            models: BTreeMap::new(),
        }
    }

    /// Reads a table in the format of the one that comes with this crate: `as_of`, a date, and `models`, each with `model`,
    /// `input` and `output`, and perhaps `cached_input` and `cache_write`, in dollars for a million tokens.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming `prices` and the place, or the price that is out of range.
    pub fn from_json(json: &str) -> Result<Self, ConfigError> {
        let file: File = serde_json::from_str(json).map_err(|error| {
            ConfigError::new("prices", error.to_string(), "it is not a table of prices")
        })?;
        if file.currency != "USD" {
            return Err(ConfigError::new(
                "currency",
                file.currency,
                "it must be USD",
            ));
        }
        if file.per_tokens != million() {
            return Err(ConfigError::new(
                "per_tokens",
                file.per_tokens,
                "it must be a million",
            ));
        }
        let mut table = Self {
            as_of: file.as_of,
            models: BTreeMap::new(),
        };
        for entry in file.models {
            let mut price = Price::per_million(entry.input, entry.output)?;
            if let Some(cached) = entry.cached_input {
                price = price.cached_input(cached)?;
            }
            if let Some(written) = entry.cache_write {
                price = price.cache_write(written)?;
            }
            table = table.set(entry.model, price);
        }
        Ok(table)
    }

    /// Sets the price of a model, in place of the one that it has.
    #[must_use]
    pub fn set(mut self, model: impl Into<Box<str>>, price: Price) -> Self {
        self.models.insert(model.into(), price);
        self
    }

    /// Returns the price of a model.
    #[must_use]
    pub fn get(&self, model: &str) -> Option<Price> {
        self.models.get(model).copied()
    }

    /// Returns the date of the prices, as the table states it.
    #[must_use]
    pub fn as_of(&self) -> &str {
        &self.as_of
    }

    /// The models that have a price.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.models.keys().map(|model| &**model)
    }
}

impl Default for PriceTable {
    fn default() -> Self {
        Self::from_json(include_str!("prices.json")).expect("the table is valid")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price() -> Price {
        let price = Price::per_million(3.0, 15.0).unwrap();
        price.cached_input(0.3).unwrap().cache_write(3.75).unwrap()
    }

    #[test]
    fn a_cost_is_exact_to_a_billionth() {
        let mut usage = Usage::new(1_000, 200);
        assert_eq!(price().cost(&usage).as_nanos(), 3_000_000 + 3_000_000);
        usage.cached_input = 600;
        usage.cache_write = 100;
        // 300 at 3.00, 600 at 0.30, 100 at 3.75, 200 at 15.00, for a million each.
        assert_eq!(
            price().cost(&usage).as_nanos(),
            900_000 + 180_000 + 375_000 + 3_000_000
        );
        assert_eq!(price().cost(&usage).to_string(), "$0.004455000");
        // Half of a billionth counts as a whole one.
        let cheap = Price::per_million(0.000_5, 0.0).unwrap();
        assert_eq!(cheap.cost(&Usage::new(1, 0)).as_nanos(), 1);
        let cheap = Price::per_million(0.000_499, 0.0).unwrap();
        assert_eq!(cheap.cost(&Usage::new(1, 0)).as_nanos(), 0);
    }

    #[test]
    fn absurd_usage_costs_no_less_than_nothing() {
        let mut usage = Usage::new(10, 0);
        (usage.cached_input, usage.cache_write) = (u64::MAX, u64::MAX);
        assert_eq!(price().cost(&usage).as_nanos(), 3_000);
        let dear = price().cost(&Usage::new(u64::MAX, u64::MAX));
        assert_eq!(dear.as_nanos(), u64::MAX);
    }

    #[test]
    fn the_table_that_ships_has_a_date_and_prices() {
        let table = PriceTable::default();
        assert_eq!(table.as_of(), "2026-11-29");
        assert!(table.models().count() > 50);
        let mini = table.get("gpt-5-mini").unwrap();
        assert_eq!(
            mini.cost(&Usage::new(1_000_000, 1_000_000)).as_nanos(),
            2_250_000_000
        );
        assert!(table.get("gpt-5-mini-turbo").is_none());
        let own = table.set("gpt-5-mini", price());
        assert_eq!(own.get("gpt-5-mini"), Some(price()));
    }

    #[test]
    fn broken_tables_say_what_is_wrong() {
        for (json, message) in [
            ("{", "prices is \"EOF"),
            (r#"{"models":[]}"#, "missing field `as_of`"),
            (
                r#"{"as_of":"x","models":[{"model":"m","input":1,"ouput":2}]}"#,
                "unknown field `ouput`",
            ),
            (
                r#"{"as_of":"x","models":[{"model":"m","input":-1}]}"#,
                "input is -1.0: it must be a number",
            ),
            (
                r#"{"as_of":"x","currency":"EUR","models":[]}"#,
                "currency is \"EUR\"",
            ),
            (
                r#"{"as_of":"x","per_tokens":1000,"models":[]}"#,
                "per_tokens is 1000",
            ),
        ] {
            let error = PriceTable::from_json(json).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
