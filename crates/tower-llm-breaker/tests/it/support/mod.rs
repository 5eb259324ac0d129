//! Requests, providers and bodies that a test scripts.

use std::{
    future::{Ready, ready},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use tokio::sync::broadcast::error::TryRecvError;
use tokio_test::{assert_ready, assert_ready_err, assert_ready_ok, task};
use tower::Service;
use tower_layer::Layer;
use tower_llm_breaker::{
    Breaker, BreakerBuilder, BreakerGuard, BreakerHandle, BreakerLayer, CircuitId, CircuitOpen,
    CircuitStats, EventKind, EventReceiver, State,
};
use tower_llm_core::{BoxError, Call, Dialect, HttpBody, Operation, Provider, Watched};
use tower_llm_testkit::mock::{
    Sender, Upstream, arrived, nothing_arrived, poll_ready, start, stream,
};
use tower_test::mock::{self, Handle, Mock, SendResponse};

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const HOUR: Duration = Duration::from_secs(3_600);

// === requests ===

pub(crate) type Request = http::Request<()>;

/// How a provider answers the request that carries this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    Well,
    /// A status, without any headers.
    Status(u16),
    /// A status, and a retry-after of so many seconds.
    Later(u16, u32),
    /// No response: the connection broke.
    Broken,
}

pub(crate) const WELL: Says = Says::Well;
pub(crate) const FAILED: Says = Says::Status(500);

/// A request to OpenAI, for the model `m`, without an account, answered with `says`.
pub(crate) fn ask(says: Says) -> Request {
    ask_of("openai", "", "m", says)
}

/// A request, answered with `says`; empty fields are not set.
pub(crate) fn ask_of(
    provider: &'static str,
    account: &str,
    model: impl AsRef<str>,
    says: Says,
) -> Request {
    let mut call = Call::builder(Provider::new(provider), Operation::CHAT).dialect(Dialect::OpenAi);
    if !account.is_empty() {
        call = call.account(account);
    }
    if !model.as_ref().is_empty() {
        call = call.model(model.as_ref());
    }
    let mut request = Request::new(());
    request.extensions_mut().insert(call.build());
    request.extensions_mut().insert(says);
    request
}

/// A streamed request to OpenAI, for the model `m`.
pub(crate) fn chat() -> Request {
    let call = Call::builder(Provider::OPENAI, Operation::CHAT)
        .dialect(Dialect::OpenAi)
        .model("m")
        .streamed(true)
        .build();
    let mut request = Request::new(());
    request.extensions_mut().insert(call);
    request
}

// === a provider with scripted answers ===

/// Answers at once with what the request carries.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scripted {
    reached: Arc<AtomicUsize>,
}

impl Service<Request> for Scripted {
    type Response = http::Response<Full<Bytes>>;
    type Error = BoxError;
    type Future = Ready<Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        self.reached.fetch_add(1, Ordering::Relaxed);
        let says = request.extensions().get::<Says>();
        ready(says.copied().unwrap_or(Says::Well).answer())
    }
}

impl Says {
    pub(crate) fn answer(self) -> Result<http::Response<Full<Bytes>>, BoxError> {
        let (status, retry_after) = match self {
            Self::Well => (200, None),
            Self::Status(status) => (status, None),
            Self::Later(status, seconds) => (status, Some(seconds)),
            Self::Broken => return Err("the connection broke".into()),
        };
        let mut response = http::Response::builder()
            .status(status)
            .header("content-type", "application/json");
        if let Some(seconds) = retry_after {
            response = response.header("retry-after", seconds);
        }
        Ok(response.body(Full::from("{}")).expect("a legal response"))
    }
}

/// A breaker around a provider with scripted answers.
#[derive(Clone, Debug)]
pub(crate) struct Tested {
    pub(crate) service: Breaker<Scripted, HttpBody>,
    pub(crate) handle: BreakerHandle,
    pub(crate) provider: Scripted,
}

/// Settings without randomness: only the ratio opens a circuit, and one probe closes it.
pub(crate) fn builder() -> BreakerBuilder {
    BreakerLayer::builder()
        .advanced(|set| set.jitter(0.0))
        .without_failure_threshold()
        .success_threshold(1)
}

/// Opened by one failure, for 30 s.
pub(crate) fn touchy() -> BreakerBuilder {
    builder().failure_threshold(1).open_for(30 * SECOND)
}

impl Tested {
    pub(crate) fn new(builder: BreakerBuilder) -> Self {
        Self::of(&builder.build().expect("good settings"))
    }

    pub(crate) fn of(layer: &BreakerLayer) -> Self {
        let provider = Scripted::default();
        Self {
            service: layer.layer(provider.clone()),
            handle: layer.handle(),
            provider,
        }
    }

