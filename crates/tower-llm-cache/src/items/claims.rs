//! Which item is in which flight.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use hashbrown::HashMap;
use http::StatusCode;
use tokio::time::Instant;
use tower_llm_core::Outcome;

use super::{
    MAX_JOINED, MAX_RECORDING, answer::Answers, batch::Batch, gather::Reading, outbound::Outbound,
};
use crate::{
    coding::is_readable,
    flight::{End, Flight, FlightKey, Flights, Recorded, Recorder, Start},
    key::CacheKey,
    policy::Policy,
    shared::Shared,
};

/// The items in flight.
#[derive(Default)]
pub(crate) struct Claims {
    // One lock: a batch claims all of its items at once. It is held for a lookup or two for each of them.
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    claims: HashMap<[u8; 32], Claim, foldhash::fast::RandomState>,
    calls: usize,
}

struct Claim {
    call: Arc<ItemCall>,
    flight: Arc<Flight>,
    /// The item's position in the call.
    slot: u32,
}

/// A call for some items, and what has come of it.
pub(crate) struct ItemCall {
    digests: Vec<[u8; 32]>,
    /// The estimate of its input.
    pub(super) input_tokens: u64,
    /// Whether it is in the table.
    is_claimed: AtomicBool,
    /// `None` unless there was an answer, of no more than [`MAX_RECORDING`].
    brought: OnceLock<Brought>,
}

/// What a call has brought.
#[derive(Debug)]
pub(crate) enum Brought {
    Answers(Answers),
    /// An error, which can be passed on.
    Error,
    /// An answer that does not have one vector for each item.
    Unusable,
}

/// Whether a request waits for the calls of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Join {
    Open,
    None,
}

/// Takes the answer to a call apart, and stores it.
struct KeepItems {
    shared: Arc<Shared>,
    call: Arc<ItemCall>,
    /// That of one of the items.
    key: CacheKey,
    policy: Policy,
}

impl Claims {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Each change of the table is whole before anything in it could panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of calls that can be joined.
    pub(crate) fn calls(&self) -> usize {
        self.table().calls
    }

    /// Joins the calls that the missing items of `batch` are in, takes from the store those that came meanwhile, and sends the
    /// rest.
    pub(super) fn board(
        shared: &Arc<Shared>,
        batch: &mut Batch,
        outbound: &Outbound,
        join: Join,
    ) -> Vec<Reading> {
        let now = Instant::now();
        let joins = join == Join::Open && !batch.wants_new();
        // Declared before the lock: if anything below panics, participants leave with the table unlocked.
        let mut readings: Vec<Reading> = Vec::new();
        let mut replaced = Vec::new();
        let mut sent = Vec::new();
        let mut table = shared.claims.table();
        for item in batch.missing() {
            let claim = table.claims.get(&batch.digest(item)).filter(|_| joins);
            if claim.is_some_and(|claim| claim.join(item, &mut readings, now)) {
                continue;
            }
            // An answer is stored before its claim is given up.
            if !batch.find(shared, item, now) {
                sent.push(item);
            }
        }
        if sent.is_empty() {
            return readings;
        }
        let sending = outbound.send(sent.iter().map(|&item| batch.input(item)).collect());
        let call = Arc::new(ItemCall::new(
            sent.iter().map(|&item| batch.digest(item)).collect(),
            sending.input_tokens,
        ));
        let start = Start {
            upstream: sending.upstream,
            recorder: Box::new(KeepItems {
                shared: Arc::clone(shared),
                call: Arc::clone(&call),
                key: batch.any_key().clone(),
                policy: batch.policy,
            }),
            max_recording: MAX_RECORDING,
            max_silence: batch.policy.max_silence,
            max_unattended: batch.policy.max_unattended,
            finishes: batch.policy.finish_abandoned,
        };
        let leader = shared
            .flights
            .start_alone(FlightKey::of_object(call.digests[0]), start);
        if !batch.wants_new() {
            table.calls += 1;
            call.is_claimed.store(true, Ordering::Relaxed);
            for (&digest, slot) in call.digests.iter().zip(0..) {
                let claim = Claim {
                    call: Arc::clone(&call),
                    flight: Arc::clone(leader.flight()),
                    slot,
                };
                replaced.extend(table.claims.insert(digest, claim));
            }
        }
        drop(table);
        drop(replaced);
        let items = sent.into_iter().zip(0..).collect();
        readings.push(Reading::new(leader, call, items));
        readings
    }

    /// Gives up the claims of a call.
    fn close(&self, call: &Arc<ItemCall>) {
        if !call.is_claimed.swap(false, Ordering::Relaxed) {
            return;
        }
        let mut removed = Vec::with_capacity(call.digests.len());
        let mut table = self.table();
        table.calls -= 1;
        for digest in &call.digests {
            let is_ours = |claim: &Claim| Arc::ptr_eq(&claim.call, call);
            if table.claims.get(digest).is_some_and(is_ours) {
                removed.extend(table.claims.remove(digest));
            }
        }
        drop(table);
    }
}

impl Claim {
    /// Waits for the item in the call that claims it, if that is open.
    fn join(&self, item: u32, readings: &mut Vec<Reading>, now: Instant) -> bool {
        let joined = readings
            .iter_mut()
            .find(|reading| reading.is_of(&self.call));
        if let Some(reading) = joined {
            reading.add(item, self.slot);
            return true;
        }
        if readings.len() >= MAX_JOINED {
            return false;
        }
        let Some(participant) = Flights::join(&self.flight, now) else {
            return false;
        };
        readings.push(Reading::new(
            participant,
            Arc::clone(&self.call),
            vec![(item, self.slot)],
        ));
        true
    }
}

impl ItemCall {
    fn new(digests: Vec<[u8; 32]>, input_tokens: u64) -> Self {
        Self {
            digests,
            input_tokens,
            is_claimed: AtomicBool::new(false),
            brought: OnceLock::new(),
        }
    }

    pub(super) fn items(&self) -> usize {
        self.digests.len()
    }

    /// What it has brought, when it has ended.
    pub(super) fn brought(&self) -> &Brought {
        self.brought.get().unwrap_or(&Brought::Unusable)
    }
}

impl Recorder for KeepItems {
    fn record(&self, answer: &Recorded, end: &End) {
        let brought = self.read(answer, end);
        let counters = &self.shared.counters;
        let mut stored = 0;
        if let Brought::Answers(answers) = &brought {
            for (answer, digest) in answers.items.iter().zip(&self.call.digests) {
                let key = self.key.sibling(*digest);
                let is_small = answer.record().body_len() <= self.policy.max_answer_bytes;
                if is_small
                    && self
                        .shared
                        .store(key, answer.record().clone(), &self.policy)
                {
                    stored += 1;
                }
            }
        }
        counters.stored.fetch_add(stored, Ordering::Relaxed);
        let not_stored = self.call.items() as u64 - stored;
        counters.not_stored.fetch_add(not_stored, Ordering::Relaxed);
        // A flight has one end.
        let _ = self.call.brought.set(brought);
    }

    fn closed(&self) {
        self.shared.claims.close(&self.call);
    }
}

impl KeepItems {
    fn read(&self, answer: &Recorded, end: &End) -> Brought {
        if answer.head.status != StatusCode::OK || end.completion.outcome != Outcome::Success {
            return Brought::Error;
        }
        let answers =
            is_readable(&answer.head.headers).then(|| Answers::split(answer, self.call.items()));
        answers
            .flatten()
            .map_or(Brought::Unusable, Brought::Answers)
    }
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims")
            .field("calls", &self.calls())
            .finish()
    }
}
