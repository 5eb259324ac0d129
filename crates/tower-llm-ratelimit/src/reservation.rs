//! What a call has reserved in its limits, from its admission to its end.

use std::{cmp::Ordering, task::Waker};

use http::response::Parts;
use tokio::time::Instant;
use tower_llm_core::{Completion, Guard, Outcome};

use crate::{
    Headers,
    cost::Amounts,
    demand::{Charge, Demand},
    group::{CheckedLimit, Policy},
    headers::Statuses,
    key_state::{KeyState, KeyStates, State},
    lease::Back,
    provider_headers::ProviderHeaders,
    store::{Holding, Terms},
};

/// What a call has reserved in its limits: its guard.
///
/// It settles once: to what the call used when the call has ended, or to nothing when it is dropped before the call was
/// sent.
#[derive(Debug)]
pub struct Reservation {
    keys: KeyStates,
    demand: Demand,
    // `None` once it is settled.
    charge: Option<Charge>,
    /// What the store of shared limits holds for it.
    holding: Option<Box<Holding>>,
}

/// How a settlement changes what was reserved of one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    None,
    Less(u64),
    More(u64),
}

impl Reservation {
    pub(crate) fn new(keys: KeyStates, demand: Demand, charge: Charge) -> Self {
        Self {
            keys,
            demand,
            charge: Some(charge),
            holding: None,
        }
    }

    pub(crate) fn held_by(mut self, holding: Holding) -> Self {
        self.holding = Some(Box::new(holding));
        self
    }

    fn policy(&self) -> Option<&Policy> {
        // A layer without any limit has no keys, and nothing to settle.
        self.keys.first().map(|key| &*key.group.policy)
    }

    /// Settles what was reserved to what was used, once.
    fn settle(&mut self, used: &Amounts, ended_at: Option<Instant>) {
        if self.observes() {
            match *used == Amounts::NONE {
                true => self.never_sent(),
                false => self.answered(None),
            }
        }
        let Some(charge) = self.charge.take() else {
            return;
        };
        if let Some(holding) = self.holding.take() {
            let limits = self.keys.iter().flat_map(|key| &key.group.limits);
            holding.settle(limits.map(|checked| used.of(checked.limit.unit())));
        }
        if !charge.lease_epochs.is_empty() {
            self.settle_leases(&charge.lease_epochs, used);
        }
        let mut epochs = &charge.epochs[..];
        for key in &self.keys {
            let limits = &key.group.limits;
            let (of_key, others) = epochs.split_at(limits.len());
            epochs = others;
            let is_changed = |checked| self.change(checked, used) != Change::None;
            if !key.group.is_exact || limits.iter().any(is_changed) {
                self.settle_key(key, of_key, used, ended_at);
            }
        }
    }

    fn settle_key(
        &self,
        key: &KeyState,
        epochs: &[u32],
        used: &Amounts,
        ended_at: Option<Instant>,
    ) {
        let (group, tier) = (&key.group, self.demand.tier);
        let mut state = key.lock();
        let gauges = state.gauges.iter_mut();
        for ((checked, gauge), &epoch) in group.limits.iter().zip(gauges).zip(epochs) {
            let (reserved, used) = (self.demand.amount(checked), used.of(checked.limit.unit()));
            gauge.settle(checked, tier, epoch, reserved, used);
            if used > reserved {
                // Rarely needed, so the clock is rarely read.
                let now = ended_at.unwrap_or_else(Instant::now);
                gauge.charge_more(checked, tier, used - reserved, group.clock.nanos(now));
            }
        }
        // The next call may have room now, or may know that there will be none in time.
        State::wake_head(state, group.clock);
    }

    /// Changes what was spent of leases to what was used; the store settles what belongs to earlier leases.
    fn settle_leases(&self, epochs: &[u64], used: &Amounts) {
        let policy = self.policy();
        let Some(shared) = policy.and_then(|policy| policy.shared.as_ref()) else {
            return;
        };
        let mut epochs = epochs.iter();
        let mut for_store = Vec::new();
        for key in &self.keys {
            let now = key.group.clock.now_nanos();
            let limits = &key.group.limits;
            let mut state = key.lock();
            let leases = state.leases(limits.len()).iter_mut();
            for ((checked, lease), &epoch) in limits.iter().zip(leases).zip(&mut epochs) {
                let (less, more) = match self.change(checked, used) {
                    Change::None => continue,
                    Change::Less(less) => (less, 0),
                    Change::More(more) => (0, more),
                };
                if lease.settle(epoch, less, more, now) {
                    continue;
                }
                let (amount, tier) = (less, self.demand.tier);
                for_store.push(Terms {
                    claim: checked.claim(key.key(), tier, now),
                    want: 0,
                    back: Back {
                        amount,
                        epoch,
                        tier,
                    },
                    charge: more,
                });
            }
        }
        if !for_store.is_empty() {
            shared.store.adjust(for_store);
        }
    }

