//! What a call has reserved in its limits, from its admission to its end.

use std::{mem, sync::Arc, task::Waker};

use http::response::Parts;
use tokio::time::Instant;
use tower_llm_core::{Bill, Completion, Guard, Keyed, Outcome};

use crate::{
    Headers,
    demand::Demand,
    group::{Keys, LimitGroup, LimitedKey},
    key_state::Taken,
    output_lengths::OutputLengths,
    pricing::{Amounts, CompactEstimate, Estimate},
    provider::budget::InFlight,
    provider::headers::ProviderHeaders,
    quota_headers::Statuses,
    shared::backend::{Holding, Terms},
    shared::lease::Back,
    tier::Tier,
};

/// What a call has reserved in its limits: its guard.
///
/// It settles once: to what the call used when the call has ended, or to nothing when it is dropped before the call was
/// sent.
// Small, because it is moved several times on the way into the response.
#[derive(Debug)]
pub struct Reservation {
    keys: Keys,
    /// When it was taken: shows each limit how much of it still counts.
    at_nanos: u64,
    estimate: CompactEstimate,
    besides: Besides,
    /// Where the length of the output is observed.
    observed: Option<Arc<Keyed<OutputLengths>>>,
    tier: Tier,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Reserved,
    /// The provider has answered: it has counted the call.
    Answered,
    Settled,
}

/// What is settled besides the limits of this process.
#[derive(Debug)]
enum Besides {
    Nothing,
    /// The limits that the provider reports.
    Reported(InFlight),
    /// The leases of at most two shared limits, by their epochs.
    Leases([u64; 2]),
    Rare(Box<Rare>),
}

/// What few calls have.
#[derive(Debug, Default)]
struct Rare {
    /// An estimate that is not compact.
    estimate: Option<Estimate>,
    in_flight: Option<InFlight>,
    /// The epoch of each lease; empty if there are none.
    lease_epochs: Box<[u64]>,
    /// What the store of shared limits holds for the call.
    holding: Option<Holding>,
}

impl Reservation {
    #[inline]
    pub(crate) fn new(keys: Keys, demand: Demand, taken: Taken) -> Self {
        let besides = match taken.in_flight {
            Some(in_flight) => Besides::Reported(in_flight),
            None => Besides::Nothing,
        };
        let mut this = Self {
            keys,
            at_nanos: taken.at_nanos,
            estimate: CompactEstimate::new(&demand.estimate),
            besides,
            observed: demand.observed,
            tier: demand.tier,
            stage: Stage::Reserved,
        };
        if !this.estimate.is_exact() {
            this.rare().estimate = Some(demand.estimate);
        }
        this
    }

    /// A reservation of leases with these epochs, in the order of the keys and their limits.
    pub(crate) fn leased(keys: Keys, demand: Demand, taken: Taken, epochs: &[u64]) -> Self {
        let mut this = Self::new(keys, demand, taken);
        match (&this.besides, epochs) {
            (Besides::Nothing, &[one]) => this.besides = Besides::Leases([one, 0]),
            (Besides::Nothing, &[one, two]) => this.besides = Besides::Leases([one, two]),
            _ => this.rare().lease_epochs = epochs.into(),
        }
        this
    }

    pub(crate) fn held_by(mut self, holding: Holding) -> Self {
        self.rare().holding = Some(holding);
        self
    }

    fn rare(&mut self) -> &mut Rare {
        if !matches!(self.besides, Besides::Rare(_)) {
            let mut rare = Box::<Rare>::default();
            match mem::replace(&mut self.besides, Besides::Nothing) {
                Besides::Reported(in_flight) => rare.in_flight = Some(in_flight),
                Besides::Leases(epochs) => rare.lease_epochs = epochs.into(),
                Besides::Nothing | Besides::Rare(_) => {}
            }
            self.besides = Besides::Rare(rare);
        }
        match &mut self.besides {
            Besides::Rare(rare) => rare,
            _ => unreachable!("it was just made"),
        }
    }

