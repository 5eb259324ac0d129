//! A sliding window: never more than the limit in any stretch of time of its length.
//!
//! The period is cut into `SLICES` slices, and one more is stored. So the sum always covers at least a whole period,
//! wherever it begins, and the limit holds in each one. That costs at most one part in `SLICES + 1` of the throughput. With
//! only `SLICES` slices, nearly twice the limit could be admitted.

use super::{Needs, Rate};

/// Parts of a period.
pub(crate) const SLICES: u32 = 12;

const KEPT: u32 = SLICES + 1;

/// How much was taken in each of the last slices.
///
/// `C` is the counter of a slice: `u32` for nearly every limit, because a key should be small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window<C> {
    taken: [C; KEPT as usize],
    /// Of that, reservations that are not settled yet.
    unsettled: [C; KEPT as usize],
    /// The number of the newest slice; slice `n` lies at `n % KEPT`.
    newest: u32,
}

/// The counter of a slice; saturates.
pub(crate) trait Count: Copy + Default + Sized {
    fn from_amount(amount: u64) -> Self;
    fn amount(self) -> u64;
    fn sum(counts: &[Self; KEPT as usize]) -> u64;
}

impl Count for u32 {
    fn sum(counts: &[Self; KEPT as usize]) -> u64 {
        counts.iter().map(|&count| u64::from(count)).sum()
    }

    fn from_amount(amount: u64) -> Self {
        Self::try_from(amount).unwrap_or(Self::MAX)
    }

    fn amount(self) -> u64 {
        self.into()
    }
}

impl Count for u64 {
    fn sum(counts: &[Self; KEPT as usize]) -> u64 {
        counts.iter().copied().fold(0, Self::saturating_add)
    }

    fn from_amount(amount: u64) -> Self {
        amount
    }

    fn amount(self) -> u64 {
        self
    }
}

impl<C: Count> Window<C> {
    pub(crate) fn new() -> Self {
        Self {
            taken: [C::default(); KEPT as usize],
            unsettled: [C::default(); KEPT as usize],
            newest: 0,
        }
    }

    /// How long until `amount` can be taken, in nanoseconds: zero if it can now.
    ///
    /// `amount` must not be over the limit, or it never can.
    pub(crate) fn wait(&mut self, rate: &Rate, amount: u64, now_nanos: u64) -> u64 {
        self.slide(rate, now_nanos);
        self.wait_for(rate, amount, now_nanos, |slot| self.taken[slot].amount())
    }

    /// The same if all unsettled reservations were refunded now.
    pub(crate) fn settled_wait(&mut self, rate: &Rate, amount: u64, now_nanos: u64) -> u64 {
        self.slide(rate, now_nanos);
        self.wait_for(rate, amount, now_nanos, |slot| {
            let unsettled = self.unsettled[slot].amount();
            self.taken[slot].amount().saturating_sub(unsettled)
        })
    }

    /// How long until `amount` can be taken if each slice counts as `counted` says.
    fn wait_for(
        &self,
        rate: &Rate,
        amount: u64,
        now_nanos: u64,
        counted: impl Fn(usize) -> u64,
    ) -> u64 {
        let sum = (0..KEPT as usize).fold(amount, |sum, slot| sum.saturating_add(counted(slot)));
        let mut over = sum.saturating_sub(rate.capacity);
        if over == 0 {
            return 0;
        }
        // The oldest slices expire first, each when the slice that replaces it begins.
        for number in self.newest.saturating_sub(SLICES)..=self.newest {
            over = over.saturating_sub(counted(index(number)));
            if over == 0 {
                let gone_at = rate.slice_nanos().saturating_mul(u64::from(number + KEPT));
                return gone_at.saturating_sub(now_nanos).max(1);
            }
        }
        u64::MAX
    }

    /// Takes `amount`, whether there is room or not. Returns the time of it, for giving it back.
    pub(crate) fn take(&mut self, rate: &Rate, amount: u64, now_nanos: u64) -> u64 {
        self.slide(rate, now_nanos);
        self.add(amount);
        now_nanos.max(self.latest_nanos(rate))
    }

    /// Takes `needs` if there is room; returns the time of it.
    pub(crate) fn try_take(&mut self, rate: &Rate, needs: Needs, now_nanos: u64) -> Option<u64> {
        if !self.has_room(rate, needs.room, now_nanos) {
            return None;
        }
        self.add(needs.amount);
        if needs.is_unsettled {
            self.add_unsettled(needs.amount);
        }
        Some(now_nanos.max(self.latest_nanos(rate)))
    }

