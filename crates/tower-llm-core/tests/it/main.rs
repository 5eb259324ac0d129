//! Calls, watches, gates and refusals from outside: one binary, a module for each subject.

mod describe;
mod fixtures;
mod gate;
mod json;
mod on_end;
mod refusal;
mod registry;
mod splits;
mod support;
mod watch;
