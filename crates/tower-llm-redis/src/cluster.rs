//! A Redis Cluster: one [`Node`] for each primary, and who has which slot.
//!
//! Each node has its own gate, so that one that is away fails its own slots and no others. Who has a slot is learned
//! from CLUSTER SLOTS, by one task that asks when a node is found away or back, and again and again while one is away or
//! a slot is nobody's: that is how a replica that took over is found. A MOVED is followed at once.
//!
//! fred has a client for clusters, which this is instead of: with one node of three dead and the slots of the others
//! served, it failed every call to them too until the dead one was back, because it connects to all or to none.
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

/// How long to leave a node alone that has a part of the keys, while the others are on their way.
const UNTIL_MOVED: Duration = Duration::from_millis(10);
/// How often a call is passed on before it is given up; a move takes one or two.
const MAX_REDIRECTS: usize = 4;
/// How long to wait before asking for the slots again while a node is away.
const REFRESH: Duration = Duration::from_millis(200);
/// How long to wait before asking again in any case, so that a storm of MOVED asks no oftener.
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
    /// Whether the cluster has ever said who has which slot.
    told: bool,
    /// What a node said that is none of a cluster.
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
                told: false,
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

    /// Runs a script where its keys are; while they are being moved, one after the other, it waits for them.
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

    pub(crate) fn nodes(&self) -> Vec<Arc<Node>> {
        self.shared.nodes()
    }

    /// Whether all nodes are up.
    pub(crate) fn is_up(&self) -> bool {
        self.shared.read().slots.nodes().all(|node| node.is_up())
    }

    /// Whether it is known who has which slot.
    pub(crate) fn is_known(&self) -> bool {
        self.shared.read().told
    }

    /// A node that is none of a cluster, and what it said.
    pub(crate) fn complaint(&self) -> Option<(Address, String)> {
        self.shared.read().complaint.clone()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The nodes end when it lets go of them.
        self.refresher.abort();
    }
}

impl Shared {
    /// The node that has a slot; one that is up, if nobody knows yet or it makes no difference.
    fn node_for(&self, slot: Option<u16>) -> Result<Arc<Node>, StoreError> {
        let known = self.read();
        let node = match slot {
            // A node that is asked for a slot of nobody's answers CLUSTERDOWN, and would be taken for away itself.
            Some(slot) if known.told => known.slots.owner(slot),
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

    /// Takes note that a slot is at an address, and has all others looked up too.
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

    /// Whether there is nothing that could change for the better.
    fn is_well(&self) -> bool {
        let known = self.read();
        known.slots.is_complete() && known.slots.nodes().all(|node| node.is_up())
    }

    /// Asks one node after the other until one says who has which slot.
    async fn refresh(&self) -> bool {
        for node in self.nodes() {
            if self.learn_from(&node).await {
                return true;
            }
        }
        // None that we know: the whole cluster may have moved, and only its first addresses still be right.
        self.add_seeds();
        false
    }

    async fn learn_from(&self, node: &Node) -> bool {
        match node
            .ask("CLUSTER", vec![Value::from_static_str("SLOTS")])
            .await
        {
            Ok(reply) => match Range::all(reply, node.address()) {
                // A node that was just reset knows of nobody.
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
        known.told = true;
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

/// Keeps up with who has which slot.
async fn keep_up(shared: Arc<Shared>) {
    loop {
        let learned = shared.refresh().await;
        let well = learned && shared.is_well();
        sleep(GAP).await;
        if well {
            shared.news.notified().await;
        } else {
            // Something new sooner is welcome, and not needed.
            let _ = timeout(REFRESH, shared.news.notified()).await;
        }
    }
}
