//! Scripts on Redis, Valkey or a Redis Cluster, for layers whose state many processes share.
//!
//! A layer that asks Redis on the way of a call must not make the call wait for Redis. So here:
//!
//! - No call lasts longer than its timeout (100 ms unless set), whatever the server does: dies, freezes, loads, moves.
//! - An outage costs one timeout, not one per call. After the first, calls are refused at once until the server answers
//!   a PING again, which one task per server sends about ten times a second.
//! - A script is sent once. It is sent again only when the server said that it did *not* run it; after a lost answer
//!   never, because a script that charges would charge twice.
//! - What waits is bounded, and ends when the last clone of the [`Redis`] is dropped.
//!
//! It runs scripts and nothing else: what a layer does with Redis has to be one atomic step anyway. Where its state goes
//! while Redis is away is the layer's to decide; [`StoreError`] says what is known of the call that failed.
//!
//! It speaks RESP3, which Redis has since 6.0 and Valkey always. This is the one crate that knows [fred], and it shows
//! none of fred's types.
//!
//! [fred]: https://docs.rs/fred
//!
//! # Example
//!
//! ```
//! use tower_llm_redis::{Redis, Script};
//!
//! static ADD: Script = Script::new("return redis.call('INCRBY', KEYS[1], ARGV[1])");
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let server = tower_llm_testkit::redis::RedisServer::start().await?;
//! # let url = server.url();
//! let redis = Redis::builder(url).connect().await?;
//! let sum = redis.run(&ADD, vec!["tokens".into()], vec![3.into()]).await?;
//! assert_eq!(sum.into_integers()?, [3]);
//!
//! # let mut server = server;
//! # server.kill()?;
//! // Redis dies: this call fails soon, and those after it at once.
//! redis.run(&ADD, vec!["tokens".into()], vec![3.into()]).await.unwrap_err();
//! let refused = redis.run(&ADD, vec!["tokens".into()], vec![3.into()]).await.unwrap_err();
//! assert!(refused.is_down() && !redis.is_up());
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]

mod builder;
mod cluster;
mod connection;
mod error;
mod gate;
mod node;
mod redis;
mod request;
mod script;
mod settings;
mod slots;
mod url;
mod value;

pub use self::{
    builder::RedisBuilder,
    error::{ConnectError, StoreError},
    redis::{Health, Redis},
    script::Script,
    value::{Arg, Reply},
};
