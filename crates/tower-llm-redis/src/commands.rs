//! The commands that need no script.

use std::time::Duration;

use bytes::Bytes;
use fred::types::Value;
use futures_util::{StreamExt, stream};

use crate::{
    Arg, Redis, Scan, StoreError, Subscription,
    request::{Request, slot},
};

/// Maximum number of keys that one command removes, so that it does not block the server for long.
const TOGETHER: usize = 512;
/// Maximum number of commands in flight for one call, far fewer than may wait for a server.
const AT_ONCE: usize = 64;
/// So that the server can add it to its clock.
const MAX_TTL_MS: u128 = (i64::MAX / 2) as u128;

/// They take at most [`command_timeout`](crate::RedisBuilder::command_timeout), unless they say otherwise. Dropping a future
/// does not cancel what was sent.
impl Redis {
    /// Returns the value of a key; `None` if there is none.
    ///
    /// # Errors
    ///
    /// [`StoreError`] as for [`run`](Self::run), and if the key holds anything else than a string.
    pub async fn get(&self, key: impl Into<String>) -> Result<Option<Bytes>, StoreError> {
        let request = Request::of_keys("GET", vec![key.into()], Vec::new());
        self.send(&request).await?.into_bytes()
    }

    /// Sets a key to a value that expires after `ttl`, which is rounded down to whole milliseconds; 1 ms at least.
    ///
    /// # Errors
    ///
    /// [`StoreError`] as for [`run`](Self::run).
    pub async fn set(
        &self,
        key: impl Into<String>,
        value: impl Into<Arg>,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        let ttl = ttl.as_millis().clamp(1, MAX_TTL_MS);
        let args = vec![
            value.into().0,
            Value::from_static_str("PX"),
            Value::Integer(i64::try_from(ttl).unwrap_or(i64::MAX / 2)),
        ];
        let request = Request::of_keys("SET", vec![key.into()], args);
        self.send(&request).await.map(drop)
    }

    /// Removes keys; returns how many there were.
    ///
    /// It sends one command for up to 512 keys. On a Cluster they must be in one slot, so for most keys it sends one each, up
    /// to 64 at a time. Each command has a timeout of its own.
    ///
    /// # Errors
    ///
    /// The first [`StoreError`]. All other keys are removed nevertheless, as far as their servers are up.
    pub async fn remove(&self, keys: Vec<String>) -> Result<u64, StoreError> {
        let removing = self
            .batches(keys)
            .into_iter()
            .map(|keys| self.remove_together(keys));
        let mut replies = stream::iter(removing).buffer_unordered(AT_ONCE);
        let (mut removed, mut failed) = (0, None);
        while let Some(reply) = replies.next().await {
            match reply {
                Ok(keys) => removed += keys,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(removed), Err)
    }

    async fn remove_together(&self, keys: Vec<String>) -> Result<u64, StoreError> {
        let request = Request::of_keys("UNLINK", keys, Vec::new());
        let reply = self.send(&request).await?;
        Ok(u64::try_from(reply.into_integer()?).unwrap_or(0))
    }

    fn batches(&self, keys: Vec<String>) -> Vec<Vec<String>> {
        let chunks = |keys: &[String]| keys.chunks(TOGETHER).map(<[_]>::to_vec).collect::<Vec<_>>();
        if !self.is_cluster() {
            return chunks(&keys);
        }
        let mut keys = keys;
        keys.sort_by_cached_key(|key| slot(key));
        let by_slot = keys.chunk_by(|one, other| slot(one) == slot(other));
        by_slot.flat_map(chunks).collect()
    }

    /// Looks for the keys that match a pattern, on all primaries of a Cluster: `*` stands for any characters, `?` for one,
    /// `[ab]` for one of these, and a backslash takes the meaning from what follows it.
    ///
    /// A key that exists all the time is found at least once, and perhaps twice; one that is added meanwhile, or moves from
    /// one node to another, may be missed. Keys that are not UTF-8 are left out. Each page of 512 keys is a command, between
    /// which the server serves others; in memory there is one page at a time.
    ///
    /// ```no_run
    /// # async fn example(redis: tower_llm_redis::Redis) -> Result<(), tower_llm_redis::StoreError> {
    /// let mut pages = redis.scan("session:*");
    /// while let Some(keys) = pages.next().await {
    ///     redis.remove(keys?).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn scan(&self, pattern: &str) -> Scan {
        Scan::new(self.clone(), pattern)
    }

    /// Sends a message to all that have subscribed to a channel, on any node of a Cluster.
    ///
    /// Redis stores no messages: it reaches those that are connected now.
    ///
    /// # Errors
    ///
    /// [`StoreError`] as for [`run`](Self::run).
    pub async fn publish(&self, channel: &str, message: impl Into<Arg>) -> Result<(), StoreError> {
        let request = Request::anywhere("PUBLISH", vec![channel.into(), message.into().0]);
        self.send(&request).await.map(drop)
    }

    /// Subscribes to a channel, on a connection of its own to one server that is up.
    ///
    /// It connects again by itself, with pauses of 100 ms, and reports [`Event::Lost`](crate::Event::Lost) each time, because
    /// it may have missed messages; when the connection is lost, it reports [`Event::Disconnected`](crate::Event::Disconnected).
    /// A user without the right to SUBSCRIBE is never connected, which is logged once (feature `tracing`). A server that is frozen is noticed after a second and the
    /// [`connect_timeout`](crate::RedisBuilder::connect_timeout). A node that is cut off from the rest of its Cluster, and not
    /// from this process, is not noticed.
    ///
    /// The subscription holds a clone of this client until it is dropped.
    #[must_use]
    pub fn subscribe(&self, channel: impl Into<String>) -> Subscription {
        Subscription::start(self.clone(), channel.into())
    }
}
