//! Every interleaving of the callers of a batch, up to a bound of preemptions.
//!
//! Without a wake-up that a caller needs, loom finds that no thread can go on. There is no time, so that no caller looks after
//! another. Loom's own cfg would change tokio too, hence another:
//! `RUSTFLAGS="--cfg batch_loom" cargo test -p tower-llm-batch --lib --target-dir target/loom loom`

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc as StdArc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use ::loom::{
    future::block_on,
    model::Builder,
    sync::{Mutex as LoomMutex, atomic::AtomicUsize as LoomAtomicUsize},
    thread,
};
use tower_layer::Layer as _;
use tower_llm_core::BoxError;
use tower_service::Service;

use crate::{
    Batch, BatchLayer, Batcher, ResponseFuture, Scattered, Terms,
    flight::{Driven, Flight},
};

struct Numbers;

impl Batcher for Numbers {
    type Request = u64;
    type Key = ();
    type Batch = Vec<u64>;
    type Plan = ();
    type Reply = Vec<u64>;
    type Response = u64;

    fn terms(&self, _: &u64) -> Option<Terms<()>> {
        Some(Terms::new(()))
    }

    fn assemble(&self, numbers: &mut [u64]) -> (Vec<u64>, ()) {
        (numbers.to_vec(), ())
    }

    async fn scatter(&self, (): (), numbers: Vec<u64>) -> Scattered<u64> {
        Scattered::Each(numbers.into_iter().map(Ok).collect())
    }
}

/// Answers once it is open.
#[derive(Clone, Default)]
struct Provider {
    gate: StdArc<LoomMutex<Gate>>,
    calls: StdArc<AtomicUsize>,
    polls: StdArc<LoomAtomicUsize>,
    ended: StdArc<AtomicUsize>,
}

#[derive(Default)]
struct Gate {
    is_open: bool,
    wakers: Vec<Waker>,
}

/// A call to the provider.
struct Upstream {
    provider: Provider,
    numbers: Vec<u64>,
}

impl Provider {
    fn open(&self) {
        let mut gate = self.gate.lock().unwrap();
        gate.is_open = true;
        let wakers = std::mem::take(&mut gate.wakers);
        drop(gate);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Calls that were made, and calls that were answered or dropped.
    fn counts(&self) -> (usize, usize) {
        (self.calls.load(Relaxed), self.ended.load(Relaxed))
    }
}

impl Service<Vec<u64>> for Provider {
    type Response = Vec<u64>;
    type Error = BoxError;
    type Future = Upstream;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, numbers: Vec<u64>) -> Upstream {
        self.calls.fetch_add(1, Relaxed);
        Upstream {
            provider: self.clone(),
            numbers,
        }
    }
}

impl Future for Upstream {
    type Output = Result<Vec<u64>, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut gate = self.provider.gate.lock().unwrap();
        if !gate.is_open {
            gate.wakers.push(cx.waker().clone());
            drop(gate);
            // Other threads may run here, while the call is polled: loom does not stop at the release of a lock.
            self.provider.polls.fetch_add(1, Relaxed);
            return Poll::Pending;
        }
        drop(gate);
        Poll::Ready(Ok(std::mem::take(&mut self.numbers)))
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.provider.ended.fetch_add(1, Relaxed);
    }
}

type Call = ResponseFuture<Provider, Numbers>;

fn model() -> (Batch<Provider, Numbers>, Provider, BatchLayer<Numbers>) {
    let layer = BatchLayer::new(Numbers).unwrap();
    let provider = Provider::default();
    (layer.layer(provider.clone()), provider, layer)
}

/// Waits for the answer.
fn read(call: Call, number: u64) {
    assert_eq!(block_on(call).unwrap(), number);
}

/// Polls once, with the waker of its thread.
fn look(call: &mut Call) {
    block_on(poll_fn(|cx| {
        let _ = Pin::new(&mut *call).poll(cx);
        Poll::Ready(())
    }));
}

fn assert_nothing_is_left(layer: &BatchLayer<Numbers>, provider: &Provider) {
    let stats = layer.handle().stats();
    assert_eq!((stats.keys, stats.waiting, stats.in_flight), (0, 0, 0));
    let (calls, ended) = provider.counts();
    assert_eq!(calls, ended);
}

fn check(preemptions: usize, scene: impl Fn() + Send + Sync + 'static) {
    let mut model = Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(scene);
}

