//! The usage chunk of OpenAI's streams, for callers that ask for it and callers that do not.

use bytes::Bytes;
use serde_json::Value;

use super::sse;

/// Returns a recorded stream of chat or text completions as a caller gets it that sets `stream_options.include_usage`, or
/// does not. `None` if the caller asks for usage that the recording does not hold.
///
/// A frame need not be an event. If nothing has to change, the frames are returned as they are.
///
/// Only the chunk that holds nothing but usage is taken out. With `include_usage` the other chunks say `"usage":null`;
/// they are left alone, because clients read that as they read its absence. Usage beside choices stays too: providers
/// that put it there send it unasked.
pub(crate) fn with_usage(frames: &[Bytes], include_usage: bool) -> Option<Vec<Bytes>> {
    let stream = frames.concat();
    let mut is_told = false;
    let mut usage_only = Vec::new();
    for event in sse::split(&stream) {
        let chunk = event
            .data
            .and_then(|data| serde_json::from_slice::<Value>(&data).ok());
        if let Some(chunk) = chunk.filter(|chunk| chunk["usage"].is_object()) {
            is_told = true;
            if chunk["choices"].as_array().is_some_and(Vec::is_empty) {
                usage_only.push(event.range);
            }
        }
    }
    if include_usage {
        return is_told.then(|| frames.to_vec());
    }
    // From the back, so that the ranges before stay right.
    let mut frames = frames.to_vec();
    for range in usage_only.into_iter().rev() {
        let (before, rest) = split_at(frames, range.start);
        let (_, after) = split_at(rest, range.len());
        frames = [before, after].concat();
    }
    Some(frames)
}

/// Cuts a body after so many bytes.
fn split_at(frames: Vec<Bytes>, mut at: usize) -> (Vec<Bytes>, Vec<Bytes>) {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for mut frame in frames {
        let head = frame.split_to(at.min(frame.len()));
        at -= head.len();
        before.extend(Some(head).filter(|head| !head.is_empty()));
        after.extend(Some(frame).filter(|rest| !rest.is_empty()));
    }
    (before, after)
}
