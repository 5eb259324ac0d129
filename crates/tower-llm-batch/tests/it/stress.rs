//! Thousands of calls on two threads, dropped at any stage.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use tokio::task::{JoinSet, yield_now};
use tower::{Service, service_fn};
use tower_layer::Layer;
use tower_llm_batch::{Abandoned, BatchBuilder, BatchHandle};
use tower_llm_core::{BoxError, ClassifiedError, Outcome, Priority};

use crate::support::{Ask, Asks, answer, answers, builder, counts};

const TASKS: u64 = 32;
const CALLS: u64 = 150;

/// Pseudo-random numbers, the same in each run.
struct Numbers(u64);

impl Numbers {
    /// A number below `end` (splitmix64).
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % end
    }
}

/// Drops `future` after the given number of polls, if any.
struct GiveUp<F> {
    future: Pin<Box<F>>,
    polls: Option<u64>,
}

impl<F: Future> Future for GiveUp<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(polls) = &mut self.polls {
            if *polls == 0 {
                return Poll::Ready(None);
            }
            *polls -= 1;
            // Polled again at once, so that it can be dropped wherever it waits. The others must be woken.
            cx.waker().wake_by_ref();
        }
        self.future.as_mut().poll(cx).map(Some)
    }
}

struct Inside(Arc<AtomicUsize>);

impl Inside {
    fn enter(inside: &Arc<AtomicUsize>) -> Self {
        inside.fetch_add(1, SeqCst);
        Self(Arc::clone(inside))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

async fn provider(
    inside: Arc<AtomicUsize>,
    batch: Vec<Ask>,
    seed: u64,
) -> Result<Vec<u64>, BoxError> {
    let _inside = Inside::enter(&inside);
    let mut numbers = Numbers(seed);
    for _ in 0..numbers.below(6) {
        yield_now().await;
    }
    if batch.iter().any(|ask| ask.is_poison) {
        return Err(ClassifiedError::new(Outcome::ClientError, "bad").into());
    }
    match numbers.below(20) {
        0 => Err("the provider failed".into()),
        1 => Ok(answers(&batch[1..])),
        2 => panic!("the provider's client panics"),
        _ => Ok(answers(&batch)),
    }
}

/// Many tasks make many calls each; returns how many were answered, how many failed, and how many were given up.
async fn storm(settings: BatchBuilder<Asks>) -> (BatchHandle, [u64; 3], Arc<AtomicUsize>) {
    let layer = settings.build().expect("it does not fail");
    let inside = Arc::new(AtomicUsize::new(0));
    let calls = Arc::new(AtomicUsize::new(0));
    let model = {
        let inside = Arc::clone(&inside);
        layer.layer(service_fn(move |batch: Vec<Ask>| {
            let seed = calls.fetch_add(1, SeqCst) as u64;
            provider(Arc::clone(&inside), batch, seed)
        }))
    };
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let mut model = model.clone();
        tasks.spawn(async move {
            let mut numbers = Numbers(task);
            let mut ended = [0; 3];
            for call in 0..CALLS {
                let id = task * CALLS + call;
                let ask = Ask {
                    key: ["a", "b"][numbers.below(2) as usize],
                    priority: [Priority::Interactive, Priority::Normal, Priority::Batch]
                        [numbers.below(3) as usize],
                    is_poison: numbers.below(30) == 0,
                    is_alone: numbers.below(40) == 0,
                    ..Ask::weighing(id, 1 + numbers.below(4), numbers.below(10))
                };
                let is_poison = ask.is_poison;
                if ask.is_alone {
                    continue;
                }
                let polls = (numbers.below(3) == 0).then(|| numbers.below(5));
                let future = Box::pin(model.call(ask));
                match (GiveUp { future, polls }).await {
                    None => ended[2] += 1,
                    Some(Err(_)) => ended[1] += 1,
                    Some(Ok(response)) => {
                        assert!(!is_poison);
                        assert_eq!(response, answer(id));
                        ended[0] += 1;
                    }
                }
            }
            ended
        });
    }
    let mut ended = [0; 3];
    while let Some(of_task) = tasks.join_next().await {
        let of_task: [u64; 3] = of_task.expect("it does not fail");
        (0..3).for_each(|end| ended[end] += of_task[end]);
    }
    (layer.handle(), ended, inside)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_in_flight_or_queued() {
    for abandoned in [Abandoned::Drop, Abandoned::Finish] {
        for max_in_flight in [1, 3] {
            let settings = builder()
                .max_items(12)
                .max_tokens(60)
                .max_in_flight(max_in_flight);
            let (handle, [answered, failed, left], inside) =
                storm(settings.abandoned(abandoned)).await;
            // Tasks read abandoned batches to their end, within a few polls each.
            for _ in 0..1_000_000 {
                if counts(&handle) == (0, 0, 0) {
                    break;
                }
                yield_now().await;
            }
            assert_eq!(counts(&handle), (0, 0, 0));
            assert_eq!(inside.load(SeqCst), 0);
            let stats = handle.stats();
            assert!(answered > 0 && failed > 0 && left > 0, "{stats:?}");
            assert!(stats.calls > stats.batches, "nothing was merged: {stats:?}");
            assert_eq!(stats.refused, 0);
        }
    }
}
