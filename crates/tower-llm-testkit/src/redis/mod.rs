//! Redis servers and clusters that belong to one test, which can kill, freeze and restart them.
//!
//! They store nothing on disk, listen on free loopback ports and end when their value is dropped.

mod cluster;
mod process;
mod resp;
mod server;

pub use cluster::RedisCluster;
pub use server::RedisServer;
