use std::{fmt, sync::Arc};

use bytes::Bytes;
use fred::types::Value;

use crate::{Redis, Reply, StoreError, node::Node};

/// How many keys a server looks at for one page: about a tenth of a millisecond, in which it does nothing else.
const COUNT: i64 = 512;

/// The keys that match a pattern, page by page; see [`Redis::scan`].
pub struct Scan {
    redis: Redis,
    pattern: Bytes,
    /// The nodes that are left, the current one last; `None` before the first page.
    nodes: Option<Vec<Arc<Node>>>,
    /// Where the current node goes on.
    cursor: Bytes,
}

const START: Bytes = Bytes::from_static(b"0");

impl Scan {
    pub(crate) fn new(redis: Redis, pattern: &str) -> Self {
        Self {
            redis,
            pattern: Bytes::copy_from_slice(pattern.as_bytes()),
            nodes: None,
            cursor: START,
        }
    }

    /// Returns the next keys, some hundred at most; `None` after the last.
    ///
    /// It takes at most [`command_timeout`](crate::RedisBuilder::command_timeout) for each 512 keys that a server holds,
    /// whether they match or not. Dropping the future loses no page.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if a server fails. Its other keys are skipped: the next call goes on with the next server.
    pub async fn next(&mut self) -> Option<Result<Vec<String>, StoreError>> {
        loop {
            let node = match &self.nodes {
                Some(nodes) => Arc::clone(nodes.last()?),
                None => match self.redis.primaries().await {
                    Ok(nodes) => {
                        self.nodes = Some(nodes);
                        continue;
                    }
                    Err(error) => {
                        self.nodes = Some(Vec::new());
                        return Some(Err(error));
                    }
                },
            };
            match self.page(&node).await {
                Ok((cursor, keys)) => {
                    if cursor == START {
                        self.end_node();
                    }
                    self.cursor = cursor;
                    if !keys.is_empty() {
                        return Some(Ok(keys));
                    }
                }
                Err(error) => {
                    self.end_node();
                    return Some(Err(error));
                }
            }
        }
    }

    async fn page(&self, node: &Node) -> Result<(Bytes, Vec<String>), StoreError> {
        let args = vec![
            Value::Bytes(self.cursor.clone()),
            Value::from_static_str("MATCH"),
            Value::Bytes(self.pattern.clone()),
            Value::from_static_str("COUNT"),
            Value::Integer(COUNT),
        ];
        let reply = node.ask("SCAN", args).await?;
        page(reply).ok_or_else(|| StoreError::unexpected("not a page of keys"))
    }

    fn end_node(&mut self) {
        if let Some(nodes) = &mut self.nodes {
            nodes.pop();
        }
        self.cursor = START;
    }
}

impl fmt::Debug for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scan")
            .field("pattern", &self.pattern)
            .finish_non_exhaustive()
    }
}

/// `[cursor, [key, ..]]`. Keys that are no text are left out.
fn page(reply: Reply) -> Option<(Bytes, Vec<String>)> {
    let Reply::Array(parts) = reply else {
        return None;
    };
    let mut parts = parts.into_iter();
    let (Some(Reply::Bytes(cursor)), Some(Reply::Array(keys))) = (parts.next(), parts.next())
    else {
        return None;
    };
    let keys = keys.into_iter().filter_map(|key| match key {
        Reply::Bytes(key) => String::from_utf8(key.into()).ok(),
        _ => None,
    });
    Some((cursor, keys.collect()))
}
