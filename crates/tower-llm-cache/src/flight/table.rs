//! The flights that can be joined.

use std::{
    fmt,
    sync::{Arc, PoisonError},
};

use hashbrown::{HashMap, hash_map::Entry};
use tokio::time::Instant;

use super::{
    Flight, Participant, Start,
    log::Left,
    sync::{Mutex, MutexGuard},
};
use crate::form::Form;

/// Shards of the table, each with a lock of its own.
const SHARDS: usize = 16;

/// What calls must have in common to share a flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FlightKey {
    pub(crate) digest: [u8; 32],
    /// A streamed call does not wait for the whole of an unstreamed one.
    pub(crate) form: Form,
    /// A stream that was asked for with its usage has a chunk more.
    pub(crate) include_usage: bool,
}

impl FlightKey {
    /// That of a call whose answer is one document.
    pub(crate) fn of_object(digest: [u8; 32]) -> Self {
        Self {
            digest,
            form: Form::Object,
            include_usage: false,
        }
    }
}

type Shard = HashMap<FlightKey, Arc<Flight>, foldhash::fast::RandomState>;

/// All flights that can be joined, by key.
#[derive(Default)]
pub(crate) struct Flights {
    shards: [Mutex<Shard>; SHARDS],
}

/// The part that a call has in a flight.
pub(crate) enum Join<T> {
    Leader(Participant),
    Follower(Participant),
    /// It has ended, and its answer is stored.
    Stored(T),
}

impl Flights {
    fn shard(&self, key: &FlightKey) -> MutexGuard<'_, Shard> {
        // A digest's bits are as random as any.
        let shard = &self.shards[usize::from(key.digest[0]) % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of flights.
    pub(crate) fn len(&self) -> usize {
        let shards = self.shards.iter();
        shards
            .map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len())
            .sum()
    }

    /// Joins the flight for `key`, takes what is stored, or starts a flight.
    ///
    /// A flight stores its answer before it leaves the table. So `stored` is asked while the table is known to have none, and
    /// an answer that came since the caller last looked is not paid for twice.
    /// Both run with a part of the table locked, so they must be quick.
    pub(crate) fn join_or_start<T>(
        self: &Arc<Self>,
        key: FlightKey,
        stored: impl FnOnce() -> Option<T>,
        start: impl FnOnce() -> Start,
    ) -> Join<T> {
        let mut shard = self.shard(&key);
        let entry = shard.entry(key);
        if let Entry::Occupied(flight) = &entry
            && let Some(follower) = Self::join(flight.get(), Instant::now())
        {
            return Join::Follower(follower);
        }
        if let Some(stored) = stored() {
            return Join::Stored(stored);
        }
        let (flight, leader) = self.lead(key, start());
        entry.insert(flight);
        Join::Leader(leader)
    }

    /// Starts a flight that is not in the table: its caller wants an answer that was asked for now, or others find it elsewhere.
    pub(crate) fn start_alone(self: &Arc<Self>, key: FlightKey, start: Start) -> Participant {
        self.lead(key, start).1
    }

    fn lead(self: &Arc<Self>, key: FlightKey, start: Start) -> (Arc<Flight>, Participant) {
        let flight = Arc::new(Flight::new(key, Arc::clone(self), start));
        let leader = flight.log().lead();
        let leader = Participant::new(Arc::clone(&flight), leader, true);
        (flight, leader)
    }

    /// Joins a flight, in the table or not, if it is open and still brings something.
    pub(crate) fn join(flight: &Arc<Flight>, now: Instant) -> Option<Participant> {
        if flight.is_silent(now) {
            return None;
        }
        let reader = flight.log().join()?;
        Some(Participant::new(Arc::clone(flight), reader, false))
    }

    /// Removes `flight`, unless another one has taken its key.
    pub(super) fn remove(&self, flight: &Arc<Flight>) {
        Self::remove_from(&mut self.shard(&flight.key), flight);
    }

    /// Takes `reader` out of `flight`, or keeps it if it is the last one and that `keeps_last`.
    ///
    /// The flight is out of the table before its upstream is dropped, so no new caller joins a call that is being given up.
    pub(super) fn leave(&self, flight: &Arc<Flight>, reader: usize, keeps_last: bool) -> Left {
        let mut shard = self.shard(&flight.key);
        let left = flight.log().leave(reader, keeps_last);
        if left.is_last {
            Self::remove_from(&mut shard, flight);
        }
        drop(shard);
        left
    }

    fn remove_from(shard: &mut Shard, flight: &Arc<Flight>) {
        if let Entry::Occupied(entry) = shard.entry(flight.key)
            && Arc::ptr_eq(entry.get(), flight)
        {
            entry.remove();
        }
    }
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").field("len", &self.len()).finish()
    }
}
