//! A lease: a part of a limit that the store grants this process for a short time, to spend by itself.
//!
//! The store charges a lease when it grants it, as if all of it were spent at the end of the lease. So the limit holds over
//! all processes, however much is spent and when. What is left goes back.

use crate::tier::Tier;

/// What is left of a lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lease {
    left: u64,
    /// The epoch in which the store charged it.
    epoch: u64,
    until_nanos: u64,
    /// The tier whose rate it was granted at.
    tier: Tier,
    /// Until when a call is expected to renew it.
    renewing_until_nanos: u64,
}

/// A lease as the store granted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) amount: u64,
    pub(crate) epoch: u64,
}

/// What goes back to the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Back {
    pub(crate) amount: u64,
    pub(crate) epoch: u64,
    pub(crate) tier: Tier,
}

impl Lease {
    /// Whether `amount` can be spent now.
    pub(crate) fn has(&self, amount: u64, now_nanos: u64) -> bool {
        now_nanos < self.until_nanos && amount <= self.left
    }

    /// Spends `amount`, which must be left. Returns the epoch, for giving it back.
    pub(crate) fn spend(&mut self, amount: u64) -> u64 {
        self.left -= amount.min(self.left);
        self.epoch
    }

    /// Takes back `less` that was spent in `epoch`, and spends `more`. Returns `false` and changes nothing if that lease
    /// has ended or has too little left.
    pub(crate) fn settle(&mut self, epoch: u64, less: u64, more: u64, now_nanos: u64) -> bool {
        let is_same = epoch == self.epoch && now_nanos < self.until_nanos;
        let can_settle = is_same && more <= self.left;
        if can_settle {
            self.left = self.left.saturating_add(less) - more;
        }
        can_settle
    }

    /// Whether the call may renew the lease, until `until_nanos`; otherwise another call does, and it asks only for what it
    /// needs.
    pub(crate) fn may_renew(&mut self, now_nanos: u64, until_nanos: u64) -> bool {
        let may_renew = now_nanos >= self.renewing_until_nanos;
        if may_renew {
            self.renewing_until_nanos = until_nanos;
        }
        may_renew
    }

    /// The renewal until then has ended; another call may renew.
    pub(crate) fn end_renewal(&mut self, until_nanos: u64) {
        if self.renewing_until_nanos == until_nanos {
            self.renewing_until_nanos = 0;
        }
    }

    /// Replaces it with a new lease; what was left goes back.
    pub(crate) fn replace(&mut self, grant: Grant, until_nanos: u64, tier: Tier) -> Back {
        let back = self.clear();
        *self = Self {
            left: grant.amount,
            epoch: grant.epoch,
            until_nanos,
            tier,
            renewing_until_nanos: 0,
        };
        back
    }

    /// Takes what is left, to give it back.
    pub(crate) fn clear(&mut self) -> Back {
        Back {
            amount: std::mem::take(&mut self.left),
            epoch: self.epoch,
            tier: self.tier,
        }
    }

    /// Takes what is left if the lease has ended, to give it back.
    pub(crate) fn clear_if_over(&mut self, now_nanos: u64) -> Option<Back> {
        let is_over = self.left > 0 && now_nanos >= self.until_nanos;
        is_over.then(|| self.clear())
    }

    /// When it ends, if it has not ended; until then settlements may increase what is left.
    pub(crate) fn ends(&self, now_nanos: u64) -> Option<u64> {
        (now_nanos < self.until_nanos).then_some(self.until_nanos)
    }

    /// Whether there is nothing more to spend.
    pub(crate) fn is_spent(&self, now_nanos: u64) -> bool {
        self.left == 0 || now_nanos >= self.until_nanos
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIER: Tier = Tier::NONE;

    fn lease(amount: u64) -> Lease {
        let mut lease = Lease::default();
        let grant = Grant { amount, epoch: 7 };
        assert_eq!(lease.replace(grant, 100, TIER), Back::default());
        lease
    }

    #[test]
    fn no_more_is_spent_than_is_left() {
        let mut lease = lease(10);
        assert!(lease.has(10, 99) && !lease.has(11, 99));
        assert_eq!(lease.spend(4), 7);
        assert!(lease.has(6, 99) && !lease.has(7, 99));
    }

    #[test]
    fn nothing_is_spent_after_the_end() {
        let mut lease = lease(10);
        assert!(!lease.has(1, 100));
        assert!(!lease.settle(7, 3, 0, 100), "the store has to know");
        let back = Back {
            amount: 10,
            epoch: 7,
            tier: TIER,
        };
        assert_eq!(lease.clear_if_over(99), None);
        assert_eq!(lease.clear_if_over(100), Some(back));
        assert!(lease.is_spent(99));
    }

    #[test]
    fn one_call_at_a_time_renews() {
        let mut lease = lease(0);
        assert!(lease.may_renew(10, 20));
        assert!(!lease.may_renew(19, 29));
        assert!(lease.may_renew(20, 30), "the demand got no answer");
        lease.replace(
            Grant {
                amount: 5,
                epoch: 8,
            },
            100,
            TIER,
        );
        assert!(lease.may_renew(21, 31));
    }

    #[test]
    fn an_ended_renewal_does_not_end_a_later_one() {
        let mut lease = lease(0);
        assert!(lease.may_renew(10, 20));
        lease.end_renewal(19);
        assert!(!lease.may_renew(11, 21), "another had asked");
        lease.end_renewal(20);
        assert!(lease.may_renew(12, 22));
    }

    #[test]
    fn refunds_can_be_spent_again() {
        let mut lease = lease(10);
        lease.spend(10);
        assert!(lease.settle(7, 3, 0, 99));
        assert!(lease.has(3, 99) && !lease.has(4, 99));
        assert!(!lease.settle(8, 3, 0, 99), "it is of another lease");
    }

    #[test]
    fn use_beyond_the_reservation_is_spent_too() {
        let mut lease = lease(10);
        lease.spend(4);
        assert!(lease.settle(7, 0, 6, 99));
        assert!(!lease.settle(7, 0, 1, 99), "the store has to charge it");
    }
}
