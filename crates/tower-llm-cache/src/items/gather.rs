//! A request whose answer is put together from several.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{CONTENT_LENGTH, TRAILER, TRANSFER_ENCODING},
};
use tower_llm_core::{
    Bill, Billed, BoxError, Completion, Outcome, Served, Unsent, Usage, sum_usages,
};

use super::{
    answer::{self, Answers, ItemAnswer},
    batch::Batch,
    claims::{Brought, Claims, ItemCall, Join},
    outbound::Outbound,
};
use crate::{
    error::NotCached,
    flight::{Account, End, FlightKey, Head, Participant, Recorded, Recorder, Start},
    headers::{Did, Why, shareable},
    shared::{Boarded, Shared, Timer},
};

/// What a request comes to.
pub(crate) enum Gathered {
    /// The answer, from parts.
    Answer(Response<Vec<Bytes>>),
    /// The answer of one call, as it comes.
    Flying(Boarded),
}

/// What has become of a request at once.
pub(crate) enum Begun {
    Ready(Result<Gathered, BoxError>),
    Gathering(Box<Gather>),
}

/// Waits for the calls that have the missing items.
pub(crate) struct Gather {
    shared: Arc<Shared>,
    batch: Batch,
    outbound: Outbound,
    readings: Vec<Reading>,
    /// How many items were sent for this caller.
    sent: usize,
    /// A caller that has sent nothing, and leaves, has cost nothing.
    unsent: Option<Unsent>,
    own: Option<Own>,
    /// What the caller pays beside what its response reports; `None` once that is handed out.
    bill: Option<Bill>,
}

/// What the calls that the caller pays for have brought beside vectors.
struct Own {
    head: Head,
    envelope: ItemAnswer,
    usage: Option<String>,
    used: Usage,
}

/// A call that is read to its end.
pub(super) struct Reading {
    participant: Participant,
    /// Once it has arrived.
    head: Option<Head>,
    call: Arc<ItemCall>,
    /// The items that it has for this caller, and their positions in the call.
    items: Vec<(u32, u32)>,
}

/// How a call has ended.
enum Ended {
    /// Cleanly, with status 200.
    Cleanly(Head),
    /// With another status; its body is not read.
    Refused,
    Failed(BoxError),
}

/// An answer that is passed on as it is, and not stored.
struct KeepNothing;

impl Recorder for KeepNothing {
    fn record(&self, _: &Recorded, _: &End) {}
}

/// Answers a batch from the store, or begins to gather its answer. `outbound` is asked for if something is missing; `None`
/// from it if the request cannot be taken apart.
pub(crate) fn begin(
    shared: &Arc<Shared>,
    mut batch: Batch,
    outbound: impl FnOnce() -> Option<Outbound>,
) -> Option<Begun> {
    batch.find_all(shared);
    if batch.is_complete() {
        return Some(Begun::Ready(Ok(Gathered::Answer(hit(shared, &batch)))));
    }
    if batch.only_if_cached() {
        return Some(Begun::Ready(Err(NotCached::new().into())));
    }
    let outbound = outbound().filter(|outbound| outbound.inputs() == batch.inputs())?;
    let mut gather = Gather {
        readings: Claims::board(shared, &mut batch, &outbound, Join::Open),
        shared: Arc::clone(shared),
        batch,
        outbound,
        sent: 0,
        unsent: Some(Unsent::new()),
        own: None,
        bill: Some(Bill::new()),
    };
    if gather.readings.is_empty() {
        // All of them were stored just now.
        return Some(Begun::Ready(Ok(Gathered::Answer(hit(
            shared,
            &gather.batch,
        )))));
    }
    gather.note_sent();
    if gather.sent == 0 {
        shared.counters.collapsed.fetch_add(1, Ordering::Relaxed);
    }
    let reused = gather.batch.inputs() - gather.sent;
    shared
        .counters
        .items_reused
        .fetch_add(reused as u64, Ordering::Relaxed);
    if gather.is_as_sent()
        && let Some(reading) = gather.readings.pop()
    {
        return Some(Begun::Ready(Ok(gather.pass_on(reading.participant))));
    }
    Some(Begun::Gathering(Box::new(gather)))
}

/// The answer to a batch whose items were all stored.
fn hit(shared: &Shared, batch: &Batch) -> Response<Vec<Bytes>> {
    let counters = &shared.counters;
    if batch.is_shared() {
        counters.shared_hits.fetch_add(1, Ordering::Relaxed);
    }
    counters
        .items_reused
        .fetch_add(batch.inputs() as u64, Ordering::Relaxed);
    let answers = batch.answers();
    let mut headers = answers[0].record().headers();
    shared.status.write(batch.hit(), batch.key(), &mut headers);
    let mut response = respond(
        headers,
        answer::merge(answers[0], answers.iter().copied(), None),
    );
    response.extensions_mut().insert(Served::Hit);
    timer(shared, batch).stop(batch.hit());
    response
}

