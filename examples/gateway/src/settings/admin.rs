//! Administration.

use std::net::SocketAddr;

use super::Secret;

/// Administration of a running gateway, on a listener of its own: `/admin/cache/stats` and others. Off without a token.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Administration")]
pub struct AdminSettings {
    /// Token for the endpoints under `/admin/`; they are off without one. At least 16 characters, such as the output of
    /// `openssl rand -hex 32`. Send it as `authorization: Bearer TOKEN`. Prefer the variable.
    #[arg(
        id = "admin_token",
        long = "admin-token",
        env = "GATEWAY_ADMIN_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    pub token: Option<Secret>,
    /// Address of the endpoints under `/admin/`; port 0 picks a free port. It should not be reachable from outside, because
    /// the token is sent in plain text [default: 127.0.0.1:8081].
    #[arg(
        id = "admin_listen",
        long = "admin-listen",
        env = "GATEWAY_ADMIN_LISTEN",
        value_name = "ADDR"
    )]
    pub listen: Option<SocketAddr>,
}
