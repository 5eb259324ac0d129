//! What the drop of a call reports to the guards around it.
//!
//! A call that is dropped while it waits in an inner layer's queue cost the provider nothing, and one that others share may
//! have cost more than its caller has seen. Every outer layer must know. The drop itself reports it: a layer's future drops
//! the inner future first, and that leaves its report in a thread-local for the guard around it. This needs no request type
//! and no state shared between layers.

use std::cell::{Cell, RefCell};

use crate::{Bill, Outcome};

thread_local! {
    static ENDS_AS: Cell<Option<Outcome>> = const { Cell::new(None) };
    static SENT: Cell<Sent> = const { Cell::new(Sent::Unknown) };
    static BILLED: RefCell<Billed> = const { RefCell::new(Billed::Outside) };
}

/// What the drops within the current one have reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Unknown,
    No,
    /// Wins over [`No`](Self::No): one branch that was sent is enough.
    Yes,
}

impl Sent {
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Yes, _) | (_, Self::Yes) => Self::Yes,
            (Self::No, _) | (_, Self::No) => Self::No,
            _ => Self::Unknown,
        }
    }
}

/// The bill that the drops within the current one have reported.
enum Billed {
    /// Nothing is being dropped.
    Outside,
    Dropping(Option<Bill>),
}

/// What a drop has reported.
pub(crate) struct Report {
    pub(crate) is_unsent: bool,
    pub(crate) bill: Option<Bill>,
}

/// Held by a layer's future as long as its call waits and was not sent on.
///
/// If the future is dropped meanwhile, the guards of outer layers end as [`Outcome::Refused`],
/// which refunds everything, and not as [`Outcome::Abandoned`]. Dropped at any other time, it
/// has no effect.
#[derive(Debug, Default)]
#[must_use = "a call counts as sent as soon as this is dropped"]
pub struct Unsent(());

impl Unsent {
    /// Creates the report of a call that was not sent yet.
    pub const fn new() -> Self {
        Self(())
    }

    /// Runs `drop`, which drops the future of a call; returns whether that call was never sent.
    ///
    /// The call is that of the guards around, which settle what it [reports](crate::Bill::report). For a call that several callers share,
    /// see [`Completion::of_drop`](crate::Completion::of_drop).
    pub fn while_dropping(drop: impl FnOnce()) -> bool {
        let report = while_dropping(drop);
        report.bill.iter().for_each(report_bill);
        report.is_unsent
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        SENT.set(SENT.get().and(Sent::No));
    }
}

/// Runs `drop`, which drops a call that a layer gives up itself: its caller has not left. The guards in the call end as `outcome`,
/// unless what has arrived shows another outcome.
///
/// A branch that lost a race ends as [`Outcome::Superseded`] so. Returns whether the call was never sent; it then ends as
/// [`Outcome::Refused`].
pub fn drop_as(outcome: Outcome, drop: impl FnOnce()) -> bool {
    let around = EndsAs::set(Some(outcome));
    let is_unsent = Unsent::while_dropping(drop);
    std::mem::drop(around);
    is_unsent
}

/// The outcome of a call that is being dropped.
pub(super) fn dropped() -> Outcome {
    // While a thread ends, nothing gives a call up.
    let given = ENDS_AS.try_with(Cell::get).ok().flatten();
    given.unwrap_or(Outcome::Abandoned)
}

/// Restores what a drop within another one had set, also if it panics.
struct EndsAs(Option<Outcome>);

impl EndsAs {
    fn set(outcome: Option<Outcome>) -> Self {
        Self(ENDS_AS.replace(outcome))
    }
}

impl Drop for EndsAs {
    fn drop(&mut self) {
        ENDS_AS.set(self.0);
    }
}

/// Runs `drop`, which drops an inner future, and returns what that reports.
///
/// The guards around learn from this drop, too, whether the call was sent. The bill is for the caller of this function: those of
/// one that is shared are others.
pub(crate) fn while_dropping(drop: impl FnOnce()) -> Report {
    let around = SENT.replace(Sent::Unknown);
    let around_billed = replace_billed(Billed::Dropping(None));
    drop();
    // A client, or a layer of another crate, reports nothing: its calls count as sent.
    let inner = match SENT.get() {
        Sent::No => Sent::No,
        Sent::Unknown | Sent::Yes => Sent::Yes,
    };
    SENT.set(around.and(inner));
    Report {
        is_unsent: inner == Sent::No,
        bill: match replace_billed(around_billed) {
            Billed::Dropping(bill) => bill,
            Billed::Outside => None,
        },
    }
}

fn replace_billed(billed: Billed) -> Billed {
    // While a thread ends, there is no guard to report to.
    BILLED
        .try_with(|known| known.replace(billed))
        .unwrap_or(Billed::Outside)
}

/// Leaves a bill to the guards around the future that is being dropped.
pub(crate) fn report_bill(bill: &Bill) {
    let _ = BILLED.try_with(|billed| {
        if let Billed::Dropping(reported) = &mut *billed.borrow_mut() {
            match reported {
                Some(first) if !first.is_same(bill) => first.add(bill),
                Some(_) => {}
                None => *reported = Some(bill.clone()),
            }
        }
    });
}