fn timer(shared: &Shared, batch: &Batch) -> Timer {
    Timer {
        counters: Arc::clone(&shared.counters),
        asked_at: batch.asked_at,
    }
}

fn respond(mut headers: HeaderMap, frames: Vec<Bytes>) -> Response<Vec<Bytes>> {
    let length: usize = frames.iter().map(Bytes::len).sum();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.remove(TRANSFER_ENCODING);
    headers.remove(TRAILER);
    let mut response = Response::new(frames);
    *response.headers_mut() = headers;
    response
}

impl Gather {
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Gathered, BoxError>> {
        loop {
            let mut at = 0;
            while let Some(reading) = self.readings.get_mut(at) {
                let Poll::Ready(ended) = reading.poll(cx) else {
                    at += 1;
                    continue;
                };
                let reading = self.readings.swap_remove(at);
                if let Some(gathered) = self.settle(reading, ended) {
                    return Poll::Ready(gathered);
                }
            }
            if !self.readings.is_empty() {
                return Poll::Pending;
            }
            if self.batch.is_complete() {
                return Poll::Ready(Ok(Gathered::Answer(self.merged())));
            }
            self.send_rest();
        }
    }

    /// Takes what a call has brought. Returns the result of the whole if it decides that.
    fn settle(&mut self, reading: Reading, ended: Ended) -> Option<Result<Gathered, BoxError>> {
        let is_own = reading.participant.is_leader();
        let pays = reading.participant.pays();
        // The error of a call for nothing that this request does not ask for is this request's too.
        let is_same = self.sent == 0 && reading.items.len() == reading.call.items();
        let call = Arc::clone(&reading.call);
        match (ended, call.brought()) {
            (Ended::Cleanly(head), Brought::Answers(answers)) => {
                for &(item, slot) in &reading.items {
                    self.batch.put(item, answers.items[slot as usize].clone());
                }
                // A call that its caller has left is paid for by one that follows.
                if pays {
                    let headers = match is_own {
                        true => head.headers,
                        false => shareable(&head.headers),
                    };
                    self.note_own(Head { headers, ..head }, answers, reading.used());
                }
                None
            }
            (Ended::Cleanly(_), Brought::Error) if is_own || is_same => {
                reading.participant.rewind();
                Some(Ok(self.pass_on(reading.participant)))
            }
            (Ended::Refused, _) if is_own || is_same => Some(Ok(self.pass_on(reading.participant))),
            (Ended::Failed(error), _) if is_own || is_same => Some(Err(self.fail(error, &reading))),
            (Ended::Cleanly(_), _) if is_own => {
                self.charge(reading.used());
                Some(Ok(self.send_as_it_is()))
            }
            // This request sends what is missing.
            (Ended::Cleanly(_) | Ended::Failed(_), _) if pays => {
                self.charge(reading.used());
                None
            }
            _ => None,
        }
    }

    /// Has the caller pay for a call of which its response says nothing.
    fn charge(&self, used: Usage) {
        self.bill.iter().for_each(|bill| bill.charge_extra(used));
    }

    /// Hands out what the caller pays beside what its response reports; all of it if it gets no merged answer.
    fn take_bill(&mut self) -> Bill {
        let own = self.own.take().map(|own| own.used);
        own.into_iter().for_each(|used| self.charge(used));
        self.bill.take().unwrap_or_default()
    }

    fn fail(&mut self, error: BoxError, reading: &Reading) -> BoxError {
        let bill = self.take_bill();
        if reading.participant.pays() {
            bill.charge_extra(reading.used());
            bill.charge(&of_parts(Completion::of_error(&*error).outcome));
        } else {
            bill.waive();
        }
        Billed::new(bill, Arc::new(error)).into()
    }

    /// Sends what the calls of others have not brought.
    fn send_rest(&mut self) {
        let Self {
            shared,
            batch,
            outbound,
            ..
        } = self;
        self.readings = Claims::board(shared, batch, outbound, Join::None);
        self.note_sent();
    }

    /// Sends the caller's own request, whose answer is passed on.
    fn send_as_it_is(&mut self) -> Gathered {
        let start = Start {
            upstream: self.outbound.send_all().upstream,
            recorder: Box::new(KeepNothing),
            max_recording: self.batch.policy.max_answer_bytes,
            max_silence: self.batch.policy.max_silence,
            max_unattended: self.batch.policy.max_unattended,
            finishes: false,
        };
        let flight = FlightKey::of_object(*self.batch.any_key().digest());
        self.sent = self.batch.items();
        self.pass_on(self.shared.flights.start_alone(flight, start))
    }

    /// Counts what was sent just now.
    fn note_sent(&mut self) {
        let counters = &self.shared.counters;
        let sent = self
            .readings
            .iter()
            .find(|reading| reading.participant.is_leader());
        let sent = sent.map_or(0, |reading| reading.items.len());
        if sent > 0 {
            if self.unsent.take().is_some() {
                counters.misses.fetch_add(1, Ordering::Relaxed);
            }
            counters
                .items_sent
                .fetch_add(sent as u64, Ordering::Relaxed);
        }
        self.sent += sent;
        for reading in &self.readings {
            let bill = self.bill.clone().unwrap_or_default();
            let account = Account::of_part(bill, reading.call.input_tokens);
            reading.participant.open_account(account);
        }
    }

