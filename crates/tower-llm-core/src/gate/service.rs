//! The service around a gate.

use std::task::{Context, Poll};

use tower_service::Service;

use super::{Admission, Entry, Gate, GatedFuture};
use crate::{Armed, BoxError, Described, Watch};

/// Sends the calls that a [`Gate`] admits.
#[derive(Clone, Debug)]
pub struct Gated<S, G, W> {
    inner: S,
    gate: G,
    watch: W,
}

impl<S, G, W> Gated<S, G, W> {
    /// Puts `gate` before `inner`, whose responses are watched by `watch`.
    pub const fn new(inner: S, gate: G, watch: W) -> Self {
        Self { inner, gate, watch }
    }

    /// What decides. It shares its state with this service, and can be asked before a service is chosen:
    /// [`Gate::would_admit`].
    pub const fn gate(&self) -> &G {
        &self.gate
    }
}

impl<S: Clone, G, W> Gated<S, G, W> {
    /// Gives up what the inner service reserved when it became ready: another call may need it.
    fn unready(&mut self) {
        self.inner = self.inner.clone();
    }
}

impl<S, G, W, Req> Service<Req> for Gated<S, G, W>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    G: Gate,
    Req: Described,
    W: Watch<S::Response>,
{
    type Response = W::Out<G::Guard>;
    type Error = BoxError;
    type Future = GatedFuture<S, Req, W, G::Guard>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let entry = Entry::new(&request, self.watch.reports_usage());
        match self.gate.admit(&entry) {
            Admission::Admitted(guard) => {
                let mut armed = Armed::new(guard);
                let call = self.watch.keep(entry.call());
                drop(entry);
                let inner = armed.enter(|| self.inner.call(request));
                GatedFuture::running(inner, self.watch.clone(), call, armed)
            }
            Admission::Waits(wait) => {
                drop(entry);
                self.unready();
                GatedFuture::waiting(wait, self.inner.clone(), request, self.watch.clone())
            }
            Admission::Refused(error) => {
                drop(entry);
                self.unready();
                GatedFuture::refused(error)
            }
        }
    }
}