    /// Whether `amount` can be taken now.
    pub(crate) fn has_room(&mut self, rate: &Rate, amount: u64, now_nanos: u64) -> bool {
        self.slide(rate, now_nanos);
        C::sum(&self.taken).saturating_add(amount) <= rate.capacity
    }

    fn add(&mut self, amount: u64) {
        let slot = &mut self.taken[index(self.newest)];
        *slot = C::from_amount(slot.amount().saturating_add(amount));
    }

    /// The latest time it knows: the begin of its newest slice.
    pub(crate) fn latest_nanos(&self, rate: &Rate) -> u64 {
        rate.slice_nanos().saturating_mul(u64::from(self.newest))
    }

    /// The slice of a time, if it is still counted.
    fn counted(&self, rate: &Rate, at_nanos: u64) -> Option<usize> {
        if at_nanos >= self.latest_nanos(rate) {
            return Some(index(self.newest));
        }
        let slice = slice_at(rate, at_nanos);
        (slice.saturating_add(KEPT) > self.newest).then(|| index(slice))
    }

    /// Gives back `amount` of what was taken at `taken_at`; nothing if its slice is no longer counted.
    pub(crate) fn give_back(&mut self, rate: &Rate, taken_at_nanos: u64, amount: u64) {
        if let Some(slice) = self.counted(rate, taken_at_nanos) {
            let slot = &mut self.taken[slice];
            *slot = C::from_amount(slot.amount().saturating_sub(amount));
        }
    }

    /// Notes that `amount` of what was just taken is not settled.
    pub(crate) fn add_unsettled(&mut self, amount: u64) {
        let slot = &mut self.unsettled[index(self.newest)];
        *slot = C::from_amount(slot.amount().saturating_add(amount));
    }

    /// Notes that `amount` of what was taken at `taken_at` is settled.
    pub(crate) fn remove_unsettled(&mut self, rate: &Rate, taken_at_nanos: u64, amount: u64) {
        if let Some(slice) = self.counted(rate, taken_at_nanos) {
            let slot = &mut self.unsettled[slice];
            *slot = C::from_amount(slot.amount().saturating_sub(amount));
        }
    }

    pub(crate) fn has_unsettled(&self) -> bool {
        self.unsettled.iter().any(|slice| slice.amount() > 0)
    }

    /// How much could be taken now.
    pub(crate) fn remaining(&mut self, rate: &Rate, now_nanos: u64) -> u64 {
        self.slide(rate, now_nanos);
        rate.capacity.saturating_sub(C::sum(&self.taken))
    }

    /// How long until nothing of what was taken counts any more, in nanoseconds.
    pub(crate) fn full_in(&mut self, rate: &Rate, now_nanos: u64) -> u64 {
        self.slide(rate, now_nanos);
        let oldest = self.newest.saturating_sub(SLICES);
        let last = (oldest..=self.newest)
            .rev()
            .find(|&number| self.taken[index(number)].amount() > 0);
        last.map_or(0, |number| {
            let gone_at = rate.slice_nanos().saturating_mul(u64::from(number + KEPT));
            gone_at.saturating_sub(now_nanos)
        })
    }

    fn slide(&mut self, rate: &Rate, now_nanos: u64) {
        // A time that another thread read earlier moves nothing, and most calls are in the newest slice: neither needs a
        // division.
        if now_nanos < (u64::from(self.newest) + 1).saturating_mul(rate.slice_nanos()) {
            return;
        }
        let now = slice_at(rate, now_nanos).max(self.newest);
        if now - self.newest >= KEPT {
            self.taken = [C::default(); KEPT as usize];
            self.unsettled = [C::default(); KEPT as usize];
        } else {
            for number in self.newest + 1..=now {
                self.taken[index(number)] = C::default();
                self.unsettled[index(number)] = C::default();
            }
        }
        self.newest = now;
    }
}

fn slice_at(rate: &Rate, at_nanos: u64) -> u32 {
    u32::try_from(at_nanos / rate.slice_nanos()).unwrap_or(u32::MAX - KEPT)
}

fn index(slice: u32) -> usize {
    (slice % KEPT) as usize
}
