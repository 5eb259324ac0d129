use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::response::Parts;
use tokio::time::Instant;
use tower_llm_core::{Call, Completion, Guard, Unsent};

use crate::{
    Adaptive, BulkheadFull, LimitOf,
    adaptive::Sign,
    places::{Joined, Places, PushedOut, Shared, Turn, Wanted},
    silence::Silence,
};

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

/// A place that is held, or as many as a call weighs; dropping it gives them back.
#[derive(Debug)]
pub(crate) struct Permit {
    places: Shared,
    weight: u32,
}

/// A place in the queue; dropping it leaves the queue, or gives back the place that was given meanwhile.
#[derive(Debug)]
pub(crate) struct Ticket {
    places: Shared,
    wanted: Wanted,
    // `None` once its place has been taken over by a permit.
    number: Option<u64>,
    _unsent: Unsent,
}

/// How a call is admitted.
#[derive(Debug)]
pub(crate) enum Admission {
    Admitted(Permit),
    Waiting(Ticket),
    Full(BulkheadFull),
}

/// The place that a call holds: its guard.
#[derive(Debug)]
pub struct Place {
    permit: Option<Permit>,
    release_at: ReleaseAt,
    // Only where the limit follows what calls meet.
    tells: Option<Tells>,
}

/// Tells an adaptive limit what a call meets.
#[derive(Debug)]
struct Tells {
    // Also when the place has been given back.
    places: Shared,
    // Of a stream that has brought no token yet, if anybody wants to know.
    silence: Option<Silence>,
}

// === impl Permit ===

impl Permit {
    /// Takes places if they are free; gives `places` back if not.
    pub(crate) fn try_acquire(places: Shared, weight: u32) -> Result<Self, Shared> {
        if places.try_acquire(weight) {
            Ok(Self { places, weight })
        } else {
            Err(places)
        }
    }

    /// This permit as the guard of `call`.
    pub(crate) fn hold(self, release_at: ReleaseAt, call: Option<&Call>) -> Place {
        let tells = self.places.rules().map(|rules| Tells {
            places: Arc::clone(&self.places),
            silence: rules.silence_of(call),
        });
        Place {
            permit: Some(self),
            release_at,
            tells,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.places.release(self.weight);
    }
}

// === impl Ticket ===

impl Ticket {
    /// Joins the queue for a place.
    pub(crate) fn join(
        places: Shared,
        wanted: Wanted,
        max_waiting: usize,
        waker: &Waker,
    ) -> Admission {
        match Places::join(&places, &wanted, max_waiting, waker) {
            Joined::Admitted => Admission::Admitted(Permit {
                places,
                weight: wanted.weight,
            }),
            Joined::Waiting(number) => Admission::Waiting(Self {
                places,
                wanted,
                number: Some(number),
                _unsent: Unsent::new(),
            }),
            Joined::Full(limit_of) => Admission::Full(full(&places, limit_of, &wanted.turn)),
        }
    }

    /// The place, when it is this one's turn; why it is refused, if it had to go for another caller's call.
    pub(crate) fn poll(&mut self, waker: &Waker) -> Poll<Result<Permit, BulkheadFull>> {
        let number = self.number.expect("polled after it was ready");
        let polled = self.places.poll_ticket(&self.wanted.turn, number, waker);
        polled.map(|turn_came| {
            self.number = None;
            let Wanted { weight, turn } = &self.wanted;
            match turn_came {
                Ok(()) => Ok(Permit {
                    places: Arc::clone(&self.places),
                    weight: *weight,
                }),
                Err(PushedOut) => Err(full(&self.places, self.places.full_of(*weight), turn)),
            }
        })
    }

    /// Why it is refused, if it has waited for too long.
    pub(crate) fn refuse(&self, waited: Duration) -> BulkheadFull {
        self.places.count_refused();
        let limit_of = self.places.full_of(self.wanted.weight);
        full(&self.places, limit_of, &self.wanted.turn).after(waited)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(number) = self.number
            && !self.places.leave(&self.wanted.turn, number)
        {
            // The place came, and nobody is left to take it.
            self.places.release(self.wanted.weight);
        }
    }
}

fn full(places: &Places, limit_of: LimitOf, turn: &Turn) -> BulkheadFull {
    let limit = match (limit_of, places.all()) {
        (LimitOf::Global, Some(all)) => all.limit(),
        _ => places.limit(),
    };
    BulkheadFull::queue_full(limit, limit_of, turn.priority)
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
    fn response_headers(&mut self, _: Option<&mut Parts>) {
        if let Some(tells) = &mut self.tells {
            tells.head();
        }
        self.release(ReleaseAt::Head);
    }

    fn pending(&mut self, cx: &mut Context<'_>) {
        if let Some(tells) = &mut self.tells {
            tells.pending(cx);
        }
    }

    fn first_token(&mut self, at: Instant) {
        if let Some(tells) = &mut self.tells {
            tells.first_token(at);
        }
        self.release(ReleaseAt::FirstToken);
    }

    fn end(&mut self, completion: &Completion) {
        // Before the place is free, so that it goes by the new limit.
        if let Some(tells) = &self.tells {
            tells.end(completion);
        }
    }
}

// === impl Tells ===

impl Tells {
    fn head(&mut self) {
        if let Some(silence) = &mut self.silence {
            silence.head(Instant::now());
        }
    }

    fn pending(&mut self, cx: &mut Context<'_>) {
        if let Some(silence) = &mut self.silence
            && let Poll::Ready(now) = silence.poll(cx)
        {
            self.silence = None;
            self.tell(now, |_| Some(Sign::Bad));
        }
    }

    fn first_token(&mut self, at: Instant) {
        if let Some(silence) = self.silence.take() {
            let after = silence.seen(at);
            self.tell(at, |rules| rules.first_token(after));
        }
    }

    fn end(&self, completion: &Completion) {
        let now = completion.ended_at.unwrap_or_else(Instant::now);
        let silent_for = self.silence.as_ref().map(|silence| silence.seen(now));
        self.tell(now, |rules| rules.end(completion, silent_for));
    }

    fn tell(&self, now: Instant, sign: impl FnOnce(&Adaptive) -> Option<Sign>) {
        if let Some(sign) = self.places.rules().and_then(sign) {
            self.places.heed(sign, now);
        }
    }
}