    fn note_own(&mut self, head: Head, answers: &Answers, used: Usage) {
        let (earlier, used) = match self.own.take() {
            Some(own) => (own.usage, own.used.plus(&used)),
            None => (None, used),
        };
        let usage = match (earlier, &answers.usage) {
            (Some(earlier), Some(usage)) => sum_usages(&earlier, usage),
            (earlier, usage) => usage.clone().or(earlier),
        };
        self.own = Some(Own {
            head,
            envelope: answers.items[0].clone(),
            usage,
            used,
        });
    }

    /// Whether one call has all that the caller asks for, as the caller asks for it.
    fn is_as_sent(&self) -> bool {
        let [reading] = &self.readings[..] else {
            return false;
        };
        reading.participant.is_leader() && reading.items.len() == self.batch.inputs()
    }

    fn pass_on(&mut self, participant: Participant) -> Gathered {
        let bill = self.take_bill();
        let key = self.batch.key().cloned();
        let boarded = Boarded::new(
            participant,
            self.did(),
            self.shared.status,
            key,
            timer(&self.shared, &self.batch),
        );
        Gathered::Flying(boarded.accepting(self.outbound.accepted()).billed(bill))
    }

    fn did(&self) -> Did {
        let why = match self.batch.stored() {
            0 => Why::Miss,
            _ => Why::Partial,
        };
        if self.sent == 0 {
            Did::Collapsed(why)
        } else if self.sent < self.batch.items() {
            Did::Forwarded(Why::Partial)
        } else if self.batch.wants_new() {
            Did::Forwarded(Why::Request)
        } else {
            Did::Forwarded(Why::Miss)
        }
    }

    fn merged(&mut self) -> Response<Vec<Bytes>> {
        let answers = self.batch.answers();
        let (envelope, usage, mut headers) = match &self.own {
            Some(own) => (
                &own.envelope,
                own.usage.as_deref(),
                own.head.headers.clone(),
            ),
            None => (answers[0], None, answers[0].record().headers()),
        };
        self.shared
            .status
            .write(self.did(), self.batch.key(), &mut headers);
        let frames = answer::merge(envelope, answers.iter().copied(), usage);
        let mut response = respond(headers, frames);
        let bill = self.bill.take().unwrap_or_default();
        match &self.own {
            Some(own) => {
                *response.version_mut() = own.head.version;
                // However much of the answer the caller reads.
                let mut calls = Completion::new(Outcome::Success);
                calls.usage = Some(own.used);
                bill.charge(&calls);
            }
            None => {
                bill.waive();
                response.extensions_mut().insert(Served::Follower);
            }
        }
        response.extensions_mut().insert(bill);
        timer(&self.shared, &self.batch).stop(self.did());
        response
    }
}

impl Reading {
    pub(super) fn new(
        participant: Participant,
        call: Arc<ItemCall>,
        items: Vec<(u32, u32)>,
    ) -> Self {
        Self {
            participant,
            head: None,
            call,
            items,
        }
    }

    /// What the call has used.
    fn used(&self) -> Usage {
        let completion = self.participant.completion();
        completion.map_or_else(Usage::default, |completion| {
            completion.used(self.call.input_tokens)
        })
    }

    pub(super) fn is_of(&self, call: &Arc<ItemCall>) -> bool {
        Arc::ptr_eq(&self.call, call)
    }

    pub(super) fn add(&mut self, item: u32, slot: u32) {
        self.items.push((item, slot));
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        if self.head.is_none() {
            match ready!(self.participant.poll_head(cx)) {
                Ok(head) if head.status == StatusCode::OK => self.head = Some(head),
                Ok(_) => return Poll::Ready(Ended::Refused),
                Err(error) => return Poll::Ready(Ended::Failed(error)),
            }
        }
        // What it reads is taken from the record.
        while let Some(frame) = ready!(self.participant.poll_frame(cx)) {
            if let Err(error) = frame {
                return Poll::Ready(Ended::Failed(error));
            }
        }
        let head = self.head.take().expect("it was read before the body");
        Poll::Ready(Ended::Cleanly(head))
    }
}

/// What is known of a caller that pays for its calls one by one: nothing is to be estimated.
fn of_parts(outcome: Outcome) -> Completion {
    let mut completion = Completion::new(outcome);
    completion.usage = Some(Usage::default());
    completion
}

/// A caller that leaves pays for its calls one by one.
impl Drop for Gather {
    fn drop(&mut self) {
        self.readings.clear();
        if self.bill.is_some() {
            let bill = self.take_bill();
            bill.charge(&of_parts(Outcome::Abandoned));
            bill.report();
        }
    }
}

impl fmt::Debug for Gather {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gather").finish_non_exhaustive()
    }
}
