//! Embeddings by item.
//!
//! The answer to a batch of inputs is one answer to each of them. Those that are stored are taken from the store; those that
//! another call has asked for, and that are in flight, are waited for; the rest is sent, each item once, in one call whose body
//! is the caller's own but for its `input`. The answer is put together from all of them, in the caller's order.
//!
//! # What is stored
//!
//! Each item is an entry of its own: the provider's document, with that item alone in it, at index 0, its vector byte for byte
//! as the provider wrote it. Its `usage` is zero: providers say what a whole call used and not what an item did, and a hit used
//! nothing. So the `usage` of an answer is always what was sent for *it*: of a partial hit, that of the items that were
//! missing. The layers around the cache read it there, and settle that.
//!
//! Before a request is answered, its items that are not in memory are looked for in Redis, if there is one.
//!
//! If all that a request asks for is sent, and nothing twice, its answer is passed on as it comes, whatever it is. An answer is
//! taken apart only if it is whole and has exactly one vector for each item that was sent. If it has not, nothing is stored. If
//! it cannot be put together with what is stored either, and is no error, the caller's own request is sent as it is: an answer
//! with too few vectors would give a caller that counts them the wrong one.
//!
//! # In flight
//!
//! The call for the items that are missing is a [flight](crate::flight). The table of [`Claims`] says which item is in
//! which flight; a request that finds some of its items there joins those flights, and drives them as any participant does.
//! So a caller that leaves harms no other, and no task is needed. A flight leaves the table when its answer is stored, when it
//! fails, and when its last participant leaves, before its upstream is dropped. The items in it are free then, and a request
//! that claims them looks into the store first, while it holds the table's lock.
//!
//! If a flight that was joined fails, its error is that of a request that asks for all of its items: it has sent the same, as
//! it were. Any other request sends what it still misses, in one call and without waiting a second time: another's input may
//! have been what was wrong. So a request waits for at most two calls, one after the other.
//!
//! # Locks
//!
//! A flight's driver, then the table of claims, then a flight's log or the store. Participants and flights are dropped with
//! the table unlocked, since a participant that leaves may close its flight.

mod answer;
mod batch;
mod claims;
mod gather;
mod json;
mod outbound;
mod usage;

use bytes::Bytes;
use http::request::Parts;
use tokio::time::Instant;
use tower_llm_core::Call;

pub(crate) use self::{
    batch::Batch,
    claims::Claims,
    gather::{Begun, Gather, Gathered, begin},
    outbound::Outbound,
};
use crate::{directives::Directives, shared::Shared};

/// The most memory that is taken for the answer to one call for items, in bytes. A float vector is some 30 KB as text, and
/// providers take 2,048 inputs at most.
const MAX_RECORDING: usize = 256 << 20;

/// The most calls in flight that one request joins; it sends what is in others itself.
const MAX_JOINED: usize = 64;

impl Shared {
    /// The request as a batch of items; `None` if it is not one, or has nothing to do with the cache.
    pub(crate) fn batch(&self, request: &Parts, body: &Bytes, call: &Call) -> Option<Batch> {
        let asked_at = Instant::now();
        let policy = self.policies.of(call.operation())?;
        let directives = Directives::read(&request.headers);
        if directives.no_store || call.streamed() {
            return None;
        }
        let digests = crate::key::items::digests(&self.keys, request, body, call).ok()??;
        Some(Batch::new(call, digests, *policy, directives, asked_at))
    }
}