    /// How the use of a limit differs from the reservation.
    fn change(&self, checked: &CheckedLimit, used: &Amounts) -> Change {
        let (reserved, used) = (self.demand.amount(checked), used.of(checked.limit.unit()));
        match used.cmp(&reserved) {
            Ordering::Equal => Change::None,
            Ordering::Less => Change::Less(reserved - used),
            Ordering::Greater => Change::More(used - reserved),
        }
    }

    /// Whether it waits for the provider's report.
    fn observes(&self) -> bool {
        self.charge
            .as_ref()
            .is_some_and(|charge| charge.budget.is_some())
    }

    /// The key for which the provider's limits are observed.
    fn observing(&self) -> Option<&KeyState> {
        let keys = self.keys.iter().map(|key| &***key);
        keys.into_iter().find(|key| key.group.observes)
    }

    /// Notes that the call was answered, or ended without an answer, and what its response reports; once.
    fn answered(&mut self, head: Option<&Parts>) {
        let epoch = self.charge.as_mut().and_then(|charge| charge.budget.take());
        let (Some(key), Some(epoch)) = (self.observing(), epoch) else {
            return;
        };
        let reported = head.map_or_else(ProviderHeaders::default, |head| {
            ProviderHeaders::read(&head.headers)
        });
        let now = key.group.clock.now_nanos();
        let cost = &self.demand.estimate.reserved;
        let mut state = key.lock();
        state.budget_or_new().answered(cost, epoch, &reported, now);
        // There may be room earlier than the head of the queue expects.
        if reported != ProviderHeaders::default() {
            State::wake_head(state, key.group.clock);
        }
    }

    /// Refunds the provider's limits, unless the call was answered.
    fn never_sent(&mut self) {
        let epoch = self.charge.as_mut().and_then(|charge| charge.budget.take());
        let (Some(key), Some(epoch)) = (self.observing(), epoch) else {
            return;
        };
        let now = key.group.clock.now_nanos();
        let cost = &self.demand.estimate.reserved;
        let mut state = key.lock();
        state.budget_or_new().never_sent(cost, epoch, now);
        State::wake_head(state, key.group.clock);
    }

    fn close(&self, completion: &Completion) {
        let Outcome::Throttled {
            retry_after: Some(wait),
        } = completion.outcome
        else {
            return;
        };
        if let Some(key) = self.observing() {
            // A foreign `Watch` may name any time.
            let wait = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
            let until = key.group.clock.now_nanos().saturating_add(wait);
            let mut state = key.lock();
            state.budget_or_new().close_until(until);
            // Calls that can no longer be sent in time are refused at once.
            let wakers = state.wake_all(key.group.clock);
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

impl Guard for Reservation {
    fn response_headers(&mut self, head: Option<&mut Parts>) {
        let Some(parts) = head else { return };
        self.answered(Some(parts));
        let Some(policy) = self.policy() else { return };
        let headers = policy.headers;
        let shared = self.holding.as_deref().map_or(&[][..], |held| &held.stored);
        // The state of shared limits is known to their store alone.
        let is_known = policy.shared.is_none() || !shared.is_empty();
        if headers != Headers::None && is_known {
            Statuses::of(&self.keys, self.demand.tier, shared).write(headers, &mut parts.headers);
        }
    }

    fn end(&mut self, completion: &Completion) {
        self.close(completion);
        let Some(policy) = self.policy() else { return };
        if let (Some(observed), Outcome::Success, Some(usage)) =
            (&self.demand.observed, completion.outcome, completion.usage)
            && completion.served.is_none()
        {
            observed.record(usage.output);
        }
        let used = policy.pricing.settle(&self.demand.estimate, completion);
        self.settle(&used, completion.ended_at);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.charge.is_some() {
            self.settle(&Amounts::NONE, None);
        }
    }
}
