//! Providers whose behaviour is set, as targets of a pool.

use std::{
    borrow::Cow,
    future::{Future, pending},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::sleep;
use tower::{Service, ServiceExt};
use tower_llm_core::{
    BoxError, Call, Caller, ClassifiedError, Described, Failure, Operation, Outcome, Provider,
    Refusal, RefusalKind, Unary,
};
use tower_llm_fanout::{FanoutBuilder, FanoutLayer, Pool, Target};

use crate::support::MS;

pub(crate) const FAILED: Outcome = Outcome::Failed(Failure::Status);

/// A typed request that holds its call.
#[derive(Clone, Debug)]
pub(crate) struct Prompt(pub(crate) Call);

/// A provider: what it does, and what it has seen. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Site(Arc<State>);

#[derive(Debug)]
struct State {
    name: String,
    behaves: Mutex<Behaves>,
    seen: Mutex<Vec<Call>>,
    in_flight: AtomicUsize,
}

/// What a provider does with a call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Behaves {
    Answers(Duration),
    Fails(Outcome, Duration),
    /// One of its layers refuses.
    Refuses(Duration),
    Hangs,
}

struct InFlight(Site);

pub(crate) fn prompt() -> Prompt {
    Prompt(
        Call::builder(Provider::OPENAI, Operation::CHAT)
            .model("gpt")
            .build(),
    )
}

pub(crate) fn prompt_of(caller: &str) -> Prompt {
    let call = prompt().0.to_builder().caller(Caller::named(caller));
    Prompt(call.build())
}

/// Providers that answer after 10 ms, called `a`, `b`, ...
pub(crate) fn sites<const N: usize>() -> [Site; N] {
    std::array::from_fn(|index| {
        Site::new(char::from(b'a' + index as u8), Behaves::Answers(10 * MS))
    })
}

pub(crate) fn typed(builder: FanoutBuilder) -> FanoutLayer<Unary> {
    builder.watch(Unary).build().unwrap()
}

/// The answer of one call: the name of the provider that gave it.
pub(crate) async fn ask(layer: &FanoutLayer<Unary>, pool: &Pool<Site>) -> Result<String, BoxError> {
    layer.across(pool).oneshot(prompt()).await
}

/// The names of the providers that answer `calls` calls, one after another.
pub(crate) async fn answers(layer: &FanoutLayer<Unary>, pool: &Pool<Site>, calls: usize) -> String {
    let mut names = String::new();
    for _ in 0..calls {
        names += &ask(layer, pool).await.unwrap();
    }
    names
}

// === impl Site ===

impl Site {
    pub(crate) fn new(name: impl Into<String>, behaves: Behaves) -> Self {
        Self(Arc::new(State {
            name: name.into(),
            behaves: Mutex::new(behaves),
            seen: Mutex::default(),
            in_flight: AtomicUsize::new(0),
        }))
    }

    pub(crate) fn behave(&self, behaves: Behaves) {
        *self.0.behaves.lock().unwrap() = behaves;
    }

    pub(crate) fn target(&self) -> Target<Self> {
        Target::new(self.0.name.as_str(), self.clone())
    }

    /// The calls that have reached it.
    pub(crate) fn seen(&self) -> Vec<Call> {
        self.0.seen.lock().unwrap().clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.0.seen.lock().unwrap().len()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.0.in_flight.load(Relaxed)
    }
}

impl Service<Prompt> for Site {
    type Response = String;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<String, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, prompt: Prompt) -> Self::Future {
        let behaves = *self.0.behaves.lock().unwrap();
        if let Behaves::Refuses(after) = behaves {
            let refusal = Refusal::new(RefusalKind::RateLimited, "scripted").after(after);
            return Box::pin(async { Err(refusal.into()) });
        }
        self.0.seen.lock().unwrap().push(prompt.0);
        self.0.in_flight.fetch_add(1, Relaxed);
        let in_flight = InFlight(self.clone());
        Box::pin(async move {
            let site = in_flight;
            match behaves {
                Behaves::Answers(after) => {
                    sleep(after).await;
                    Ok(site.0.0.name.clone())
                }
                Behaves::Fails(outcome, after) => {
                    sleep(after).await;
                    Err(ClassifiedError::new(outcome, "scripted").into())
                }
                Behaves::Refuses(_) | Behaves::Hangs => pending().await,
            }
        })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.0.in_flight.fetch_sub(1, Relaxed);
    }
}

impl Described for Prompt {
    fn call(&self) -> Option<Cow<'_, Call>> {
        Some(Cow::Borrowed(&self.0))
    }

    fn set_call(&mut self, call: Call) {
        self.0 = call;
    }
}
