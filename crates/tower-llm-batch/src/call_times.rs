//! How long upstream calls take: no lock, no clock.

use std::time::Duration;

/// How many calls count.
const CALLS: usize = 16;

/// The times of the last calls.
#[derive(Debug)]
pub(crate) struct CallTimes {
    last: [Duration; CALLS],
    /// How many were recorded.
    calls: usize,
    until_known: Duration,
}

impl CallTimes {
    pub(crate) fn new(until_known: Duration) -> Self {
        Self {
            last: [Duration::ZERO; CALLS],
            calls: 0,
            until_known,
        }
    }

    pub(crate) fn record(&mut self, time: Duration) {
        self.last[self.calls % CALLS] = time;
        self.calls = self.calls.wrapping_add(1);
    }

    /// How long a call may take: as long as the longest of the last.
    ///
    /// A call that is sent earlier than it had to be costs nothing but a smaller batch.
    pub(crate) fn expected(&self) -> Duration {
        match self.calls {
            0 => self.until_known,
            _ => self.last.into_iter().max().unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_may_take_as_long_as_the_longest_of_the_last() {
        let mut times = CallTimes::new(Duration::from_secs(1));
        assert_eq!(times.expected(), Duration::from_secs(1));
        times.record(Duration::from_millis(900));
        for _ in 1..CALLS {
            times.record(Duration::from_millis(20));
            assert_eq!(times.expected(), Duration::from_millis(900));
        }
        times.record(Duration::from_millis(30));
        assert_eq!(times.expected(), Duration::from_millis(30));
    }
}
