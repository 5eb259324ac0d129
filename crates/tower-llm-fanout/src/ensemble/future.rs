//! The future of a call with candidates and a judge.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_llm_core::{Bill, BoxError, Described, Unsent};
use tower_service::Service;

use super::{
    Elect, Judge,
    court::{Answers, Court, Heard, Judging},
};
use crate::{Arrived, Collected};

pin_project! {
    /// Resolves when a call has its answer: a judge's, or that of a candidate.
    ///
    /// Dropping it drops the candidates, or the judge. The caller pays for what the candidates had used.
    pub struct EnsembleFuture<F, J, A, W, Req, T>
    where
        J: Service<Req>,
        W: Elect<T, J::Response>,
    {
        #[pin]
        stage: Stage<F, Judging<J, Req, W>>,
        court: Court<J, A, W, Req, T>,
        // While the judge is at work.
        answers: Option<Answers<W::Answer>>,
        asked_at: Option<Instant>,
    }

    impl<F, J, A, W, Req, T> PinnedDrop for EnsembleFuture<F, J, A, W, Req, T>
    where
        J: Service<Req>,
        W: Elect<T, J::Response>,
    {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let Some(answers) = this.answers.take() else {
                return;
            };
            Unsent::while_dropping(|| this.stage.set(Stage::Over));
            // Whatever the judge reports, the candidates were sent.
            Unsent::while_dropping(|| ());
            let bill = Bill::new();
            bill.charge_extra(answers.used());
            bill.report();
        }
    }
}

pin_project! {
    #[project = StageProj]
    enum Stage<F, B> {
        Candidates { #[pin] future: F },
        Judge { #[pin] judging: B },
        Over,
    }
}

impl<F, J, A, W, Req, T> EnsembleFuture<F, J, A, W, Req, T>
where
    J: Service<Req>,
    W: Elect<T, J::Response>,
{
    pub(super) const fn new(future: F, court: Court<J, A, W, Req, T>) -> Self {
        Self {
            stage: Stage::Candidates { future },
            court,
            answers: None,
            asked_at: None,
        }
    }
}

impl<F, J, A, W, Req, T> Future for EnsembleFuture<F, J, A, W, Req, T>
where
    F: Future<Output = Result<Collected<T>, BoxError>>,
    J: Service<Req> + Clone,
    J::Error: Into<BoxError>,
    A: Judge<Req, W::Answer>,
    W: Elect<T, J::Response>,
    Req: Described,
{
    type Output = Result<W::Out, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let arrived = loop {
            match this.stage.as_mut().project() {
                StageProj::Candidates { future } => {
                    let collected = ready!(future.poll(cx));
                    this.stage.set(Stage::Over);
                    let answers = match this.court.hear(collected) {
                        Heard::Answer(answer) => return Poll::Ready(answer),
                        Heard::Several(answers) => answers,
                    };
                    *this.asked_at = Some(Instant::now());
                    let judging = this.court.ask(&answers);
                    *this.answers = Some(answers);
                    match judging {
                        Ok(judging) => this.stage.set(Stage::Judge { judging }),
                        Err(error) => break Arrived::error(error, 0),
                    }
                }
                StageProj::Judge { judging } => {
                    let (_, arrived) = ready!(judging.poll(cx));
                    this.stage.set(Stage::Over);
                    break arrived;
                }
                StageProj::Over => panic!("polled after it was ready"),
            }
        };
        let answers = this.answers.take().expect("the judge was asked about them");
        let asked_at = this.asked_at.unwrap_or(this.court.began_at);
        Poll::Ready(this.court.rule(answers, arrived, asked_at))
    }
}

impl<F, J, A, W, Req, T> fmt::Debug for EnsembleFuture<F, J, A, W, Req, T>
where
    J: Service<Req>,
    W: Elect<T, J::Response>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnsembleFuture").finish_non_exhaustive()
    }
}
