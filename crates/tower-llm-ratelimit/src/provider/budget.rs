//! The limits that a provider reported, and which calls they admit.

use std::time::Duration;

use crate::{
    Unit,
    meter::{Bucket, Rate, nanos},
    pricing::{Amounts, Estimate},
    provider::headers::{LimitStatus, ProviderHeaders},
};

/// A provider's limits for one key, as last reported.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProviderBudget {
    /// No call is admitted before.
    closed_until_nanos: u64,
    buckets: [Option<ReportedBudget>; 4],
    /// Everything admitted so far.
    admitted: Counter,
    /// The part of it that was answered, or ended without an answer.
    answered: Counter,
    /// The last call whose response reported something.
    last_reported: u32,
    /// When the last call was admitted.
    sent_at_nanos: u64,
    /// Whether anything was reported.
    has_reports: bool,
}

/// How long a call has to wait for what the provider reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BudgetWait {
    pub(crate) nanos: u64,
    /// The same if the calls in flight use no tokens.
    pub(crate) known_nanos: u64,
    /// Of which limit; `None` if the provider asked to wait.
    pub(crate) unit: Option<Unit>,
}

/// A sum by unit. Only differences matter, so it wraps.
#[derive(Clone, Copy, Debug, Default)]
struct Counter([u32; 4]);

/// One of the provider's limits: what remained at the last report, refilling at the reported rate.
#[derive(Clone, Copy, Debug)]
struct ReportedBudget {
    bucket: Bucket,
    rate: Rate,
    /// What stays taken if calls from before the last report turn out never to have been sent: what was reported, which
    /// cannot include them, and what was admitted since.
    floor: Bucket,
    /// The number of the first call that is part of the floor; it and all later ones can be refunded from the floor too.
    first_in_floor: u32,
}

/// A call in flight, and what the provider has certainly counted when it answers the call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlight {
    /// Its number among admitted calls.
    number: u32,
    /// What was answered before it was sent, and the call itself.
    counted: Counter,
}

/// Reports are hints that only a response can correct: after this time without a call, one is admitted to get a new report.
/// Not while the provider has asked to wait.
const ASK_AGAIN: Duration = MINUTE;

/// The period of a limit that does not report its refill rate: the most common one.
const MINUTE: Duration = Duration::from_secs(60);

impl ProviderBudget {
    /// Whether a call may be sent now.
    pub(crate) fn admits(&mut self, estimate: &Estimate, now_nanos: u64) -> bool {
        !self.has_reports || self.wait(estimate, now_nanos).is_none()
    }

    /// How long until a call may be sent; `None` if it may be sent now.
    pub(crate) fn wait(&mut self, estimate: &Estimate, now_nanos: u64) -> Option<BudgetWait> {
        let asks_again_at = self.sent_at_nanos.saturating_add(nanos(ASK_AGAIN));
        let asks_again_in = asks_again_at.saturating_sub(now_nanos);
        let closed_for = self.closed_until_nanos.saturating_sub(now_nanos);
        let mut longest = BudgetWait {
            nanos: closed_for,
            known_nanos: closed_for,
            unit: None,
        };
        let unanswered = self.admitted.since(&self.answered);
        for unit in Unit::REPORTED {
            if let Some(ReportedBudget { bucket, rate, .. }) = &mut self.buckets[unit.index()]
                && let Some(needed) = estimate.needed(unit)
            {
                // A call that is larger than the limit may be refused by the provider: what it reported is a hint.
                let amount = needed.min(rate.capacity);
                let wait = bucket.wait(rate, amount, now_nanos).min(asks_again_in);
                let refundable = match unit.is_exact() {
                    true => 0,
                    false => unanswered[unit.index()],
                };
                let known = bucket.wait_without(rate, amount, refundable, now_nanos);
                longest.known_nanos = longest.known_nanos.max(known.min(asks_again_in));
                if wait > longest.nanos {
                    (longest.nanos, longest.unit) = (wait, Some(unit));
                }
            }
        }
        (longest.nanos > 0).then_some(longest)
    }

    /// Counts a call that is sent.
    pub(crate) fn take(&mut self, cost: &Amounts, now_nanos: u64) -> InFlight {
        self.admitted.add(cost);
        self.sent_at_nanos = now_nanos;
        let number = self.admitted.number();
        if self.has_reports {
            for unit in Unit::REPORTED {
                if let Some(reported) = &mut self.buckets[unit.index()] {
                    reported.take(cost.of(unit), number, now_nanos);
                }
            }
        }
        let mut counted = self.answered;
        counted.add(cost);
        InFlight { number, counted }
    }

    /// Refunds a call of `cost` that was never sent, but nothing of what the provider reported as used meanwhile, because
    /// it cannot have counted this call.
    pub(crate) fn never_sent(
        &mut self,
        cost: &Amounts,
        call: InFlight,
        now_nanos: impl FnOnce() -> u64,
    ) {
        self.answered.add(cost);
        if self.has_reports {
            let now_nanos = now_nanos();
            for unit in Unit::REPORTED {
                if let Some(reported) = &mut self.buckets[unit.index()] {
                    reported.never_sent(cost.of(unit), call.number, now_nanos);
                }
            }
        }
    }

    /// Notes that the call of `cost` has ended, without a report.
    pub(crate) fn ended(&mut self, cost: &Amounts) {
        self.answered.add(cost);
    }

