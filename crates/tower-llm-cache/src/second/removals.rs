//! What was removed lately, here or by another process.
//!
//! An answer on its way into a store must not arrive there after its removal. So it notes the epoch at its start, and at its
//! end asks whether it was removed since.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

use crate::{key::CacheKey, target::Target};

/// Removals that are held. An answer that was on its way for longer counts as removed.
const HELD: usize = 64;

pub(super) struct Removals {
    /// The number of removals so far.
    epoch: AtomicU64,
    /// The last of them.
    recent: Mutex<VecDeque<Target>>,
    /// A [`Hearing`].
    hearing: AtomicU8,
    /// Distinguishes this layer's messages from those of others.
    origin: u64,
}

/// Whether removals by other processes are heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Hearing {
    No,
    /// From now on, but what was removed before may still be in memory.
    Emptying,
    Yes,
}

/// When a look-up began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Since {
    pub(super) epoch: u64,
    /// Whether removals by other processes were heard then.
    hears: bool,
}

impl Removals {
    pub(super) fn new() -> Self {
        Self {
            epoch: AtomicU64::new(0),
            recent: Mutex::default(),
            hearing: AtomicU8::new(Hearing::No as u8),
            origin: fastrand::u64(..),
        }
    }

    pub(super) fn set_hearing(&self, hearing: Hearing) {
        self.hearing.store(hearing as u8, Ordering::Release);
    }

    /// Whether all removals by other processes have reached the memory, but for those on their way.
    pub(super) fn are_heard(&self) -> bool {
        self.hearing.load(Ordering::Acquire) == Hearing::Yes as u8
    }

    fn hears(&self) -> bool {
        self.hearing.load(Ordering::Acquire) != Hearing::No as u8
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Notes a removal, before it takes place.
    pub(super) fn note(&self, target: Target) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == HELD {
            recent.pop_front();
        }
        recent.push_back(target);
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether `key` was removed since an epoch, as far as is known; in doubt it was.
    pub(super) fn concern(&self, key: &CacheKey, since: u64) -> bool {
        if self.epoch() == since {
            return false;
        }
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let missed = usize::try_from(self.epoch() - since).unwrap_or(usize::MAX);
        let Some(first) = recent.len().checked_sub(missed) else {
            return true;
        };
        recent.range(first..).any(|target| target.is(key))
    }

    pub(super) fn since(&self) -> Since {
        let hears = self.hears();
        let epoch = self.epoch();
        Since { epoch, hears }
    }

    /// Whether what a look-up has found may have been removed meanwhile: also by another process that this one did not hear when
    /// it began.
    pub(super) fn concern_look_up(&self, key: &CacheKey, since: Since) -> bool {
        let may_have_missed = !since.hears && self.hears();
        may_have_missed || self.concern(key, since.epoch)
    }

    /// A removal as other processes are told of it.
    pub(super) fn message(&self, target: &Target) -> String {
        let origin = self.origin;
        match target {
            Target::Key(key) => format!("1 {origin:016x} key {key}"),
            Target::Matching(pattern) => format!("1 {origin:016x} matching {pattern}"),
            Target::All => format!("1 {origin:016x} all"),
        }
    }

    /// What another process has removed; `None` if it was this one. What cannot be read, perhaps of a later version, may have
    /// removed anything.
    pub(super) fn heard(&self, message: &[u8]) -> Option<Target> {
        match parse(message) {
            Some((origin, _)) if origin == self.origin => None,
            Some((_, target)) => Some(target),
            None => Some(Target::All),
        }
    }
}

fn parse(message: &[u8]) -> Option<(u64, Target)> {
    let rest = str::from_utf8(message).ok()?.strip_prefix("1 ")?;
    let (origin, what) = rest.split_once(' ')?;
    let origin = u64::from_str_radix(origin, 16).ok()?;
    let target = match what.split_once(' ') {
        Some(("key", key)) => Target::Key(key.parse().ok()?),
        Some(("matching", pattern)) => Target::Matching(pattern.to_owned()),
        None if what == "all" => Target::All,
        _ => return None,
    };
    Some((origin, target))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(model: &str) -> CacheKey {
        let text = format!("ai:completion:{model}:{}", "0".repeat(64));
        text.parse().unwrap()
    }

    #[test]
    fn a_key_is_removed_by_its_name_by_a_pattern_and_with_all_others() {
        for (target, is_a, is_b) in [
            (Target::Key(key("a")), true, false),
            (Target::Matching("*:b:*".into()), false, true),
            (Target::All, true, true),
        ] {
            let removals = Removals::new();
            let before = removals.epoch();
            removals.note(target);
            assert_eq!(removals.concern(&key("a"), before), is_a);
            assert_eq!(removals.concern(&key("b"), before), is_b);
            assert!(!removals.concern(&key("a"), removals.epoch()));
        }
    }

    /// The memory is emptied when removals are heard first. What a look-up that began earlier brings after that stays out.
    #[test]
    fn a_look_up_that_began_before_removals_were_heard_may_bring_what_was_removed() {
        let removals = Removals::new();
        let before = removals.since();
        assert!(!removals.concern_look_up(&key("a"), before));
        removals.set_hearing(Hearing::Emptying);
        assert!(removals.concern_look_up(&key("a"), before));
        assert!(!removals.concern_look_up(&key("a"), removals.since()));
        assert!(!removals.are_heard());
        removals.set_hearing(Hearing::Yes);
        assert!(removals.concern_look_up(&key("a"), before));
        assert!(removals.are_heard());
    }

    #[test]
    fn removals_that_are_no_longer_held_concern_every_key() {
        let removals = Removals::new();
        for _ in 0..HELD {
            removals.note(Target::Key(key("a")));
        }
        assert!(!removals.concern(&key("b"), 0));
        removals.note(Target::Key(key("a")));
        assert!(removals.concern(&key("b"), 0));
        assert!(!removals.concern(&key("b"), 1));
    }

    #[test]
    fn others_read_what_is_told_and_its_sender_ignores_it() {
        let (here, there) = (Removals::new(), Removals::new());
        for target in [
            Target::Key(key("a%20b")),
            Target::Matching("a b *".into()),
            Target::Matching(String::new()),
            Target::All,
        ] {
            let message = here.message(&target);
            assert_eq!(there.heard(message.as_bytes()), Some(target));
            assert_eq!(here.heard(message.as_bytes()), None);
        }
    }

    proptest! {
        #[test]
        fn what_cannot_be_read_removes_all(message in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(Removals::new().heard(&message), Some(Target::All));
        }
    }
}
