//! Reads TOML, and says where it is wrong without showing the text, which may hold a credential.

use std::collections::BTreeMap;

use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};
use toml::Spanned;

use super::{Problem, SettingError};

/// A name is near another one if at most this many letters are different, and fewer than half.
const MAX_DISTANCE: usize = 3;

pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, SettingError> {
    let document = toml::Deserializer::parse(text).map_err(|error| wrong("", &error, text))?;
    serde_path_to_error::deserialize(document).map_err(|error| {
        let path = error.path().to_string();
        wrong(&path, error.inner(), text)
    })
}

/// The names of the targets, in the order in which they begin.
pub(super) fn targets_in_order(text: &str) -> Vec<String> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Places {
        targets: BTreeMap<String, Spanned<IgnoredAny>>,
    }
    let Places { targets } = toml::from_str(text).unwrap_or_default();
    let mut targets: Vec<_> = targets.into_iter().collect();
    targets.sort_by_key(|(_, target)| target.span().start);
    targets.into_iter().map(|(name, _)| name).collect()
}

/// The name among `known` that is nearest to `name`.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let distance = |known: &'a str| (strsim::damerau_levenshtein(name, known), known);
    let (distance, nearest) = known.into_iter().map(distance).min()?;
    let is_near = distance <= MAX_DISTANCE && distance * 2 <= name.chars().count().max(2);
    is_near.then(|| nearest.to_owned())
}

fn wrong(path: &str, error: &toml::de::Error, text: &str) -> SettingError {
    let line = error.span().and_then(|span| line_of(text, span.start));
    // A path of nothing but the document.
    let mut setting = path.trim_start_matches('.').to_owned();
    let message = error.message();
    let problem = if let Some((name, known)) = unknown(message, "unknown field") {
        if setting.rsplit('.').next() != Some(name) {
            let dot = if setting.is_empty() { "" } else { "." };
            setting = format!("{setting}{dot}{name}");
        }
        Problem::UnknownSetting {
            nearest: nearest(name, known),
        }
    } else if let Some((name, known)) = unknown(message, "unknown variant") {
        Problem::UnknownName {
            value: name.to_owned(),
            nearest: nearest(name, known),
        }
    } else {
        Problem::Syntax(without_text(message))
    };
    SettingError::new(setting, problem).at_line(line)
}

/// The name that is not known, and those that are, in a message of serde's such as
/// ``unknown field `a`, expected one of `b`, `c` ``. It passes them in no other form.
fn unknown<'a>(message: &'a str, what: &str) -> Option<(&'a str, Vec<&'a str>)> {
    let names = message.strip_prefix(what)?.split('`').skip(1).step_by(2);
    let mut names = names.collect::<Vec<_>>().into_iter();
    Some((names.next()?, names.collect()))
}

/// The message without a text that stands where another type is expected, as does a key in place of the table for it.
fn without_text(message: &str) -> String {
    const WRONG_TYPE: &str = "invalid type: string ";
    let expected = message.strip_prefix(WRONG_TYPE).and_then(|rest| {
        let (_, expected) = rest.rsplit_once("\", expected ")?;
        Some(expected)
    });
    match expected {
        Some(expected) => format!("{WRONG_TYPE}(not shown), expected {expected}"),
        None => message.lines().next().unwrap_or_default().to_owned(),
    }
}

fn line_of(text: &str, position: usize) -> Option<usize> {
    let before = text.as_bytes().get(..position)?;
    Some(before.iter().filter(|&&byte| byte == b'\n').count() + 1)
}
