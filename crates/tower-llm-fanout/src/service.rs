//! A service whose calls have branches.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tower_llm_core::{BoxError, Described};
use tower_service::Service;

use crate::{Answers, Copies, FanoutFuture, FirstOk, Gather, Split, plan::Plan};

/// A service whose calls have branches.
#[derive(Clone, Debug)]
pub struct Fanout<S, Sp = Copies, G = FirstOk> {
    inner: S,
    split: Sp,
    gather: G,
    plan: Arc<Plan>,
}

impl<S, Sp, G> Fanout<S, Sp, G> {
    pub(crate) const fn new(inner: S, split: Sp, gather: G, plan: Arc<Plan>) -> Self {
        Self {
            inner,
            split,
            gather,
            plan,
        }
    }
}

impl<S, Sp, G, Req> Service<Req> for Fanout<S, Sp, G>
where
    Sp: Split<Req>,
    Sp::Branch: Described,
    S: Service<Sp::Branch> + Clone,
    S::Error: Into<BoxError>,
    G: Gather<S::Response>,
{
    type Response = <G::Answers as Answers<G::Ripe>>::Output;
    type Error = BoxError;
    type Future = FanoutFuture<S, Sp::Branches, G>;

    /// Ready when the inner service can take the first branch. Each later branch waits for itself.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let branches = self.split.split(request);
        FanoutFuture::new(&mut self.inner, &self.plan, branches, self.gather.clone())
    }
}
