//! What is left to do once the queue is unlocked.

use std::{fmt, sync::Arc, task::Waker};

use tower_llm_core::BoxError;

use crate::lane::Waiting;

/// What is to be done with the queue unlocked: wakers run code of the executor's, destructors that of the user's.
pub(crate) struct After<K, R, T> {
    /// To be woken.
    pub(crate) wakers: Vec<Waker>,
    dropped: Vec<Dropped<K, R, T>>,
}

#[expect(dead_code, reason = "held to be dropped")]
enum Dropped<K, R, T> {
    Waker(Waker),
    Result(Result<T, BoxError>),
    Request(Waiting<R>),
    Key(Arc<K>, Option<Arc<K>>),
}

impl<K, R, T> After<K, R, T> {
    pub(crate) const fn new() -> Self {
        Self {
            wakers: Vec::new(),
            dropped: Vec::new(),
        }
    }

    pub(crate) fn drop_waker(&mut self, waker: Option<Waker>) {
        self.dropped.extend(waker.map(Dropped::Waker));
    }

    pub(crate) fn drop_result(&mut self, result: Result<T, BoxError>) {
        self.dropped.push(Dropped::Result(result));
    }

    pub(crate) fn drop_request(&mut self, call: Option<Waiting<R>>) {
        self.dropped.extend(call.map(Dropped::Request));
    }

    pub(crate) fn drop_key(&mut self, key: Arc<K>, known: Option<Arc<K>>) {
        self.dropped.push(Dropped::Key(key, known));
    }

    /// Wakes what is to be woken. The rest is dropped with it.
    pub(crate) fn finish(self) {
        self.wakers.into_iter().for_each(Waker::wake);
    }
}

impl<K, R, T> fmt::Debug for After<K, R, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("After").finish_non_exhaustive()
    }
}