    fn estimate(&self) -> Estimate {
        match &self.besides {
            Besides::Rare(rare) => rare.estimate.unwrap_or_else(|| self.estimate.expand()),
            _ => self.estimate.expand(),
        }
    }

    fn in_flight(&self) -> Option<InFlight> {
        match &self.besides {
            Besides::Reported(in_flight) => Some(*in_flight),
            Besides::Rare(rare) => rare.in_flight,
            Besides::Nothing | Besides::Leases(_) => None,
        }
    }

    fn group(&self) -> &LimitGroup {
        // Every layer has a group; what is read here is the same in all.
        &self.keys[0].group
    }

    /// The key for which the provider's limits are observed, which is always the first.
    fn observing(&self) -> Option<&LimitedKey> {
        let first = self.keys.first().map(|key| &***key);
        first.filter(|key| key.group.observes)
    }

    /// Settles what was reserved to what was used, once.
    ///
    /// `is_counted` says whether the provider has counted the call.
    fn settle(
        &mut self,
        reserved: &Amounts,
        used: &Amounts,
        is_counted: bool,
        ended_at: Option<Instant>,
    ) {
        let was = mem::replace(&mut self.stage, Stage::Settled);
        if was == Stage::Settled {
            return;
        }
        match mem::replace(&mut self.besides, Besides::Nothing) {
            Besides::Leases(epochs) => self.settle_leases(&epochs, reserved, used),
            Besides::Rare(mut rare) => {
                if let Some(holding) = rare.holding.take() {
                    let limits = self.keys.iter().flat_map(|key| &key.group.limits);
                    holding.settle(limits.map(|checked| used.of(checked.limit.unit())));
                }
                self.settle_leases(&rare.lease_epochs, reserved, used);
                self.besides = Besides::Rare(rare);
            }
            besides => self.besides = besides,
        }
        let mut in_flight = match was {
            Stage::Reserved => self.in_flight(),
            Stage::Answered | Stage::Settled => None,
        };
        for key in self.keys.iter() {
            let in_flight = in_flight.take_if(|_| key.group.observes);
            let in_flight = in_flight.map(|in_flight| (in_flight, is_counted));
            self.settle_key(key, reserved, used, in_flight, ended_at);
        }
    }

    fn settle_key(
        &self,
        key: &LimitedKey,
        reserved: &Amounts,
        used: &Amounts,
        in_flight: Option<(InFlight, bool)>,
        ended_at: Option<Instant>,
    ) {
        let group = &key.group;
        let mut units = group.limits.iter().map(|checked| checked.limit.unit());
        let is_same = |unit| reserved.of(unit) == used.of(unit);
        if group.is_exact && in_flight.is_none() && units.all(is_same) {
            return;
        }
        let now = || group.clock.nanos(ended_at.unwrap_or_else(Instant::now));
        let mut state = key.lock();
        if let Some((in_flight, is_counted)) = in_flight {
            let budget = state.budget_or_new();
            match is_counted {
                true => budget.ended(reserved),
                false => budget.never_sent(reserved, in_flight, || group.clock.now_nanos()),
            }
        }
        for (checked, gauge) in group.limits.iter().zip(state.gauges.iter_mut()) {
            let unit = checked.limit.unit();
            let (reserved, used) = (reserved.of(unit), used.of(unit));
            gauge.settle(checked, self.tier, self.at_nanos, reserved, used);
            if used > reserved {
                // Rarely needed, so the clock is rarely read.
                gauge.charge_more(checked, self.tier, used - reserved, now());
            }
        }
        // The next call may have room now, or may know that there will be none in time.
        let head = state.wake_head(|| group.clock.now_nanos());
        drop(state);
        if let Some(head) = head {
            head.wake();
        }
    }

