//! A Redis Cluster: a [`Node`] for each primary, and the owner of each slot.
//!
//! Each node has its own gate, so an unavailable node fails only its own slots. One task reads the owners of slots by
//! CLUSTER SLOTS: when a node becomes unavailable or recovers, and repeatedly while a node is unavailable or a slot has no
//! owner. That is how it finds a replica that took over. A MOVED is followed at once.
//!
//! This replaces fred's client for clusters. With one of three nodes dead and the slots of the others served, that failed
//! every call to them too until the dead node was back, because it connects to all nodes or to none.
//!
//! Redis itself answers CLUSTERDOWN for all slots, after its own timeout, if one has no owner; unless it is configured
//! with `cluster-require-full-coverage no`.

use std::{
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic::Ordering},
    time::Duration,
};

use fred::types::Value;
use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    Reply, StoreError,
    gate::Counters,
    node::{Answer, Asking, Node},
    request::Request,
    settings::Settings,
    slots::{Range, Slots},
    url::Address,
};

/// How long to wait before asking a node again that has only some of the keys, while a slot is being moved.
const UNTIL_MOVED: Duration = Duration::from_millis(10);
/// Maximum number of redirects of a call; a move takes one or two.
const MAX_REDIRECTS: usize = 4;
/// How long to wait before reading the slots again while a node is unavailable.
const REFRESH: Duration = Duration::from_millis(200);
/// Minimum time between two reads of the slots, so that a storm of MOVED causes no more of them.
const GAP: Duration = Duration::from_millis(20);

pub(crate) struct Cluster {
    shared: Arc<Shared>,
    refresher: AbortHandle,
}

struct Shared {
    seeds: Vec<Address>,
    settings: Arc<Settings>,
    counters: Arc<Counters>,
    news: Arc<Notify>,
    // A std lock: it is held for a look-up, and never across an await.
    slots: RwLock<Known>,
}

struct Known {
    slots: Slots<Arc<Node>>,
    /// Whether the owners of slots were ever read.
    is_loaded: bool,
    /// The reply of a node that is not part of a cluster.
    complaint: Option<(Address, String)>,
}

impl Cluster {
    pub(crate) fn start(
        seeds: Vec<Address>,
        settings: Arc<Settings>,
        counters: Arc<Counters>,
    ) -> Self {
        let shared = Arc::new(Shared {
            slots: RwLock::new(Known {
                slots: Slots::new([]),
                is_loaded: false,
                complaint: None,
            }),
            seeds,
            settings,
            counters,
            news: Arc::default(),
        });
        shared.add_seeds();
        let refresher = tokio::spawn(keep_up(Arc::clone(&shared))).abort_handle();
        Self { shared, refresher }
    }

    /// Sends a request to the node of its keys; while their slot is being moved, it waits until all of them are on one node.
    pub(crate) async fn run(
        &self,
        request: &Request<'_>,
        deadline: Instant,
    ) -> Result<Reply, StoreError> {
        loop {
            let result = self.follow(request, deadline).await;
            if !result.as_ref().is_err_and(StoreError::is_on_the_move) {
                return result;
            }
            if Instant::now() + UNTIL_MOVED >= deadline {
                self.shared
                    .counters
                    .failures
                    .fetch_add(1, Ordering::Relaxed);
                return result;
            }
            sleep(UNTIL_MOVED).await;
        }
    }

    async fn follow(&self, request: &Request<'_>, deadline: Instant) -> Result<Reply, StoreError> {
        let mut node = self.shared.node_for(request.slot())?;
        let mut asking = Asking::No;
        for _ in 0..=MAX_REDIRECTS {
            match node.run(request, asking, deadline).await? {
                Answer::Reply(reply) => return Ok(reply),
                Answer::Moved(address) => {
                    node = self.shared.moved(request.slot(), &address);
                    asking = Asking::No;
                }
                Answer::Moving(address) => {
                    node = self.shared.node_at(&address);
                    asking = Asking::Yes;
                }
            }
        }
        Err(StoreError::redirects())
    }

    /// All primaries, once they are known and every slot has one.
    pub(crate) async fn primaries(&self, deadline: Instant) -> Result<Vec<Arc<Node>>, StoreError> {
        loop {
            {
                let known = self.shared.read();
                if known.is_loaded && known.slots.is_complete() {
                    return Ok(known.slots.nodes().cloned().collect());
                }
            }
            if Instant::now() + UNTIL_MOVED >= deadline {
                return Err(StoreError::down());
            }
            sleep(UNTIL_MOVED).await;
        }
    }

