//! The probes of a half-open circuit, and their leases.

use tokio::time::Instant;

use super::Status;
use crate::{State, config::Config, word::MAX_PROBES};

#[derive(Debug, Default)]
pub(crate) struct Probes {
    leases: Vec<Lease>,
    last_number: u32,
    /// Probes that have succeeded since the circuit became half-open.
    successes: u32,
    /// Probes that have succeeded and failed since the circuit was created.
    pub(crate) all_successes: u64,
    pub(crate) all_failures: u64,
}

/// Lets one probe be in flight until its end, or until the time is over.
#[derive(Debug)]
struct Lease {
    number: u32,
    until: Instant,
}

impl Probes {
    /// Begins a generation, without probes.
    pub(super) fn restart(&mut self) {
        self.leases.clear();
        self.successes = 0;
    }

    /// Returns the lease of one more probe, or why there is none.
    pub(super) fn lease(&mut self, now: Instant, config: &Config) -> Result<u32, Status> {
        self.leases.retain(|lease| lease.until > now);
        if let Some(refused) = self.refusal(now, config) {
            return Err(refused);
        }
        let number = self.free_number();
        let until = now + config.advanced.probe_lease;
        self.leases.push(Lease { number, until });
        Ok(number)
    }

    /// Frees a lease.
    pub(super) fn release(&mut self, number: u32) {
        self.leases.retain(|lease| lease.number != number);
    }

    /// Counts a success; returns whether there are enough.
    pub(super) fn succeeded(&mut self, config: &Config) -> bool {
        self.successes += 1;
        self.all_successes += 1;
        self.successes >= config.success_threshold
    }

    /// Why no further probe is admitted, if all leases are in use.
    ///
    /// Names a shorter wait than the lease: most probes end much sooner.
    pub(super) fn refusal(&self, now: Instant, config: &Config) -> Option<Status> {
        if self.in_flight(now) < config.probes {
            return None;
        }
        let first = self.leased(now).map(|lease| lease.until - now).min();
        Some(Status {
            state: State::HalfOpen,
            left: first.map(|left| left.min(config.probe_wait())),
        })
    }

    pub(crate) fn in_flight(&self, now: Instant) -> usize {
        self.leased(now).count()
    }

    fn leased(&self, now: Instant) -> impl Iterator<Item = &Lease> {
        self.leases.iter().filter(move |lease| lease.until > now)
    }

    /// A lease number that is free and was not used lately.
    fn free_number(&mut self) -> u32 {
        loop {
            self.last_number = self.last_number % MAX_PROBES as u32 + 1;
            let number = self.last_number;
            if self.leases.iter().all(|lease| lease.number != number) {
                return number;
            }
        }
    }
}