    /// Notes that the call of `cost` was answered, and applies what its response reported.
    ///
    /// The report may or may not include other calls in flight. So it gives two bounds of what remains: the reported
    /// amount, and that less all calls in flight. Within these bounds the local count is kept; before there is one, no call
    /// in flight is assumed to be included. The report of a call that was sent before an already reported one does not
    /// raise what remains, because other users of the account may have used it in between.
    pub(crate) fn answered(
        &mut self,
        cost: &Amounts,
        call: InFlight,
        reported: &ProviderHeaders,
        now_nanos: u64,
    ) {
        self.ended(cost);
        let not_in_it = self.admitted.since(&call.counted);
        let is_later = !is_before(call.number, self.last_reported);
        if is_later && *reported != ProviderHeaders::default() {
            self.last_reported = call.number;
        }
        for (unit, status) in reported.by_unit() {
            let Some(status) = status else { continue };
            let before = self.buckets[unit.index()];
            let rate = status.rate(before.map(|reported| reported.rate));
            let least = status.limit.saturating_sub(status.remaining);
            let most = least.saturating_add(not_in_it[unit.index()]);
            // Bounds it, however much is in flight and whatever size it reports.
            let at_most = status.limit.saturating_mul(2);
            let most = most.min(at_most);
            let (of_bucket, of_floor) = match (before, is_later) {
                (None, _) => (most..=most, least..=least),
                (Some(_), true) => (least..=most, least..=least),
                (Some(_), false) => (least..=at_most, least..=at_most),
            };
            let reported = before.unwrap_or_else(|| ReportedBudget::new(rate));
            let refilled =
                |bucket: Bucket, taken| bucket.refilled_by(&reported.rate, &rate, taken, now_nanos);
            self.has_reports = true;
            self.buckets[unit.index()] = Some(ReportedBudget {
                bucket: refilled(reported.bucket, of_bucket),
                rate,
                floor: refilled(reported.floor, of_floor),
                // A report from an earlier call keeps in the floor what was admitted before it arrived, because how much of
                // that it includes is not known. The report of a later call corrects it.
                first_in_floor: self.admitted.number().wrapping_add(1),
            });
        }
    }

    /// Admits nothing before `nanos`; the later of two such times wins.
    pub(crate) fn close_until(&mut self, nanos: u64) {
        self.has_reports = true;
        self.closed_until_nanos = self.closed_until_nanos.max(nanos);
    }

    /// Whether everything that was reported has expired.
    pub(crate) fn is_over(&mut self, now_nanos: u64) -> bool {
        self.closed_until_nanos <= now_nanos
            && self.buckets.iter_mut().flatten().all(|reported| {
                let ReportedBudget { bucket, rate, .. } = reported;
                bucket.is_empty(rate, now_nanos)
            })
    }
}

// === impl ReportedBudget ===

impl ReportedBudget {
    fn new(rate: Rate) -> Self {
        Self {
            bucket: Bucket::default(),
            rate,
            floor: Bucket::default(),
            first_in_floor: 0,
        }
    }

    fn take(&mut self, cost: u64, number: u32, now_nanos: u64) {
        // At most the capacity: one call of an absurd size must not block all others.
        let amount = cost.min(self.rate.capacity);
        // What earlier calls took has leaked: they can no longer be refunded from the floor.
        if self.floor.is_empty(&self.rate, now_nanos) {
            self.first_in_floor = number;
        }
        self.floor.take(&self.rate, amount, now_nanos);
        self.bucket.take(&self.rate, amount, now_nanos);
    }

    /// Refunds what a call took, down to the floor; a call that is part of the floor lowers the floor as well.
    fn never_sent(&mut self, cost: u64, number: u32, now_nanos: u64) {
        let amount = cost.min(self.rate.capacity);
        let in_floor = match is_before(number, self.first_in_floor) {
            true => 0,
            false => amount,
        };
        for (bucket, amount) in [(&mut self.bucket, amount), (&mut self.floor, in_floor)] {
            bucket.refund(&self.rate, amount, now_nanos);
        }
        self.bucket.raise_to(self.floor);
    }
}

// === impl Counter ===

impl Counter {
    /// The number of the last call that was counted.
    fn number(&self) -> u32 {
        self.0[Unit::Requests.index()]
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower half is what is meant"
    )]
    fn add(&mut self, cost: &Amounts) {
        for (sum, unit) in self.0.iter_mut().zip(Unit::REPORTED) {
            *sum = sum.wrapping_add(cost.of(unit) as u32);
        }
    }

    fn since(&self, before: &Self) -> [u64; 4] {
        std::array::from_fn(|unit| self.0[unit].wrapping_sub(before.0[unit]).into())
    }
}

/// Whether a call has a lower number than another. Numbers wrap around: of two that are more than half the range apart, the
/// higher one counts as the lower.
fn is_before(number: u32, other: u32) -> bool {
    number.wrapping_sub(other) > u32::MAX / 2
}

impl LimitStatus {
    /// The refill rate. A full limit does not show it: then the earlier rate, or its period.
    fn rate(&self, before: Option<Rate>) -> Rate {
        let missing = self.limit.saturating_sub(self.remaining);
        match self.full_in {
            Some(full_in) if missing > 0 && !full_in.is_zero() => {
                Rate::new(missing, self.limit, full_in)
            }
            _ => match before {
                Some(before) if before.capacity == self.limit => before,
                _ => Rate::new(self.limit, self.limit, self.period.unwrap_or(MINUTE)),
            },
        }
    }
}

impl ProviderHeaders {
    fn by_unit(&self) -> [(Unit, Option<LimitStatus>); 4] {
        [
            (Unit::Requests, self.requests),
            (Unit::InputTokens, self.input_tokens),
            (Unit::OutputTokens, self.output_tokens),
            (Unit::Tokens, self.tokens),
        ]
    }
}

#[cfg(test)]
mod tests;
