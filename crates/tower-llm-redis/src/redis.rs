use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};

use crate::{
    Arg, ConnectError, RedisBuilder, Reply, Script, StoreError,
    cluster::Cluster,
    connection::Complaint,
    gate::Counters,
    node::{Answer, Asking, Node},
    request::Request,
    settings::Settings,
    url::{Address, Shape},
};

/// A client of Redis, Valkey or a Redis Cluster; cheap to clone, and one per process is enough.
///
/// Its calls share one pipelined connection to each server. When the last clone is dropped, the connections and their tasks
/// end.
///
/// # A Cluster
///
/// Each node is judged by itself: if one dies, only its slots fail, until a replica takes over or Redis itself reports that
/// the cluster is down. Moved slots are followed. Only primaries are used.
#[derive(Clone)]
pub struct Redis {
    shared: Arc<Shared>,
}

/// The state of Redis, as of now; see [`Redis::health`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// Whether it is up as far as is known; for a Cluster, whether all nodes are.
    pub up: bool,
    /// How long it has been unavailable; `None` while it is up. For a Cluster, the longest time of its nodes.
    pub down_for: Option<Duration>,
    /// Calls without a response, or that the server could not serve. Refused calls do not count.
    pub failures: u64,
    /// How often a server became unavailable.
    pub outages: u64,
}

struct Shared {
    deployment: Deployment,
    settings: Arc<Settings>,
    counters: Arc<Counters>,
    runtime: Handle,
}

enum Deployment {
    Single(Arc<Node>),
    Cluster(Cluster),
}

impl Redis {
    /// Starts a builder of a client for a server or a Cluster.
    ///
    /// | URL | is |
    /// |---|---|
    /// | `redis://host:6379/0` | a server, or what looks like one; port 6379 and database 0 unless given |
    /// | `redis://user:password@host` | with credentials, percent-encoded; `:password@` alone for the default user |
    /// | `rediss://host` | over TLS (feature `rustls`) |
    /// | `redis-cluster://host:7000?node=other:7000` | a Cluster, found by any of these nodes; `rediss-cluster` over TLS |
    ///
    /// Each scheme may begin with `valkey` instead of `redis`. The URL is never shown, not even in errors. The user needs
    /// the rights for PING; for scripts EVAL, EVALSHA and their commands; else GET, SET, UNLINK, SCAN, PUBLISH or
    /// SUBSCRIBE with the channels, as far as they are used; on a Cluster for CLUSTER SLOTS; and for a database other than 0
    /// for SELECT.
    pub fn builder(url: impl Into<String>) -> RedisBuilder {
        RedisBuilder::new(url.into())
    }

    /// Needs a tokio runtime.
    pub(crate) fn start(settings: Settings) -> Self {
        let (settings, counters) = (Arc::new(settings), Arc::<Counters>::default());
        let (ours, theirs) = (Arc::clone(&settings), Arc::clone(&counters));
        let deployment = match settings.target.shape.clone() {
            Shape::Single(address) => {
                Deployment::Single(Arc::new(Node::start(address, ours, theirs, None)))
            }
            Shape::Cluster(seeds) => Deployment::Cluster(Cluster::start(seeds, ours, theirs)),
        };
        Self {
            shared: Arc::new(Shared {
                deployment,
                settings,
                counters,
                runtime: Handle::current(),
            }),
        }
    }

    /// Runs a script and returns its result.
    ///
    /// It takes at most [`command_timeout`](RedisBuilder::command_timeout). On a Cluster all keys must be in one slot: give
    /// them the same hash tag. While a slot is being moved, a script waits within its timeout until all its keys are on one
    /// node. Dropping the future does not cancel a script that was sent.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the server is unavailable, does not answer in time, or answers with an error.
    /// [`may_have_run`](StoreError::may_have_run) says whether the script may have run.
    pub async fn run(
        &self,
        script: &Script,
        keys: Vec<String>,
        args: Vec<Arg>,
    ) -> Result<Reply, StoreError> {
        self.send(&Request::script(script, keys, args)).await
    }

    pub(crate) async fn send(&self, request: &Request<'_>) -> Result<Reply, StoreError> {
        let deadline = Instant::now() + self.shared.settings.command_timeout;
        match &self.shared.deployment {
            Deployment::Cluster(cluster) => cluster.run(request, deadline).await,
            Deployment::Single(node) => match node.run(request, Asking::No, deadline).await? {
                Answer::Reply(reply) => Ok(reply),
                Answer::Moved(_) | Answer::Moving(_) => Err(StoreError::server(
                    "it is a cluster's node, whose url begins with redis-cluster".to_owned(),
                )),
            },
        }
    }