    /// How many calls have reached the provider.
    pub(crate) fn reached(&self) -> usize {
        self.provider.reached.load(Ordering::Relaxed)
    }

    /// Calls and reads the response to its end; returns its status.
    pub(crate) fn call(&self, request: Request) -> Result<u16, BoxError> {
        let mut service = self.service.clone();
        assert_ready_ok!(poll_ready(&mut service));
        let answer = service
            .call(request)
            .now_or_never()
            .expect("the answer is scripted");
        let response = answer?;
        let status = response.status().as_u16();
        let read = response.into_body().collect().now_or_never();
        read.expect("the body is complete")
            .expect("the body does not fail");
        Ok(status)
    }

    /// Calls the model `m`, answered with `says`, and asserts that the call reached the provider.
    #[track_caller]
    pub(crate) fn tell(&self, says: Says) {
        let reached = self.reached();
        match self.call(ask(says)) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.to_string(), "the connection broke"),
        }
        assert_eq!(self.reached(), reached + 1, "{says:?}");
    }

    #[track_caller]
    pub(crate) fn tell_times(&self, times: usize, says: Says) {
        for _ in 0..times {
            self.tell(says);
        }
    }

    /// Calls the model `m`, without reaching the provider.
    #[track_caller]
    pub(crate) fn refused(&self) -> CircuitOpen {
        self.refuses(ask(Says::Well))
    }

    /// Calls without reaching the provider.
    #[track_caller]
    pub(crate) fn refuses(&self, request: Request) -> CircuitOpen {
        let reached = self.reached();
        let error = self.call(request).expect_err("the call is refused");
        assert_eq!(self.reached(), reached, "the call reached the provider");
        open(&error).clone()
    }

    /// The state of the model `m`'s circuit.
    pub(crate) fn state(&self) -> State {
        self.handle.state(&model())
    }

    /// Calls and failures in the window of the model `m`.
    pub(crate) fn counts(&self) -> (u64, u64) {
        counts(&self.handle)
    }
}

// === circuits ===

/// The circuit of OpenAI's model `m`.
pub(crate) fn model() -> CircuitId {
    CircuitId::model("openai", "m")
}

#[track_caller]
pub(crate) fn stats(handle: &BreakerHandle) -> CircuitStats {
    handle.stats_of(&model()).expect("the circuit exists")
}

/// Calls and failures in the window of the model `m`.
#[track_caller]
pub(crate) fn counts(handle: &BreakerHandle) -> (u64, u64) {
    let stats = stats(handle);
    (stats.calls, stats.failures)
}

/// The events since the last call.
pub(crate) fn kinds(events: &mut EventReceiver) -> Vec<EventKind> {
    let mut kinds = Vec::new();
    loop {
        match events.try_recv() {
            Ok(event) => kinds.push(event.kind),
            Err(TryRecvError::Empty) => return kinds,
            Err(error) => panic!("{error}"),
        }
    }
}

#[track_caller]
pub(crate) fn open(error: &BoxError) -> &CircuitOpen {
    error.downcast_ref().expect("the breaker refused the call")
}

// === services that a test controls ===

pub(crate) type Mocked<R> = Breaker<Mock<Request, R>, HttpBody>;

/// A breaker around a mock.
pub(crate) fn mocked<R>(layer: &BreakerLayer) -> (Mocked<R>, Handle<Request, R>) {
    let (mock, upstream) = mock::pair();
    (layer.layer(mock), upstream)
}

/// A call that has reached the provider and ends when the test says.
pub(crate) struct Running {
    call: task::Spawn<<Mocked<http::Response<Full<Bytes>>> as Service<Request>>::Future>,
    answer: SendResponse<http::Response<Full<Bytes>>>,
}

/// A breaker around a provider whose calls end when and as the test says.
pub(crate) struct Staged {
    pub(crate) service: Mocked<http::Response<Full<Bytes>>>,
    pub(crate) upstream: Handle<Request, http::Response<Full<Bytes>>>,
    pub(crate) handle: BreakerHandle,
}

impl Staged {
    pub(crate) fn new(builder: BreakerBuilder) -> Self {
        let layer = builder.build().expect("good settings");
        let (service, upstream) = mocked(&layer);
        Self {
            service,
            upstream,
            handle: layer.handle(),
        }
    }

    /// An admitted call to the model `m`.
    #[track_caller]
    pub(crate) fn begin(&mut self) -> Running {
        self.begin_of(ask(Says::Well))
    }

