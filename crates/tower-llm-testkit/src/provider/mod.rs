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

/// A provider of language models that says what it is told to, over real HTTP on the loopback
/// interface.
///
/// It speaks HTTP/1.1 and, to clients that know beforehand, HTTP/2, and answers (the version prefix
/// may be left out):
///
/// | path | streamed |
/// |---|---|
/// | `/v1/chat/completions`, `/v1/completions`, `/v1/responses` | with `"stream": true` |
/// | `/openai/deployments/{deployment}/chat/completions`, `.../embeddings` (Azure) | with `"stream": true` |
/// | `/v1/embeddings` | |
/// | `/v1/messages` (Anthropic) | with `"stream": true` |
/// | `/v1/messages/count_tokens` | |
/// | `/v1beta/models/{model}:generateContent`, `:embedContent`, `:batchEmbedContents` (Gemini) | |
/// | `/v1beta/models/{model}:streamGenerateContent` | as events with `?alt=sse`, else as a JSON array |
/// | `GET /v1/models` | |
///
/// Anything else is a 404 with OpenAI's error body.
///
/// # Headers for trying things by hand
///
/// | request header | what it does |
/// |---|---|
/// | `x-sim-fault` | `429`, `quota`, `overloaded`, any status of 400 to 599, `reset`, `reset-head`, `cut`, `error`, `error-overloaded`, `error-429`, `failed`, `silence` (no head), `stall` |
/// | `x-sim-fault-after` | after how many events the fault strikes; 2 unless set |
/// | `x-sim-head-ms`, `x-sim-first-token-ms`, `x-sim-gap-ms` | the waits |
/// | `x-sim-input-tokens`, `x-sim-output-tokens` | the tokens |
///
/// # Time
///
/// Waits are tokio's, but the sockets are real: under paused time the clock may run ahead of bytes
/// that are still on their way, so tests that use the provider let the time run.
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

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://` and where it listens, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Sets what is done with every request that the script has nothing for.
    pub fn set(&self, behavior: impl Into<Behavior>) {
        self.shared.script().default = Arc::new(behavior.into());
    }

    /// Appends one entry to the script: the next request without an entry gets it, once.
    pub fn push(&self, behavior: impl Into<Behavior>) {
        self.shared
            .script()
            .queue
            .push_back(Arc::new(behavior.into()));
    }

    /// Replaces the script: one entry for each coming request, in the order their bodies have
    /// arrived; then the default again.
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

    /// What has happened so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.counts()
    }

    /// Waits until the counts are as `condition` wants them.
    ///
    /// # Errors
    ///
    /// The counts as they were when the time was over.
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

    /// Sets all counts to zero, except what is going on now, and forgets the recorded requests.
    pub fn reset_counts(&self) {
        self.shared.script().recorded.clear();
        self.shared.reset_counts();
    }

    /// Stops listening, drops all connections and waits until that is done. Dropping the provider
    /// does the same without waiting.
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