    /// Whether calls are sent: `false` from the first call without a response until the server answers again. For a
    /// Cluster, whether all nodes are up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        match &self.shared.deployment {
            Deployment::Single(node) => node.is_up(),
            Deployment::Cluster(cluster) => cluster.is_up(),
        }
    }

    /// Whether any server is up: of a Cluster, at least one node.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        match &self.shared.deployment {
            Deployment::Single(node) => node.is_up(),
            Deployment::Cluster(cluster) => cluster.is_any_up(),
        }
    }

    /// Returns the state of Redis, and counters since the client was built.
    #[must_use]
    pub fn health(&self) -> Health {
        let now = Instant::now();
        let down_for = match &self.shared.deployment {
            Deployment::Single(node) => node.down_for(now),
            Deployment::Cluster(cluster) => {
                let nodes = cluster.nodes();
                nodes.iter().filter_map(|node| node.down_for(now)).max()
            }
        };
        Health {
            up: down_for.is_none(),
            down_for,
            failures: self.shared.counters.failures.load(Ordering::Relaxed),
            outages: self.shared.counters.outages.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.shared.runtime
    }

    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self.shared.deployment, Deployment::Cluster(_))
    }

    /// All servers with keys, as soon as they are known.
    pub(crate) async fn primaries(&self) -> Result<Vec<Arc<Node>>, StoreError> {
        let deadline = Instant::now() + self.shared.settings.command_timeout;
        match &self.shared.deployment {
            Deployment::Single(node) => Ok(vec![Arc::clone(node)]),
            Deployment::Cluster(cluster) => cluster.primaries(deadline).await,
        }
    }

    /// A server that is up; with each `attempt` another one, if there are several.
    pub(crate) fn one_that_is_up(&self, attempt: usize) -> Option<Address> {
        let mut nodes = match &self.shared.deployment {
            Deployment::Single(node) => vec![Arc::clone(node)],
            Deployment::Cluster(cluster) => cluster.nodes(),
        };
        nodes.retain(|node| node.is_up());
        let index = attempt.checked_rem(nodes.len())?;
        nodes.get(index).map(|node| node.address().clone())
    }

    /// Waits until every server has answered, within the connect timeout.
    pub(crate) async fn answered(&self) -> Result<(), ConnectError> {
        let within = self.shared.settings.connect_timeout;
        let until = Instant::now() + within;
        while !self.shared.has_answered() {
            if let Some(refused) = self.shared.refused() {
                return Err(refused);
            }
            if Instant::now() >= until {
                return Err(self.shared.unreachable(within));
            }
            // Only at start and only for a moment: not worth a channel.
            sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

impl Shared {
    fn has_answered(&self) -> bool {
        match &self.deployment {
            Deployment::Single(node) => node.has_answered(),
            Deployment::Cluster(cluster) => {
                cluster.is_known() && cluster.nodes().iter().all(|node| node.has_answered())
            }
        }
    }

    fn refused(&self) -> Option<ConnectError> {
        let refused = |node: &Node| match node.complaint()? {
            Complaint::Refused(message) => Some(ConnectError::refused(node.address(), message)),
            Complaint::Unreachable(_) => None,
        };
        match &self.deployment {
            Deployment::Single(node) => refused(node),
            Deployment::Cluster(cluster) => {
                let none_of_a_cluster = cluster.complaint();
                none_of_a_cluster
                    .map(|(address, message)| ConnectError::refused(&address, message))
                    .or_else(|| cluster.nodes().iter().find_map(|node| refused(node)))
            }
        }
    }

    fn unreachable(&self, within: Duration) -> ConnectError {
        let missing = |node: &Node| {
            let last = match node.complaint() {
                Some(Complaint::Unreachable(message)) => Some(message),
                _ => None,
            };
            ConnectError::timed_out(node.address(), within, last)
        };
        match &self.deployment {
            Deployment::Single(node) => missing(node),
            Deployment::Cluster(cluster) => {
                let nodes = cluster.nodes();
                let silent = nodes.iter().find(|node| !node.has_answered());
                silent.map_or_else(|| ConnectError::no_slots(within), |node| missing(node))
            }
        }
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the URL, which can contain a password.
        f.debug_struct("Redis")
            .field("health", &self.health())
            .finish_non_exhaustive()
    }
}
