//! What has come of an answer, and how far each participant has read it.

use std::{collections::VecDeque, mem, task::Waker, time::Duration};

use bytes::Bytes;
use http::{StatusCode, response::Parts};
use http_body::Frame;
use slab::Slab;
use smallvec::SmallVec;
use tokio::time::Instant;
use tower_llm_core::{Completion, Served};

use super::account::Account;
use crate::{coding::is_readable, error::SharedError, headers::Did, memory::Value, replay::Cost};

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
    /// How the call ended.
    completion: Option<Completion>,
    readers: Slab<Reader>,
    /// The reader that pays for the call; `None` if it has left since the end, or the call costs nothing.
    payer: Option<usize>,
    /// Since when the upstream, which was asked, has had nothing; `None` if it was not asked since something came.
    silent_since: Option<Instant>,
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
    /// It knows how the call ended.
    is_done: bool,
    /// What its caller pays, once that is told.
    account: Option<Account>,
}

/// How a reader has left.
#[derive(Debug)]
pub(super) struct Left {
    /// It was the last one of a call that still runs.
    pub(super) is_last: bool,
    pub(super) pays: Pays,
    /// It is still there, so that the call goes on: see [`Log::leave`].
    pub(super) is_kept: bool,
    pub(super) account: Option<Account>,
    /// To be dropped outside of the lock.
    _waker: Option<Waker>,
}

/// What a reader that leaves pays.
#[derive(Debug)]
pub(super) enum Pays {
    /// Another reader pays, or the call costs nothing.
    Nothing,
    /// What it has seen: that is all.
    Seen,
    /// The call, which has ended.
    All(Completion),
    /// The call, which still runs.
    Running,
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
    End,
    Failed(SharedError),
    /// What it should read next was freed: it is too far behind.
    Lost,
}

