//! The limits in a provider's response headers.
//!
//! A name consists of a prefix, a field and a family. The family is what is counted, in which scope and over which period:
//!
//! | provider | example | its reset |
//! |---|---|---|
//! | OpenAI, Groq | `x-ratelimit-reset-tokens`, `x-ratelimit-reset-project-tokens` | Go duration: `1h16m0.667s` |
//! | Azure, GitHub Models | the same, and `x-ratelimit-renewalperiod-tokens` | seconds: `24` |
//! | Cerebras | `x-ratelimit-reset-tokens-minute` | seconds: `11.382867` |
//! | Mistral | `x-ratelimit-limit-req-minute` | none |
//! | Anthropic | `anthropic-ratelimit-input-tokens-reset` | RFC 3339 |
//!
//! Not read, because they do not bound the next ordinary call: Anthropic's `anthropic-priority-*` (capacity bought in
//! advance; calls beyond it use the standard tier), `anthropic-fast-*` (only calls in fast mode),
//! `anthropic-ratelimit-unified-*` (ratios, not amounts), and the bare `x-ratelimit-limit` of gateways (which does not say
//! what it counts).
//!
//! The headers are foreign input: whatever is not understood is ignored, and accepted values are bounded.

use std::{
    cell::LazyCell,
    cmp::{self, Reverse},
    time::{Duration, UNIX_EPOCH},
};

use http::{HeaderMap, HeaderValue, header};
use jiff::Timestamp;

/// Longest time that is accepted: a month, after which every quota has been refilled.
///
/// Added to the current time, it cannot overflow.
const MAX_WAIT: Duration = Duration::from_secs(31 * 86_400);

/// A larger bare number is a time in seconds since the Unix epoch: as a time it is in 2001, as a wait it is 31 years.
const MAX_BARE_WAIT: Duration = Duration::from_secs(1_000_000_000);

/// Maximum number of families read from one response: twice the four of Anthropic, the most that a known provider sends.
const MAX_FAMILIES: usize = 8;

const SECOND_NANOS: u64 = 1_000_000_000;

/// The limits that a provider reports in response headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProviderHeaders {
    pub(crate) requests: Option<LimitStatus>,
    /// Tokens of either kind; with Anthropic, the currently most restrictive limit.
    pub(crate) tokens: Option<LimitStatus>,
    pub(crate) input_tokens: Option<LimitStatus>,
    pub(crate) output_tokens: Option<LimitStatus>,
}

/// The status of one limit when the response was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LimitStatus {
    /// Never zero.
    pub(crate) limit: u64,
    /// At most `limit`; Anthropic rounds tokens to the nearest thousand.
    pub(crate) remaining: u64,
    /// Time until all of `limit` remains again, at most 31 days; `None` if it is not reported.
    pub(crate) full_in: Option<Duration>,
    /// What `limit` is counted over, more than zero and at most 31 days; `None` if it is not reported.
    ///
    /// Groq's requests are counted by the day under the names that OpenAI uses for the minute, so no name without a
    /// period is given one.
    pub(crate) period: Option<Duration>,
}

impl ProviderHeaders {
    /// Reads the headers in one pass, without allocating.
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        let mut families = [None; MAX_FAMILIES];
        for (name, value) in headers {
            if let Some((family, field)) = split(name.as_str())
                && let Some(family) = find(&mut families, family)
            {
                family.keep(field, value);
            }
        }
        // Read lazily and once: most providers send a duration, not a time.
        let date = LazyCell::new(|| moment(text(headers.get(header::DATE)?)?));
        let mut reported = Self::default();
        for family in families.iter().flatten() {
            if let Some(status) = family.status(|| *date) {
                let known = reported.of(family.counts);
                *known = Some(known.map_or(status, |known| known.tighter(status)));
            }
        }
        reported
    }

    fn of(&mut self, counts: Counts) -> &mut Option<LimitStatus> {
        match counts {
            Counts::Requests => &mut self.requests,
            Counts::Tokens => &mut self.tokens,
            Counts::InputTokens => &mut self.input_tokens,
            Counts::OutputTokens => &mut self.output_tokens,
        }
    }
}

