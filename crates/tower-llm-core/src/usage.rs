//! Tokens that a call has used.

/// The tokens that a call used, as its provider reports them.
///
/// Providers count differently; here the numbers always mean the same. `input` and `output` are totals and the others are
/// parts of them. So Anthropic's cached input, which it reports beside the input, is added to the input, and Gemini's
/// thoughts are added to the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Usage {
    /// All input tokens, including cached ones.
    pub input: u64,
    /// All output tokens, including reasoning.
    pub output: u64,
    /// The part of the input that was read from the provider's prompt cache.
    pub cached_input: u64,
    /// The part of the input that was written to the provider's prompt cache.
    pub cache_write: u64,
    /// The part of the output that the caller does not see: reasoning, thinking, thoughts.
    pub reasoning: u64,
}

impl Usage {
    /// Creates the usage of `input` and `output` tokens, none of them cached or reasoning.
    #[must_use]
    pub const fn new(input: u64, output: u64) -> Self {
        Self {
            input,
            output,
            cached_input: 0,
            cache_write: 0,
            reasoning: 0,
        }
    }

    /// This usage and another one together.
    #[must_use]
    pub const fn plus(&self, other: &Self) -> Self {
        Self {
            input: self.input.saturating_add(other.input),
            output: self.output.saturating_add(other.output),
            cached_input: self.cached_input.saturating_add(other.cached_input),
            cache_write: self.cache_write.saturating_add(other.cache_write),
            reasoning: self.reasoning.saturating_add(other.reasoning),
        }
    }

    /// Input and output together.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.input.saturating_add(self.output)
    }
}
