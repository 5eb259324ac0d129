//! The script of coming answers, and the requests so far.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Method};

use crate::Behavior;

const RECORDED: usize = 10_000;

/// A request as it was received.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Recorded {
    /// Its method.
    pub method: Method,
    /// Its path, with the query.
    pub path: String,
    /// All its headers.
    pub headers: HeaderMap,
    /// Its whole body.
    pub body: Bytes,
}

#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) default: Arc<Behavior>,
    pub(super) queue: VecDeque<Arc<Behavior>>,
    pub(super) recorded: VecDeque<Recorded>,
}

impl Script {
    /// Records a request and returns its behaviour, in one step: both are in the same order.
    pub(super) fn next(&mut self, request: Recorded) -> Arc<Behavior> {
        if self.recorded.len() == RECORDED {
            self.recorded.pop_front();
        }
        self.recorded.push_back(request);
        self.queue
            .pop_front()
            .unwrap_or_else(|| Arc::clone(&self.default))
    }
}
