//! Refusals as responses.

mod layer;
mod render;
mod service;

pub(crate) use self::render::timed_out_event;
pub use self::{
    layer::RefusalLayer,
    service::{RefusalBody, Refuse, ResponseFuture},
};
