//! A provider whose answers follow a script, on paused time.

use std::{
    borrow::Cow,
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tower_layer::Layer;
use tower_llm_core::{
    Armed, BoxError, Call, ClassifiedError, Completion, Described, Guard, Guarded, Operation,
    Outcome, Unary,
};
use tower_llm_fanout::{FanoutBuilder, FanoutLayer};
use tower_service::Service;

pub(crate) const MS: Duration = Duration::from_millis(1);

/// A typed request.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    id: usize,
    call: Call,
}

/// One answer of the provider: after how long, and what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    after: Duration,
    answer: Result<u32, Outcome>,
}

/// A provider that answers its calls by a script, in the order in which they are sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    steps: VecDeque<Step>,
    sent_at: Vec<Instant>,
    ends: Vec<Outcome>,
}

/// Writes down how a call at the provider ended.
#[derive(Debug)]
pub(crate) struct Ended(Script);

pub(crate) fn ok(answer: u32, after: Duration) -> Step {
    Step {
        after,
        answer: Ok(answer),
    }
}

pub(crate) fn fails(outcome: Outcome, after: Duration) -> Step {
    Step {
        after,
        answer: Err(outcome),
    }
}

pub(crate) fn never() -> Step {
    ok(0, Duration::from_secs(80_000))
}

fn scripted(outcome: Outcome) -> BoxError {
    ClassifiedError::new(outcome, "scripted").into()
}

pub(crate) fn ask() -> Ask {
    Ask::numbered(0)
}

impl Ask {
    pub(crate) fn numbered(id: usize) -> Self {
        let call = Call::builder(tower_llm_core::Provider::OPENAI, Operation::CHAT)
            .input_tokens(25)
            .build();
        Self { id, call }
    }
}

/// Calls `layer` once around a provider with these answers, and returns the answer and when it came.
pub(crate) async fn run(
    builder: FanoutBuilder,
    steps: impl IntoIterator<Item = Step>,
) -> (Result<u32, BoxError>, Duration, Script) {
    let script = Script::new(steps);
    let layer: FanoutLayer<Unary> = builder.watch(Unary).build().unwrap();
    let mut service = layer.layer(script.clone());
    let began_at = Instant::now();
    let answer = service.call(ask()).await;
    (answer, began_at.elapsed(), script)
}

impl Script {
    pub(crate) fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        let script = Self::default();
        script.0.lock().unwrap().steps.extend(steps);
        script
    }

    /// How many calls were sent.
    pub(crate) fn sent(&self) -> usize {
        self.0.lock().unwrap().sent_at.len()
    }

    /// When the calls were sent, since the first one.
    pub(crate) fn sent_at(&self) -> Vec<Duration> {
        let state = self.0.lock().unwrap();
        let first = state.sent_at[0];
        state.sent_at.iter().map(|&at| at - first).collect()
    }

    /// How the calls ended, in that order.
    pub(crate) fn ends(&self) -> Vec<Outcome> {
        self.0.lock().unwrap().ends.clone()
    }
}

impl Described for Ask {
    fn call(&self) -> Option<Cow<'_, Call>> {
        Some(Cow::Borrowed(&self.call))
    }
}

impl Service<Ask> for Script {
    type Response = u32;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<u32, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Ask) -> Self::Future {
        let mut state = self.0.lock().unwrap();
        state.sent_at.push(Instant::now());
        let step = state.steps.pop_front().unwrap_or_else(never);
        let answered = async move {
            sleep(step.after).await;
            step.answer.map_err(scripted)
        };
        let armed = Armed::new(Ended(self.clone()));
        Box::pin(Guarded::new(answered, Unary, None, armed))
    }
}

impl Guard for Ended {
    fn end(&mut self, completion: &Completion) {
        self.0.0.lock().unwrap().ends.push(completion.outcome);
    }
}

/// A provider that takes as long as it is told for each call, and answers.
#[derive(Clone)]
pub(crate) struct Provider(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Provider {
    pub(crate) fn new(latency: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(latency))
    }
}

impl Service<Ask> for Provider {
    type Response = u32;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<u32, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Ask) -> Self::Future {
        let latency = (self.0)();
        Box::pin(async move {
            sleep(latency).await;
            Ok(0)
        })
    }
}

/// A provider whose answer depends on the number of the request.
#[derive(Clone)]
pub(crate) struct Numbered {
    step: Arc<dyn Fn(usize) -> Step + Send + Sync>,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Default)]
struct Counts {
    sent: usize,
    in_flight: usize,
    most_at_once: usize,
}

/// A call in flight at such a provider.
struct InFlight(Numbered);

impl Numbered {
    pub(crate) fn new(step: impl Fn(usize) -> Step + Send + Sync + 'static) -> Self {
        Self {
            step: Arc::new(step),
            counts: Arc::default(),
        }
    }

    pub(crate) fn sent(&self) -> usize {
        self.counts.lock().unwrap().sent
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.counts.lock().unwrap().in_flight
    }

    pub(crate) fn most_at_once(&self) -> usize {
        self.counts.lock().unwrap().most_at_once
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.counts.lock().unwrap().in_flight -= 1;
    }
}

impl Service<Ask> for Numbered {
    type Response = u32;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<u32, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, ask: Ask) -> Self::Future {
        let mut counts = self.counts.lock().unwrap();
        counts.sent += 1;
        counts.in_flight += 1;
        counts.most_at_once = counts.most_at_once.max(counts.in_flight);
        let in_flight = InFlight(self.clone());
        let step = (self.step)(ask.id);
        Box::pin(async move {
            let _in_flight = in_flight;
            sleep(step.after).await;
            step.answer.map_err(scripted)
        })
    }
}