/// A reader finds nothing yet: its waker is registered. The one before is to be dropped outside of the lock, since a waker's drop
/// may drop a task, and with it another participant.
pub(super) struct Waiting(#[expect(dead_code, reason = "held to be dropped")] Option<Waker>);

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
            completion: None,
            readers: Slab::new(),
            payer: None,
            silent_since: None,
        }
    }

    // === Readers ===

    /// Adds the reader that pays.
    pub(super) fn lead(&mut self) -> usize {
        let leader = self.readers.insert(Reader::default());
        self.payer = Some(leader);
        leader
    }

    /// Adds a reader, unless the answer is too large, or over.
    pub(super) fn join(&mut self) -> Option<usize> {
        self.is_open.then(|| self.readers.insert(Reader::default()))
    }

    /// Removes a reader, but not the last one of an answer that can still be stored, if that `keeps_last`. As long as the call
    /// runs, another one pays in its stead.
    pub(super) fn leave(&mut self, reader: usize, keeps_last: bool) -> Left {
        let is_payer = self.pays(reader);
        if keeps_last && self.is_open && self.readers.len() == 1 {
            let known = &mut self.readers[reader];
            return Left {
                is_last: false,
                pays: if is_payer {
                    Pays::Running
                } else {
                    Pays::Nothing
                },
                is_kept: true,
                account: known.account.take(),
                _waker: known.waker.take(),
            };
        }
        let left = self.readers.remove(reader);
        let runs = self.ended.is_none();
        let is_last = runs && self.readers.is_empty();
        self.is_open &= !is_last;
        if is_payer {
            self.payer = self.heir().filter(|_| runs);
        }
        let pays = match &self.completion {
            _ if !is_payer || self.payer.is_some() => Pays::Nothing,
            _ if left.is_done => Pays::Seen,
            Some(completion) => Pays::All(completion.clone()),
            None => Pays::Running,
        };
        Left {
            is_last,
            pays,
            is_kept: false,
            account: left.account,
            _waker: left.waker,
        }
    }

    /// Any other reader, which pays from now on.
    fn heir(&mut self) -> Option<usize> {
        let (heir, reader) = self.readers.iter().next()?;
        reader.account.iter().for_each(Account::take_over);
        Some(heir)
    }

    /// Whether a reader pays for the call, as of now.
    pub(super) fn pays(&self, reader: usize) -> bool {
        self.payer == Some(reader)
    }

    /// Whether a reader that is done pays for the call: another one that was to pay and is not done does not.
    pub(super) fn pays_for_response(&mut self, reader: usize) -> bool {
        if self.payer.is_some_and(|payer| !self.readers[payer].is_done) {
            self.payer = Some(reader);
        }
        self.pays(reader)
    }

    /// Notes what a reader's caller pays, from now on.
    pub(super) fn open_account(&mut self, reader: usize, account: Account) {
        let pays = self.pays(reader);
        if !pays {
            account.waive();
        }
        self.readers[reader].account = Some(account);
        if pays && self.readers[reader].is_done {
            self.charge_seen(reader);
        }
    }

    pub(super) fn account(&self, reader: usize) -> Option<&Account> {
        self.readers[reader].account.as_ref()
    }

    /// How the call ended.
    pub(super) fn completion(&self) -> Option<&Completion> {
        self.completion.as_ref()
    }

    pub(super) fn read_head(
        &mut self,
        reader: usize,
        waker: &Waker,
    ) -> Result<Read<Head>, Waiting> {
        if let Some(head) = &self.head {
            return Ok(Read::Found(head.clone()));
        }
        self.read_end(reader, waker)
    }

    pub(super) fn read_frame(
        &mut self,
        reader: usize,
        waker: &Waker,
    ) -> Result<Read<Frame<Bytes>>, Waiting> {
        let next = self.readers[reader].next;
        let Some(index) = next.checked_sub(self.first) else {
            if self.ended.is_some() {
                self.finish(reader);
            }
            return Ok(Read::Lost);
        };
        if let Some(piece) = self.frames.get(index) {
            let frame = piece.frame();
            self.readers[reader].next = next + 1;
            if self.is_over_cap {
                self.free();
            }
            return Ok(Read::Found(frame));
        }
        self.read_end(reader, waker)
    }

    fn read_end<T>(&mut self, reader: usize, waker: &Waker) -> Result<Read<T>, Waiting> {
        let read = match &self.ended {
            Some(Ended::Whole) => Read::End,
            Some(Ended::Failed(error)) => Read::Failed(error.clone()),
            None => return Err(self.wait(reader, waker)),
        };
        self.finish(reader);
        Ok(read)
    }

    /// A reader learns how the call ended.
    fn finish(&mut self, reader: usize) {
        let is_first = !mem::replace(&mut self.readers[reader].is_done, true);
        if is_first && self.pays(reader) {
            self.charge_seen(reader);
        }
    }

    fn charge_seen(&self, reader: usize) {
        if let (Some(account), Some(call)) = (self.account(reader), &self.completion) {
            account.charge_seen(call);
        }
    }

    pub(super) fn rewind(&mut self, reader: usize) {
        let reader = &mut self.readers[reader];
        (reader.next, reader.is_done) = (0, false);
    }

    /// Whether the reader has read all there will be, and it ended well.
    pub(super) fn is_read(&self, reader: usize) -> bool {
        matches!(self.ended, Some(Ended::Whole))
            && self.readers[reader].next == self.first + self.frames.len()
    }

    fn wait(&mut self, reader: usize, waker: &Waker) -> Waiting {
        let registered = &mut self.readers[reader].waker;
        if registered
            .as_ref()
            .is_some_and(|known| known.will_wake(waker))
        {
            return Waiting(None);
        }
        Waiting(registered.replace(waker.clone()))
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

    /// The upstream was asked, and has nothing.
    pub(super) fn note_silence(&mut self) {
        self.silent_since.get_or_insert_with(Instant::now);
    }

    /// For how long the upstream has had nothing.
    pub(super) fn silent_for(&self, now: Instant) -> Duration {
        let since = self.silent_since;
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    pub(super) fn head(&mut self, mut parts: Parts) {
        self.silent_since = None;
        self.is_open &= parts.status.is_success() && is_readable(&parts.headers);
        let head = Head {
            status: parts.status,
            version: parts.version,
            headers: parts.headers,
            found: parts.extensions.remove(),
            served: parts.extensions.remove(),
            value: parts.extensions.remove(),
        };
        let is_found = head.found.is_some() && parts.extensions.remove::<Cost>().is_none();
        if is_found || head.served == Some(Served::Hit) {
            // It cost no call. Of one that a cache inside of this one shares, the end says whether it did.
            self.payer = None;
        }
        self.head = Some(head);
    }

    /// Adds a frame; returns whether the answer is over the cap with it.
    pub(super) fn frame(&mut self, frame: Frame<Bytes>) -> bool {
        if !is_keep_alive(&frame) {
            self.silent_since = None;
        }
        let piece = match frame.into_data() {
            Ok(data) => Piece::Data(data),
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => Piece::Trailers(Box::new(trailers)),
                Err(_) => return self.is_over_cap,
            },
        };
        self.bytes += piece.len();
        self.frames.push_back(piece);
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

    pub(super) fn fail(&mut self, error: SharedError, completion: Completion) {
        self.is_open = false;
        self.completion = Some(completion);
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

/// Whether it has nothing but blank lines and comments, which keep a connection open.
fn is_keep_alive(frame: &Frame<Bytes>) -> bool {
    let Some(data) = frame.data_ref() else {
        return false;
    };
    let is_end = |byte: &u8| matches!(byte, b'\n' | b'\r');
    let mut rest = &data[..];
    // Only comments are read to the end of their line: a frame with content has it in its first byte.
    loop {
        rest = match rest.split_first() {
            None => return true,
            Some((first, next)) if is_end(first) => next,
            Some((b':', next)) => &next[next.iter().position(is_end).unwrap_or(next.len())..],
            Some(_) => return false,
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_lines_and_comments_keep_a_connection_open_and_nothing_else_does() {
        for (data, keeps) in [
            ("", true),
            ("\n\r\n", true),
            (":", true),
            (": OPENROUTER PROCESSING\n\n", true),
            (": a\r\n: b", true),
            (": a\ndata: x\n\n", false),
            ("\ndata: x\n\n", false),
            (" ", false),
            ("data", false),
        ] {
            let frame = Frame::data(Bytes::from_static(data.as_bytes()));
            assert_eq!(is_keep_alive(&frame), keeps, "{data:?}");
        }
        assert!(!is_keep_alive(&Frame::trailers(http::HeaderMap::new())));
    }
}
