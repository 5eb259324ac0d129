//! The provider's errors, and the verdict on them.
//!
//! An error inside a response gets the verdict that the same error would get as an HTTP status: one function judges both.

use std::time::Duration;

use super::{error_names::ErrorKind, retry_hint::RetryHint};
use crate::{Failure, Outcome, Subject};

/// An error as described by its body, or by an event inside a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ProviderError {
    kind: ErrorKind,
    /// A number in it, if that is an HTTP error status.
    status: Option<u16>,
    retry_after: Option<Duration>,
    /// The quota of one model is used up, or that of a day.
    names_model: bool,
    is_daily: bool,
}

impl ProviderError {
    /// Adds a code, type or status.
    pub(super) fn name(&mut self, name: &[u8]) {
        match std::str::from_utf8(name)
            .ok()
            .and_then(|name| name.parse().ok())
        {
            Some(number) => self.number(number),
            None => self.add(ErrorKind::of_name(name)),
        }
    }

    /// Adds a text that may be a name or a message.
    pub(super) fn text(&mut self, text: &[u8]) {
        self.add(ErrorKind::of_text(text));
    }

    /// Adds a code in digits.
    pub(super) fn number(&mut self, number: u64) {
        match u16::try_from(number) {
            Ok(status @ 400..=599) => self.status = Some(status),
            _ => self.add(ErrorKind::of_number(number)),
        }
    }

    /// Adds the meaning of a number to a provider with error numbers of its own.
    pub(super) fn add(&mut self, kind: ErrorKind) {
        self.kind = self.kind.max(kind);
    }

    /// Adds a wait from a member of its own.
    pub(super) fn delay(&mut self, delay: Option<Duration>) {
        self.retry_after = delay;
    }

    /// The quota that is used up is one of a model.
    pub(super) fn of_model(&mut self) {
        self.names_model = true;
    }

    /// The quota that is used up is one of a day.
    pub(super) fn of_day(&mut self) {
        self.is_daily = true;
        self.add(ErrorKind::Exhausted);
    }

    /// Whether a number or a name alone shows that this is an error.
    pub(super) fn is_certain(&self) -> bool {
        self.status.is_some() || self.kind != ErrorKind::Unknown
    }

    /// Both together.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            kind: self.kind.max(other.kind),
            status: self.status.or(other.status),
            retry_after: self.retry_after.or(other.retry_after),
            names_model: self.names_model || other.names_model,
            is_daily: self.is_daily || other.is_daily,
        }
    }

    /// The verdict on an error inside a response that began as a success.
    pub(super) fn in_band(&self, hint: &RetryHint) -> Verdict {
        self.verdict(None, None, hint)
    }

    /// The verdict on a response with an error status and this body. `retry_after` is the wait that its headers name.
    pub(super) fn with_status(
        &self,
        status: u16,
        retry_after: Option<Duration>,
        hint: &RetryHint,
    ) -> Verdict {
        self.verdict(Some(status), retry_after, hint)
    }

    fn verdict(
        &self,
        status: Option<u16>,
        header_wait: Option<Duration>,
        hint: &RetryHint,
    ) -> Verdict {
        let failed = Outcome::Failed(match status {
            Some(_) => Failure::Status,
            None => Failure::InBand,
        });
        let retry_after = header_wait.or(self.retry_after).or_else(|| hint.wait());
        let status = status.or(self.status);
        let outcome = match (status.unwrap_or_default(), self.kind) {
            (402, _) | (_, ErrorKind::Exhausted) => self.exhausted(header_wait, retry_after),
            (0 | 429 | 500.., ErrorKind::Overloaded) | (498 | 529, _) => {
                Outcome::Overloaded { retry_after }
            }
            (429, _) | (0, ErrorKind::Throttled) => Outcome::Throttled { retry_after },
            // Azure's API management answers 403 when a quota is exceeded, and names the time of its refill.
            (403, _) if header_wait.is_some() => Outcome::Throttled { retry_after },
            (503, ErrorKind::Throttled) => Outcome::Overloaded { retry_after },
            (503, _) if retry_after.is_some() => Outcome::Overloaded { retry_after },
            (0, ErrorKind::ClientError | ErrorKind::Credential) => Outcome::ClientError,
            // A request that took too long is not at fault: 408, and Bedrock's 424.
            (0 | 408 | 424 | 500.., _) => failed,
            _ => Outcome::ClientError,
        };
        Verdict {
            outcome,
            subject: self.subject(outcome, status),
        }
    }

    /// The outcome of an error such as `insufficient_quota`. If the provider names a wait, it counts as throttling: a quota
    /// that returns in a second is not a lack of money.
    ///
    /// Only a daily quota stays used up whatever delay the body names: Gemini names one of seconds.
    fn exhausted(&self, header_wait: Option<Duration>, retry_after: Option<Duration>) -> Outcome {
        let clock = if self.is_daily {
            header_wait
        } else {
            retry_after
        };
        match clock {
            Some(wait) if !wait.is_zero() => Outcome::Throttled { retry_after: clock },
            _ => Outcome::Exhausted,
        }
    }

    fn subject(&self, outcome: Outcome, status: Option<u16>) -> Option<Subject> {
        match outcome {
            Outcome::Exhausted | Outcome::Throttled { .. } if self.names_model => {
                Some(Subject::Model)
            }
            Outcome::Exhausted => Some(Subject::Account),
            Outcome::ClientError if status == Some(401) || self.kind == ErrorKind::Credential => {
                Some(Subject::Credential)
            }
            _ => None,
        }
    }
}

