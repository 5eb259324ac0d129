//! The limits that a provider reports.

mod budget;
mod closed;
mod in_flight;
mod trust;
