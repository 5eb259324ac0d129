//! What the branches of a call are.

use std::{borrow::Cow, error::Error, fmt, sync::Arc};

use tower_llm_core::{BoxError, Call, Described, HttpBody, TryClone, Unary};

/// What the branches of a call are.
pub trait Split<Req>: Clone {
    /// What one branch sends.
    type Branch;
    /// The branches of one call.
    type Branches: Branches<Branch = Self::Branch>;

    /// Splits a call.
    fn split(&self, request: Req) -> Self::Branches;
}

/// The branches of one call, made one by one: a branch that never starts costs nothing.
pub trait Branches {
    /// What one branch sends.
    type Branch;

    /// Makes the next branch; `None` if there is none now.
    fn next(&mut self) -> Option<Self::Branch>;

    /// The most branches that can still be made.
    fn left(&self) -> usize;

    /// How many of those that are left could start now.
    fn available(&mut self) -> usize {
        self.left()
    }

    /// Whether another branch may start: now, or if one is not sent.
    fn may_follow(&self) -> bool {
        self.left() > 0
    }

    /// A branch was not sent after all, and leaves its place to another one that goes elsewhere.
    fn unsent(&mut self) {}

    /// Whether the next branch would go where another one of this call went.
    fn repeats(&self) -> bool {
        true
    }

    /// Where the last branch that was made goes to, if that has a name.
    fn target(&self) -> Option<Arc<str>> {
        None
    }

    /// The error of a call without any branch.
    fn refusal(&mut self) -> BoxError {
        NoBranches::new().into()
    }
}

/// A request that can be sent to several places. Implemented for [`HttpBody`], for HTTP requests with a body that can be
/// [cloned](TryClone), and for [`Unary`], for any request that is `Clone`.
pub trait Replay<Req>: Clone {
    /// Clones the request; `None` if it can be sent only once.
    fn replay(&self, request: &Req) -> Option<Req>;
}

/// Sends the same request in every branch, to the same service.
#[derive(Clone, Debug)]
pub struct Copies<W = HttpBody> {
    pub(crate) most: usize,
    pub(crate) replay: W,
    pub(crate) eligible: Eligible,
    pub(crate) candidates: bool,
}

/// Which calls may have several branches.
#[derive(Clone, Default)]
pub(crate) enum Eligible {
    #[default]
    Inference,
    By(Arc<dyn Fn(Option<&Call>) -> bool + Send + Sync>),
}

/// The copies of one request; the last one is the request itself.
#[derive(Debug)]
pub struct CopiesOf<Req, W> {
    request: Option<Req>,
    left: usize,
    replay: W,
    /// The number of the next candidate, if they are compared.
    candidate: Option<u32>,
}

/// A call was split into no branches.
#[derive(Clone, Debug)]
pub struct NoBranches(());

// === impl NoBranches ===

impl NoBranches {
    pub(crate) const fn new() -> Self {
        Self(())
    }
}

impl fmt::Display for NoBranches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the call has no branches")
    }
}

impl Error for NoBranches {}

// === impl Replay ===

impl<B: TryClone> Replay<http::Request<B>> for HttpBody {
    fn replay(&self, request: &http::Request<B>) -> Option<http::Request<B>> {
        B::try_clone_request(request)
    }
}

impl<Req: Clone> Replay<Req> for Unary {
    fn replay(&self, request: &Req) -> Option<Req> {
        Some(request.clone())
    }
}

// === impl Copies ===

impl<W> Copies<W> {
    /// How many branches of a call may be sent.
    pub(crate) fn branches_of(&self, request: &dyn Described) -> usize {
        match self.most > 1 && self.eligible.is_eligible(request) {
            true => self.most,
            false => 1,
        }
    }
}

impl Eligible {
    pub(crate) fn is_eligible(&self, request: &dyn Described) -> bool {
        let call = request.call();
        match self {
            Self::Inference => {
                call.is_none_or(|call| call.operation().is_inference() && !call.stored())
            }
            Self::By(decide) => decide(call.as_deref()),
        }
    }
}

impl fmt::Debug for Eligible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inference => "Inference",
            Self::By(_) => "By(..)",
        })
    }
}

impl<Req: Described, W: Replay<Req>> Split<Req> for Copies<W> {
    type Branch = Req;
    type Branches = CopiesOf<Req, W>;

    fn split(&self, request: Req) -> CopiesOf<Req, W> {
        CopiesOf {
            left: self.branches_of(&request),
            request: Some(request),
            replay: self.replay.clone(),
            candidate: self.candidates.then_some(0),
        }
    }
}

impl<Req: Described, W: Replay<Req>> Branches for CopiesOf<Req, W> {
    type Branch = Req;

    fn next(&mut self) -> Option<Req> {
        self.left = self.left.saturating_sub(1);
        if self.left > 0 {
            let copy = self
                .request
                .as_ref()
                .and_then(|request| self.replay.replay(request));
            if let Some(copy) = copy {
                return Some(self.numbered(copy));
            }
            // It can be sent once.
            self.left = 0;
        }
        self.request.take().map(|request| self.numbered(request))
    }

    fn left(&self) -> usize {
        self.left
    }
}

impl<Req: Described, W> CopiesOf<Req, W> {
    fn numbered(&mut self, mut request: Req) -> Req {
        number(&mut request, &mut self.candidate);
        request
    }
}

/// Marks a request as the next candidate, if they are compared.
pub(crate) fn number(request: &mut impl Described, candidate: &mut Option<u32>) {
    let Some(candidate) = candidate else {
        return;
    };
    let number = *candidate;
    *candidate += 1;
    if number > 0
        && let Some(call) = request.call().map(Cow::into_owned)
    {
        request.set_call(call.as_candidate(number));
    }
}
