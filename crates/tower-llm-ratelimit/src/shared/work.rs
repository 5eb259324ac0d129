//! The jobs of the settler, and their retries.

use std::time::Duration;

use tower_llm_redis::StoreError;

use super::redis::Scripts;
use crate::shared::backend::{Settlement, Terms};

/// How long to wait before another attempt while the store is unavailable, and before the first one after an error.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// Number of further attempts after an error of the server, with pauses that double: three seconds in total.
const RETRIES: u32 = 6;

/// One change of the store.
pub(super) struct Work {
    change: Change,
    /// Whether it may have been done already.
    again: bool,
    /// How often the server has answered with an error.
    errors: u32,
}

enum Change {
    Settle(Vec<Settlement>),
    Adjust(Vec<Terms>),
}

/// The result of an attempt.
pub(super) enum Tried {
    /// Done; the number of calls of which it is not known whether they are settled.
    Done(u64),
    /// The store is unavailable: try again later.
    StoreUnavailable(Work),
    /// The server has answered with an error: try each settlement by itself after a pause, since the error may be of one of
    /// them.
    Failed(Vec<Work>, Duration),
    /// The server has answered with errors too often.
    GivenUp,
    /// The store is unavailable, and may have run a change that must not run twice.
    Unknown,
}

impl Work {
    pub(super) fn settle(settlements: Vec<Settlement>) -> Self {
        Change::Settle(settlements).into()
    }

    pub(super) fn adjust(terms: Vec<Terms>) -> Self {
        Change::Adjust(terms).into()
    }

    /// Tries once.
    pub(super) async fn tried(self, scripts: Scripts) -> Tried {
        let tried = match &self.change {
            Change::Settle(settlements) => scripts.settle(settlements, self.again).await,
            Change::Adjust(terms) => scripts.lease(terms).await.map(|_| 0),
        };
        match tried {
            Ok(unknown) => Tried::Done(unknown),
            Err(error) => self.failed(&error),
        }
    }

    fn failed(mut self, error: &StoreError) -> Tried {
        if error.is_down() {
            return Tried::StoreUnavailable(self);
        }
        if !error.is_script() && matches!(self.change, Change::Adjust(_)) {
            // A second run would refund or charge twice.
            return Tried::Unknown;
        }
        // It may have run, perhaps partially; what is still held shows which part.
        self.again = true;
        if !error.is_script() {
            return Tried::StoreUnavailable(self);
        }
        self.errors += 1;
        if self.errors > RETRIES {
            return Tried::GivenUp;
        }
        let pause = PAUSE * 2_u32.pow(self.errors - 1);
        Tried::Failed(self.apart(), pause)
    }

    fn apart(self) -> Vec<Self> {
        let Self {
            change,
            again,
            errors,
        } = self;
        let one = |change| Self {
            change,
            again,
            errors,
        };
        match change {
            Change::Settle(settlements) => {
                let each = settlements.into_iter();
                each.map(|settlement| one(Change::Settle(vec![settlement])))
                    .collect()
            }
            Change::Adjust(_) => vec![one(change)],
        }
    }

    /// Splits off one of its settlements.
    pub(super) fn one(self) -> (Self, Option<Self>) {
        let Self {
            change,
            again,
            errors,
        } = self;
        let of = |change| Self {
            change,
            again,
            errors,
        };
        match change {
            Change::Settle(mut settlements) if settlements.len() > 1 => {
                let others = settlements.split_off(1);
                let one = of(Change::Settle(settlements));
                (one, Some(of(Change::Settle(others))))
            }
            change => (of(change), None),
        }
    }

    /// The number of settlements.
    pub(super) fn len(&self) -> u64 {
        match &self.change {
            Change::Settle(settlements) => u64::try_from(settlements.len()).unwrap_or(u64::MAX),
            Change::Adjust(_) => 1,
        }
    }
}

impl From<Change> for Work {
    fn from(change: Change) -> Self {
        Self {
            change,
            again: false,
            errors: 0,
        }
    }
}
