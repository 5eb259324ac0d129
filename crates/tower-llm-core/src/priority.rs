/// The order of waiting calls: all calls of a higher priority go before any of a lower one.
///
/// While calls of a higher priority wait, those of a lower priority wait too, up to the maximum wait of the layer.
// Complete: operators tell three priorities apart, and each costs every key a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A user waits for the answer.
    Interactive,
    /// The default.
    #[default]
    Normal,
    /// Work without a deadline.
    Batch,
}

impl Priority {
    /// The number of priorities.
    pub const COUNT: usize = 3;

    /// Its rank, below [`COUNT`](Self::COUNT); the first to go is 0.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}
