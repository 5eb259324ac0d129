//! What has come of an answer, and how far each participant has read it.

use std::{collections::VecDeque, task::Waker, time::Duration};

use bytes::Bytes;
use http::{StatusCode, response::Parts};
use http_body::Frame;
use slab::Slab;
use smallvec::SmallVec;
use tokio::time::Instant;
use tower_llm_core::{Completion, Served, TakenOver};

use crate::{coding::is_readable, error::SharedError, headers::Did, memory::Value};

/// An answer whose frames are smaller on average than this is too large if it has as many of them as fit into its cap.
const FRAME_BYTES: usize = 16;
/// The fewest frames that are too many.
const MIN_FRAMES: usize = 64;

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
    /// What a call that ended well has used.
    completion: Option<Completion>,
    /// How many frames decide how the call ended; the rest of the body adds nothing.
    over_at: Option<usize>,
    readers: Slab<Reader>,
    /// The reader that pays for the call.
    payer: Option<usize>,
    /// How many steps had come when a caller last asked to join, and when that was.
    looked: (usize, Instant),
    max_silence: Duration,
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
    /// The whole response, if it is not an HTTP one; then there are no frames.
    pub(crate) value: Option<Value>,
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
    /// What tells the reader of payments that come after its response headers.
    taken_over: Option<TakenOver>,
}

/// How a reader has left.
#[derive(Debug)]
pub(super) struct Left {
    /// It was the last one of a call that still runs.
    pub(super) is_last: bool,
    /// It was the one that pays.
    pub(super) is_payer: bool,
    /// It pays, has not read all that there may be, and no other reader can pay in its stead.
    pub(super) owes: Option<TakenOver>,
    /// It is still there, so that the call goes on: see [`Log::leave`].
    pub(super) is_kept: bool,
    /// To be dropped outside of the lock.
    _waker: Option<Waker>,
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
    /// The log of a call that `now` begins, and its first reader, which pays.
    pub(super) fn new(max_bytes: usize, max_silence: Duration, now: Instant) -> Self {
        Self {
            head: None,
            frames: VecDeque::new(),
            first: 0,
            bytes: 0,
            max_bytes,
            is_over_cap: false,
            is_open: true,
            ended: None,
            completion: None,
            over_at: None,
            readers: Slab::new(),
            payer: None,
            looked: (0, now),
            max_silence,
        }
    }

    // === Readers ===

    /// Adds the reader that pays.
    pub(super) fn lead(&mut self) -> usize {
        let leader = self.readers.insert(Reader::default());
        self.payer = Some(leader);
        leader
    }

    /// Adds a reader, unless the answer is too large, over, or does not come.
    pub(super) fn join(&mut self, now: Instant) -> Option<usize> {
        let joins = self.is_open && !self.is_silent(now);
        joins.then(|| self.readers.insert(Reader::default()))
    }

    /// Whether nothing has come for too long, as far as is known: times are taken when callers join, not with each frame.
    fn is_silent(&mut self, now: Instant) -> bool {
        let steps = usize::from(self.head.is_some()) + self.first + self.frames.len();
        let (known, since) = self.looked;
        if steps != known {
            self.looked = (steps, now);
            return false;
        }
        now.saturating_duration_since(since) >= self.max_silence
    }

    /// Removes a reader, but not the last one of an answer that can still be stored, if that `keeps_last`. Another one pays in
    /// its stead, unless it has read what it is to pay for.
    pub(super) fn leave(&mut self, reader: usize, keeps_last: bool) -> Left {
        if keeps_last && self.is_open && self.readers.len() == 1 {
            return Left {
                is_last: false,
                is_payer: self.payer == Some(reader),
                owes: None,
                is_kept: true,
                _waker: self.readers[reader].waker.take(),
            };
        }
        let has_read = self.has_read_answer(reader);
        let Reader {
            waker, taken_over, ..
        } = self.readers.remove(reader);
        let is_payer = self.payer == Some(reader);
        if is_payer {
            self.payer = if has_read { None } else { self.heir() };
        }
        if is_payer && let Some(heir) = self.payer {
            let taken_over = &self.readers[heir].taken_over;
            taken_over.iter().for_each(TakenOver::set);
        }
        let is_last = self.readers.is_empty() && self.ended.is_none();
        self.is_open &= !is_last;
        Left {
            is_last,
            is_payer,
            owes: taken_over.filter(|_| is_payer && !has_read && self.payer.is_none()),
            is_kept: false,
            _waker: waker,
        }
    }

