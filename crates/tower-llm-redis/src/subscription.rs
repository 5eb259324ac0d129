use std::{
    fmt,
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    task::AbortHandle,
    time::{Instant, sleep_until},
};

use crate::{
    Redis,
    connection::Complaint,
    listener::{Heard, Listener},
    node::PAUSE,
};

/// Events that wait for a slow reader.
const WAITING: usize = 1_024;

/// The messages of a channel; see [`Redis::subscribe`]. Dropping it ends its connection.
pub struct Subscription {
    events: Receiver<Event>,
    shared: Arc<Shared>,
    task: AbortHandle,
}

/// What a subscription gives.
///
/// Complete: a subscription is connected or not, and gives messages and the gaps between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message.
    Message(Bytes),
    /// Messages may have been missed before this. It comes each time that the subscription has connected, also the first
    /// time, and when messages were dropped because they were not read. In the latter case, the subscription may have
    /// disconnected meanwhile: ask [`is_connected`](Subscription::is_connected).
    Lost,
    /// The connection was lost. Messages are missed until the next `Lost`.
    Disconnected,
}

#[derive(Debug, Default)]
struct Shared {
    is_connected: AtomicBool,
    /// An event had no room.
    has_dropped: AtomicBool,
}

/// The task's end of the queue.
struct Outbox {
    events: Sender<Event>,
    shared: Arc<Shared>,
}

impl Subscription {
    pub(crate) fn start(redis: Redis, channel: String) -> Self {
        let (sender, events) = mpsc::channel(WAITING);
        let shared = Arc::<Shared>::default();
        let outbox = Outbox {
            events: sender,
            shared: Arc::clone(&shared),
        };
        let runtime = redis.runtime().clone();
        let task = runtime.spawn(listen(redis, channel, outbox)).abort_handle();
        Self {
            events,
            shared,
            task,
        }
    }

    /// Waits for the next event. Dropping the future loses nothing.
    ///
    /// If the runtime in which the [`Redis`] was built has ended, it waits without end.
    pub async fn next(&mut self) -> Event {
        if self.shared.has_dropped.swap(false, Ordering::AcqRel) {
            return Event::Lost;
        }
        match self.events.recv().await {
            Some(event) => event,
            None => pending().await,
        }
    }

    /// Whether it is connected: messages that are published now will arrive.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.is_connected.load(Ordering::Acquire)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("is_connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}

impl Outbox {
    /// Queues an event. If there is no room, the reader learns of it before it reads further than what waits now.
    fn push(&self, event: Event) {
        if self.events.try_send(event).is_err() {
            self.shared.has_dropped.store(true, Ordering::Release);
        }
    }

    fn hear(&self, heard: Heard) {
        self.push(match heard {
            Heard::Message(message) => Event::Message(message),
            Heard::Gap => Event::Lost,
        });
    }
}

/// Connects to a server that is up, and passes its messages on; again and again.
async fn listen(redis: Redis, channel: String, outbox: Outbox) {
    let settings = redis.settings();
    let is_connected = &outbox.shared.is_connected;
    let (mut last, mut told) = (None, None);
    for attempt in 0.. {
        if let Some(last) = last {
            // At once, if the connection held for a while.
            sleep_until(last + PAUSE).await;
        }
        last = Some(Instant::now());
        let Some(address) = redis.one_that_is_up(attempt) else {
            continue;
        };
        match Listener::open(settings, &address, &channel).await {
            Ok(listener) => {
                is_connected.store(true, Ordering::Release);
                outbox.push(Event::Lost);
                let heard = |heard| outbox.hear(heard);
                listener.run(settings.connect_timeout, heard).await;
                is_connected.store(false, Ordering::Release);
                outbox.push(Event::Disconnected);
                told = None;
            }
            Err(complaint) => {
                // Once, and not with each of ten attempts a second.
                if told.as_ref() != Some(&complaint) {
                    tell(&channel, &complaint);
                    told = Some(complaint);
                }
            }
        }
    }
}

#[cfg(feature = "tracing")]
fn tell(channel: &str, complaint: &Complaint) {
    match complaint {
        Complaint::Refused(error) => tracing::warn!(channel, error, "redis refuses a subscription"),
        Complaint::Unreachable(error) => tracing::debug!(channel, error, "no subscription yet"),
    }
}

#[cfg(not(feature = "tracing"))]
fn tell(_: &str, _: &Complaint) {}
