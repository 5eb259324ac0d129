//! Look-ups in Redis that are under way: those for the same answer at the same time are one.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{
    FutureExt,
    future::{Shared, WeakShared},
};

use super::envelope::Opened;

/// What a look-up comes to. Any of those that wait for it drives it.
pub(super) type Looking = Shared<Boxed>;
type Boxed = Pin<Box<dyn Future<Output = Option<Opened>> + Send>>;

#[derive(Clone, Default)]
pub(super) struct Lookups(Arc<Mutex<HashMap<[u8; 32], Running>>>);

struct Running {
    looking: WeakShared<Boxed>,
    /// The epoch of removals in which it began. What it reads may have been removed since then.
    epoch: u64,
}

/// Takes a look-up out of the table at its end, or when the last that waits for it leaves.
struct Leave {
    lookups: Lookups,
    digest: [u8; 32],
}

impl Lookups {
    /// Joins the look-up for an answer that began in the same epoch, or starts one.
    pub(super) fn join_or_start<F>(
        &self,
        digest: [u8; 32],
        epoch: u64,
        start: impl FnOnce() -> F,
    ) -> Looking
    where
        F: Future<Output = Option<Opened>> + Send + 'static,
    {
        let mut running = self.lock();
        let joined = running
            .get(&digest)
            .filter(|running| running.epoch == epoch)
            .and_then(|running| running.looking.upgrade());
        if let Some(looking) = joined {
            return looking;
        }
        let leave = Leave {
            lookups: self.clone(),
            digest,
        };
        let looked = start();
        let boxed: Boxed = Box::pin(async move {
            let _leave = leave;
            looked.await
        });
        let started = boxed.shared();
        if let Some(looking) = started.downgrade() {
            running.insert(digest, Running { looking, epoch });
        }
        started
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        // If another has taken its place, further callers do not share that one, which does no harm.
        self.lookups.lock().remove(&self.digest);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future,
        sync::atomic::{AtomicU32, Ordering::SeqCst},
    };

    use super::*;

    fn never(started: &AtomicU32) -> future::Pending<Option<Opened>> {
        started.fetch_add(1, SeqCst);
        future::pending()
    }

    #[test]
    fn what_is_looked_for_in_the_same_epoch_is_looked_for_once() {
        let (lookups, started) = (Lookups::default(), AtomicU32::new(0));
        let look = |digest, epoch| lookups.join_or_start([digest; 32], epoch, || never(&started));
        let _all = [look(1, 0), look(1, 0), look(2, 0), look(2, 0)];
        assert_eq!(started.load(SeqCst), 2);
        // The answer may have been removed since the others began.
        let _later = [look(1, 1), look(1, 1)];
        assert_eq!(started.load(SeqCst), 3);
    }

    #[test]
    fn nothing_is_held_once_a_look_up_has_ended_or_was_given_up() {
        let (lookups, started) = (Lookups::default(), AtomicU32::new(0));
        for _ in 0..2 {
            let looking = lookups.join_or_start([1; 32], 0, || never(&started));
            let other = looking.clone();
            drop(looking);
            assert_eq!(lookups.lock().len(), 1);
            drop(other);
            assert_eq!(lookups.lock().len(), 0);
        }
        let looking = lookups.join_or_start([1; 32], 0, || future::ready(None));
        assert!(looking.now_or_never().is_some());
        assert_eq!(lookups.lock().len(), 0);
    }
}
