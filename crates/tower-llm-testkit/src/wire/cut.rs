//! Cutting a body into HTTP frames.

use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::Frame;
use crate::Cut;

/// Cuts `events`, each already a frame of its own; nothing is lost and no frame is empty.
pub(crate) fn cut(mut events: Vec<Frame>, cut: &Cut) -> Vec<Frame> {
    events.retain(|event| !event.bytes.is_empty());
    let total: usize = events.iter().map(|event| event.bytes.len()).sum();
    let mut ends: Vec<usize> = match cut {
        Cut::Events => return events,
        Cut::Every(size) => (0..total).step_by((*size).max(1)).skip(1).collect(),
        Cut::At(offsets) => offsets
            .iter()
            .copied()
            .filter(|&at| 0 < at && at < total)
            .collect(),
        Cut::Whole => Vec::new(),
    };
    ends.extend((total > 0).then_some(total));
    ends.sort_unstable();
    ends.dedup();

    let mut whole = BytesMut::with_capacity(total);
    for event in &events {
        whole.extend_from_slice(&event.bytes);
    }
    let whole: Bytes = whole.freeze();
    let mut frames = Vec::with_capacity(ends.len());
    let mut events = events.into_iter();
    // The event that holds the last byte sent so far: where it ends, and what it tells once that is
    // reached.
    let (mut event_end, mut due, mut tokens) = (0, Duration::ZERO, 0);
    let mut start = 0;
    for end in ends {
        let mut told = if event_end <= end {
            std::mem::take(&mut tokens)
        } else {
            0
        };
        while event_end < end {
            let Some(event) = events.next() else { break };
            event_end += event.bytes.len();
            due = event.due;
            tokens = event.tokens;
            if event_end <= end {
                told += std::mem::take(&mut tokens);
            }
        }
        frames.push(Frame {
            bytes: whole.slice(start..end),
            due,
            tokens: told,
        });
        start = end;
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events() -> Vec<Frame> {
        let event = |text: &'static str, ms, tokens| Frame {
            bytes: Bytes::from_static(text.as_bytes()),
            due: Duration::from_millis(ms),
            tokens,
        };
        vec![
            event("aaaa", 1, 1),
            event("bbbb", 2, 10),
            event("cccc", 3, 100),
        ]
    }

    fn told(frames: &[Frame]) -> Vec<(&str, u64, u64)> {
        frames
            .iter()
            .map(|frame| {
                let ms = u64::try_from(frame.due.as_millis()).unwrap();
                (std::str::from_utf8(&frame.bytes).unwrap(), ms, frame.tokens)
            })
            .collect()
    }

    #[test]
    fn a_frame_is_due_with_its_last_event_and_lists_the_events_that_end_in_it() {
        let frames = cut(events(), &Cut::Every(3));
        assert_eq!(
            told(&frames),
            [
                ("aaa", 1, 0),
                ("abb", 2, 1),
                ("bbc", 3, 10),
                ("ccc", 3, 100)
            ]
        );
        let frames = cut(events(), &Cut::At(vec![8, 2, 3, 99, 0]));
        assert_eq!(
            told(&frames),
            [
                ("aa", 1, 0),
                ("a", 1, 0),
                ("abbbb", 2, 11),
                ("cccc", 3, 100)
            ]
        );
        assert_eq!(
            told(&cut(events(), &Cut::Whole)),
            [("aaaabbbbcccc", 3, 111)]
        );
        assert_eq!(told(&cut(events(), &Cut::Events)).len(), 3);
    }

    #[test]
    fn nothing_is_no_frame() {
        for how in [Cut::Events, Cut::Whole, Cut::Every(0), Cut::At(vec![1])] {
            assert!(cut(Vec::new(), &how).is_empty());
        }
    }
}