    /// Changes what was spent of leases to what was used; the store settles what belongs to earlier leases.
    fn settle_leases(&self, epochs: &[u64], reserved: &Amounts, used: &Amounts) {
        let Some(store) = self.group().store.as_ref().filter(|_| !epochs.is_empty()) else {
            return;
        };
        let mut epochs = epochs.iter();
        let mut for_store = Vec::new();
        for key in self.keys.iter() {
            let now = key.group.clock.now_nanos();
            let limits = &key.group.limits;
            let mut state = key.lock();
            let leases = state.leases(limits.len()).iter_mut();
            for ((checked, lease), &epoch) in limits.iter().zip(leases).zip(&mut epochs) {
                let unit = checked.limit.unit();
                let (reserved, used) = (reserved.of(unit), used.of(unit));
                let (less, more) = (reserved.saturating_sub(used), used.saturating_sub(reserved));
                if less == more || lease.settle(epoch, less, more, now) {
                    continue;
                }
                let (amount, tier) = (less, self.tier);
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
            store.adjust(for_store);
        }
    }

    /// Learns what the response reports, once.
    fn answered(&mut self, response: &Parts) {
        let (Stage::Reserved, Some(in_flight)) = (self.stage, self.in_flight()) else {
            return;
        };
        self.stage = Stage::Answered;
        let Some(key) = self.observing() else { return };
        let reserved = self.estimate().reserved;
        let reported = ProviderHeaders::read(&response.headers);
        let mut state = key.lock();
        let budget = state.budget_or_new();
        if reported == ProviderHeaders::default() {
            budget.ended(&reserved);
            return;
        }
        let now = key.group.clock.now_nanos();
        budget.answered(&reserved, in_flight, &reported, now);
        // There may be room earlier than the head of the queue expects.
        let head = state.wake_head(|| now);
        drop(state);
        if let Some(head) = head {
            head.wake();
        }
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
            let now = key.group.clock.now_nanos();
            let mut state = key.lock();
            state.budget_or_new().close_until(now.saturating_add(wait));
            // Calls that can no longer be sent in time are refused at once.
            let wakers = state.wake_all(|| now);
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

impl Guard for Reservation {
    fn response_headers(&mut self, head: Option<&mut Parts>) {
        let Some(parts) = head else { return };
        self.answered(parts);
        let group = self.group();
        let headers = group.headers;
        if headers == Headers::None {
            return;
        }
        let stored = match &self.besides {
            Besides::Rare(rare) => rare.holding.as_ref().map_or(&[][..], |held| &held.stored),
            _ => &[],
        };
        // The state of shared limits is known to their store alone.
        if group.store.is_none() || !stored.is_empty() {
            Statuses::of(&self.keys, self.tier, stored).write(headers, &mut parts.headers);
        }
    }

    /// What the call uses is known when it has ended.
    fn outlived(&mut self, bill: &Bill) {
        bill.settle_later(Box::new(Self {
            keys: self.keys.clone(),
            at_nanos: self.at_nanos,
            estimate: self.estimate,
            besides: mem::replace(&mut self.besides, Besides::Nothing),
            observed: self.observed.clone(),
            tier: self.tier,
            stage: mem::replace(&mut self.stage, Stage::Settled),
        }));
    }

    fn end(&mut self, completion: &Completion) {
        self.close(completion);
        if let (Some(observed), Outcome::Success, Some(usage)) =
            (&self.observed, completion.outcome, completion.usage)
            && completion.served.is_none()
        {
            observed.record(usage.output);
        }
        let estimate = self.estimate();
        let used = self.group().pricing.settle(&estimate, completion);
        let is_counted = !matches!(
            completion.outcome,
            Outcome::Refused | Outcome::Exhausted | Outcome::Overloaded { .. }
        );
        let (reserved, ended_at) = (estimate.reserved, completion.ended_at);
        self.settle(&reserved, &used, is_counted, ended_at);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.stage != Stage::Settled {
            let reserved = self.estimate().reserved;
            self.settle(&reserved, &Amounts::NONE, false, None);
        }
    }
}
