//! What the status and the headers of a response say.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, StatusCode, header};

use super::{
    provider_error::{ProviderError, Verdict},
    retry_hint::RetryHint,
};

/// Longest wait that is accepted: a month, after which every quota has been refilled.
///
/// Added to the current time, it cannot overflow.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_secs(31 * 86_400);

/// Azure writes the second one.
const RETRY_AFTER_MS: [HeaderName; 2] = [
    HeaderName::from_static("retry-after-ms"),
    HeaderName::from_static("x-ms-retry-after-ms"),
];
const BEDROCK_ERROR: HeaderName = HeaderName::from_static("x-amzn-errortype");

/// The part of the status and the headers that matters for how the call ended.
#[derive(Debug)]
pub(super) struct ResponseHeaders {
    pub(super) status: StatusCode,
    retry_after: Option<Duration>,
    /// An error's name, if a header has it.
    error: ProviderError,
}

impl ResponseHeaders {
    pub(super) fn new(status: StatusCode, headers: &HeaderMap) -> Self {
        let mut error = ProviderError::default();
        if !is_error(status) {
            return Self {
                status,
                retry_after: None,
                error,
            };
        }
        // Bedrock writes `Name:http://...` at times.
        let bedrock = headers
            .get(BEDROCK_ERROR)
            .and_then(|value| value.as_bytes().split(|&byte| byte == b':').next());
        if let Some(name) = bedrock {
            error.name(name);
        }
        let retry_after = retry_after(headers, system_time);
        Self {
            status,
            retry_after: retry_after.map(|wait| wait.min(MAX_RETRY_AFTER)),
            error,
        }
    }

    /// Whether the status is an error's.
    pub(super) fn is_error(&self) -> bool {
        is_error(self.status)
    }

    /// The verdict of an error status; `None` for another status.
    ///
    /// `body` is what was read of its body, which may distinguish used-up money from a rate limit.
    pub(super) fn verdict(&self, body: Option<ProviderError>, hint: &RetryHint) -> Option<Verdict> {
        if !self.is_error() {
            return None;
        }
        let error = self.error.and(body.unwrap_or_default());
        Some(error.with_status(self.status.as_u16(), self.retry_after, hint))
    }

    /// Whether it is an answer: 101 and redirects are neither that nor an error.
    pub(super) fn is_success(&self) -> bool {
        self.status.is_success()
    }
}

fn is_error(status: StatusCode) -> bool {
    status.as_u16() >= 400
}

/// The local time, for a date without the server's own.
#[expect(
    clippy::disallowed_methods,
    reason = "a date in a header can be compared with nothing else"
)]
fn system_time() -> SystemTime {
    SystemTime::now()
}

/// The time to wait that a response names in `retry-after-ms`, `x-ms-retry-after-ms` or `retry-after`.
///
/// A date is measured from the response's own `date`, or from the local clock if it has none.
fn retry_after(headers: &HeaderMap, clock: impl FnOnce() -> SystemTime) -> Option<Duration> {
    let text = |name: &HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
    let millis = RETRY_AFTER_MS.iter().find_map(text);
    if let Some(millis) = millis.and_then(|text| text.parse::<f64>().ok())
        && let Ok(wait) = Duration::try_from_secs_f64(millis / 1_000.0)
    {
        return Some(wait);
    }
    let value = text(&header::RETRY_AFTER)?;
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let until = httpdate::parse_http_date(value).ok()?;
    let date = text(&header::DATE).and_then(|date| httpdate::parse_http_date(date).ok());
    let now = date.unwrap_or_else(clock);
    // A date that has passed means no wait.
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
        let clock = || httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:57 GMT").unwrap();
        retry_after(&headers, clock)
    }

    #[test]
    fn a_date_without_the_servers_is_measured_by_our_clock() {
        let date = [("retry-after", "Sun, 06 Nov 1994 08:50:37 GMT")];
        assert_eq!(wait(&date), Some(Duration::from_secs(40)));
        let broken = [("date", "today"), date[0]];
        assert_eq!(wait(&broken), Some(Duration::from_secs(40)));
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
        for odd in ["-1", "nan", "inf", "soon", "", "Sun, 06 Nov"] {
            assert_eq!(wait(&[("retry-after", odd)]), None, "{odd:?}");
        }
    }
}
