//! What the caller of a failed call pays for its branches.

use std::sync::Arc;

use tower_llm_core::{Bill, Billed, BoxError, Completion, Usage};

/// An error of a call whose branches have used that: its caller pays for it.
pub(crate) fn billed(error: BoxError, used: Usage) -> BoxError {
    if used == Usage::default() {
        return error;
    }
    let bill = Bill::new();
    let mut call = Completion::new(Completion::of_error(&*error).outcome);
    // What it has used is known: nothing is to be estimated.
    call.usage = Some(Usage::default());
    bill.charge(&call);
    bill.charge_extra(used);
    Billed::new(bill, Arc::new(error)).into()
}
