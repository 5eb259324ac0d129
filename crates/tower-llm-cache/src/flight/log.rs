//! What has come of an answer, and how far each participant has read it.

use std::{collections::VecDeque, task::Waker};

use bytes::Bytes;
use http::{StatusCode, response::Parts};
use http_body::Frame;
use slab::Slab;
use smallvec::SmallVec;
use tower_llm_core::Served;

use crate::{error::SharedError, headers::Did};

/// The growing answer of one flight.
///
/// Up to the cap it keeps all frames, for late joiners and for the record. Beyond, nothing is recorded and no caller joins:
/// frames are freed as they are read, and what the slowest has yet to read is bounded by the cap.
#[derive(Debug)]
pub(crate) struct Log {
    head: Option<Head>,
    frames: VecDeque<Piece>,
    /// The index of the first of `frames`.
    first: usize,
    /// Of all data that is held.
    bytes: usize,
    max_bytes: usize,
    is_over_cap: bool,
    /// Followers may join.
    pub(super) is_open: bool,
    ended: Option<Ended>,
    readers: Slab<Reader>,
}

/// The status line and headers of the answer.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    pub(crate) version: http::Version,
    pub(crate) headers: http::HeaderMap,
    /// What the cache did, if it was found in another store and no call was made.
    pub(crate) found: Option<Did>,
    /// Whether a cache inside of this one says that it cost no call.
    pub(crate) served: Option<Served>,
}

/// A frame; trailers are seldom.
#[derive(Clone, Debug)]
enum Piece {
    Data(Bytes),
    Trailers(Box<http::HeaderMap>),
}

/// How the answer has ended.
#[derive(Clone, Debug)]
pub(crate) enum Ended {
    Whole,
    Failed(SharedError),
}

#[derive(Debug, Default)]
struct Reader {
    next: usize,
    waker: Option<Waker>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub(crate) head: Head,
    pub(crate) frames: Vec<Bytes>,
}

/// The wakers of participants; most flights have one.
pub(super) type Wakers = SmallVec<[Waker; 2]>;

/// What a reader finds.
pub(super) enum Read<T> {
    Found(T),
    /// Nothing yet: the reader's waker is registered. The one before is to be dropped outside of the lock, since a waker's drop
    /// may drop a task, and with it another participant.
    Waiting(#[expect(dead_code, reason = "held to be dropped")] Option<Waker>),
    End,
    Failed(SharedError),
    /// What it should read next was freed: it is too far behind.
    Lost,
}

impl Log {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            head: None,
            frames: VecDeque::new(),
            first: 0,
            bytes: 0,
            max_bytes,
            is_over_cap: false,
            is_open: true,
            ended: None,
            readers: Slab::new(),
        }
    }

    // === Readers ===

    pub(super) fn join(&mut self) -> usize {
        self.readers.insert(Reader::default())
    }

    /// Removes a reader; returns whether it was the last one, and its waker, to be dropped outside of the lock.
    pub(super) fn leave(&mut self, reader: usize) -> (bool, Option<Waker>) {
        let Reader { waker, .. } = self.readers.remove(reader);
        (self.readers.is_empty(), waker)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    pub(super) fn read_head(&mut self, reader: usize, waker: &Waker) -> Read<Head> {
        match (&self.head, &self.ended) {
            (Some(head), _) => Read::Found(head.clone()),
            (None, Some(Ended::Failed(error))) => Read::Failed(error.clone()),
            (None, Some(Ended::Whole)) => Read::End,
            (None, None) => self.wait(reader, waker),
        }
    }

    pub(super) fn read_frame(&mut self, reader: usize, waker: &Waker) -> Read<Frame<Bytes>> {
        let next = self.readers[reader].next;
        let Some(index) = next.checked_sub(self.first) else {
            return Read::Lost;
        };
        if let Some(piece) = self.frames.get(index) {
            let frame = piece.frame();
            self.readers[reader].next = next + 1;
            if self.is_over_cap {
                self.free();
            }
            return Read::Found(frame);
        }
        match &self.ended {
            Some(Ended::Whole) => Read::End,
            Some(Ended::Failed(error)) => Read::Failed(error.clone()),
            None => self.wait(reader, waker),
        }
    }

    pub(super) fn rewind(&mut self, reader: usize) {
        self.readers[reader].next = 0;
    }

    /// Whether the reader has read all there will be, and it ended well.
    pub(super) fn is_read(&self, reader: usize) -> bool {
        matches!(self.ended, Some(Ended::Whole))
            && self.readers[reader].next == self.first + self.frames.len()
    }

    fn wait<T>(&mut self, reader: usize, waker: &Waker) -> Read<T> {
        let registered = &mut self.readers[reader].waker;
        if registered
            .as_ref()
            .is_some_and(|known| known.will_wake(waker))
        {
            return Read::Waiting(None);
        }
        Read::Waiting(registered.replace(waker.clone()))
    }

    /// Takes the wakers of all that wait.
    pub(super) fn waiting(&mut self) -> Wakers {
        let readers = self.readers.iter_mut();
        readers
            .filter_map(|(_, reader)| reader.waker.take())
            .collect()
    }

    // === What comes ===

    pub(super) fn head(&mut self, mut parts: Parts) {
        self.is_open &= parts.status.is_success();
        self.head = Some(Head {
            status: parts.status,
            version: parts.version,
            headers: parts.headers,
            found: parts.extensions.remove(),
            served: parts.extensions.remove(),
        });
    }

    /// Adds a frame; returns whether the answer is over the cap with it.
    pub(super) fn frame(&mut self, frame: Frame<Bytes>) -> bool {
        let piece = match frame.into_data() {
            Ok(data) => Piece::Data(data),
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => Piece::Trailers(Box::new(trailers)),
                Err(_) => return self.is_over_cap,
            },
        };
        self.bytes += piece.len();
        self.frames.push_back(piece);
        if self.bytes > self.max_bytes {
            self.is_over_cap = true;
            self.is_open = false;
            self.free();
        }
        self.is_over_cap
    }

    pub(super) fn end(&mut self, ended: Ended) {
        self.is_open = false;
        self.ended = Some(ended);
    }

    /// The whole answer, if all of it is held and can be stored: it has headers and no trailers.
    pub(super) fn recorded(&self) -> Option<Recorded> {
        if self.is_over_cap {
            return None;
        }
        let frames = self.frames.iter().map(|piece| match piece {
            Piece::Data(data) => Some(data.clone()),
            Piece::Trailers(_) => None,
        });
        Some(Recorded {
            head: self.head.clone()?,
            frames: frames.collect::<Option<_>>()?,
        })
    }

    /// Frees what all have read, and beyond the cap what the slowest have not.
    fn free(&mut self) {
        // Looking at every reader for every frame would cost the square of them; their lag is bounded by the cap anyway.
        if self.readers.len() == 1 {
            let next = self
                .readers
                .iter()
                .next()
                .map_or(0, |(_, reader)| reader.next);
            while self.first < next && self.pop() {}
        }
        // The newest frame stays, however large it is.
        while self.bytes > self.max_bytes && self.frames.len() > 1 && self.readers.len() > 1 {
            self.pop();
        }
    }

    fn pop(&mut self) -> bool {
        let Some(piece) = self.frames.pop_front() else {
            return false;
        };
        self.bytes -= piece.len();
        self.first += 1;
        true
    }
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Trailers(_) => 0,
        }
    }

    fn frame(&self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data.clone()),
            Self::Trailers(trailers) => Frame::trailers(trailers.as_ref().clone()),
        }
    }
}
