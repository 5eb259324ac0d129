//! Embeddings and text completions in `OpenAI`'s dialect, whose requests have lists of inputs: what a provider takes in one call, and the bodies of calls that are merged or divided.
//!
//! Inputs and vectors stay as they are written: they are counted, ordered and passed on.

mod inputs;
mod json;
mod limits;
mod usage;
mod vectors;

pub use self::{
    inputs::{CompletionPrompts, EmbeddingInputs},
    limits::{EmbeddingLimits, is_of_each_input},
    usage::sum_usages,
    vectors::{CompletionChoices, EmbeddingVectors},
};
