//! Circuits that many processes share, through Redis, Valkey or a Cluster.
//!
//! What is shared is a hint, not a lock: that a circuit was opened, until when, and that it was closed. Each process
//! decides by its own copy, and nothing is asked or held for a call. One task for a layer tells what has happened here as
//! soon as it has, and asks twice in a copy's age what has happened elsewhere; both are one script, by the server's clock.
//! While the server is away, each process has circuits of its own.
//!
//! All circuits of one name lie in two keys: a new process, and one that was away, asks for the changes since the last
//! one it knows, and not for each circuit that there may be.

mod name;
mod outbox;

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::mpsc::Receiver,
    time::{Instant, timeout},
};
use tower_llm_core::ConfigError;
use tower_llm_redis::{Arg, Redis, Reply, Script, StoreError};

pub(crate) use self::outbox::Publisher;
use self::outbox::{Outbox, Pending};
use crate::{
    CircuitId, State,
    event::{Event, EventKind, Reason},
    route::Board,
};

static SYNC: Script = Script::new(include_str!("sync.lua"));

/// Circuits that are told of in one script.
const AT_ONCE: usize = 100;

/// As long as the store keeps anything.
const LONGEST: Duration = Duration::from_secs(30 * 86_400);

/// Has many processes share the circuits of a layer; see [`BreakerBuilder::shared`](crate::BreakerBuilder::shared).
///
/// A circuit that opens in one process opens in all of them, for the rest of its time, within the
/// [age](Self::max_age) that their copies may have; one that closes closes in all. Each process probes by itself. Where it
/// opens while it is [throttled](State::Throttled), it is open until both times are over, and then probed. What was forced
/// by hand is forced in one process alone.
///
/// While Redis is away, nothing but the sharing is missing: what happened meanwhile is told when it is back, of each circuit
/// the last, if that is not over by then. Of more than 65,536 circuits at once nothing is told.
#[derive(Clone, Debug)]
pub struct SharedCircuits {
    redis: Redis,
    name: String,
    max_age: Duration,
}

/// What a circuit has become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Closed,
    Open { until: Instant },
    Throttled { until: Instant },
}

struct Task {
    redis: Redis,
    keys: [String; 2],
    board: Weak<Board>,
    outbox: Outbox,
    /// Rings when something is outbox.
    rings: Receiver<()>,
    every: Duration,
    epoch: Option<Vec<u8>>,
    version: i64,
}

impl SharedCircuits {
    /// Shares the circuits with all processes whose layers have this `name`. Their settings may differ.
    pub fn new(redis: Redis, name: impl Into<String>) -> Self {
        Self {
            redis,
            name: name.into(),
            max_age: Duration::from_secs(1),
        }
    }

    /// Sets how old a process' copy may be: within this time, and what a script takes, it learns what has happened in
    /// another. A second unless set; 10 ms to a day.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = age;
        self
    }

    pub(crate) fn start(self, board: &Arc<Board>) -> Result<(), ConfigError> {
        if self.name.is_empty() || self.name.contains(['{', '}']) {
            let reason = "it must not be empty, and have no braces";
            return Err(ConfigError::new("name", self.name, reason));
        }
        let max_age = ConfigError::check_duration("max_age", self.max_age)?;
        if max_age < Duration::from_millis(10) {
            let reason = "it must be at least 10 ms";
            return Err(ConfigError::new("max_age", max_age, reason));
        }
        let runtime = Handle::try_current().map_err(|_| {
            let reason = "circuits are shared by a task, which needs a tokio runtime";
            ConfigError::new("shared", "outside a runtime", reason)
        })?;
        let outbox = Outbox::default();
        let (publisher, rings) = Publisher::new(outbox.clone());
        let key = |of| format!("{{tower-llm:{}}}:breaker:{of}", self.name);
        let task = Task {
            redis: self.redis,
            keys: [key("versions"), key("states")],
            board: Arc::downgrade(board),
            outbox,
            rings,
            every: max_age / 2,
            epoch: None,
            version: 0,
        };
        board.policy.share(publisher);
        runtime.spawn(task.run());
        Ok(())
    }
}

impl Change {
    fn of(event: &Event) -> Option<Self> {
        let (to, reason, duration) = match event.kind {
            EventKind::Transition {
                to,
                reason,
                duration,
                ..
            } => (to, reason, duration),
            EventKind::Extended {
                state,
                reason,
                duration,
            } => (state, reason, Some(duration)),
            _ => return None,
        };
        if matches!(reason, Reason::Shared | Reason::Elapsed) {
            return None;
        }
        Self::to(to, event.at + duration.unwrap_or_default())
    }

