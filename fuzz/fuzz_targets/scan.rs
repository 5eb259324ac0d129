//! Reading a response never panics, and how its bytes are cut into frames changes nothing.
//!
//! The first byte chooses status and content type, the second how the rest is cut.

#![no_main]

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Response, header::CONTENT_TYPE};
use http_body::{Body, Frame};
use libfuzzer_sys::fuzz_target;
use tower_llm_core::{Completion, Guard, HttpBody, Watch};

const STATUS: [u16; 4] = [200, 429, 503, 400];
const TYPES: [&str; 4] = [
    "text/event-stream",
    "application/json",
    "application/grpc",
    "audio/mpeg",
];

fuzz_target!(|data: &[u8]| {
    let [head, cut, body @ ..] = data else { return };
    let whole = read(*head, [body]);
    let pieces = read(*head, body.chunks(usize::from(*cut) + 1));
    // Two runs end at two moments; everything else is the same.
    let facts = |completion: Completion| {
        let first_token = completion.first_token_at.is_some();
        let usage = completion.usage;
        let seen = completion.output_seen;
        (
            completion.outcome,
            usage,
            seen,
            completion.finish,
            first_token,
        )
    };
    assert_eq!(facts(whole), facts(pieces));
});

/// A body of frames that are there.
struct Frames(VecDeque<Bytes>);

/// Keeps what it is told.
struct Tell(Arc<Mutex<Option<Completion>>>);

fn read<'a>(head: u8, frames: impl IntoIterator<Item = &'a [u8]>) -> Completion {
    let response = Response::builder()
        .status(STATUS[usize::from(head) % STATUS.len()])
        .header(CONTENT_TYPE, TYPES[usize::from(head / 4) % TYPES.len()])
        .body(Frames(
            frames.into_iter().map(Bytes::copy_from_slice).collect(),
        ))
        .expect("status and type are valid");
    let told = Arc::new(Mutex::new(None));
    let response = HttpBody.watch(None, response, Tell(Arc::clone(&told)));
    let mut body = pin!(response.into_body());
    let mut cx = Context::from_waker(Waker::noop());
    while let Poll::Ready(Some(_)) = body.as_mut().poll_frame(&mut cx) {}
    let told = told.lock().expect("no thread panicked").take();
    told.expect("told of the end")
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|data| Ok(Frame::data(data))))
    }
}

impl Guard for Tell {
    fn end(&mut self, completion: &Completion) {
        *self.0.lock().expect("no thread panicked") = Some(completion.clone());
    }
}
