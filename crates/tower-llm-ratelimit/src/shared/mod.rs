//! Limits that several processes share, in Redis, Valkey or a Cluster.
//!
//! One script reserves in all limits of a call, or in none, by the server's clock. A reservation is *held* under the call's
//! id until it is settled. A reservation that is not settled in time, because its process is gone, is refunded. While the
//! server is unavailable, [`StoreFallback`](crate::StoreFallback) decides.
//!
//! All keys of one layer have the same hash tag, so that a script can access all limits of a call on a Cluster too. The
//! limits of a layer are therefore on one node, which decides about ten thousand calls per second; layers with other names
//! may be on other nodes.

pub(crate) mod acquire;
pub(crate) mod backend;
#[cfg(all(test, feature = "redis"))]
mod conformance;
pub(crate) mod lease;
#[cfg(test)]
pub(crate) mod memory;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "redis")]
mod schedule;
#[cfg(feature = "redis")]
mod settings;
#[cfg(feature = "redis")]
mod settler;
#[cfg(feature = "redis")]
mod work;

#[cfg(feature = "redis")]
pub use self::settings::SharedLimits;