    /// Whether a reader pays for the call, as of now.
    pub(super) fn pays(&self, reader: usize) -> bool {
        self.payer == Some(reader)
    }

    /// The same for a reader that gets its response headers now, and what tells it of later changes.
    pub(super) fn pays_with_head(&mut self, reader: usize) -> (bool, TakenOver) {
        let taken_over = TakenOver::new();
        self.readers[reader].taken_over = Some(taken_over.clone());
        (self.pays(reader), taken_over)
    }

    /// A reader that can pay: the end of the call is still to come to it. Rather one that will read more.
    fn heir(&self) -> Option<usize> {
        let reads_more = |&(reader, _): &(usize, _)| !self.has_read_answer(reader);
        let any = self.readers.iter().next();
        self.readers
            .iter()
            .find(reads_more)
            .or(any.filter(|_| self.ended.is_none()))
            .map(|(heir, _)| heir)
    }

    /// What a call that ended well has used.
    pub(super) fn completion(&self) -> Option<Completion> {
        self.completion.clone()
    }

    /// Whether a reader has read all that decides what it pays.
    fn has_read_answer(&self, reader: usize) -> bool {
        let read = self.readers[reader].next;
        self.over_at.is_some_and(|over_at| read >= over_at) || self.is_read(reader)
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

    /// Takes the wakers of all that wait, but one.
    pub(super) fn waiting(&mut self, but: Option<usize>) -> Wakers {
        let readers = self.readers.iter_mut();
        readers
            .filter(|(reader, _)| Some(*reader) != but)
            .filter_map(|(_, reader)| reader.waker.take())
            .collect()
    }

    // === What comes ===

    pub(super) fn head(&mut self, mut parts: Parts) {
        self.is_open &= parts.status.is_success() && is_readable(&parts.headers);
        self.head = Some(Head {
            status: parts.status,
            version: parts.version,
            headers: parts.headers,
            found: parts.extensions.remove(),
            served: parts.extensions.remove(),
            value: parts.extensions.remove(),
        });
    }

    /// Adds a frame; returns whether the answer is over the cap with it. `is_over` says that it decides how the call ended.
    pub(super) fn frame(&mut self, frame: Frame<Bytes>, is_over: bool) -> bool {
        let piece = match frame.into_data() {
            Ok(data) => Piece::Data(data),
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => Piece::Trailers(Box::new(trailers)),
                Err(_) => return self.is_over_cap,
            },
        };
        self.bytes += piece.len();
        self.frames.push_back(piece);
        if is_over && self.over_at.is_none() {
            self.over_at = Some(self.first + self.frames.len());
        }
        if self.is_too_large() {
            self.is_over_cap = true;
            self.is_open = false;
            self.free();
        }
        self.is_over_cap
    }

    pub(super) fn end(&mut self, completion: Completion) {
        self.is_open = false;
        self.completion = Some(completion);
        self.ended = Some(Ended::Whole);
    }

    pub(super) fn fail(&mut self, error: SharedError) {
        self.is_open = false;
        self.ended = Some(Ended::Failed(error));
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
        while self.is_too_large() && self.frames.len() > 1 && self.readers.len() > 1 {
            self.pop();
        }
    }

    /// Empty and tiny frames take memory, too.
    fn is_too_large(&self) -> bool {
        let max_frames = (self.max_bytes / FRAME_BYTES).max(MIN_FRAMES);
        self.bytes > self.max_bytes || self.frames.len() > max_frames
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
