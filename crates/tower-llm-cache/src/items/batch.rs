//! What a request asks for, item by item.

use std::time::Duration;

use hashbrown::HashMap;
use tokio::time::Instant;
use tower_llm_core::Call;

use super::answer::ItemAnswer;
#[cfg(feature = "redis")]
use crate::record::Record;
use crate::{directives::Directives, headers::Did, key::CacheKey, policy::Policy, shared::Shared};

/// A request for the answers to several inputs.
pub(crate) struct Batch {
    /// That of the first item; those of the others differ in their digests.
    key: CacheKey,
    /// The distinct items, in their order.
    items: Vec<Item>,
    /// For each input, its item.
    inputs: Vec<u32>,
    pub(super) policy: Policy,
    directives: Directives,
    pub(super) asked_at: Instant,
    /// How many items were stored.
    stored: usize,
    oldest: Duration,
    ttl: Duration,
    is_shared: bool,
}

struct Item {
    digest: [u8; 32],
    /// The first input that is this item.
    input: u32,
    answer: Option<ItemAnswer>,
}

impl Batch {
    pub(super) fn new(
        call: &Call,
        digests: Vec<[u8; 32]>,
        policy: Policy,
        directives: Directives,
        asked_at: Instant,
    ) -> Self {
        let mut items = Vec::with_capacity(digests.len());
        let mut known = HashMap::with_capacity_and_hasher(
            digests.len(),
            foldhash::fast::RandomState::default(),
        );
        let inputs = digests.iter().zip(0..).map(|(&digest, input)| {
            *known.entry(digest).or_insert_with(|| {
                let answer = None;
                items.push(Item {
                    digest,
                    input,
                    answer,
                });
                items.len() as u32 - 1
            })
        });
        let inputs = inputs.collect();
        Self {
            key: CacheKey::new(call, digests[0]),
            items,
            inputs,
            policy,
            directives,
            asked_at,
            stored: 0,
            oldest: Duration::ZERO,
            ttl: Duration::MAX,
            is_shared: false,
        }
    }

    /// Takes an item from the store, if there is an answer that the caller can be given.
    pub(super) fn find(&mut self, shared: &Shared, item: u32, now: Instant) -> bool {
        let digest = &self.items[item as usize].digest;
        let memory = shared.current_memory();
        let Some(found) = memory.and_then(|memory| memory.get(digest)) else {
            return false;
        };
        let stored = &found.0;
        let age = now.saturating_duration_since(stored.stored_at);
        let ttl = stored.fresh_until().saturating_duration_since(now);
        if ttl.is_zero() || !self.directives.allows(age) {
            return false;
        }
        let Some(answer) = stored.record().and_then(ItemAnswer::read) else {
            return false;
        };
        stored.renew(now);
        self.put_stored(item, answer, age, ttl);
        true
    }

    pub(crate) fn find_all(&mut self, shared: &Shared) {
        let now = Instant::now();
        for item in self.missing() {
            self.find(shared, item, now);
        }
    }

    /// Takes an item that was found outside of this process.
    #[cfg(feature = "redis")]
    pub(crate) fn put_found(&mut self, item: u32, record: &Record, age: Duration, ttl: Duration) {
        if let Some(answer) = ItemAnswer::read(record) {
            self.is_shared = true;
            self.put_stored(item, answer, age, ttl);
        }
    }

    /// The keys of the items that have no answer yet.
    #[cfg(feature = "redis")]
    pub(crate) fn missing_keys(&self) -> Vec<(u32, CacheKey)> {
        let missing = self.missing().into_iter();
        missing
            .map(|item| (item, self.key.sibling(self.digest(item))))
            .collect()
    }

    /// How its items are looked for; `None` if it wants new answers.
    #[cfg(feature = "redis")]
    pub(crate) fn wanted(&self) -> Option<(Policy, Directives)> {
        (!self.directives.no_cache).then_some((self.policy, self.directives))
    }

    /// Whether some of its items were found outside of this process.
    pub(super) fn is_shared(&self) -> bool {
        self.is_shared
    }

    fn put_stored(&mut self, item: u32, answer: ItemAnswer, age: Duration, ttl: Duration) {
        self.stored += 1;
        self.oldest = self.oldest.max(age);
        self.ttl = self.ttl.min(ttl);
        self.put(item, answer);
    }

    pub(super) fn put(&mut self, item: u32, answer: ItemAnswer) {
        self.items[item as usize].answer = Some(answer);
    }

    /// The items that have no answer yet.
    pub(super) fn missing(&self) -> Vec<u32> {
        let items = self.items.iter().zip(0..);
        items
            .filter(|(item, _)| item.answer.is_none())
            .map(|(_, index)| index)
            .collect()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.items.iter().all(|item| item.answer.is_some())
    }

    /// The answers in the order of the inputs, once there are all of them.
    pub(super) fn answers(&self) -> Vec<&ItemAnswer> {
        let answers = self.inputs.iter();
        answers
            .filter_map(|&item| self.items[item as usize].answer.as_ref())
            .collect()
    }

    pub(super) fn digest(&self, item: u32) -> [u8; 32] {
        self.items[item as usize].digest
    }

    /// The first input that is this item.
    pub(super) fn input(&self, item: u32) -> u32 {
        self.items[item as usize].input
    }

    pub(super) fn inputs(&self) -> usize {
        self.inputs.len()
    }

    pub(super) fn items(&self) -> usize {
        self.items.len()
    }

    /// How many items were stored.
    pub(super) fn stored(&self) -> usize {
        self.stored
    }

    /// That of one of its items.
    pub(super) fn any_key(&self) -> &CacheKey {
        &self.key
    }

    /// The key of the answer, if it has one: a batch has many.
    pub(super) fn key(&self) -> Option<&CacheKey> {
        (self.items.len() == 1).then_some(&self.key)
    }

    pub(super) fn only_if_cached(&self) -> bool {
        self.directives.only_if_cached
    }

    /// Whether it wants an answer that was asked for now, and not one in flight.
    pub(super) fn wants_new(&self) -> bool {
        self.directives.no_cache || self.directives.max_age.is_some()
    }

    /// What the cache did if all items were stored.
    pub(super) fn hit(&self) -> Did {
        Did::Hit {
            age: self.oldest,
            ttl: self.ttl,
        }
    }
}
