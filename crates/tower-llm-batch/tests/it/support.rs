//! Requests, a batcher and services that a test scripts.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::time::{Instant, advance};
use tokio_test::{assert_pending, assert_ready, task::Spawn};
use tower_layer::Layer;
use tower_llm_batch::{
    Batch, BatchBuilder, BatchFull, BatchHandle, BatchLayer, Batcher, ResponseFuture, Scattered,
    Terms,
};
use tower_llm_core::{BoxError, ClassifiedError, Outcome, Priority};
use tower_llm_testkit::mock::start;
use tower_test::mock::{self, Handle, Mock};

/// A numbered request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) id: u64,
    pub(crate) key: &'static str,
    pub(crate) items: u64,
    pub(crate) tokens: u64,
    pub(crate) priority: Priority,
    pub(crate) deadline: Option<Instant>,
    pub(crate) is_poison: bool,
    pub(crate) is_alone: bool,
}

impl Ask {
    pub(crate) fn new(id: u64) -> Self {
        Self {
            id,
            key: "model",
            items: 1,
            tokens: 1,
            priority: Priority::Normal,
            deadline: None,
            is_poison: false,
            is_alone: false,
        }
    }

    pub(crate) fn of(key: &'static str, id: u64) -> Self {
        Self {
            key,
            ..Self::new(id)
        }
    }

    pub(crate) fn poison(id: u64) -> Self {
        Self {
            is_poison: true,
            ..Self::new(id)
        }
    }

    pub(crate) fn weighing(id: u64, items: u64, tokens: u64) -> Self {
        Self {
            items,
            tokens,
            ..Self::new(id)
        }
    }
}

/// The answer to a request: no other has the same.
pub(crate) fn answer(id: u64) -> u64 {
    id * 1_000 + 7
}

pub(crate) fn answers(asks: &[Ask]) -> Vec<u64> {
    asks.iter().map(|ask| answer(ask.id)).collect()
}

/// Sends requests as they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asks;

impl Batcher for Asks {
    type Request = Ask;
    type Key = &'static str;
    type Batch = Vec<Ask>;
    type Plan = ();
    type Reply = Vec<u64>;
    type Response = u64;

    fn terms(&self, ask: &Ask) -> Option<Terms<&'static str>> {
        let terms = Terms::new(ask.key)
            .items(ask.items)
            .tokens(ask.tokens)
            .priority(ask.priority);
        let terms = match ask.deadline {
            Some(deadline) => terms.deadline(deadline),
            None => terms,
        };
        (!ask.is_alone).then_some(terms)
    }

    fn assemble(&self, asks: &mut [Ask]) -> (Vec<Ask>, ()) {
        (asks.to_vec(), ())
    }

    async fn scatter(&self, (): (), reply: Vec<u64>) -> Scattered<u64> {
        Scattered::Each(reply.into_iter().map(Ok).collect())
    }
}

pub(crate) type Model = Batch<Mock<Vec<Ask>, Vec<u64>>, Asks>;
pub(crate) type Upstream = Handle<Vec<Ask>, Vec<u64>>;
pub(crate) type Call = Spawn<ResponseFuture<Mock<Vec<Ask>, Vec<u64>>, Asks>>;

pub(crate) fn builder() -> BatchBuilder<Asks> {
    BatchLayer::builder(Asks)
}

/// A layer around a mock that takes any number of calls.
pub(crate) fn model(builder: BatchBuilder<Asks>) -> (Model, Upstream, BatchHandle) {
    let layer = builder.build().expect("the settings are valid");
    let (mock, mut upstream) = mock::pair();
    upstream.allow(u64::MAX);
    (layer.layer(mock), upstream, layer.handle())
}

/// Calls, and polls once: the call waits for its answer.
#[track_caller]
pub(crate) fn ask(model: &Model, ask: Ask) -> Call {
    let mut call = start(model, ask);
    assert_pending!(call.poll());
    call
}

