//! A service whose calls are answered by several candidates and a judge.

use std::{
    marker::PhantomData,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::Instant;
use tower_llm_core::{BoxError, Described};
use tower_service::Service;

use super::{Elect, EnsembleFuture, Judge, court::Court, settings::Settings};
use crate::{Collected, Replay};

/// Sends each call to several candidates, and a judge makes one answer of theirs.
#[derive(Clone, Debug)]
pub struct Ensemble<F, J, A, W> {
    pub(super) candidates: F,
    pub(super) judge: J,
    pub(super) ask: A,
    pub(super) watch: W,
    pub(super) settings: Arc<Settings>,
}

impl<F, J, A, W, Req, T> Service<Req> for Ensemble<F, J, A, W>
where
    F: Service<Req, Response = Collected<T>, Error = BoxError>,
    J: Service<Req> + Clone,
    J::Error: Into<BoxError>,
    A: Judge<Req, W::Answer>,
    W: Replay<Req> + Elect<T, J::Response>,
    Req: Described,
{
    type Response = W::Out;
    type Error = BoxError;
    type Future = EnsembleFuture<F::Future, J, A, W, Req, T>;

    /// Ready when the candidates are. The judge's service is waited for when it is needed.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.candidates.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let court = Court {
            request: self.watch.replay(&request),
            judge: self.judge.clone(),
            ask: self.ask.clone(),
            watch: self.watch.clone(),
            settings: Arc::clone(&self.settings),
            began_at: Instant::now(),
            _answers: PhantomData,
        };
        EnsembleFuture::new(self.candidates.call(request), court)
    }
}
