//! One caller's part in a flight.

use std::{
    future::poll_fn,
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::Frame;
use tokio::{runtime::Handle, time::timeout};
use tower_llm_core::{BoxError, TakenOver, Unsent};

use super::{
    Flight,
    log::{Head, Read},
};
use crate::error::FlightFailed;

/// Reads a flight's answer, and drives its upstream while it waits.
///
/// Dropping it leaves the flight; the last one to leave drops the upstream.
#[derive(Debug)]
pub(crate) struct Participant {
    flight: Arc<Flight>,
    reader: usize,
    is_leader: bool,
    /// A follower that leaves before it has an answer has cost nothing.
    unsent: Option<Unsent>,
    /// A task: when it leaves, the call is over.
    is_task: bool,
}

impl Participant {
    pub(super) fn new(flight: Arc<Flight>, reader: usize, is_leader: bool) -> Self {
        Self {
            flight,
            reader,
            is_leader,
            unsent: (!is_leader).then(Unsent::new),
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

    /// The same for a caller that gets its response headers now, and what tells it of later changes.
    pub(crate) fn pays_with_head(&self) -> (bool, TakenOver) {
        self.flight.log().pays_with_head(self.reader)
    }

    pub(crate) fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }

    /// Reports no longer that its caller's call was never sent: the caller has sent one of its own.
    pub(crate) fn has_cost(&mut self) {
        self.unsent = None;
    }

    /// Starts again with the first frame, if that is still held.
    pub(crate) fn rewind(&self) {
        self.flight.log().rewind(self.reader);
    }

    pub(crate) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Head, BoxError>> {
        loop {
            let read = self.flight.log().read_head(self.reader, cx.waker());
            match read {
                Read::Found(head) => {
                    self.unsent = None;
                    return Poll::Ready(Ok(head));
                }
                Read::Failed(error) => return Poll::Ready(Err(error.into())),
                Read::End | Read::Lost => {
                    return Poll::Ready(Err(FlightFailed::no_answer().into()));
                }
                Read::Waiting(_) => {}
            }
            if !self.flight.drive(self.reader) {
                return Poll::Pending;
            }
        }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            let read = self.flight.log().read_frame(self.reader, cx.waker());
            return Poll::Ready(match read {
                Read::Found(frame) => Some(Ok(frame)),
                Read::End => None,
                Read::Failed(error) => Some(Err(error.into())),
                Read::Lost => Some(Err(FlightFailed::behind().into())),
                Read::Waiting(_) if self.flight.drive(self.reader) => continue,
                Read::Waiting(_) => return Poll::Pending,
            });
        }
    }

    /// Reads the answer to its end, to have it stored. Leaves early if it cannot be, or nothing has come for too long.
    pub(crate) async fn read_to_end(mut self) {
        self.is_task = true;
        let max_silence = self.flight.max_silence;
        let head = timeout(max_silence, poll_fn(|cx| self.poll_head(cx))).await;
        let mut has_more = matches!(head, Ok(Ok(_)));
        while has_more && self.flight.log().is_open {
            let frame = timeout(max_silence, poll_fn(|cx| self.poll_frame(cx))).await;
            has_more = matches!(frame, Ok(Some(Ok(_))));
        }
    }

    /// Whether all was read, and it ended well.
    pub(crate) fn is_read(&self) -> bool {
        self.flight.log().is_read(self.reader)
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        let runtime = Some(&self.flight)
            .filter(|flight| flight.finishes && !self.is_task)
            .and_then(|_| Handle::try_current().ok());
        let left = self
            .flight
            .table
            .leave(&self.flight, self.reader, runtime.is_some());
        if left.is_payer {
            // It has taken over a call that was sent: there is nothing to report.
            mem::forget(self.unsent.take());
        }
        if left.is_kept
            && let Some(runtime) = runtime
        {
            let finishing = Self {
                flight: Arc::clone(&self.flight),
                unsent: None,
                is_task: true,
                ..*self
            };
            runtime.spawn(finishing.read_to_end());
            return;
        }
        let used = if left.is_last {
            self.flight.give_up()
        } else if left.owes.is_some() {
            self.flight.log().completion()
        } else {
            None
        };
        // Others may have read more, and have left.
        if let (Some(owes), Some(used)) = (left.owes, used) {
            owes.charge(&used);
        }
    }
}
