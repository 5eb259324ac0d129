//! One caller's part in a flight.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use http_body::Frame;
use tokio::{
    runtime::Handle,
    time::{Instant, timeout},
};
use tower_llm_core::{Bill, Billed, BoxError, Completion, Outcome, Unsent};

use super::{
    Flight,
    account::Account,
    log::{Head, Log, Pays, Read, Waiting},
    sync::Ordering,
};
use crate::error::{FlightFailed, SharedError};

/// Reads a flight's answer, and drives its upstream while it waits.
///
/// Dropping it leaves the flight; the last one to leave drops the upstream.
#[derive(Debug)]
pub(crate) struct Participant {
    flight: Arc<Flight>,
    reader: usize,
    is_leader: bool,
    /// A task reads for a caller that has left, or for none: when it leaves, the call is over.
    is_task: bool,
}

impl Participant {
    pub(super) fn new(flight: Arc<Flight>, reader: usize, is_leader: bool) -> Self {
        Self {
            flight,
            reader,
            is_leader,
            is_task: false,
        }
    }

    /// Whether it is the caller that the upstream was called for.
    pub(crate) fn is_leader(&self) -> bool {
        self.is_leader
    }

    /// Whether the caller pays for the call, as of now.
    pub(crate) fn pays(&self) -> bool {
        self.flight.log().pays(self.reader)
    }

    /// Whether the caller pays for the call, whose response it takes: only the layers around a response know what it has used. So
    /// the first caller to take it pays.
    pub(crate) fn pays_for_response(&self) -> bool {
        self.flight.log().pays_for_response(self.reader)
    }

    /// Notes what the caller pays in an account.
    pub(crate) fn open_account(&self, account: Account) {
        self.flight.log().open_account(self.reader, account);
    }

    /// How the call ended.
    pub(crate) fn completion(&self) -> Option<Completion> {
        self.flight.log().completion().cloned()
    }

    pub(crate) fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }

    /// Starts again with the first frame, if that is still held.
    pub(crate) fn rewind(&self) {
        self.flight.log().rewind(self.reader);
    }

    pub(crate) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, BoxError>> {
        Poll::Ready(match ready!(self.poll_read(cx, Log::read_head)) {
            Read::Found(head) => Ok(head),
            Read::Failed(error) => Err(self.billed(error)),
            Read::End | Read::Lost => Err(self.billed(FlightFailed::no_answer())),
        })
    }

    /// Reads in the log, and drives the upstream until there is something to read.
    fn poll_read<T>(
        &self,
        cx: &Context<'_>,
        read: fn(&mut Log, usize, &Waker) -> Result<Read<T>, Waiting>,
    ) -> Poll<Read<T>> {
        let read = |log: &mut Log| read(log, self.reader, cx.waker());
        let mut found = read(&mut self.flight.log());
        loop {
            match found {
                Ok(found) => return Poll::Ready(found),
                Err(_) => match self.flight.drive(self.reader, read) {
                    Some(next) => found = next,
                    None => return Poll::Pending,
                },
            }
        }
    }

    /// An error instead of a response, which says what its caller pays.
    pub(crate) fn billed(&self, error: impl Into<SharedError>) -> BoxError {
        let error = error.into();
        let mut log = self.flight.log();
        let bill = match log.account(self.reader) {
            Some(account) if account.is_of_part() => return error.into(),
            Some(account) => account.bill().clone(),
            None => Bill::new(),
        };
        if log.account(self.reader).is_none() {
            log.open_account(self.reader, Account::of_response(bill.clone()));
        }
        Billed::new(bill, error.0).into()
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(match ready!(self.poll_read(cx, Log::read_frame)) {
            Read::Found(frame) => Some(Ok(frame)),
            Read::End => None,
            Read::Failed(error) => Some(Err(error.into())),
            Read::Lost => Some(Err(FlightFailed::behind().into())),
        })
    }

    /// Reads the answer to its end, to have it stored. Leaves early if it cannot be, if nothing has come for too long, or if it
    /// takes too long.
    pub(crate) async fn read_to_end(mut self) {
        self.is_task = true;
        let max_unattended = self.flight.max_unattended;
        let _is_late = timeout(max_unattended, self.read_frames()).await;
    }

    async fn read_frames(&mut self) {
        let max_silence = self.flight.max_silence;
        let head = timeout(max_silence, poll_fn(|cx| self.poll_head(cx))).await;
        let mut has_more = matches!(head, Ok(Ok(_)));
        while has_more && self.flight.log().is_open {
            let frame = timeout(max_silence, poll_fn(|cx| self.poll_frame(cx))).await;
            // Of a silence, some frames are part.
            let is_silent = self.flight.log().silent_for(Instant::now()) >= max_silence;
            has_more = matches!(frame, Ok(Some(Ok(_)))) && !is_silent;
        }
    }

    /// Whether all was read, and it ended well.
    pub(crate) fn is_read(&self) -> bool {
        self.flight.has_ended.load(Ordering::Acquire) && self.flight.log().is_read(self.reader)
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        let flight = &self.flight;
        let runtime = (flight.finishes && !self.is_task)
            .then(|| Handle::try_current().ok())
            .flatten();
        let mut left = flight.table.leave(flight, self.reader, runtime.is_some());
        let account = left.account.take();
        if let Some(runtime) = runtime.filter(|_| left.is_kept) {
            let account = account.or_else(|| self.account_of_drop());
            let finishing = Self {
                flight: Arc::clone(flight),
                is_task: true,
                ..*self
            };
            if let Some(account) = account.map(Account::outliving) {
                account.bill().report();
                finishing.open_account(account);
            }
            runtime.spawn(finishing.read_to_end());
            return;
        }
        let given_up = left.is_last.then(|| flight.give_up());
        let paid = match left.pays {
            Pays::Nothing => return self.pay_nothing(account.as_ref()),
            // A task puts no response together for its caller.
            Pays::Seen if self.is_task && account.as_ref().is_some_and(Account::is_of_part) => {
                self.completion()
            }
            Pays::Seen => return,
            Pays::All(call) => Some(call),
            Pays::Running => given_up,
        };
        let Some(paid) = paid else { return };
        let account = account.or_else(|| self.account_of_drop());
        if let Some(account) = account {
            account.charge(&paid);
            account.bill().report();
        }
    }
}

impl Participant {
    /// That of a caller that leaves before it has a response; a task has none.
    fn account_of_drop(&self) -> Option<Account> {
        (!self.is_task).then(|| Account::of_response(Bill::new()))
    }

    /// Its caller leaves, and another one pays.
    fn pay_nothing(&self, account: Option<&Account>) {
        match account {
            Some(account) => {
                account.waive();
                account.bill().report();
            }
            None if !self.is_task => {
                // Whatever the drop of the upstream says, this caller's call was not sent.
                let bill = Bill::new();
                bill.charge(&Completion::new(Outcome::Refused));
                bill.waive();
                bill.report();
                drop(Unsent::new());
            }
            None => {}
        }
    }
}
