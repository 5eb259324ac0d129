use std::ops::Deref;

use crate::Served;

/// The response of a typed service behind a cache, and whether it cost a call.
///
/// It derefs to the response. The layers around the cache are built with [`Cached`](crate::Cached), which reads
/// [`served`](Self::served).
///
/// ```
/// use tower_llm_core::{Answer, Served};
///
/// let answer = Answer::new(String::from("Because."), Some(Served::Hit));
/// assert_eq!(answer.len(), 8);
/// assert_eq!(answer.served(), Some(Served::Hit));
/// assert_eq!(answer.into_inner(), "Because.");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Answer<R> {
    response: R,
    served: Option<Served>,
}

impl<R> Answer<R> {
    /// Creates an answer; `served` is `None` if a call was made for it.
    pub const fn new(response: R, served: Option<Served>) -> Self {
        Self { response, served }
    }

    /// Returns where the response came from; `None` if a call was made for it.
    pub const fn served(&self) -> Option<Served> {
        self.served
    }

    /// Returns the response.
    pub fn into_inner(self) -> R {
        self.response
    }

    /// Changes the response.
    pub fn map<T>(self, change: impl FnOnce(R) -> T) -> Answer<T> {
        Answer::new(change(self.response), self.served)
    }
}

impl<R> Deref for Answer<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.response
    }
}
