//! What a response's status and headers say.

use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode, header};

use super::fields::{ErrorKind, InBand};
use crate::{Failure, Outcome};

/// Longest wait that is believed: a month, after which every quota has been refilled.
///
/// Whoever adds it to the time that it is must not overflow.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_secs(31 * 86_400);

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const BEDROCK_ERROR: HeaderName = HeaderName::from_static("x-amzn-errortype");

/// The part of a response's head that bears on how the call has ended.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    retry_after: Option<Duration>,
    /// An error's kind, where it stands in a header.
    kind: ErrorKind,
}

impl Head {
    pub(super) fn new(status: StatusCode, headers: &HeaderMap) -> Self {
        if status.is_success() {
            return Self {
                status,
                retry_after: None,
                kind: ErrorKind::Unknown,
            };
        }
        // Bedrock writes `Name:http://...` at times.
        let bedrock = headers
            .get(BEDROCK_ERROR)
            .and_then(|value| value.as_bytes().split(|&byte| byte == b':').next());
        Self {
            status,
            retry_after: retry_after(headers).map(|wait| wait.min(MAX_RETRY_AFTER)),
            kind: bedrock.map_or(ErrorKind::Unknown, ErrorKind::parse),
        }
    }

    /// The verdict of a status that is no success; `None` for one that is.
    ///
    /// `body` is what was read of its body, which may tell money from rate.
    pub(super) fn error(&self, body: Option<&InBand>) -> Option<Outcome> {
        if self.status.is_success() {
            return None;
        }
        let kind = self
            .kind
            .max(body.map_or(ErrorKind::Unknown, |body| body.kind));
        let retry_after = self.retry_after.or(body.and_then(|body| body.retry_after));
        Some(match (self.status.as_u16(), kind) {
            (402, _) | (_, ErrorKind::Exhausted) => Outcome::Exhausted,
            (429 | 500.., ErrorKind::Overloaded) | (498 | 529, _) => {
                Outcome::Overloaded { retry_after }
            }
            (429, _) => Outcome::Throttled { retry_after },
            // Azure's API management refuses with 403 what is over a quota that it says will be refilled.
            (403, _) if retry_after.is_some() => Outcome::Throttled { retry_after },
            (503, ErrorKind::Throttled) => Outcome::Overloaded { retry_after },
            (503, _) if retry_after.is_some() => Outcome::Overloaded { retry_after },
            // Nothing is wrong with a request that took too long: 408, and Bedrock's 424.
            (408 | 424 | 500.., _) => Outcome::Failed(Failure::Status),
            _ => Outcome::ClientError,
        })
    }
}

/// The time a response asks to wait, by `retry-after-ms` or `retry-after`.
///
/// A date is read against the response's own `date`, so that no clock of ours, right or wrong, comes into it.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
    if let Some(millis) = text(&RETRY_AFTER_MS).and_then(|text| text.parse::<f64>().ok())
        && let Ok(wait) = Duration::try_from_secs_f64(millis / 1_000.0)
    {
        return Some(wait);
    }
    let value = text(&header::RETRY_AFTER)?;
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let until = httpdate::parse_http_date(value).ok()?;
    let now = httpdate::parse_http_date(text(&header::DATE)?).ok()?;
    // A date that has passed asks for no wait.
    Some(until.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(pairs: &[(&'static str, &str)]) -> Option<Duration> {
        let headers = pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect();
        retry_after(&headers)
    }

    #[test]
    fn retry_after_takes_every_spelling() {
        assert_eq!(wait(&[("retry-after", "3")]), Some(Duration::from_secs(3)));
        assert_eq!(
            wait(&[("retry-after", "0.5")]),
            Some(Duration::from_millis(500))
        );
        assert_eq!(
            wait(&[("retry-after", "3"), ("retry-after-ms", "2100")]),
            Some(Duration::from_millis(2_100))
        );
        assert_eq!(
            wait(&[
                ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
                ("retry-after", "Sun, 06 Nov 1994 08:50:37 GMT"),
            ]),
            Some(Duration::from_secs(60))
        );
        assert_eq!(
            wait(&[
                ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
                ("retry-after", "Sun, 06 Nov 1994 08:49:00 GMT"),
            ]),
            Some(Duration::ZERO)
        );
    }

    #[test]
    fn nonsense_in_retry_after_is_no_time() {
        for odd in [
            "-1",
            "nan",
            "inf",
            "soon",
            "",
            "Sun, 06 Nov 1994 08:50:37 GMT",
        ] {
            assert_eq!(wait(&[("retry-after", odd)]), None, "{odd:?}");
        }
    }
}
