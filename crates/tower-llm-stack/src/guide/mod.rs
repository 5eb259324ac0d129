//! Guides: pages about one subject each, without code of their own.

#[doc = include_str!("typed_services.md")]
pub mod typed_services {}