    fn to(state: State, until: Instant) -> Option<Self> {
        match state {
            State::Open => Some(Self::Open { until }),
            State::Throttled => Some(Self::Throttled { until }),
            State::Closed | State::Ramping => Some(Self::Closed),
            _ => None,
        }
    }

    fn is_over(self, now: Instant) -> bool {
        match self {
            Self::Closed => false,
            Self::Open { until } | Self::Throttled { until } => until <= now,
        }
    }

    /// As the script has it: what it is, and for how many milliseconds still.
    fn written(self, now: Instant) -> (u32, u64) {
        let left = |until: Instant| {
            let left = until.saturating_duration_since(now).min(LONGEST);
            u64::try_from(left.as_millis()).unwrap_or_default()
        };
        match self {
            Self::Closed => (0, 0),
            Self::Open { until } => (1, left(until)),
            Self::Throttled { until } => (2, left(until)),
        }
    }

    fn read(kind: i64, left: i64, now: Instant) -> Option<Self> {
        let left = Duration::from_millis(u64::try_from(left).ok()?).min(LONGEST);
        let until = now + left;
        match kind {
            0 => Some(Self::Closed),
            1 if !left.is_zero() => Some(Self::Open { until }),
            2 if !left.is_zero() => Some(Self::Throttled { until }),
            _ => None,
        }
    }
}

impl Task {
    async fn run(mut self) {
        while let Err(_) | Ok(Some(())) = timeout(self.every, self.rings.recv()).await {
            // A script tells of so many and no more: the others are not to wait for the next ring. What fails is tried again
            // with that.
            while self.sync().await.is_ok() && !self.outbox.is_empty() {}
        }
    }

    /// Tells what has happened here, and learns what has happened elsewhere.
    async fn sync(&mut self) -> Result<(), StoreError> {
        let now = Instant::now();
        let told = self.outbox.some(AT_ONCE, now);
        let new_epoch = RandomState::new().hash_one(&self.keys);
        let known = self.epoch.clone().unwrap_or_default();
        let mut args: Vec<Arg> = vec![new_epoch.into(), known.into(), self.version.into()];
        for (circuit, news) in &told {
            for (change, at) in news.changes() {
                let (kind, left) = change.written(now);
                let ago = u64::try_from((now - at).as_millis()).unwrap_or_default();
                args.extend([
                    name::of(circuit).into(),
                    kind.into(),
                    left.into(),
                    ago.into(),
                ]);
            }
        }
        let reply = self.redis.run(&SYNC, self.keys.to_vec(), args).await?;
        self.outbox.published(&told);
        let is_closed = |(_, news): &&(_, Pending)| news.is_closed();
        let told_closed = told.iter().filter(is_closed);
        let told_closed = told_closed.map(|(circuit, _)| circuit).collect();
        self.observe(reply, &told_closed)
    }

    fn observe(
        &mut self,
        reply: Reply,
        told_closed: &HashSet<&CircuitId>,
    ) -> Result<(), StoreError> {
        let Reply::Array(items) = reply else {
            return Ok(());
        };
        let Some(board) = self.board.upgrade() else {
            return Ok(());
        };
        let mut items = items.into_iter();
        let epoch = items.next().map(Reply::into_bytes).transpose()?.flatten();
        let version = items.next().map(Reply::into_integer).transpose()?;
        let epoch = epoch.map(|epoch| epoch.to_vec());
        if self.epoch.is_some() && self.epoch != epoch {
            self.publish_all(&board);
        }
        self.epoch = epoch;
        self.version = version.unwrap_or_default();
        let now = Instant::now();
        while let (Some(name), Some(kind), Some(left)) = (items.next(), items.next(), items.next())
        {
            let name = name.into_bytes()?.unwrap_or_default();
            let change = Change::read(kind.into_integer()?, left.into_integer()?, now);
            if let (Some(circuit), Some(change)) = (name::read(&name), change)
                // What has happened here meanwhile is newer: the others are to observe that.
                && !self.outbox.has(&circuit)
                // It may be half-open here since, and is to be probed then.
                && !(change == Change::Closed && told_closed.contains(&circuit))
            {
                board.observe(&circuit, change, now);
            }
        }
        Ok(())
    }

    /// The store has forgotten all: it is told again which circuits are open here.
    fn publish_all(&self, board: &Board) {
        let now = Instant::now();
        board.for_each(|_, circuit| {
            let standing = circuit.standing(now);
            let until = now + standing.retry_after.unwrap_or_default();
            match Change::to(standing.state, until) {
                None | Some(Change::Closed) => {}
                Some(change) => {
                    let news = Pending::new(change, now);
                    self.outbox.note_current(&circuit.id(), news);
                }
            }
        });
    }
}
