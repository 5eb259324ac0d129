use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use tokio::time::{sleep, timeout};

use super::{
    process::{Folder, Process, find_binary, free_port},
    resp,
};

const SLOTS: usize = 16_384;
/// Longest wait until the nodes agree; they need about a second.
const JOIN: Duration = Duration::from_secs(15);

/// A Redis Cluster of primaries without replicas; each node has an equal range of slots, in order.
///
/// The nodes notice a failed node after half a second, and continue to serve their own slots
/// (`cluster-require-full-coverage no`); [`command`](Self::command) can change that.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Node>,
    binary: PathBuf,
}

#[derive(Debug)]
struct Node {
    process: Process,
    addr: SocketAddr,
    bus: u16,
    // Kept for `restart`, and removed with the node.
    folder: Folder,
}

impl RedisCluster {
    /// Starts this number of nodes, and waits until they agree that the cluster is healthy.
    ///
    /// # Errors
    ///
    /// If no server is installed, one does not answer in time, or they don't agree within 15 s.
    pub async fn start(nodes: usize) -> io::Result<Self> {
        let binary = find_binary()?;
        let mut cluster = Self {
            nodes: Vec::new(),
            binary,
        };
        for _ in 0..nodes {
            let node = cluster.start_node().await?;
            cluster.nodes.push(node);
        }
        cluster.share_slots().await?;
        cluster.introduce().await?;
        timeout(JOIN, cluster.agrees()).await.map_err(|_| {
            let reason = "the nodes of the cluster don't agree within 15 s";
            io::Error::new(io::ErrorKind::TimedOut, reason)
        })?;
        Ok(cluster)
    }

    /// Its URL, `redis-cluster://` with the nodes' addresses, the last node first.
    #[must_use]
    pub fn url(&self) -> String {
        let mut nodes = self.nodes.iter().rev().map(|node| node.addr);
        let first = nodes.next().map(|addr| addr.to_string());
        let others: Vec<_> = nodes.map(|addr| format!("node={addr}")).collect();
        let first = first.unwrap_or_default();
        format!("redis-cluster://{first}?{}", others.join("&"))
    }

    /// The address a node listens on.
    ///
    /// # Panics
    ///
    /// If there is no such node; the first is 0.
    #[must_use]
    pub fn addr(&self, node: usize) -> SocketAddr {
        self.nodes[node].addr
    }

    /// The node that had a slot when the cluster was started.
    #[must_use]
    pub fn node_of_slot(&self, slot: u16) -> usize {
        let nodes = self.nodes.len();
        let before = (1..nodes).filter(|&node| first_slot(node, nodes) <= usize::from(slot));
        before.count()
    }

    /// Sends one command to a node on a connection of its own; see [`RedisServer::command`](super::RedisServer::command).
    ///
    /// # Errors
    ///
    /// If the node answers with an error, or not at all.
    ///
    /// # Panics
    ///
    /// If there is no such node.
    pub async fn command(&self, node: usize, words: &[&str]) -> io::Result<String> {
        resp::command(self.addr(node), words).await
    }

    /// Removes all scripts from all nodes.
    ///
    /// # Errors
    ///
    /// If a node is not running.
    pub async fn flush_scripts(&self) -> io::Result<()> {
        for node in &self.nodes {
            resp::command(node.addr, &["SCRIPT", "FLUSH"]).await?;
        }
        Ok(())
    }

    /// Kills a node: connections are reset and new ones refused.
    ///
    /// # Errors
    ///
    /// If the process cannot be killed.
    ///
    /// # Panics
    ///
    /// If there is no such node.
    pub fn kill(&mut self, node: usize) -> io::Result<()> {
        self.nodes[node].process.kill()
    }

    /// Stops a node without ending it: nothing is answered.
    ///
    /// # Errors
    ///
    /// If the node is not running.
    ///
    /// # Panics
    ///
    /// If there is no such node.
    pub fn freeze(&self, node: usize) -> io::Result<()> {
        self.nodes[node].process.signal("STOP")
    }

    /// Resumes a frozen node.
    ///
    /// # Errors
    ///
    /// If the node is not running.
    ///
    /// # Panics
    ///
    /// If there is no such node.
    pub fn thaw(&self, node: usize) -> io::Result<()> {
        self.nodes[node].process.signal("CONT")
    }

