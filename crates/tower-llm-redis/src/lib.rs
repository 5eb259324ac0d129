//! Scripts, plain commands and messages on Redis, Valkey or a Redis Cluster, for layers whose state several processes share.
//!
//! A layer that uses Redis for each call must not make calls wait when Redis is slow or down. Therefore:
//!
//! - No call takes longer than its timeout (100 ms unless set), even if the server dies, freezes, loads its data or moves
//!   slots.
//! - An outage costs one timeout, not one per call. After the first timeout, calls are refused at once until the server
//!   answers a PING again. One task per server sends about ten a second.
//! - A script or a command is sent again only if the server reported that it did *not* run it. It is never sent again after a
//!   lost response, because a script that charges would charge twice.
//! - The number of waiting calls is bounded, and they end when the last clone of the [`Redis`] is dropped.
//!
//! What a layer decides in Redis has to be one atomic step, which is a [script](Redis::run). For values that are only stored
//! and found again there are [`get`](Redis::get), [`set`](Redis::set), [`remove`](Redis::remove) and [`scan`](Redis::scan);
//! [`publish`](Redis::publish) and [`subscribe`](Redis::subscribe) tell other processes. Each layer decides what to do while
//! Redis is unavailable; [`StoreError`] says what is known about the failed call.
//!
//! It speaks RESP3, which Redis supports since 6.0 and every Valkey supports. The client underneath is [fred]; none of its
//! types is public.
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
//! // Redis dies: this call fails within its timeout, and later calls fail at once.
//! redis.run(&ADD, vec!["tokens".into()], vec![3.into()]).await.unwrap_err();
//! let refused = redis.run(&ADD, vec!["tokens".into()], vec![3.into()]).await.unwrap_err();
//! assert!(refused.is_down() && !redis.is_up());
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]

mod builder;
mod cluster;
mod commands;
mod connection;
mod error;
mod gate;
mod listener;
mod node;
mod redis;
mod request;
mod scan;
mod script;
mod settings;
mod slots;
mod subscription;
mod url;
mod value;

pub use self::{
    builder::RedisBuilder,
    error::{ConnectError, StoreError},
    redis::{Health, Redis},
    scan::Scan,
    script::Script,
    subscription::{Event, Subscription},
    value::{Arg, Reply},
};
