//! What a judge is asked, and what its answer means.

use tower_llm_core::BoxError;

/// What a judge is asked about the answers of candidates, and what its answer means. Implemented for closures, whose judge writes
/// the call's own answer, and for [`BestOf`], whose judge chooses among the candidates.
pub trait Judge<Req, T>: Clone {
    /// Makes the request to the judge, from the call's own and the good answers to it, in the order of the candidates.
    ///
    /// # Errors
    ///
    /// If there is none. The judge counts as failed then.
    fn ask(&self, request: &Req, answers: &[T]) -> Result<Req, BoxError>;

    /// Whether the judge's answer names one of the answers, and is read whole for that. If not, it is the call's own answer, and
    /// counts with its first content token.
    fn chooses(&self) -> bool {
        false
    }

    /// Reads which of the answers the judge's own names, by position; `None` if it names none. The judge counts as failed then.
    fn choose(&self, verdict: &T) -> Option<usize> {
        let _ = verdict;
        None
    }
}

/// A judge that chooses one of the answers; see [`FanoutLayer::best_of`](crate::FanoutLayer::best_of).
#[derive(Clone, Copy, Debug)]
pub struct BestOf<A, C> {
    pub(crate) ask: A,
    pub(crate) choose: C,
}

impl<Req, T, A> Judge<Req, T> for A
where
    A: Fn(&Req, &[T]) -> Result<Req, BoxError> + Clone,
{
    fn ask(&self, request: &Req, answers: &[T]) -> Result<Req, BoxError> {
        self(request, answers)
    }
}

impl<Req, T, A, C> Judge<Req, T> for BestOf<A, C>
where
    A: Fn(&Req, &[T]) -> Result<Req, BoxError> + Clone,
    C: Fn(&T) -> Option<usize> + Clone,
{
    fn ask(&self, request: &Req, answers: &[T]) -> Result<Req, BoxError> {
        (self.ask)(request, answers)
    }

    fn chooses(&self) -> bool {
        true
    }

    fn choose(&self, verdict: &T) -> Option<usize> {
        (self.choose)(verdict)
    }
}
