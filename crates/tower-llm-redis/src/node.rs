//! One server: its connection, its gate, and the task that reconnects.

use std::{
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use fred::types::{Resp3Frame, Value};
use futures_util::future::{Either, select};
use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{Instant, sleep_until},
};

use crate::{
    Reply, StoreError,
    connection::{Complaint, Connection, Sender, Silence, server_error},
    gate::{self, Counters, Gate, Pass},
    request::{Request, Words},
    settings::Settings,
    url::Address,
};

/// Minimum time between two attempts to connect.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);

/// A server, connected to until it is dropped.
pub(crate) struct Node {
    shared: Arc<Shared>,
    supervisor: AbortHandle,
}

/// The response of a server to a request.
#[derive(Debug)]
pub(crate) enum Answer {
    Reply(Reply),
    /// Not run: the node at that address owns the key. Only in a cluster.
    Moved(Address),
    /// Not run: the node at that address may have the key already, if it is asked with ASKING. Only in a cluster.
    Moving(Address),
}

/// How a call is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asking {
    No,
    Yes,
}

struct Shared {
    address: Address,
    settings: Arc<Settings>,
    gate: Gate,
    // A std lock: it is held for a clone, and never across an await.
    sender: RwLock<Sender>,
    pending: AtomicUsize,
    answered: AtomicBool,
    complaint: Mutex<Option<Complaint>>,
}

/// One of `max_pending` permits.
struct PendingPermit<'a>(&'a AtomicUsize);

impl Node {
    /// Starts to connect. `news` is notified when the server becomes unavailable or recovers.
    pub(crate) fn start(
        address: Address,
        settings: Arc<Settings>,
        counters: Arc<Counters>,
        news: Option<Arc<Notify>>,
    ) -> Self {
        let connection = Connection::open(&settings, &address);
        let shared = Arc::new(Shared {
            address,
            settings,
            gate: Gate::new(counters, news),
            sender: RwLock::new(connection.sender()),
            pending: AtomicUsize::new(0),
            answered: AtomicBool::new(false),
            complaint: Mutex::new(None),
        });
        let supervisor = tokio::spawn(supervise(Arc::clone(&shared), connection)).abort_handle();
        Self { shared, supervisor }
    }

    pub(crate) fn address(&self) -> &Address {
        &self.shared.address
    }

    pub(crate) fn is_up(&self) -> bool {
        self.shared.gate.is_open()
    }

    pub(crate) fn down_for(&self, now: Instant) -> Option<Duration> {
        self.shared.gate.shut_for(now)
    }

    /// Whether it has ever answered.
    pub(crate) fn has_answered(&self) -> bool {
        self.shared.answered.load(Ordering::Acquire)
    }

    /// Why the last attempt to connect failed.
    pub(crate) fn complaint(&self) -> Option<Complaint> {
        let complaint = self.shared.complaint.lock();
        complaint.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends a request, unless the server is known to be unavailable.
    pub(crate) async fn run(
        &self,
        request: &Request<'_>,
        asking: Asking,
        deadline: Instant,
    ) -> Result<Answer, StoreError> {
        let (pass, _place) = self.enter()?;
        let sender = self.shared.sender();
        let mut answer = send(&sender, asking, request.first(), deadline).await;
        if matches!(&answer, Ok(frame) if code(frame) == Some("NOSCRIPT"))
            && let Some(words) = request.by_text()
        {
            answer = send(&sender, asking, words, deadline).await;
        }
        self.judge(answer, pass)
    }

    /// Sends any command that cannot be redirected.
    pub(crate) async fn ask(
        &self,
        command: &'static str,
        args: Vec<Value>,
    ) -> Result<Reply, StoreError> {
        let (pass, _place) = self.enter()?;
        let within = self.shared.settings.command_timeout;
        let answer = self.shared.sender().ask(command, args, within).await;
        match self.judge(answer, pass)? {
            Answer::Reply(reply) => Ok(reply),
            Answer::Moved(_) | Answer::Moving(_) => Err(StoreError::redirects()),
        }
    }

    fn enter(&self) -> Result<(Pass, PendingPermit<'_>), StoreError> {
        let pass = self.shared.gate.enter().ok_or_else(StoreError::down)?;
        let max_pending = self.shared.settings.max_pending;
        let permit = PendingPermit::take(&self.shared.pending, max_pending);
        Ok((pass, permit.ok_or_else(|| StoreError::full(max_pending))?))
    }

    /// Reports a response to the gate, and interprets it for the caller.
    fn judge(&self, answer: Result<Resp3Frame, Silence>, pass: Pass) -> Result<Answer, StoreError> {
        let fail = |connection| self.shared.gate.fail(pass, connection, Instant::now());
        let frame = match answer {
            Ok(frame) => frame,
            Err(Silence::TimedOut) => {
                fail(gate::Connection::Doubtful);
                return Err(StoreError::timed_out(self.shared.settings.command_timeout));
            }
            Err(Silence::Lost(over)) => {
                fail(gate::Connection::Useless);
                return Err(StoreError::lost(over));
            }
        };
        let Some(error) = server_error(&frame) else {
            return Reply::from_frame(frame).map(Answer::Reply);
        };
        match code(&frame) {
            Some("MOVED") => Ok(Answer::Moved(self.redirected(error)?)),
            Some("ASK") => Ok(Answer::Moving(self.redirected(error)?)),
            // Alive, but useless until it has loaded its data, the script has ended, or the address leads to a primary.
            Some("LOADING" | "MASTERDOWN" | "READONLY" | "BUSY") => {
                fail(gate::Connection::Useless);
                Err(StoreError::not_serving(error.to_owned()))
            }
            // It refuses writes while its replicas or its disk are unavailable. It answers at once, and serves scripts that
            // only read, so the gate stays open.
            Some("NOREPLICAS" | "MISCONF") => {
                self.shared.gate.count_failure();
                Err(StoreError::not_serving(error.to_owned()))
            }
            // Some of the keys are here, and some where their slot is being moved to.
            Some("TRYAGAIN") => Err(StoreError::on_the_move(error.to_owned())),
            _ => Err(StoreError::server(error.to_owned())),
        }
    }

    /// The address in `MOVED 3999 host:6381`; a missing host is this server's.
    fn redirected(&self, error: &str) -> Result<Address, StoreError> {
        let address = error.split(' ').nth(2);
        let parts = address.and_then(|address| address.rsplit_once(':'));
        let parsed = parts.and_then(|(host, port)| Some((host, port.parse().ok()?)));
        let (host, port) = parsed.ok_or_else(|| StoreError::server(error.to_owned()))?;
        Ok(self.address().beside(host, port))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Ends the connection too, which it holds.
        self.supervisor.abort();
    }
}

impl Shared {
    fn sender(&self) -> Sender {
        let sender = self.sender.read().unwrap_or_else(PoisonError::into_inner);
        sender.clone()
    }

