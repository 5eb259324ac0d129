//! Response headers that state the limits.

use std::{fmt::Write as _, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{Unit, group::Keys, shared::backend::StoredStatus, tier::Tier};

/// Which response headers state the limits.
///
/// They state the limits at the time of the response headers: the call's reservation is deducted, and is refunded later if
/// the call does not use it. They replace headers of the same name that the provider sent. Responses that
/// [`RefusalLayer`](tower_llm_core::RefusalLayer) makes of refusals have them too, unless the limits are shared by several
/// processes, or the call was larger than a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Headers {
    /// None are added; the provider's headers pass.
    #[default]
    None,
    /// `x-ratelimit-limit-requests`, `-remaining-requests`, `-reset-requests` and the same for `tokens`, as from `OpenAI`.
    /// Of several limits, they state the one of which the least remains. The reset is the duration until the full amount
    /// remains again, such as `6m0s`. Limits of [cost](crate::Limit::cost) are left out.
    OpenAi,
    /// `RateLimit-Policy` and `RateLimit` of the IETF's draft (`draft-ietf-httpapi-ratelimit-headers-11`), one item for
    /// each limit. The draft defines no unit for tokens or cost: these are named `tokens` and `cost`.
    Ietf,
}

/// The state of each limit of a call.
#[derive(Debug)]
pub(crate) struct Statuses(Vec<LimitStatus>);

#[derive(Debug)]
struct LimitStatus {
    unit: Unit,
    period: Duration,
    amount: u64,
    remaining: u64,
    full_in: Duration,
}

impl Statuses {
    /// As known to this process, or as `shared` reports.
    pub(crate) fn of(keys: &Keys, tier: Tier, shared: &[StoredStatus]) -> Self {
        let mut statuses = Vec::new();
        for key in keys.iter() {
            let group = &key.group;
            let now = group.clock.now_nanos();
            let mut state = key.lock();
            for (checked, gauge) in group.limits.iter().zip(state.gauges.iter_mut()) {
                let (rate, now) = (checked.own_rate(tier), checked.now(now));
                statuses.push(LimitStatus {
                    unit: checked.limit.unit(),
                    period: checked.limit.period(),
                    amount: checked.rate(tier).amount,
                    remaining: gauge.meter.remaining(rate, now),
                    full_in: Duration::from_nanos(gauge.meter.full_in(rate, now)),
                });
            }
        }
        for (status, shared) in statuses.iter_mut().zip(shared) {
            status.remaining = shared.remaining;
            status.full_in = shared.full_in;
        }
        Self(statuses)
    }

    pub(crate) fn write(&self, form: Headers, headers: &mut HeaderMap) {
        match form {
            Headers::None => {}
            Headers::OpenAi => self.write_openai(headers),
            Headers::Ietf => self.write_ietf(headers),
        }
    }

    fn write_openai(&self, headers: &mut HeaderMap) {
        let families = [
            (REQUESTS, &[Unit::Requests][..]),
            (
                TOKENS,
                &[Unit::Tokens, Unit::InputTokens, Unit::OutputTokens],
            ),
        ];
        for ([limit, remaining, reset], units) in families {
            let of_family = self.0.iter().filter(|one| units.contains(&one.unit));
            if let Some(least) = of_family.min_by_key(|one| one.remaining) {
                headers.insert(limit, least.amount.into());
                headers.insert(remaining, least.remaining.into());
                insert(headers, reset, &go_duration(least.full_in));
            }
        }
    }

    fn write_ietf(&self, headers: &mut HeaderMap) {
        let (mut policies, mut statuses) = (String::new(), String::new());
        for (index, one) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            let name = one.name(index);
            let (amount, remaining) = (integer(one.amount), integer(one.remaining));
            let (window, reset) = (seconds(one.period), seconds(one.full_in));
            // Writing into a string cannot fail.
            let _ = write!(policies, "{comma}\"{name}\";q={amount};w={window}");
            match one.unit {
                Unit::Requests => {}
                Unit::Cost => policies.push_str(";qu=\"cost\""),
                Unit::InputTokens | Unit::OutputTokens | Unit::Tokens => {
                    policies.push_str(";qu=\"tokens\"");
                }
            }
            let _ = write!(statuses, "{comma}\"{name}\";r={remaining};t={reset}");
        }
        if !self.0.is_empty() {
            insert(headers, POLICY, &policies);
            insert(headers, RATELIMIT, &statuses);
        }
    }
}

impl LimitStatus {
    /// A name that no other limit of the layer has.
    fn name(&self, index: usize) -> String {
        let unit = match self.unit {
            Unit::Requests => "requests",
            Unit::InputTokens => "input-tokens",
            Unit::OutputTokens => "output-tokens",
            Unit::Tokens => "tokens",
            Unit::Cost => "cost",
        };
        format!("{unit}-{index}")
    }
}

const REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    let value = HeaderValue::from_str(value).expect("digits, letters and quotes");
    headers.insert(name, value);
}

/// Limits a number to the maximum in a structured field (RFC 9651, 3.3.1).
fn integer(amount: u64) -> u64 {
    amount.min(999_999_999_999_999)
}

/// Rounded up.
fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// As Go writes durations, in milliseconds rounded up: `0s`, `12ms`, `1.5s`, `6m0s`, `1h0m0.25s`.
fn go_duration(duration: Duration) -> String {
    let millis = duration.as_nanos().div_ceil(1_000_000);
    if millis > 0 && millis < 1_000 {
        return format!("{millis}ms");
    }
    let (seconds, fraction) = (millis / 1_000, millis % 1_000);
    let mut text = String::new();
    if seconds >= 3_600 {
        let _ = write!(text, "{}h", seconds / 3_600);
    }
    if seconds >= 60 {
        let _ = write!(text, "{}m", seconds / 60 % 60);
    }
    let _ = write!(text, "{}", seconds % 60);
    if fraction > 0 {
        let digits = format!("{fraction:03}");
        let _ = write!(text, ".{}", digits.trim_end_matches('0'));
    }
    text.push('s');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_does() {
        let cases = [
            (0, "0s"),
            (1, "1ms"),
            (999_000_000, "999ms"),
            (999_000_001, "1s"),
            (1_500_000_000, "1.5s"),
            (59_999_999_999, "1m0s"),
            (360_000_000_000, "6m0s"),
            (3_600_250_000_000, "1h0m0.25s"),
            (93_784_000_000_000, "26h3m4s"),
        ];
        for (nanos, text) in cases {
            assert_eq!(go_duration(Duration::from_nanos(nanos)), text);
        }
    }
}