/// Calls numbered from `ids`, each polled once.
#[track_caller]
pub(crate) fn ask_all(model: &Model, ids: impl IntoIterator<Item = u64>) -> Vec<Call> {
    ids.into_iter().map(|id| ask(model, Ask::new(id))).collect()
}

/// The numbers of the requests in a batch that has arrived upstream, and what answers it.
#[track_caller]
pub(crate) fn arrived(upstream: &mut Upstream) -> (Vec<u64>, mock::SendResponse<Vec<u64>>) {
    let (batch, send) = tower_llm_testkit::mock::arrived(upstream);
    (batch.iter().map(|ask| ask.id).collect(), send)
}

/// Calls that are in flight together, driven by the first of them, with their batch: the call before them has been answered.
pub(crate) fn in_flight(
    model: &Model,
    upstream: &mut Upstream,
    ids: impl IntoIterator<Item = u64>,
) -> (Vec<Call>, (Vec<u64>, mock::SendResponse<Vec<u64>>)) {
    let mut first = ask(model, Ask::new(0));
    let (_, send) = arrived(upstream);
    let mut calls = ask_all(model, ids);
    answer_all(&[0], send);
    assert_answered(&mut first, 0);
    assert_pending!(calls[0].poll());
    (calls, arrived(upstream))
}

/// Answers a batch by its numbers.
pub(crate) fn answer_all(ids: &[u64], send: mock::SendResponse<Vec<u64>>) {
    send.send_response(ids.iter().copied().map(answer).collect());
}

/// The call has its own answer.
#[track_caller]
pub(crate) fn assert_answered(call: &mut Call, id: u64) {
    let response = assert_ready!(call.poll());
    assert_eq!(response.expect("it does not fail"), answer(id));
}

/// Polls those that are woken, until none is; those that have their answers are removed.
pub(crate) fn poll_woken(calls: &mut Vec<Call>) {
    while calls.iter().any(Spawn::is_woken) {
        calls.retain_mut(|call| !call.is_woken() || call.poll().is_pending());
    }
}

#[track_caller]
pub(crate) fn error_of(call: &mut Call) -> BoxError {
    assert_ready!(call.poll()).expect_err("it fails")
}

#[track_caller]
pub(crate) fn full(error: &BoxError) -> &BatchFull {
    error.downcast_ref().expect("the layer refused the call")
}

/// Keys, calls that wait, and batches in flight.
pub(crate) fn counts(handle: &BatchHandle) -> (usize, usize, usize) {
    let stats = handle.stats();
    (stats.keys, stats.waiting, stats.in_flight)
}

pub(crate) async fn pass(millis: u64) {
    advance(Duration::from_millis(millis)).await;
}

/// A provider that answers after a time, and rejects batches with poison in them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Provider {
    batches: Arc<Mutex<Vec<Vec<Ask>>>>,
    pub(crate) in_flight: Arc<AtomicUsize>,
    pub(crate) most_in_flight: Arc<AtomicUsize>,
}

/// In flight until it is dropped.
struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Provider {
    pub(crate) async fn call(self, batch: Vec<Ask>) -> Result<Vec<u64>, BoxError> {
        let in_flight = InFlight(Arc::clone(&self.in_flight));
        let now = self.in_flight.fetch_add(1, SeqCst) + 1;
        self.most_in_flight.fetch_max(now, SeqCst);
        let rejects = batch.iter().any(|ask| ask.is_poison);
        let answers = answers(&batch);
        self.batches.lock().expect("it does not fail").push(batch);
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(in_flight);
        match rejects {
            true => Err(ClassifiedError::new(Outcome::ClientError, "bad input").into()),
            false => Ok(answers),
        }
    }

    /// The batches that have arrived.
    pub(crate) fn batches(&self) -> Vec<Vec<Ask>> {
        self.batches.lock().expect("it does not fail").clone()
    }

    pub(crate) fn sizes(&self) -> Vec<usize> {
        self.batches
            .lock()
            .expect("it does not fail")
            .iter()
            .map(Vec::len)
            .collect()
    }
}
