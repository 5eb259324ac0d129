//! One connection to one server: all that fred is used for.
//!
//! fred can reconnect by itself, and follow a cluster. Neither is used, because its single task for all connections of a
//! client reads no commands while it connects to any of them, or while a write is blocked. Here a connection that is lost
//! or silent is dropped and another is opened, so that no command that waited on the old one is sent later on the new one.

use std::time::Duration;

use fred::{
    clients::Client,
    error::{Error, ErrorKind},
    interfaces::ClientLike,
    socket2::TcpKeepalive,
    types::{
        ClusterHash, ConnectHandle, CustomCommand, Resp3Frame, RespVersion, Value,
        config::{
            Config, ConnectionConfig, Options, PerformanceConfig, Server, ServerConfig, TcpConfig,
        },
    },
};
use futures_util::future::{Either, join, select};

use crate::{settings::Settings, url::Address};

/// The time of TCP keep-alive, so that no middlebox drops an idle connection.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// More than can ever wait, and less than the size at which tokio's channels panic.
const MAX_BUFFER: usize = 1 << 28;

/// A connection, which ends on drop.
pub(crate) struct Connection {
    pub(crate) sender: Sender,
    pub(crate) task: ConnectHandle,
}

/// The sending half of a connection; cheap to clone.
#[derive(Clone)]
pub(crate) struct Sender(pub(crate) Client);

/// Why there was no response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Silence {
    TimedOut,
    /// The connection ended; the server's error, if that was the reason.
    Lost(Option<String>),
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Complaint {
    /// The server answered, and requires other credentials or a user with more rights.
    Refused(String),
    Unreachable(String),
}

impl Connection {
    /// Starts to connect. Commands that are sent meanwhile wait, within their timeout.
    pub(crate) fn open(settings: &Settings, address: &Address) -> Self {
        Self::open_with(
            settings,
            address,
            PerformanceConfig::default(),
            limits(settings),
        )
    }

    pub(crate) fn open_with(
        settings: &Settings,
        address: &Address,
        performance: PerformanceConfig,
        limits: ConnectionConfig,
    ) -> Self {
        let client = Client::new(
            config(&settings.target.config, address),
            Some(PerformanceConfig {
                default_command_timeout: settings.command_timeout,
                ..performance
            }),
            Some(limits),
            // It does not reconnect.
            None,
        );
        let task = client.connect();
        Self {
            sender: Sender(client),
            task,
        }
    }

    pub(crate) fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// Waits until the server has answered a PING. Must not be called again after it failed.
    pub(crate) async fn answers(&mut self, within: Duration) -> Result<(), Complaint> {
        let ping = std::pin::pin!(self.sender.ask("PING", Vec::new(), within));
        match select(ping, &mut self.task).await {
            Either::Left((Ok(answer), _)) => match server_error(&answer) {
                None => Ok(()),
                Some(error) => Err(Complaint::said(error)),
            },
            Either::Left((Err(_), _)) => Err(Complaint::Unreachable(format!(
                "no answer within {within:?}"
            ))),
            Either::Right((ended, _)) => Err(Complaint::of(ended.ok())),
        }
    }

    /// Waits until the connection is lost. Only for a connection that has answered.
    pub(crate) async fn lost(&mut self) {
        // The reason does not matter: another connection will be opened, and will report if that fails.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The task holds the socket, and fred's client does not end it. Waiting calls fail at once.
        self.task.abort();
    }
}

impl Sender {
    /// Sends a command and waits for its response, which may be an error.
    pub(crate) async fn ask(
        &self,
        command: &'static str,
        args: Vec<Value>,
        within: Duration,
    ) -> Result<Resp3Frame, Silence> {
        let options = Options {
            // To fred, zero is no limit.
            timeout: Some(within.max(Duration::from_millis(1))),
            ..Options::default()
        };
        let command = CustomCommand::new_static(command, ClusterHash::FirstKey, false);
        let asked = self
            .0
            .with_options(&options)
            .custom_raw(command, args)
            .await;
        asked.map_err(|error| match error.kind() {
            ErrorKind::Timeout => Silence::TimedOut,
            // fred ends a connection after a CLUSTERDOWN, and returns that error to all waiting calls, whether it was
            // theirs or not.
            ErrorKind::Cluster => Silence::Lost(Some(error.details().to_owned())),
            _ => Silence::Lost(None),
        })
    }

    /// Sends a command for a slot that is being moved to this server.
    pub(crate) async fn ask_moving(
        &self,
        command: &'static str,
        args: Vec<Value>,
        within: Duration,
    ) -> Result<Resp3Frame, Silence> {
        // Both are sent before either is awaited. If another command comes between them, this one is answered with a MOVED
        // and tried again.
        let asking = self.ask("ASKING", Vec::new(), within);
        join(asking, self.ask(command, args, within)).await.1
    }
}

impl Complaint {
    pub(crate) fn of(ended: Option<Result<(), Error>>) -> Self {
        match ended {
            Some(Err(error)) => Self::said(plain(error.details())),
            Some(Ok(())) | None => Self::Unreachable("the connection ended".to_owned()),
        }
    }

    /// By the text, because fred reports a missing right as a general error.
    pub(crate) fn said(error: &str) -> Self {
        match error.split(' ').next() {
            Some("NOAUTH" | "NOPERM" | "WRONGPASS") => Self::Refused(error.to_owned()),
            _ => Self::Unreachable(error.to_owned()),
        }
    }
}

/// The text of the server's error.
pub(crate) fn server_error(answer: &Resp3Frame) -> Option<&str> {
    match answer {
        Resp3Frame::SimpleError { data, .. } => Some(data),
        Resp3Frame::BlobError { data, .. } => Some(str::from_utf8(data).unwrap_or("ERR")),
        _ => None,
    }
}

fn config(target: &Config, address: &Address) -> Config {
    Config {
        server: ServerConfig::Centralized {
            server: Server::new(address.host.as_str(), address.port),
        },
        version: RespVersion::RESP3,
        // The task ends with an error if it cannot connect.
        fail_fast: true,
        ..target.clone()
    }
}

pub(crate) fn limits(settings: &Settings) -> ConnectionConfig {
    ConnectionConfig {
        connection_timeout: settings.connect_timeout,
        internal_command_timeout: settings.connect_timeout,
        // A script that charges must not be sent again because its answer was lost.
        max_command_attempts: 1,
        // The gate decides what an error of the server means.
        reconnect_errors: Vec::new(),
        // Waiting calls are counted before they reach the client. This leaves room for commands whose calls have timed out.
        max_command_buffer_len: settings.max_pending.saturating_mul(2).min(MAX_BUFFER),
        tcp: TcpConfig {
            nodelay: Some(true),
            keepalive: Some(TcpKeepalive::new().with_time(KEEPALIVE)),
            ..TcpConfig::default()
        },
        ..ConnectionConfig::default()
    }
}

/// The readable part of the debug text of an I/O error, which is all that fred stores of it.
fn plain(details: &str) -> &str {
    ["message: \"", "error: \""]
        .iter()
        .find_map(|begin| details.split_once(begin))
        .and_then(|(_, rest)| rest.split_once('"'))
        .map_or(details, |(text, _)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_io_error_the_message_is_kept() {
        let refused = r#"Os { code: 111, kind: ConnectionRefused, message: "Connection refused" }"#;
        assert_eq!(plain(refused), "Connection refused");
        let lookup = r#"Custom { kind: Uncategorized, error: "failed to lookup address" }"#;
        assert_eq!(plain(lookup), "failed to lookup address");
        assert_eq!(plain("Request timed out."), "Request timed out.");
    }
}