impl LimitStatus {
    /// The one of two limits on the same unit that the next calls reach first.
    ///
    /// That is the one with the smaller amount remaining, whatever its ratio to its own limit. Of equal amounts, it is the
    /// one that is full again later. The result is one of the two as a whole, because a limit and an amount of different
    /// scopes do not belong together.
    fn tighter(self, other: Self) -> Self {
        cmp::min_by_key(self, other, |status| {
            (status.remaining, Reverse(status.full_in))
        })
    }
}

/// What a family counts.
#[derive(Clone, Copy, Debug)]
enum Counts {
    Requests,
    Tokens,
    InputTokens,
    OutputTokens,
}

/// A family's prefix and name.
///
/// The prefix distinguishes a gateway's own headers from those that it passes on.
type FamilyName<'a> = (&'static str, &'a str);

/// The raw headers of one limit.
#[derive(Clone, Copy, Debug)]
struct Family<'a> {
    name: FamilyName<'a>,
    counts: Counts,
    period: Option<Duration>,
    limit: Option<&'a HeaderValue>,
    remaining: Option<&'a HeaderValue>,
    reset: Option<&'a HeaderValue>,
    renewal_period: Option<&'a HeaderValue>,
}

impl<'a> Family<'a> {
    /// Returns `None` if the name is unknown.
    fn named(name: FamilyName<'a>) -> Option<Self> {
        let (scoped, period) = match name.1.rsplit_once('-') {
            Some((scoped, "second")) => (scoped, Some(1)),
            Some((scoped, "minute")) => (scoped, Some(60)),
            Some((scoped, "hour")) => (scoped, Some(3_600)),
            Some((scoped, "day")) => (scoped, Some(86_400)),
            _ => (name.1, None),
        };
        let counts = match scoped.strip_prefix("project-").unwrap_or(scoped) {
            "requests" | "req" => Counts::Requests,
            "tokens" | "tokens_usage_based" => Counts::Tokens,
            "input-tokens" => Counts::InputTokens,
            "output-tokens" => Counts::OutputTokens,
            _ => return None,
        };
        Some(Self {
            name,
            counts,
            period: period.map(Duration::from_secs),
            limit: None,
            remaining: None,
            reset: None,
            renewal_period: None,
        })
    }

    /// Stores the value of a header if it is the first of its name.
    fn keep(&mut self, field: &str, value: &'a HeaderValue) {
        let kept = match field {
            "limit" => &mut self.limit,
            "remaining" => &mut self.remaining,
            "reset" => &mut self.reset,
            "renewalperiod" => &mut self.renewal_period,
            _ => return,
        };
        kept.get_or_insert(value);
    }

    /// The status of the limit; `None` unless both the limit and the remaining amount are known.
    ///
    /// Azure has sent -1 of -1, which is neither. A remaining amount without a limit means nothing.
    fn status(&self, date: impl Fn() -> Option<Duration>) -> Option<LimitStatus> {
        let limit = amount(self.limit?).filter(|&limit| limit > 0)?;
        let remaining = amount(self.remaining?)?.min(limit);
        let renewal_period = self.renewal_period.and_then(period);
        Some(LimitStatus {
            limit,
            remaining,
            full_in: self.reset.and_then(|reset| wait(reset, date)),
            period: renewal_period.or(self.period),
        })
    }
}

/// Splits a header's name into its family and its field; `None` for other headers.
fn split(name: &str) -> Option<(FamilyName<'_>, &str)> {
    const COMMON: &str = "x-ratelimit-";
    const ANTHROPIC: &str = "anthropic-ratelimit-";
    if let Some(rest) = name.strip_prefix(COMMON) {
        let (field, family) = rest.split_once('-')?;
        return Some(((COMMON, family), field));
    }
    let (family, field) = name.strip_prefix(ANTHROPIC)?.rsplit_once('-')?;
    Some(((ANTHROPIC, family), field))
}

