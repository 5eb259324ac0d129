//! What a provider reports of its own limits.

pub(crate) mod budget;
pub(crate) mod headers;
