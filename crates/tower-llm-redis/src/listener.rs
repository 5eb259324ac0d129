//! A connection of its own, on which messages of one channel arrive.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use fred::{
    interfaces::{ClientLike, EventInterface, PubsubInterface},
    types::{
        Message, Value,
        config::{ConnectionConfig, Options, PerformanceConfig, ReconnectError},
    },
};
use futures_util::future::{Either, join, select};
use tokio::{
    sync::broadcast::{Receiver, error::RecvError},
    time::sleep,
};

use crate::{
    connection::{Complaint, Connection, Sender, limits, server_error},
    settings::Settings,
    url::Address,
};

/// How often the server is asked whether it is alive.
const BEAT: Duration = Duration::from_secs(1);

/// Messages that arrive before this process reads any of them. fred makes nine buffers of this many places.
const BURST: usize = 256;

pub(crate) struct Listener {
    connection: Connection,
    messages: Receiver<Message>,
}

/// What a listener gets.
pub(crate) enum Heard {
    Message(Bytes),
    /// Messages were dropped because they were not read in time.
    Gap,
}

impl Listener {
    /// Connects and subscribes.
    pub(crate) async fn open(
        settings: &Settings,
        address: &Address,
        channel: &str,
    ) -> Result<Self, Complaint> {
        let mut connection = Connection::open_with(
            settings,
            address,
            PerformanceConfig {
                broadcast_channel_capacity: BURST,
                ..PerformanceConfig::default()
            },
            ConnectionConfig {
                // fred drops the response to SUBSCRIBE: it would give an error to the next command, or to none. Any error
                // ends this connection instead, with its text.
                reconnect_errors: vec![ReconnectError::Custom("")],
                ..limits(settings)
            },
        );
        // Before the first message can arrive.
        let messages = connection.sender.0.message_rx();
        let within = settings.connect_timeout;
        {
            let subscribing = subscribe(&connection.sender, channel, within);
            // Answered after SUBSCRIBE was. Both are sent before either is awaited.
            let ping = connection.sender.ask("PING", Vec::new(), within);
            match select(pin!(join(subscribing, ping)), &mut connection.task).await {
                Either::Left(((true, Ok(answer)), _)) if server_error(&answer).is_none() => {}
                Either::Left(_) => {
                    return Err(Complaint::Unreachable(format!(
                        "no answer within {within:?}"
                    )));
                }
                Either::Right((ended, _)) => return Err(Complaint::of(ended.ok())),
            }
        }
        Ok(Self {
            connection,
            messages,
        })
    }

    /// Passes on what arrives, until the connection is lost or the server does not answer.
    pub(crate) async fn run(mut self, patience: Duration, mut pass: impl FnMut(Heard)) {
        let beats = pin!(beat(&self.connection.sender, patience));
        let mut over = select(beats, &mut self.connection.task);
        loop {
            let heard = match select(&mut over, pin!(self.messages.recv())).await {
                Either::Right((Ok(message), _)) => Heard::Message(bytes(message.value)),
                Either::Right((Err(RecvError::Lagged(_)), _)) => Heard::Gap,
                Either::Right((Err(RecvError::Closed), _)) | Either::Left(_) => return,
            };
            pass(heard);
        }
    }
}

/// Sends SUBSCRIBE; returns whether it was sent. That says nothing of the response.
async fn subscribe(sender: &Sender, channel: &str, within: Duration) -> bool {
    let options = Options {
        timeout: Some(within),
        ..Options::default()
    };
    let subscribed = sender.0.with_options(&options).subscribe(channel).await;
    subscribed.is_ok()
}

/// Asks the server again and again; ends when it does not answer.
async fn beat(sender: &Sender, patience: Duration) {
    loop {
        sleep(BEAT).await;
        if sender.ask("PING", Vec::new(), patience).await.is_err() {
            return;
        }
    }
}

fn bytes(value: Value) -> Bytes {
    match value {
        Value::Bytes(bytes) => bytes,
        Value::String(text) => text.into_inner(),
        // Nothing else can be published.
        _ => Bytes::new(),
    }
}