/// What an error means, and what it concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) outcome: Outcome,
    pub(super) subject: Option<Subject>,
}

impl From<Outcome> for Verdict {
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            subject: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: &[&str]) -> ProviderError {
        let mut error = ProviderError::default();
        for name in names {
            error.name(name.as_bytes());
        }
        error
    }

    #[test]
    fn an_error_in_band_is_judged_as_its_status_would_be() {
        let hint = RetryHint::default();
        for status in (400..600).filter(|status| *status != 402) {
            let error = named(&[&status.to_string()]);
            let in_band = error.in_band(&hint);
            let as_status = ProviderError::default().with_status(status, None, &hint);
            match as_status.outcome {
                Outcome::Failed(Failure::Status) => {
                    assert_eq!(
                        in_band.outcome,
                        Outcome::Failed(Failure::InBand),
                        "{status}"
                    );
                }
                _ => assert_eq!(in_band, as_status, "{status}"),
            }
        }
    }

    #[test]
    fn the_providers_clock_beats_a_frightening_name() {
        let hint = RetryHint::default();
        let second = Some(Duration::from_secs(1));
        let money = named(&["insufficient_quota"]);
        let throttled = Outcome::Throttled {
            retry_after: second,
        };
        assert_eq!(money.with_status(429, second, &hint).outcome, throttled);
        assert_eq!(money.with_status(402, second, &hint).outcome, throttled);
        assert_eq!(
            money.with_status(429, None, &hint).outcome,
            Outcome::Exhausted
        );
        let zero = Some(Duration::ZERO);
        assert_eq!(
            money.with_status(429, zero, &hint).outcome,
            Outcome::Exhausted
        );
        let mut text = RetryHint::default();
        text.feed(b"You are out of quota, try again in 1s");
        assert_eq!(money.in_band(&text).outcome, throttled);
    }

    #[test]
    fn a_daily_quota_is_used_up_whatever_delay_its_body_names() {
        let hint = RetryHint::default();
        let mut daily = ProviderError::default();
        daily.delay(Some(Duration::from_secs(36)));
        daily.of_day();
        daily.of_model();
        let verdict = daily.with_status(429, None, &hint);
        assert_eq!(verdict.outcome, Outcome::Exhausted);
        assert_eq!(verdict.subject, Some(Subject::Model));
        let header_wait = Some(Duration::from_secs(2));
        let throttled = Outcome::Throttled {
            retry_after: header_wait,
        };
        assert_eq!(
            daily.with_status(429, header_wait, &hint).outcome,
            throttled
        );
    }

    #[test]
    fn an_error_closes_what_it_names() {
        let hint = RetryHint::default();
        let subject = |error: ProviderError, status| error.with_status(status, None, &hint).subject;
        assert_eq!(
            subject(named(&["insufficient_quota"]), 429),
            Some(Subject::Account)
        );
        assert_eq!(
            subject(ProviderError::default(), 401),
            Some(Subject::Credential)
        );
        assert_eq!(
            subject(named(&["API_KEY_INVALID"]), 400),
            Some(Subject::Credential)
        );
        assert_eq!(subject(named(&["permission_error"]), 403), None);
        assert_eq!(subject(named(&["context_length_exceeded"]), 400), None);
    }
}
