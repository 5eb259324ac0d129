//! The server.

mod body;
mod call;
mod counts;
mod io;
mod script;
mod server;

pub use counts::Counts;
pub use script::Recorded;

use std::{
    io as std_io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::Behavior;
use counts::Shared;

/// A simulated provider of language models, over real HTTP on the loopback interface.
///
/// It speaks HTTP/1.1 and, with prior knowledge, HTTP/2. It answers these paths; the version prefix is optional:
///
/// | path | streamed |
/// |---|---|
/// | `/v1/chat/completions`, `/v1/completions`, `/v1/responses` | with `"stream": true` |
/// | `/openai/deployments/{deployment}/chat/completions`, `.../embeddings` (Azure) | with `"stream": true` |
/// | `/v1/embeddings` | |
/// | `/v1/messages` (Anthropic) | with `"stream": true` |
/// | `/v1/messages/count_tokens` | |
/// | `/v1beta/models/{model}:generateContent`, `:countTokens`, `:embedContent`, `:batchEmbedContents` (Gemini) | |
/// | `/v1beta/models/{model}:streamGenerateContent` | as events with `?alt=sse`, else as a JSON array |
/// | `GET /v1/models`, `/v1/models/{model}` | |
/// | `GET /v1beta/models`, `/v1beta/models/{model}` (Gemini) | |
///
/// With an `anthropic-version` header, `/v1/models` is Anthropic's. Any other path is a 404 in the shape of the provider
/// that the path or the header belongs to.
///
/// # Answers
///
/// A text is whole sentences of as many words as the [`Behavior`] sets output tokens; the request's maximum cuts it off.
/// It depends on the request's bytes alone.
///
/// The first tool that a request offers and allows is called, with arguments that follow its schema. After a tool's result
/// comes text, unless the request requires a call. Text follows the JSON schema that the request asks for, if any.
///
/// Embeddings depend on the input alone, and come as numbers or in base64 as the request asks.
///
/// # Request headers
///
/// | request header | what it does |
/// |---|---|
/// | `x-sim-fault` | `429`, `quota`, `overloaded`, any status of 400 to 599, `reset`, `reset-head`, `cut`, `error`, `error-overloaded`, `error-429`, `failed`, `silence` (no headers), `stall` |
/// | `x-sim-fault-after` | the number of events before the fault; 2 unless set |
/// | `x-sim-head-ms`, `x-sim-first-token-ms`, `x-sim-gap-ms` | the delays |
/// | `x-sim-input-tokens`, `x-sim-output-tokens` | the number of tokens |
///
/// # Time
///
/// Delays use tokio's clock, but the sockets are real: on paused time the clock may run ahead of bytes
/// in transit. Tests that use the provider do not pause it.
#[derive(Debug)]
pub struct SimulatedProvider {
    addr: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<()>,
}

impl SimulatedProvider {
    /// Starts a provider on a free loopback port, on the current tokio runtime.
    ///
    /// # Errors
    ///
    /// If no port can be bound.
    pub async fn start() -> std_io::Result<Self> {
        Self::start_on((Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// Starts a provider on `addr`.
    ///
    /// # Errors
    ///
    /// If `addr` can't be bound.
    pub async fn start_on(addr: SocketAddr) -> std_io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(server::run(listener, Arc::clone(&shared), stopped));
        Ok(Self {
            addr,
            shared,
            stop: Some(stop),
            server,
        })
    }

    /// The address it listens on.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its URL, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Sets the behaviour for every request without an entry in the script.
    pub fn set(&self, behavior: impl Into<Behavior>) {
        self.shared.script().default = Arc::new(behavior.into());
    }

    /// Adds one entry at the end of the script, for one request.
    pub fn push(&self, behavior: impl Into<Behavior>) {
        self.shared
            .script()
            .queue
            .push_back(Arc::new(behavior.into()));
    }

    /// Replaces the script: one entry for each of the next requests, in the order in which their bodies
    /// arrive; then the default applies again.
    pub fn script<I>(&self, behaviors: I)
    where
        I: IntoIterator,
        I::Item: Into<Behavior>,
    {
        let queue = behaviors
            .into_iter()
            .map(|behavior| Arc::new(behavior.into()))
            .collect();
        self.shared.script().queue = queue;
    }

    /// The counts so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.counts()
    }

    /// Waits until the counts meet `condition`.
    ///
    /// # Errors
    ///
    /// The last counts, if the time is over.
    pub async fn wait_for(
        &self,
        within: Duration,
        condition: impl Fn(&Counts) -> bool,
    ) -> Result<Counts, Counts> {
        let until = Instant::now() + within;
        loop {
            let counts = self.counts();
            if condition(&counts) {
                return Ok(counts);
            }
            if Instant::now() >= until {
                return Err(counts);
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// The last 10,000 requests whose body has arrived, oldest first.
    #[must_use]
    pub fn recorded(&self) -> Vec<Recorded> {
        self.shared.script().recorded.iter().cloned().collect()
    }

    /// Sets all counts to zero, except those of requests in flight, and removes the recorded requests.
    pub fn reset_counts(&self) {
        self.shared.script().recorded.clear();
        self.shared.reset_counts();
    }

    /// Stops listening, drops all connections and waits until that is done. Dropping the provider does
    /// the same without waiting.
    pub async fn shutdown(mut self) {
        self.shared.stop();
        drop(self.stop.take());
        // The task's only failure is a panic, which its own report tells.
        let _ = (&mut self.server).await;
    }
}

impl Drop for SimulatedProvider {
    fn drop(&mut self) {
        self.shared.stop();
        self.server.abort();
    }
}
