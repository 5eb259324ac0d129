//! Layers that decide on calls before these are sent.
//!
//! A [`Gate`] decides on one call: it admits it, has it wait, or refuses it. [`Gated`] is the service around a gate, and its
//! future the only one: a layer that admits calls is a gate and nothing else. Gates compose: a pair of gates is a gate, and
//! so is an `Option` of one. A pair admits outermost first, holds both guards, and watches the response once.
//!
//! # Costs
//!
//! A call that is admitted at once allocates nothing here. Its description is looked up once, and the clock is read at most
//! once, for all gates of a service together. A call that waits, or is refused, is boxed.
//!
//! # Drops
//!
//! A guard ends on every path, once. A caller that leaves while its call waits ends the guards that hold it as
//! [`Outcome::Refused`](crate::Outcome::Refused): nothing was sent, so everything is given back.

mod future;
mod pair;
mod service;

use std::{
    borrow::Cow,
    cell::OnceCell,
    fmt,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

pub use self::{future::GatedFuture, pair::Both, service::Gated};
use crate::{BoxError, Call, Described, Guard};

/// Decides on calls.
///
/// Clones share their state.
pub trait Gate: Clone + Send + 'static {
    /// What an admitted call holds until it ends.
    type Guard: Guard + Send + 'static;

    /// Decides on a call, without waiting.
    fn admit(&self, entry: &Entry<'_>) -> Admission<Self::Guard>;

    /// Looks whether [`admit`](Self::admit) would admit a call at once. Nothing is taken, and nothing is counted.
    ///
    /// Other calls may come in between, so it is a hint: good for choosing a target, not a promise.
    fn would_admit(&self, entry: &Entry<'_>) -> Availability;
}

/// A layer that is a [`Gate`], and how the responses behind it are watched.
///
/// Two of them around one service cost less as a pair of gates in one [`Gated`], which watches the response once:
///
/// ```
/// use tower_llm_core::{GateLayer, Gated, Watch};
///
/// fn both<S, A, B>(client: S, outer: &A, inner: &B) -> Gated<S, (A::Gate, B::Gate), B::Watch>
/// where
///     A: GateLayer,
///     B: GateLayer,
/// {
///     Gated::new(client, (outer.gate(), inner.gate()), inner.watch())
/// }
/// ```
pub trait GateLayer {
    /// What decides.
    type Gate: Gate;
    /// See [`Watch`](crate::Watch).
    type Watch: Clone;

    /// The gate. It shares its state with the layer and with all services that the layer makes.
    fn gate(&self) -> Self::Gate;

    /// How the end of a response is detected.
    fn watch(&self) -> Self::Watch;
}

/// When a gate would admit a call; the later, the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Availability {
    /// At once.
    Now,
    /// After this time, if no other call comes first.
    After(Duration),
    /// Later, when calls in flight end.
    Unknown,
    /// Never, or not before its settings change.
    Never,
}

/// The decision on a call.
pub enum Admission<G> {
    /// The call is sent.
    Admitted(G),
    /// The call is sent or refused later.
    Waits(Box<dyn Wait<G>>),
    /// The call is not sent.
    Refused(BoxError),
}

/// A call that waits to be admitted. Dropping it gives up what it waits for.
pub trait Wait<G>: Send {
    /// Ready when the call is admitted, or refused.
    ///
    /// # Errors
    ///
    /// The refusal.
    fn poll(&mut self, entry: &Entry<'_>, cx: &mut Context<'_>) -> Poll<Result<G, BoxError>>;
}

/// A call at the gates.
pub struct Entry<'a> {
    request: &'a dyn Described,
    call: Option<Cow<'a, Call>>,
    reports_usage: bool,
    now: OnceCell<Instant>,
}

impl<'a> Entry<'a> {
    /// A call that begins now. `reports_usage` is that of the [`Watch`](crate::Watch) that its response will have.
    pub fn new(request: &'a dyn Described, reports_usage: bool) -> Self {
        Self {
            request,
            call: request.call(),
            reports_usage,
            now: OnceCell::new(),
        }
    }

    /// What is known of the call.
    #[must_use]
    pub fn call(&self) -> Option<&Call> {
        self.call.as_deref()
    }

    /// Whether the response can say what its call used.
    #[must_use]
    pub fn reports_usage(&self) -> bool {
        self.reports_usage
    }

    /// Whether the call may wait for what is used up; see [`Call::may_queue`].
    #[must_use]
    pub fn may_queue(&self) -> bool {
        self.call().is_none_or(Call::may_queue)
    }

    /// The time, read by the first gate that asks for it and the same for all.
    #[must_use]
    pub fn now(&self) -> Instant {
        *self.now.get_or_init(Instant::now)
    }
}

impl Described for Entry<'_> {
    fn call(&self) -> Option<Cow<'_, Call>> {
        self.call.as_deref().map(Cow::Borrowed)
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.request.header(name)
    }
}

impl<G> fmt::Debug for Admission<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admitted(_) => "Admitted",
            Self::Waits(_) => "Waits",
            Self::Refused(_) => "Refused",
        })
    }
}

impl fmt::Debug for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("call", &self.call)
            .finish_non_exhaustive()
    }
}