#[test]
fn two_callers_of_one_batch_have_their_answers() {
    check(3, || {
        let (mut model, provider, layer) = model();
        let threads = [1, 2].map(|number| {
            let call = model.call(number);
            thread::spawn(move || read(call, number))
        });
        provider.open();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        assert_nothing_is_left(&layer, &provider);
    });
}

#[test]
fn a_caller_that_leaves_after_a_poll_leaves_no_other_asleep() {
    check(3, || {
        let (mut model, provider, layer) = model();
        let (mut leaver, reader) = (model.call(1), model.call(2));
        let leaver = thread::spawn(move || look(&mut leaver));
        let reader = thread::spawn(move || read(reader, 2));
        provider.open();
        leaver.join().unwrap();
        reader.join().unwrap();
        assert_nothing_is_left(&layer, &provider);
    });
}

#[test]
fn a_call_that_waits_is_sent_when_the_batch_before_it_ends() {
    check(3, || {
        let (mut model, provider, layer) = model();
        let mut first = model.call(1);
        look(&mut first);
        let second = model.call(2);
        let first = thread::spawn(move || read(first, 1));
        let second = thread::spawn(move || read(second, 2));
        provider.open();
        first.join().unwrap();
        second.join().unwrap();
        assert_eq!(provider.counts().0, 2);
        assert_nothing_is_left(&layer, &provider);
    });
}

#[test]
fn a_call_that_waits_is_sent_when_the_batch_before_it_is_given_up() {
    check(3, || {
        let (mut model, provider, layer) = model();
        let mut first = model.call(1);
        look(&mut first);
        let second = model.call(2);
        let leaver = thread::spawn(move || drop(first));
        let second = thread::spawn(move || read(second, 2));
        provider.open();
        leaver.join().unwrap();
        second.join().unwrap();
        assert_nothing_is_left(&layer, &provider);
    });
}

#[test]
fn of_three_the_one_that_stays_is_woken() {
    check(3, || {
        let (mut model, provider, layer) = model();
        let mut calls = [1, 2].map(|number| model.call(number));
        let reader = model.call(3);
        look(&mut calls[0]);
        look(&mut calls[1]);
        let leavers = calls.map(|call| thread::spawn(move || drop(call)));
        let opener = provider.clone();
        let opened = thread::spawn(move || opener.open());
        read(reader, 3);
        leavers
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        opened.join().unwrap();
        assert_nothing_is_left(&layer, &provider);
    });
}

/// A call in flight that is not in a queue.
fn flight(provider: &Provider) -> StdArc<Flight> {
    let upstream = provider.clone().call(vec![1]);
    let work = Box::pin(async move {
        let _ = upstream.await;
    });
    StdArc::new(Flight::new(0, work))
}

#[test]
fn a_driver_that_finds_the_call_polled_by_another_is_woken_once_more() {
    check(4, || {
        let provider = Provider::default();
        let flight = flight(&provider);
        let driven = StdArc::clone(&flight);
        let driver = thread::spawn(move || {
            block_on(poll_fn(|cx| {
                driven.attend(1, cx.waker(), false);
                driven.drive();
                match driven.has_ended() {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            }));
        });
        let opener = provider.clone();
        let opener = thread::spawn(move || opener.open());
        if flight.drive() == Driven::Ended {
            let (_, waker) = flight.hand_over(1);
            waker.into_iter().for_each(Waker::wake);
        }
        driver.join().unwrap();
        opener.join().unwrap();
        assert_eq!(provider.counts(), (1, 1));
    });
}

#[test]
fn a_call_that_is_given_up_while_it_is_polled_is_dropped() {
    check(3, || {
        let provider = Provider::default();
        let flight = flight(&provider);
        let polled = StdArc::clone(&flight);
        let poller = thread::spawn(move || polled.drive());
        // So that loom tries this thread at the moment at which the other one polls.
        provider.polls.load(Relaxed);
        let given_up = flight.abandon();
        let polled = poller.join().unwrap();
        assert_eq!(provider.counts(), (1, 1), "{given_up:?} {polled:?}");
        // One of them tells the queue.
        let ends = [given_up, polled].map(|driven| driven == Driven::Ended);
        assert_eq!(ends.into_iter().filter(|&ended| ended).count(), 1);
    });
}
