//! Durations as they are written: `60s`, `1.5s`, `2m 30s`, `250ms`.

use std::{fmt, time::Duration};

use jiff::SignedDuration;
use serde::{Deserializer, de};

pub(super) fn required<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    deserializer.deserialize_str(Visitor)
}

pub(super) fn optional<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    required(deserializer).map(Some)
}

struct Visitor;

impl de::Visitor<'_> for Visitor {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration such as \"60s\", \"1.5s\" or \"2m 30s\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
        let parsed = text.trim().parse::<SignedDuration>().ok();
        let duration = parsed.and_then(|duration| Duration::try_from(duration).ok());
        duration.ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}
