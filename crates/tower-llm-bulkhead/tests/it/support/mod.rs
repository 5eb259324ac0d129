//! Requests, services and bodies that a test scripts.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Wake,
};

use http_body::Body;
use tokio_test::assert_ready;
use tower_layer::Layer;
use tower_llm_bulkhead::{Bulkhead, BulkheadFull, BulkheadHandle, BulkheadLayer, KeyStats};
use tower_llm_core::{BoxError, Call, Described, Dialect, Key, Operation, Provider, Unary};
use tower_llm_testkit::mock::poll_frame;
use tower_test::mock::{self, Handle, Mock};

// === typed requests ===

/// A numbered request of a call to some provider.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) id: usize,
    pub(crate) call: Option<Call>,
    pub(crate) headers: BTreeMap<&'static str, &'static str>,
}

impl Ask {
    /// Number `id`, to OpenAI.
    pub(crate) fn new(id: usize) -> Self {
        Self::of("openai", id)
    }

    /// Number `id`, to `provider`.
    pub(crate) fn of(provider: &'static str, id: usize) -> Self {
        let call = Call::builder(Provider::new(provider), Operation::CHAT).build();
        Self {
            id,
            call: Some(call),
            headers: BTreeMap::new(),
        }
    }
}

impl Described for Ask {
    fn call(&self) -> Option<Cow<'_, Call>> {
        self.call.as_ref().map(Cow::Borrowed)
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.get(name).map(|value| value.as_bytes())
    }
}

/// A bulkhead around a mock that answers with numbers.
pub(crate) type Asked = Bulkhead<Mock<Ask, usize>, Unary>;

pub(crate) fn asked(layer: &BulkheadLayer<Unary>) -> (Asked, Handle<Ask, usize>) {
    let (mock, upstream) = mock::pair();
    (layer.layer(mock), upstream)
}

#[track_caller]
pub(crate) fn full(error: &BoxError) -> &BulkheadFull {
    error.downcast_ref().expect("the bulkhead refused the call")
}

// === stats ===

/// Permits in use, waiting calls and refused calls of one key.
#[track_caller]
pub(crate) fn counts_of(handle: &BulkheadHandle, key: &str) -> (usize, usize, u64) {
    let stats = handle.stats_of(&Key::new(key)).expect("the key exists");
    counts(&stats)
}

pub(crate) fn counts(stats: &KeyStats) -> (usize, usize, u64) {
    (stats.in_flight, stats.waiting, stats.refused)
}

/// Permits in use, waiting calls and refused calls of OpenAI.
#[track_caller]
pub(crate) fn openai(handle: &BulkheadHandle) -> (usize, usize, u64) {
    counts_of(handle, "openai")
}

/// Counts how often it was woken.
#[derive(Debug, Default)]
pub(crate) struct Wakes(AtomicUsize);

impl Wakes {
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

// === streams ===

pub(crate) const ROLE: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
pub(crate) const CONTENT: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"}}]}\n\n";
pub(crate) const DONE: &str = "data: [DONE]\n\n";

/// A streamed chat request to OpenAI.
pub(crate) fn chat() -> http::Request<()> {
    chat_to(Provider::OPENAI)
}

/// A streamed chat request to `provider`, in OpenAI's dialect.
pub(crate) fn chat_to(provider: Provider) -> http::Request<()> {
    let call = Call::builder(provider, Operation::CHAT)
        .dialect(Dialect::OpenAi)
        .streamed(true)
        .build();
    let mut request = http::Request::new(());
    request.extensions_mut().insert(call);
    request
}

/// Reads the next frame, which has arrived.
#[track_caller]
pub(crate) fn read<B>(body: &mut B) -> B::Data
where
    B: Body + Unpin,
    B::Error: fmt::Debug,
{
    let frame = assert_ready!(poll_frame(body)).expect("the body continues");
    let frame = frame.expect("the body does not fail");
    frame.into_data().unwrap_or_else(|_| panic!("not data"))
}