    /// Connects until the server answers, for later calls.
    ///
    /// The first attempt is at once, so that a connection that was merely closed costs almost nothing; repeated ones wait
    /// in between.
    async fn connect(&self, mut last: Instant) -> (Connection, Instant) {
        loop {
            sleep_until(last + PAUSE).await;
            last = Instant::now();
            let mut connection = self.reopen();
            match connection.answers(self.settings.connect_timeout).await {
                Ok(()) => return (connection, last),
                Err(complaint) => self.complain(complaint),
            }
        }
    }

    fn reopen(&self) -> Connection {
        let connection = Connection::open(&self.settings, &self.address);
        let mut sender = self.sender.write().unwrap_or_else(PoisonError::into_inner);
        *sender = connection.sender();
        connection
    }

    fn complain(&self, complaint: Complaint) {
        let mut last = self
            .complaint
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *last = Some(complaint);
        drop(last);
        self.gate.broke(Instant::now());
    }

    fn answered(&self) {
        self.answered.store(true, Ordering::Release);
        self.gate.open();
    }
}

impl<'a> PendingPermit<'a> {
    fn take(pending: &'a AtomicUsize, limit: usize) -> Option<Self> {
        // Dropped below if there are too many, which gives it back.
        let permit = Self(pending);
        let before = pending.fetch_add(1, Ordering::AcqRel);
        (before < limit).then_some(permit)
    }
}

impl Drop for PendingPermit<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Keeps a server connected until the node is dropped.
async fn supervise(shared: Arc<Shared>, mut connection: Connection) {
    let mut opened = Instant::now();
    if let Err(complaint) = connection.answers(shared.settings.connect_timeout).await {
        shared.complain(complaint);
        drop(connection);
        (connection, opened) = shared.connect(opened).await;
    }
    loop {
        shared.answered();
        tell(&shared.address, true);
        let trouble = watch(&shared, &mut connection).await;
        tell(&shared.address, false);
        if trouble == gate::Connection::Doubtful {
            let ping = connection.answers(shared.settings.command_timeout);
            if ping.await.is_ok() {
                continue;
            }
        }
        drop(connection);
        (connection, opened) = shared.connect(opened).await;
    }
}

/// Waits until the connection is lost or a call failed on it.
async fn watch(shared: &Shared, connection: &mut Connection) -> gate::Connection {
    let lost = std::pin::pin!(connection.lost());
    let shut = std::pin::pin!(shared.gate.shut_down());
    match select(shut, lost).await {
        Either::Left((trouble, _)) => trouble,
        Either::Right(_) => {
            shared.gate.broke(Instant::now());
            gate::Connection::Useless
        }
    }
}

async fn send(
    sender: &Sender,
    asking: Asking,
    (command, args): Words,
    deadline: Instant,
) -> Result<Resp3Frame, Silence> {
    let within = deadline.saturating_duration_since(Instant::now());
    match asking {
        Asking::No => sender.ask(command, args, within).await,
        Asking::Yes => sender.ask_moving(command, args, within).await,
    }
}

/// The first word of a server's error.
fn code(answer: &Resp3Frame) -> Option<&str> {
    server_error(answer)?.split(' ').next()
}

#[cfg(feature = "tracing")]
fn tell(address: &Address, up: bool) {
    if up {
        tracing::info!(%address, "redis answers");
    } else {
        tracing::warn!(%address, "redis is unavailable");
    }
}

#[cfg(not(feature = "tracing"))]
fn tell(_: &Address, _: bool) {}