/// Finds or creates the family of that name; `None` if it is unknown or there are too many.
fn find<'f, 'a>(
    families: &'f mut [Option<Family<'a>>],
    name: FamilyName<'a>,
) -> Option<&'f mut Family<'a>> {
    let family = families
        .iter_mut()
        .find(|family| family.as_ref().is_none_or(|family| family.name == name))?;
    if family.is_none() {
        *family = Family::named(name);
    }
    family.as_mut()
}

/// A value as text; UTF-8 and not ASCII, because Go writes microseconds as `µs`.
fn text(value: &HeaderValue) -> Option<&str> {
    std::str::from_utf8(value.as_bytes().trim_ascii()).ok()
}

fn amount(value: &HeaderValue) -> Option<u64> {
    text(value)?.parse().ok()
}

fn period(value: &HeaderValue) -> Option<Duration> {
    let period = duration(text(value)?)?;
    (!period.is_zero()).then(|| period.min(MAX_WAIT))
}

/// The time until a reset, in any format.
///
/// A point in time is compared with `date`, the response's own, so the local clock does not matter.
fn wait(value: &HeaderValue, date: impl Fn() -> Option<Duration>) -> Option<Duration> {
    let value = text(value)?;
    let at = match duration(value) {
        Some(unix) if unix > MAX_BARE_WAIT && is_bare(value) => unix,
        Some(wait) => return Some(wait.min(MAX_WAIT)),
        None => moment(value)?,
    };
    Some(at.saturating_sub(date()?).min(MAX_WAIT))
}

/// A point in time in RFC 3339 or as an HTTP date, as the time since the Unix epoch; zero if it is before that.
fn moment(text: &str) -> Option<Duration> {
    // Checked first, because jiff allocates an error for anything else.
    if text.as_bytes().get(4) == Some(&b'-') {
        let since_epoch = text.parse::<Timestamp>().ok()?.as_duration();
        return Some(since_epoch.try_into().unwrap_or_default());
    }
    let at = httpdate::parse_http_date(text).ok()?;
    at.duration_since(UNIX_EPOCH).ok()
}

/// A Go duration, or a bare number of seconds; `None` if it is over the 584 years that a `u64` holds in nanoseconds.
fn duration(text: &str) -> Option<Duration> {
    if is_bare(text) {
        return nanos(text, SECOND_NANOS).map(Duration::from_nanos);
    }
    let (mut total, mut rest) = (0_u64, text);
    while !rest.is_empty() {
        let (number, tail) = split_where(rest, |byte| !is_numeric(byte));
        let (unit, tail) = split_where(tail, is_numeric);
        total = total.checked_add(nanos(number, unit_nanos(unit)?)?)?;
        rest = tail;
    }
    Some(Duration::from_nanos(total))
}

fn unit_nanos(unit: &str) -> Option<u64> {
    Some(match unit {
        "h" => 3_600 * SECOND_NANOS,
        "m" => 60 * SECOND_NANOS,
        "s" => SECOND_NANOS,
        "ms" => 1_000_000,
        // U+00B5, which Go writes, and U+03BC, which it also reads.
        "us" | "µs" | "μs" => 1_000,
        "ns" => 1,
        _ => return None,
    })
}

/// `number` units of `unit` nanoseconds, rounded down; exact, unlike a float.
fn nanos(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let mut total = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    let mut place = unit;
    for digit in fraction.chars() {
        place /= 10;
        total = total.checked_add(u64::from(digit.to_digit(10)?) * place)?;
    }
    Some(total)
}

fn is_bare(text: &str) -> bool {
    text.bytes().all(is_numeric)
}

fn is_numeric(byte: u8) -> bool {
    byte.is_ascii_digit() || byte == b'.'
}

/// Splits before the first byte for which `stop` is true.
fn split_where(text: &str, stop: impl Fn(u8) -> bool) -> (&str, &str) {
    let at = text.bytes().position(stop).unwrap_or(text.len());
    text.split_at(at)
}

#[cfg(test)]
mod tests;
