//! Redis servers and clusters of the test's own, to be killed, frozen and restarted.
//!
//! They keep nothing on disk, listen on free loopback ports and end with the value that holds them.

mod cluster;
mod process;
mod resp;
mod server;

pub use cluster::RedisCluster;
pub use server::RedisServer;
