//! What one caller pays for its part in flights.

use tower_llm_core::{Bill, Completion, Unfinished};

/// Where a participant notes what its caller pays.
#[derive(Debug)]
pub(crate) struct Account {
    bill: Holds,
    /// The call is one of several for one response, with this estimate of its input; `None` if the response is the call's.
    part: Option<u64>,
}

#[derive(Debug)]
enum Holds {
    Bill(Bill),
    /// The caller has left.
    Unfinished(Unfinished),
}

impl Account {
    /// That of a caller whose response is the call's.
    pub(crate) fn of_response(bill: Bill) -> Self {
        Self {
            bill: Holds::Bill(bill),
            part: None,
        }
    }

    /// That of a caller whose response is put together from several calls; the input of this one is estimated.
    pub(crate) fn of_part(bill: Bill, input_tokens: u64) -> Self {
        Self {
            bill: Holds::Bill(bill),
            part: Some(input_tokens),
        }
    }

    pub(super) fn is_of_part(&self) -> bool {
        self.part.is_some()
    }

    pub(super) fn bill(&self) -> &Bill {
        match &self.bill {
            Holds::Bill(bill) => bill,
            Holds::Unfinished(unfinished) => unfinished.bill(),
        }
    }

    /// The same for a call that goes on after its caller has left.
    pub(super) fn outliving(self) -> Self {
        let bill = Holds::Unfinished(self.bill().outlive());
        Self { bill, ..self }
    }

    /// Another caller pays.
    pub(super) fn waive(&self) {
        if self.part.is_none() {
            self.bill().waive();
        }
    }

    /// The caller pays after all.
    pub(super) fn take_over(&self) {
        if self.part.is_none() {
            self.bill().take_over();
        }
    }

    /// The caller pays for all of the call, whatever it has seen of it.
    pub(super) fn charge(&self, call: &Completion) {
        match self.part {
            None => self.charge_response(call),
            Some(input_tokens) => self.bill().charge_extra(call.used(input_tokens)),
        }
    }

    /// The caller has seen how the call has ended, and pays for it. One whose response is put together says itself what it pays.
    pub(super) fn charge_seen(&self, call: &Completion) {
        if self.part.is_none() {
            self.charge_response(call);
        }
    }

    fn charge_response(&self, call: &Completion) {
        let bill = self.bill();
        bill.charge(call);
        // A cache inside of this one has made another call for it, or none.
        if let Some(extra) = call.extra_usage {
            bill.charge_extra(extra);
        }
        if call.served.is_some() {
            bill.waive();
        }
    }
}