    /// Restarts a node on the same ports, with its slots and without its keys; kills it first if it runs. Waits until
    /// all nodes agree again.
    ///
    /// # Errors
    ///
    /// If a port was taken meanwhile, or the nodes don't agree in time.
    ///
    /// # Panics
    ///
    /// If there is no such node.
    pub async fn restart(&mut self, node: usize) -> io::Result<()> {
        let node = &mut self.nodes[node];
        node.process.kill()?;
        let settings = settings(node.bus);
        node.process = Process::start(&self.binary, node.addr, &node.folder, &settings).await?;
        timeout(JOIN, self.agrees())
            .await
            .map_err(|_| io::ErrorKind::TimedOut.into())
    }

    /// Moves a slot that has no keys from one node to another.
    ///
    /// # Errors
    ///
    /// If a node refuses.
    ///
    /// # Panics
    ///
    /// If there is no such node.
    pub async fn move_slot(&self, slot: u16, to: usize) -> io::Result<()> {
        let id = self.command(to, &["CLUSTER", "MYID"]).await?;
        let slot = slot.to_string();
        // Otherwise the old owner could claim the slot back: of two owners, the greater epoch wins.
        self.command(to, &["CLUSTER", "BUMPEPOCH"]).await?;
        // The new owner first: the slot has an owner at all times.
        let others = (0..self.nodes.len()).filter(|&node| node != to);
        for node in std::iter::once(to).chain(others) {
            let words = ["CLUSTER", "SETSLOT", &slot, "NODE", &id];
            self.command(node, &words).await?;
        }
        Ok(())
    }

    async fn start_node(&self) -> io::Result<Node> {
        let folder = Folder::new()?;
        let mut last = io::Error::other("no port was tried");
        for _ in 0..3 {
            // By default the nodes' own port is 10,000 above the other, where there may be none.
            let (addr, bus) = (free_port().await?, free_port().await?.port());
            match Process::start(&self.binary, addr, &folder, &settings(bus)).await {
                Ok(process) => {
                    return Ok(Node {
                        process,
                        addr,
                        bus,
                        folder,
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn share_slots(&self) -> io::Result<()> {
        let nodes = self.nodes.len();
        for node in 0..nodes {
            let first = first_slot(node, nodes).to_string();
            let last = (first_slot(node + 1, nodes) - 1).to_string();
            self.command(node, &["CLUSTER", "ADDSLOTSRANGE", &first, &last])
                .await?;
            // Different for each node, or two nodes could claim one slot with equal epochs.
            let epoch = (node + 1).to_string();
            self.command(node, &["CLUSTER", "SET-CONFIG-EPOCH", &epoch])
                .await?;
        }
        Ok(())
    }

    /// Introduces the first node to the others; they learn of the rest from each other.
    async fn introduce(&self) -> io::Result<()> {
        let Some(first) = self.nodes.first() else {
            return Ok(());
        };
        let ip = first.addr.ip().to_string();
        let (port, bus) = (first.addr.port().to_string(), first.bus.to_string());
        for node in 1..self.nodes.len() {
            self.command(node, &["CLUSTER", "MEET", &ip, &port, &bus])
                .await?;
        }
        Ok(())
    }

    /// Waits until every node says that all slots are served, and knows all the others.
    async fn agrees(&self) {
        for node in &self.nodes {
            while !self.is_content(node.addr).await {
                sleep(Duration::from_millis(20)).await;
            }
        }
    }

    async fn is_content(&self, addr: SocketAddr) -> bool {
        let info = resp::command(addr, &["CLUSTER", "INFO"]).await;
        let info = info.unwrap_or_default();
        let says = |line: &str| info.lines().any(|said| said.trim_end() == line);
        says("cluster_state:ok")
            && says(&format!("cluster_slots_ok:{SLOTS}"))
            && says(&format!("cluster_known_nodes:{}", self.nodes.len()))
    }
}

/// The first slot of a node, out of `nodes`; for the one after the last, the end.
fn first_slot(node: usize, nodes: usize) -> usize {
    SLOTS * node / nodes
}

fn settings(bus: u16) -> Vec<String> {
    let bus = bus.to_string();
    let settings = [
        ["--cluster-enabled", "yes"],
        ["--cluster-config-file", "nodes.conf"],
        ["--cluster-port", &bus],
        ["--cluster-node-timeout", "500"],
        ["--cluster-require-full-coverage", "no"],
    ];
    settings
        .as_flattened()
        .iter()
        .map(ToString::to_string)
        .collect()
}
