//! One request from its head to the end of its answer, counted.

use std::sync::Arc;

use super::counts::Shared;

/// Counts one request; dropping it early counts it as given up by the caller.
#[derive(Debug)]
pub(super) struct Call {
    shared: Arc<Shared>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No response head yet.
    Waiting,
    /// The body is being sent.
    Sending,
    Ended,
}

impl Call {
    pub(super) fn begin(shared: Arc<Shared>) -> Self {
        shared.count(|counts| {
            counts.requests += 1;
            counts.in_flight += 1;
            counts.max_in_flight = counts.max_in_flight.max(counts.in_flight);
        });
        Self {
            shared,
            phase: Phase::Waiting,
        }
    }

    pub(super) fn fault(&self) {
        self.shared.count(|counts| counts.faults += 1);
    }

    /// The head is sent and the body begins.
    pub(super) fn open(&mut self, input_tokens: u64) {
        debug_assert_eq!(self.phase, Phase::Waiting, "a body begins once");
        self.phase = Phase::Sending;
        self.shared.count(|counts| {
            counts.input_tokens += input_tokens;
            counts.open_streams += 1;
            counts.max_open_streams = counts.max_open_streams.max(counts.open_streams);
        });
    }

    pub(super) fn sent(&self, output_tokens: u64) {
        if output_tokens > 0 {
            self.shared
                .count(|counts| counts.output_tokens += output_tokens);
        }
    }

    pub(super) fn finish(&mut self) {
        self.end(|counts| &mut counts.finished);
    }

    pub(super) fn abort(&mut self) {
        self.end(|counts| &mut counts.aborted);
    }

    fn end(&mut self, counter: impl FnOnce(&mut super::Counts) -> &mut u64) {
        let phase = std::mem::replace(&mut self.phase, Phase::Ended);
        if phase == Phase::Ended {
            return;
        }
        self.shared.count(|counts| {
            *counter(counts) += 1;
            counts.in_flight -= 1;
            if phase == Phase::Sending {
                counts.open_streams -= 1;
            }
        });
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        match self.phase {
            _ if self.shared.is_stopping() => self.abort(),
            Phase::Waiting => self.end(|counts| &mut counts.closed_before_head),
            Phase::Sending => self.end(|counts| &mut counts.closed_by_caller),
            Phase::Ended => {}
        }
    }
}
