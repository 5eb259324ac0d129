//! The layer from outside: what is sent, what is shared, what is found again.

#![allow(clippy::unwrap_used, reason = "tests fail by panics")]

mod cloned;
mod encoding;
mod faults;
mod flights;
mod hits;
mod hostile;
mod items;
mod leaving;
mod refresh;
mod settings;
mod stale;
mod stored;
mod support;
mod values;
mod warming;
