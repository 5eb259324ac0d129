//! Circuits that several processes share, through Redis, Valkey or a Cluster.
//!
//! Processes share hints, not locks: that a circuit was opened, until when, and that it was closed. Each process decides by
//! its own copy, so a call never waits for Redis. One task per layer publishes changes at once, and fetches the changes of
//! other processes twice within the maximum age; both are one script, by the server's clock. While Redis is unavailable,
//! each process has its own circuits.
//!
//! All circuits of one name are in two Redis keys. A process, even a new one or one that was disconnected, fetches the
//! changes since the last one that it knows instead of every circuit.

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
    circuits::Circuits,
    events::{Event, EventKind, Reason},
    machine::{Input, PeerChange as Change},
};

static SYNC: Script = Script::new(include_str!("sync.lua"));

/// Maximum number of circuits that one script publishes.
const AT_ONCE: usize = 100;

/// Longest time for which the store holds data.
const LONGEST: Duration = Duration::from_secs(30 * 86_400);

/// Shares the circuits of a layer between processes; see [`BreakerBuilder::shared`](crate::BreakerBuilder::shared).
///
/// A circuit that opens in one process opens in all within the [maximum age](Self::max_age) of their copies, for the rest
/// of its time; a circuit that closes in one closes in all. Each process probes by itself. If a process receives an opening
/// while its circuit is [throttled](State::Throttled), the circuit is open until both times have passed, and then
/// half-open. A forced state applies in one process only.
///
/// While Redis is unavailable, only the sharing stops. When Redis is back, each process publishes the last change of each
/// circuit, unless its time has passed. It holds changes of at most 65,536 circuits; changes of further circuits are not
/// published.
#[derive(Clone, Debug)]
pub struct SharedCircuits {
    redis: Redis,
    name: String,
    max_age: Duration,
}

struct Task {
    redis: Redis,
    keys: [String; 2],
    circuits: Weak<Circuits>,
    outbox: Outbox,
    /// Wakes the task when something is pending.
    rings: Receiver<()>,
    every: Duration,
    epoch: Option<Vec<u8>>,
    version: i64,
}

impl SharedCircuits {
    /// Shares circuits with all processes whose layers have the same `name`. Their settings may differ.
    pub fn new(redis: Redis, name: impl Into<String>) -> Self {
        Self {
            redis,
            name: name.into(),
            max_age: Duration::from_secs(1),
        }
    }

    /// Sets the maximum age of a process's copy: changes in other processes arrive within this time plus the time of one
    /// script. One second unless set; 10 ms to a day.
    #[must_use]
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = age;
        self
    }

    pub(crate) fn start(self, circuits: &Arc<Circuits>) -> Result<(), ConfigError> {
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
            circuits: Arc::downgrade(circuits),
            outbox,
            rings,
            every: max_age / 2,
            epoch: None,
            version: 0,
        };
        circuits.events.publish(publisher);
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
            State::Open => Some(Self::Open(until)),
            State::Throttled => Some(Self::Throttled(until)),
            State::Closed | State::Ramping => Some(Self::Closed),
            _ => None,
        }
    }

    fn is_over(self, now: Instant) -> bool {
        match self {
            Self::Closed => false,
            Self::Open(until) | Self::Throttled(until) => until <= now,
        }
    }

    /// The format of the script: the state, and its remaining time in milliseconds.
    fn written(self, now: Instant) -> (u32, u64) {
        let left = |until: Instant| {
            let left = until.saturating_duration_since(now).min(LONGEST);
            u64::try_from(left.as_millis()).unwrap_or_default()
        };
        match self {
            Self::Closed => (0, 0),
            Self::Open(until) => (1, left(until)),
            Self::Throttled(until) => (2, left(until)),
        }
    }

    fn read(kind: i64, left: i64, now: Instant) -> Option<Self> {
        let left = Duration::from_millis(u64::try_from(left).ok()?).min(LONGEST);
        let until = now + left;
        match kind {
            0 => Some(Self::Closed),
            1 if !left.is_zero() => Some(Self::Open(until)),
            2 if !left.is_zero() => Some(Self::Throttled(until)),
            _ => None,
        }
    }
}

impl Task {
    async fn run(mut self) {
        while let Err(_) | Ok(Some(())) = timeout(self.every, self.rings.recv()).await {
            // One script publishes a limited number of changes; the rest must not wait for the next wake-up. After an
            // error, the next wake-up tries again.
            while self.sync().await.is_ok() && !self.outbox.is_empty() {}
        }
    }

    /// Publishes the changes of this process and fetches those of others.
    async fn sync(&mut self) -> Result<(), StoreError> {
        let now = Instant::now();
        let batch = self.outbox.some(AT_ONCE, now);
        let new_epoch = RandomState::new().hash_one(&self.keys);
        let known = self.epoch.clone().unwrap_or_default();
        let mut args: Vec<Arg> = vec![new_epoch.into(), known.into(), self.version.into()];
        for (circuit, pending) in &batch {
            for (change, at) in pending.changes() {
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
        self.outbox.published(&batch);
        let is_closed = |(_, pending): &&(_, Pending)| pending.is_closed();
        let published_closed = batch.iter().filter(is_closed);
        let published_closed = published_closed.map(|(circuit, _)| circuit).collect();
        self.observe(reply, &published_closed)
    }

    fn observe(
        &mut self,
        reply: Reply,
        published_closed: &HashSet<&CircuitId>,
    ) -> Result<(), StoreError> {
        let Reply::Array(items) = reply else {
            return Ok(());
        };
        let Some(circuits) = self.circuits.upgrade() else {
            return Ok(());
        };
        let mut items = items.into_iter();
        let epoch = items.next().map(Reply::into_bytes).transpose()?.flatten();
        let version = items.next().map(Reply::into_integer).transpose()?;
        let epoch = epoch.map(|epoch| epoch.to_vec());
        if self.epoch.is_some() && self.epoch != epoch {
            self.publish_all(&circuits);
        }
        self.epoch = epoch;
        self.version = version.unwrap_or_default();
        let now = Instant::now();
        while let (Some(name), Some(kind), Some(left)) = (items.next(), items.next(), items.next())
        {
            let name = name.into_bytes()?.unwrap_or_default();
            let change = Change::read(kind.into_integer()?, left.into_integer()?, now);
            if let (Some(circuit), Some(change)) = (name::read(&name), change)
                // A pending change of this process is newer: the others will receive that.
                && !self.outbox.has(&circuit)
                // The circuit may be half-open here since then, and must be probed.
                && !(change == Change::Closed && published_closed.contains(&circuit))
            {
                follow(&circuits, &circuit, change, now);
            }
        }
        Ok(())
    }

    /// The store has lost its data: publish again which circuits are open here.
    fn publish_all(&self, circuits: &Circuits) {
        let now = Instant::now();
        circuits.for_each(|circuit| {
            let status = circuit.status(now);
            let until = now + status.left.unwrap_or_default();
            match Change::to(status.state, until) {
                None | Some(Change::Closed) => {}
                Some(change) => {
                    let pending = Pending::new(change, now);
                    self.outbox.note_current(&circuit.id(), pending);
                }
            }
        });
    }
}

/// A change in another process is applied to the circuit here.
fn follow(circuits: &Circuits, id: &CircuitId, change: Change, now: Instant) {
    let circuit = match change {
        // A circuit that no call has used is closed anyway.
        Change::Closed => circuits.peek(id),
        _ => circuits.get(id),
    };
    if let Some(circuit) = circuit {
        circuit.change(Input::Peer(change), now);
    }
}
