//! The monitor from outside: one binary, a module for each subject.

mod counts;
