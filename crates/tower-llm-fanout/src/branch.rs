//! One branch of a call: from the request to an answer that counts.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tower_llm_core::{BoxError, Call, Deadline, Failure, Outcome, TimedOut, Unsent, drop_as};

use crate::{Arrived, Gather};

pin_project! {
    /// A branch in flight.
    pub(crate) struct Branch<F, G: Gather<R>, R> {
        index: usize,
        #[pin]
        stage: Stage<F, G::Ripening>,
        gather: G,
        call: Option<Call>,
        deadline: Option<Pin<Box<Sleep>>>,
        timeout: Option<Duration>,
    }

    impl<F, G: Gather<R>, R> PinnedDrop for Branch<F, G, R> {
        fn drop(this: Pin<&mut Self>) {
            let mut stage = this.project().stage;
            // One by one: a branch that waits says that it was not sent, and a client says nothing.
            if !stage.is_over() {
                Unsent::while_dropping(|| stage.set(Stage::Over));
            }
        }
    }
}

pin_project! {
    #[project = StageProj]
    enum Stage<F, R> {
        Calling { #[pin] future: F },
        Ripening { #[pin] ripening: R },
        Over,
    }
}

impl<F, G: Gather<R>, R> Branch<F, G, R> {
    /// A branch that has `timeout` to answer.
    pub(crate) fn new(
        index: usize,
        future: F,
        gather: G,
        call: Option<Call>,
        timeout: Option<Duration>,
    ) -> Self {
        Self {
            index,
            stage: Stage::Calling { future },
            gather,
            call,
            deadline: None,
            timeout,
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

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Poll::Ready(arrived) = this
            .stage
            .as_mut()
            .poll(cx, this.gather, this.call.as_ref())
        else {
            let Some(timeout) = *this.timeout else {
                return Poll::Pending;
            };
            let deadline = this
                .deadline
                .get_or_insert_with(|| Box::pin(sleep(timeout)));
            ready!(deadline.as_mut().poll(cx));
            let timed_out = Outcome::Failed(Failure::Timeout);
            drop_as(timed_out, || this.stage.set(Stage::Over));
            let error = TimedOut::new(Deadline::Total, timeout);
            return Poll::Ready((*this.index, Arrived::error(error.into())));
        };
        // A kept answer holds nothing of its branch.
        this.stage.set(Stage::Over);
        Poll::Ready((*this.index, arrived))
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
        call: Option<&Call>,
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
                        let ripening = gather.ripen(call, response);
                        self.set(Self::Ripening { ripening });
                    }
                    Err(error) => return Poll::Ready(Arrived::error(error.into())),
                },
                StageProj::Ripening { ripening } => return ripening.poll(cx),
                StageProj::Over => panic!("polled after it was ready"),
            }
        }
    }
}