    pub(crate) fn nodes(&self) -> Vec<Arc<Node>> {
        self.shared.nodes()
    }

    /// Whether all nodes are up.
    pub(crate) fn is_up(&self) -> bool {
        self.shared.read().slots.nodes().all(|node| node.is_up())
    }

    /// Whether any node is up.
    pub(crate) fn is_any_up(&self) -> bool {
        self.shared.read().slots.nodes().any(|node| node.is_up())
    }

    /// Whether the owners of slots are known.
    pub(crate) fn is_known(&self) -> bool {
        self.shared.read().is_loaded
    }

    /// A node that is not part of a cluster, and its reply.
    pub(crate) fn complaint(&self) -> Option<(Address, String)> {
        self.shared.read().complaint.clone()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The task holds the nodes, which end with it.
        self.refresher.abort();
    }
}

impl Shared {
    /// The node that owns a slot; any node that is up, if the owner is not known yet or does not matter.
    fn node_for(&self, slot: Option<u16>) -> Result<Arc<Node>, StoreError> {
        let known = self.read();
        let node = match slot {
            // A node that is asked for a slot without owner answers CLUSTERDOWN, and would count as unavailable itself.
            Some(slot) if known.is_loaded => known.slots.owner(slot),
            _ => known.slots.nodes().find(|node| node.is_up()),
        };
        node.cloned().ok_or_else(StoreError::down)
    }

    fn node_at(&self, address: &Address) -> Arc<Node> {
        let known = self.read().slots.get(address).cloned();
        known.unwrap_or_else(|| {
            let mut known = self.write();
            Arc::clone(known.slots.add(address, |address| self.node(address)))
        })
    }

    /// Notes the address of a slot, and has all others read again.
    fn moved(&self, slot: Option<u16>, address: &Address) -> Arc<Node> {
        self.news.notify_one();
        let Some(slot) = slot else {
            return self.node_at(address);
        };
        let mut known = self.write();
        Arc::clone(
            known
                .slots
                .point(slot, address, |address| self.node(address)),
        )
    }

    fn nodes(&self) -> Vec<Arc<Node>> {
        self.read().slots.nodes().cloned().collect()
    }

    /// Whether all nodes are up and all slots have an owner.
    fn is_well(&self) -> bool {
        let known = self.read();
        known.slots.is_complete() && known.slots.nodes().all(|node| node.is_up())
    }

    /// Asks one node after the other until one returns the owners of slots.
    async fn refresh(&self) -> bool {
        for node in self.nodes() {
            if self.learn_from(&node).await {
                return true;
            }
        }
        // No known node answered: the whole cluster may have moved, and only its configured addresses may still be valid.
        self.add_seeds();
        false
    }

    async fn learn_from(&self, node: &Node) -> bool {
        match node
            .ask("CLUSTER", vec![Value::from_static_str("SLOTS")])
            .await
        {
            Ok(reply) => match Range::all(reply, node.address()) {
                // A node that was just reset returns nothing.
                Some(ranges) if !ranges.is_empty() => {
                    self.install(&ranges);
                    true
                }
                _ => false,
            },
            Err(error) => {
                if error.is_script() {
                    self.write().complaint = Some((node.address().clone(), error.to_string()));
                }
                false
            }
        }
    }

    fn install(&self, ranges: &[Range]) {
        let mut known = self.write();
        known.slots.install(ranges, |address| self.node(address));
        known.is_loaded = true;
    }

    fn add_seeds(&self) {
        let mut known = self.write();
        for seed in &self.seeds {
            known.slots.add(seed, |address| self.node(address));
        }
    }

    fn node(&self, address: &Address) -> Arc<Node> {
        Arc::new(Node::start(
            address.clone(),
            Arc::clone(&self.settings),
            Arc::clone(&self.counters),
            Some(Arc::clone(&self.news)),
        ))
    }

    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.slots.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the owners of slots up to date.
async fn keep_up(shared: Arc<Shared>) {
    loop {
        let learned = shared.refresh().await;
        let well = learned && shared.is_well();
        sleep(GAP).await;
        if well {
            shared.news.notified().await;
        } else {
            // Wakes earlier if a node changes.
            let _ = timeout(REFRESH, shared.news.notified()).await;
        }
    }
}
