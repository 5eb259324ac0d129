//! `gateway.toml`: reading, validation, secrets.

mod reading;
mod secrets;
mod validation;
