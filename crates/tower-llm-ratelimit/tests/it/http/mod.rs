//! Calls over HTTP.

mod outcomes;
mod random;
mod stages;
