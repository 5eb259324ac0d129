//! One server: its connection, its gate, and the task that brings it back.

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
    connection::{Complaint, Connection, Line, Silence, server_error},
    gate::{self, Counters, Gate, Pass},
    request::Request,
    settings::Settings,
    url::Address,
};

/// How long to leave a server alone after connecting to it, before connecting again.
const PAUSE: Duration = Duration::from_millis(100);

/// A server, connected to until it is dropped.
pub(crate) struct Node {
    shared: Arc<Shared>,
    supervisor: AbortHandle,
}

/// What a server said to a script.
#[derive(Debug)]
pub(crate) enum Answer {
    Reply(Reply),
    /// Not run: the key is that one's. Of a cluster only.
    Moved(Address),
    /// Not run: that one may have the key already, if it is asked with ASKING. Of a cluster only.
    Moving(Address),
}

/// What a call is sent with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asking {
    No,
    Yes,
}

struct Shared {
    address: Address,
    settings: Arc<Settings>,
    gate: Gate,
    // A std lock: it is held to clone what it holds, and never across an await.
    line: RwLock<Line>,
    pending: AtomicUsize,
    answered: AtomicBool,
    complaint: Mutex<Option<Complaint>>,
}

/// One of `max_pending` places.
struct Place<'a>(&'a AtomicUsize);

impl Node {
    /// Begins to connect. `news` is told whenever the server is found away or back.
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
            line: RwLock::new(connection.line()),
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

    /// What was wrong when it was last tried to connect.
    pub(crate) fn complaint(&self) -> Option<Complaint> {
        let complaint = self.shared.complaint.lock();
        complaint.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs a script, unless the server is known to be away.
    pub(crate) async fn run(
        &self,
        request: &Request<'_>,
        asking: Asking,
        deadline: Instant,
    ) -> Result<Answer, StoreError> {
        let (pass, _place) = self.enter()?;
        let line = self.shared.line();
        let mut answer = send(&line, asking, "EVALSHA", request.by_name(), deadline).await;
        if matches!(&answer, Ok(frame) if code(frame) == Some("NOSCRIPT")) {
            answer = send(&line, asking, "EVAL", request.by_text(), deadline).await;
        }
        self.judge(answer, pass)
    }

    /// Asks for anything that can't be redirected.
    pub(crate) async fn ask(
        &self,
        command: &'static str,
        args: Vec<Value>,
    ) -> Result<Reply, StoreError> {
        let (pass, _place) = self.enter()?;
        let within = self.shared.settings.command_timeout;
        let answer = self.shared.line().ask(command, args, within).await;
        match self.judge(answer, pass)? {
            Answer::Reply(reply) => Ok(reply),
            Answer::Moved(_) | Answer::Moving(_) => Err(StoreError::redirects()),
        }
    }

    fn enter(&self) -> Result<(Pass, Place<'_>), StoreError> {
        let pass = self.shared.gate.enter().ok_or_else(StoreError::down)?;
        let max_pending = self.shared.settings.max_pending;
        let place = Place::take(&self.shared.pending, max_pending);
        Ok((pass, place.ok_or_else(|| StoreError::full(max_pending))?))
    }

    /// Tells the gate what an answer means for it, and the caller what it means.
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
            // Alive, and of no use until it has loaded, is rid of a script, or the address leads to a primary.
            Some("LOADING" | "MASTERDOWN" | "READONLY" | "BUSY") => {
                fail(gate::Connection::Useless);
                Err(StoreError::not_serving(error.to_owned()))
            }
            // It takes no writes while its replicas or its disk are away. It says so at once, and scripts that only read are
            // served: so the gate stays open.
            Some("NOREPLICAS" | "MISCONF") => {
                self.shared.gate.count_failure();
                Err(StoreError::not_serving(error.to_owned()))
            }
            // Of the keys, some are here and some where their slot is being moved to.
            Some("TRYAGAIN") => Err(StoreError::on_the_move(error.to_owned())),
            _ => Err(StoreError::server(error.to_owned())),
        }
    }

    /// Of `MOVED 3999 host:6381`, the address; a host left out is ours.
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
    fn line(&self) -> Line {
        let line = self.line.read().unwrap_or_else(PoisonError::into_inner);
        line.clone()
    }

    /// Connects until the server answers, for calls from then on.
    ///
    /// The first time at once, so that a connection that was merely closed costs next to nothing; not so one that is of
    /// no use again and again.
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
        let mut line = self.line.write().unwrap_or_else(PoisonError::into_inner);
        *line = connection.line();
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

impl<'a> Place<'a> {
    fn take(pending: &'a AtomicUsize, limit: usize) -> Option<Self> {
        // The place is given back below, whether it may be kept or not.
        let place = Self(pending);
        let before = pending.fetch_add(1, Ordering::AcqRel);
        (before < limit).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Keeps a server connected, for as long as anybody wants it.
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
    line: &Line,
    asking: Asking,
    command: &'static str,
    args: Vec<Value>,
    deadline: Instant,
) -> Result<Resp3Frame, Silence> {
    let within = deadline.saturating_duration_since(Instant::now());
    match asking {
        Asking::No => line.ask(command, args, within).await,
        Asking::Yes => line.ask_moving(command, args, within).await,
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
        tracing::warn!(%address, "redis is away");
    }
}

#[cfg(not(feature = "tracing"))]
fn tell(_: &Address, _: bool) {}