    #[track_caller]
    pub(crate) fn begin_of(&mut self, request: Request) -> Running {
        let mut call = start(&self.service, request);
        assert!(call.poll().is_pending(), "the call was refused");
        let (_, answer) = arrived(&mut self.upstream);
        Running { call, answer }
    }

    /// A call to the model `m`, from beginning to end.
    #[track_caller]
    pub(crate) fn tell(&mut self, says: Says) {
        self.begin().end(says);
    }

    #[track_caller]
    pub(crate) fn tell_times(&mut self, times: usize, says: Says) {
        for _ in 0..times {
            self.tell(says);
        }
    }

    #[track_caller]
    pub(crate) fn refused(&mut self) -> CircuitOpen {
        self.refuses(ask(Says::Well))
    }

    #[track_caller]
    pub(crate) fn refuses(&mut self, request: Request) -> CircuitOpen {
        let error = assert_ready_err!(start(&self.service, request).poll());
        nothing_arrived(&mut self.upstream);
        open(&error).clone()
    }

    pub(crate) fn state(&self) -> State {
        self.handle.state(&model())
    }

    pub(crate) fn counts(&self) -> (u64, u64) {
        counts(&self.handle)
    }

    /// Calls of the model `m` whose outcomes were stale.
    pub(crate) fn stale(&self) -> u64 {
        stats(&self.handle).stale
    }
}

impl Running {
    /// Ends the call with `says`, read to the end.
    #[track_caller]
    pub(crate) fn end(mut self, says: Says) {
        match says.answer() {
            Ok(response) => self.answer.send_response(response),
            Err(error) => self.answer.send_error(error),
        }
        if let Ok(response) = assert_ready!(self.call.poll()) {
            let read = response.into_body().collect().now_or_never();
            read.expect("the body is complete")
                .expect("the body does not fail");
        }
    }

    /// The caller disconnects.
    pub(crate) fn leave(self) {
        drop(self);
    }
}

// === streams ===

pub(crate) const ROLE: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
pub(crate) const CONTENT: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"}}]}\n\n";
pub(crate) const ERROR: &str =
    "data: {\"error\":{\"message\":\"it broke\",\"type\":\"server_error\",\"code\":null}}\n\n";
pub(crate) const DONE: &str = "data: [DONE]\n\n";

/// A stream behind a breaker: both the sender of its frames and the body that is read.
///
/// One task reads it, so a test sees whether a timer wakes that task.
pub(crate) struct Streaming {
    pub(crate) sender: Option<Sender>,
    pub(crate) body: task::Spawn<Watched<Upstream, BreakerGuard>>,
}

/// A stream whose response headers have arrived.
#[track_caller]
pub(crate) fn streaming(layer: &BreakerLayer) -> Streaming {
    let (service, mut upstream) = mocked(layer);
    let mut call = start(&service, chat());
    assert!(call.poll().is_pending(), "the call was refused");
    let (sender, body) = Upstream::new();
    arrived(&mut upstream).1.send_response(stream(body));
    let response = assert_ready_ok!(call.poll());
    Streaming {
        sender: Some(sender),
        body: task::spawn(response.into_body()),
    }
}

impl Streaming {
    fn sender(&self) -> &Sender {
        self.sender.as_ref().expect("the body has not ended")
    }

    /// Sends `frame` and reads it.
    #[track_caller]
    pub(crate) fn pass(&mut self, frame: &'static str) {
        self.send(frame);
        self.read();
    }

    pub(crate) fn send(&self, frame: &'static str) {
        self.sender().send(frame);
    }

    /// Reads the next frame, which has arrived.
    #[track_caller]
    pub(crate) fn read(&mut self) {
        let frame = assert_ready!(self.poll()).expect("the body continues");
        frame.expect("the body does not fail");
    }

    pub(crate) fn poll(&mut self) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.body.enter(|cx, body| body.poll_frame(cx))
    }

    /// Polls for a frame, and none has arrived.
    #[track_caller]
    pub(crate) fn wait(&mut self) {
        assert!(self.poll().is_pending(), "something came");
    }

    /// Ends the body, and reads to its end.
    #[track_caller]
    pub(crate) fn end(mut self) {
        self.sender = None;
        assert!(assert_ready!(self.poll()).is_none(), "the body continues");
    }

    /// Fails the body, and reads to the error.
    #[track_caller]
    pub(crate) fn fail(mut self) {
        self.sender().fail("the connection broke");
        let failed = assert_ready!(self.poll()).expect("the body continues");
        assert!(failed.is_err());
    }

    /// All of a good stream.
    #[track_caller]
    pub(crate) fn succeed(mut self) {
        for frame in [ROLE, CONTENT, DONE] {
            self.pass(frame);
        }
        self.end();
    }
}

/// No event that these tests wait for takes longer on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
