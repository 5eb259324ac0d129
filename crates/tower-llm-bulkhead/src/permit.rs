use std::{
    sync::Arc,
    task::{Poll, Waker},
};

use http::response::Parts;
use tokio::time::Instant;
use tower_llm_core::{Completion, Forget, Guard, Keyed};

use crate::places::{Joined, Places};

/// When a call gives its place back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReleaseAt {
    /// When the response's head has come: limits calls that are being started, not those that run.
    Head,
    /// With the first content token of a stream; where none comes, at the end.
    FirstToken,
    /// When the body has ended or was dropped.
    #[default]
    End,
}

/// A place that is held; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Keyed<Places>>);

/// A place in the queue; dropping it leaves the queue, or gives back the place that was given meanwhile.
#[derive(Debug)]
pub(crate) struct Ticket {
    places: Arc<Keyed<Places>>,
    // `None` once its place has been taken over by a permit.
    number: Option<u64>,
}

/// How a call is admitted.
#[derive(Debug)]
pub(crate) enum Admission {
    Admitted(Permit),
    Waiting(Ticket),
    Full,
}

/// The place that a call holds: its guard.
#[derive(Debug)]
pub struct Place {
    permit: Option<Permit>,
    release_at: ReleaseAt,
}

// === impl Permit ===

impl Permit {
    /// Takes a place if one is free; gives `places` back if not.
    pub(crate) fn try_acquire(places: Arc<Keyed<Places>>) -> Result<Self, Arc<Keyed<Places>>> {
        if places.try_acquire() {
            Ok(Self(places))
        } else {
            Err(places)
        }
    }

    /// This permit as the guard of a call.
    pub(crate) fn hold(self, release_at: ReleaseAt) -> Place {
        Place {
            permit: Some(self),
            release_at,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.release();
    }
}

// === impl Ticket ===

impl Ticket {
    /// Joins the queue for a place.
    pub(crate) fn join(places: Arc<Keyed<Places>>, max_waiting: usize, waker: &Waker) -> Admission {
        match places.join(max_waiting, waker) {
            Joined::Admitted => Admission::Admitted(Permit(places)),
            Joined::Waiting(number) => Admission::Waiting(Self {
                places,
                number: Some(number),
            }),
            Joined::Full => Admission::Full,
        }
    }

    /// The place, when it is this one's turn.
    pub(crate) fn poll(&mut self, waker: &Waker) -> Poll<Permit> {
        let number = self.number.expect("polled after it was ready");
        self.places.poll_ticket(number, waker).map(|()| {
            self.number = None;
            Permit(Arc::clone(&self.places))
        })
    }

    pub(crate) fn places(&self) -> &Places {
        &self.places
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(number) = self.number
            && !self.places.leave(number)
        {
            // The place came, and nobody is left to take it.
            self.places.release();
        }
    }
}

// === impl Place ===

impl Place {
    fn release(&mut self, reached: ReleaseAt) {
        if self.release_at == reached {
            self.permit = None;
        }
    }
}

impl Guard for Place {
    fn head(&mut self, _: Option<&mut Parts>) {
        self.release(ReleaseAt::Head);
    }

    fn first_token(&mut self, _: Instant) {
        self.release(ReleaseAt::FirstToken);
    }

    fn end(self, _: &Completion) {}
}

// === impl Places ===

impl Forget for Places {
    fn may_forget(&self) -> bool {
        // Whoever has a place or waits for one holds these places: nobody does.
        true
    }
}
