//! One branch of a call: from the request to an answer that counts.

use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tower_llm_core::{
    BoxError, Call, Completion, Deadline, Failure, Outcome, TimedOut, Unsent, Usage, drop_as,
};

use crate::{Arrived, Gather};

pin_project! {
    /// A branch in flight.
    pub(crate) struct Branch<F, G: Gather<R>, R> {
        terms: Terms,
        #[pin]
        stage: Stage<F, G::Ripening>,
        gather: G,
        deadline: Option<Pin<Box<Sleep>>>,
    }

    impl<F, G: Gather<R>, R> PinnedDrop for Branch<F, G, R> {
        fn drop(mut this: Pin<&mut Self>) {
            let projected = this.as_mut().project();
            if projected.stage.is_over() {
                return;
            }
            let losses = projected.terms.losses.clone();
            match losses.as_ref().and_then(|losses| losses.state().outcome) {
                Some(outcome) => {
                    let loss = this.give_up(outcome);
                    losses.iter().for_each(|losses| losses.state().all.push(loss));
                }
                // One by one: a branch that waits says that it was not sent, and a client says nothing.
                None => {
                    let mut stage = this.project().stage;
                    Unsent::while_dropping(|| stage.set(Stage::Over));
                }
            }
        }
    }
}

/// What a branch is told when it starts.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) index: usize,
    /// Its description, if that is read.
    pub(crate) call: Option<Call>,
    /// The estimate of its input.
    pub(crate) input_tokens: u64,
    /// How long it has to answer.
    pub(crate) timeout: Option<Duration>,
    /// For branches that are dropped together.
    pub(crate) losses: Option<Arc<Losses>>,
}

/// What becomes of branches that their call gives up together: the set that holds them can only be dropped.
#[derive(Debug, Default)]
pub(crate) struct Losses(Mutex<Given>);

#[derive(Debug, Default)]
struct Given {
    /// How the branches end that are being dropped; `None` if their call is dropped itself.
    outcome: Option<Outcome>,
    all: Vec<Loss>,
}

/// A branch that its call has given up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loss {
    pub(crate) branch: usize,
    pub(crate) outcome: Outcome,
    pub(crate) used: Usage,
}

// === impl Losses ===

impl Losses {
    fn state(&self) -> MutexGuard<'_, Given> {
        // It is held to read or push, and never while a branch is dropped.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `drop`, which drops branches that end as `outcome`, and returns what has become of them.
    pub(crate) fn of_dropping(&self, outcome: Outcome, drop: impl FnOnce()) -> Vec<Loss> {
        self.state().outcome = Some(outcome);
        drop();
        let mut state = self.state();
        state.outcome = None;
        mem::take(&mut state.all)
    }
}

impl Loss {
    pub(crate) fn is_unsent(&self) -> bool {
        self.outcome == Outcome::Refused
    }
}

// === impl Branch ===

pin_project! {
    #[project = StageProj]
    enum Stage<F, R> {
        Calling { #[pin] future: F },
        Ripening { #[pin] ripening: R },
        Over,
    }
}

impl<F, G: Gather<R>, R> Branch<F, G, R> {
    pub(crate) fn new(terms: Terms, future: F, gather: G) -> Self {
        Self {
            terms,
            stage: Stage::Calling { future },
            gather,
            deadline: None,
        }
    }

    /// Drops what is in flight, which ends as `outcome`.
    pub(crate) fn give_up(self: Pin<&mut Self>, outcome: Outcome) -> Loss {
        let mut this = self.project();
        let mut seen = None;
        let is_unsent = drop_as(outcome, || {
            if let StageProj::Ripening { ripening } = this.stage.as_mut().project() {
                seen = this.gather.give_up(ripening, outcome);
            }
            this.stage.set(Stage::Over);
        });
        let outcome = match is_unsent {
            true => Outcome::Refused,
            false => outcome,
        };
        let seen = seen.unwrap_or_else(|| Completion::new(outcome));
        Loss {
            branch: this.terms.index,
            outcome,
            used: seen.used(this.terms.input_tokens),
        }
    }
}

impl<F, G, R, E> Future for Branch<F, G, R>
where
    F: Future<Output = Result<R, E>>,
    E: Into<BoxError>,
    G: Gather<R>,
{
    type Output = (usize, Arrived<G::Ripe>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.as_mut().project();
        let index = this.terms.index;
        if let Poll::Ready(arrived) = this.stage.as_mut().poll(cx, this.gather, this.terms) {
            // A kept answer holds nothing of its branch.
            this.stage.set(Stage::Over);
            return Poll::Ready((index, arrived));
        }
        let Some(timeout) = this.terms.timeout else {
            return Poll::Pending;
        };
        let deadline = this
            .deadline
            .get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(deadline.as_mut().poll(cx));
        let loss = self.give_up(Outcome::Failed(Failure::Timeout));
        let error = TimedOut::new(Deadline::Total, timeout);
        let arrived = Arrived::error(error.into(), 0).using(loss.used);
        Poll::Ready((index, arrived))
    }
}

impl<F, P> Stage<F, P> {
    fn is_over(&self) -> bool {
        matches!(self, Self::Over)
    }

    fn poll<G, R, E>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        gather: &G,
        terms: &Terms,
    ) -> Poll<Arrived<G::Ripe>>
    where
        F: Future<Output = Result<R, E>>,
        E: Into<BoxError>,
        G: Gather<R, Ripening = P>,
        P: Future<Output = Arrived<G::Ripe>>,
    {
        loop {
            match self.as_mut().project() {
                StageProj::Calling { future } => match ready!(future.poll(cx)) {
                    Ok(response) => {
                        let ripening = gather.ripen(terms.call.as_ref(), response);
                        self.set(Self::Ripening { ripening });
                    }
                    Err(error) => {
                        let arrived = Arrived::error(error.into(), terms.input_tokens);
                        return Poll::Ready(arrived);
                    }
                },
                StageProj::Ripening { ripening } => return ripening.poll(cx),
                StageProj::Over => panic!("polled after it was ready"),
            }
        }
    }
}
