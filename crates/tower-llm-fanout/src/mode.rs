//! What a layer does with the branches of its calls.

use tower_llm_core::ConfigError;

use crate::{Collect, Copies, FirstOk, Items, Quorum, Reading};

/// What a layer does with the branches of its calls: [`First`], [`Each`], [`Several`] or [`Vote`].
pub trait Mode<W, C>: Clone {
    /// What the branches are.
    type Split;
    /// What their answers come to.
    type Gather;

    /// What the branches are, around one service, where they would be copies of one request.
    fn split(&self, copies: Copies<W>) -> Self::Split;

    /// Checks its settings, for a layer with so many branches.
    ///
    /// # Errors
    ///
    /// If they ask for what so many branches cannot give.
    fn check(&self, branches: usize) -> Result<(), ConfigError> {
        let _ = branches;
        Ok(())
    }

    /// What the answers come to.
    fn gather(&self, reading: Reading<W, C>) -> Self::Gather;
}

/// The first good answer wins; see [`FirstOk`].
#[derive(Clone, Copy, Debug, Default)]
pub struct First {
    pub(crate) fallback: Fallback,
    pub(crate) report_headers: bool,
}

/// Which answer a call gets if no branch has a good one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Fallback {
    /// That of the first branch that was sent.
    #[default]
    First,
    /// That of the last branch that has one: for tiers, of which each is better than the one before.
    Last,
}

/// Each item of a list is a branch, and each has its own answer; see [`Collect`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Each {
    pub(crate) fail_fast: bool,
    /// Whether they are the parts of one request, whose answers are joined.
    pub(crate) joined: bool,
}

/// The same call is sent several times, and all answers are kept; see [`Collect`].
#[derive(Clone, Copy, Debug)]
pub struct Several {
    pub(crate) fail_fast: bool,
    pub(crate) min_ok: usize,
    /// Whether a judge makes one answer of them.
    pub(crate) judged: bool,
}

/// The same call is sent several times, and the answer that most give wins; see [`Quorum`].
#[derive(Clone, Copy, Debug)]
pub struct Vote<X> {
    pub(crate) votes: usize,
    pub(crate) extract: X,
    pub(crate) report_headers: bool,
}

fn check_needed(field: &'static str, needed: usize, branches: usize) -> Result<(), ConfigError> {
    ConfigError::check_nonzero(field, needed)?;
    if needed > branches {
        let reason = "it must not exceed the number of branches";
        return Err(ConfigError::new(field, needed, reason));
    }
    Ok(())
}

impl<W, C> Mode<W, C> for First {
    type Split = Copies<W>;
    type Gather = FirstOk<W, C>;

    fn split(&self, copies: Copies<W>) -> Copies<W> {
        copies
    }

    fn gather(&self, reading: Reading<W, C>) -> FirstOk<W, C> {
        FirstOk {
            reading,
            fallback: self.fallback,
            report_headers: self.report_headers,
        }
    }
}

impl<W, C> Mode<W, C> for Each {
    type Split = Items;
    type Gather = Collect<W, C>;

    fn split(&self, _: Copies<W>) -> Items {
        Items
    }

    fn gather(&self, reading: Reading<W, C>) -> Collect<W, C> {
        Collect {
            fail_fast: self.fail_fast,
            only_passes: self.joined,
            ..Collect::of(reading)
        }
    }
}

impl<W, C> Mode<W, C> for Several {
    type Split = Copies<W>;
    type Gather = Collect<W, C>;

    fn split(&self, copies: Copies<W>) -> Copies<W> {
        Copies {
            candidates: true,
            ..copies
        }
    }

    fn gather(&self, reading: Reading<W, C>) -> Collect<W, C> {
        Collect {
            fail_fast: self.fail_fast,
            min_ok: self.min_ok,
            only_passes: self.judged,
            needs_all: self.judged && self.fail_fast,
            ..Collect::of(reading)
        }
    }

    fn check(&self, branches: usize) -> Result<(), ConfigError> {
        check_needed("min_ok", self.min_ok, branches)
    }
}

impl<W, C, X: Clone> Mode<W, C> for Vote<X> {
    type Split = Copies<W>;
    type Gather = Quorum<W, C, X>;

    fn split(&self, copies: Copies<W>) -> Copies<W> {
        Copies {
            candidates: true,
            ..copies
        }
    }

    fn gather(&self, reading: Reading<W, C>) -> Quorum<W, C, X> {
        Quorum {
            reading,
            votes: self.votes,
            extract: self.extract.clone(),
            report_headers: self.report_headers,
        }
    }

    fn check(&self, branches: usize) -> Result<(), ConfigError> {
        check_needed("votes", self.votes, branches)
    }
}
