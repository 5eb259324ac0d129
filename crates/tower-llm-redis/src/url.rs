//! Parses URLs without ever showing them.

use std::fmt;

use fred::types::config::{Config, Server};
use tower_llm_core::ConfigError;

/// Where to connect, and with which credentials.
///
/// Not `Debug`: it holds the password.
pub(crate) struct Target {
    /// Credentials, database and TLS; the server is set for each connection.
    pub(crate) config: Config,
    pub(crate) shape: Shape,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Single(Address),
    /// Some of the nodes, from which the others are found.
    Cluster(Vec<Address>),
}

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Target {
    pub(crate) fn parse(url: &str) -> Result<Self, ConfigError> {
        let scheme = Scheme::parse(url)?;
        // Its errors quote the URL with the password, so their text is not passed on.
        let invalid = |_| error("it must look like redis://user:password@host:6379/0");
        let config = if scheme.cluster {
            Config::from_url_clustered(url)
        } else {
            Config::from_url_centralized(url)
        };
        let mut config = config.map_err(invalid)?;
        // Every connection starts in database 0: selecting it would need a right that is otherwise unnecessary.
        config.database = config.database.filter(|&database| database != 0);
        let addresses: Vec<_> = config.server.hosts().iter().map(Address::from).collect();
        let shape = match (scheme.cluster, addresses.first()) {
            (false, Some(address)) => Shape::Single(address.clone()),
            (true, Some(_)) => Shape::Cluster(addresses),
            (_, None) => return Err(error("it must name a host")),
        };
        if scheme.tls {
            tls::secure(&mut config)?;
        }
        Ok(Self { config, shape })
    }
}

impl Address {
    /// An address in a reply of this server; a missing host is its own.
    pub(crate) fn beside(&self, host: &str, port: u16) -> Self {
        let host = if host.is_empty() { &self.host } else { host };
        Self {
            host: host.to_owned(),
            port,
        }
    }
}

impl From<&Server> for Address {
    fn from(server: &Server) -> Self {
        Self {
            host: server.host.to_string(),
            port: server.port,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[derive(Debug)]
struct Scheme {
    cluster: bool,
    tls: bool,
}

impl Scheme {
    fn parse(url: &str) -> Result<Self, ConfigError> {
        let (scheme, _) = url.split_once("://").unwrap_or_default();
        let (base, cluster) = match scheme.strip_suffix("-cluster") {
            Some(base) => (base, true),
            None => (scheme, false),
        };
        match base {
            "redis" | "valkey" => Ok(Self {
                cluster,
                tls: false,
            }),
            "rediss" | "valkeys" => Ok(Self { cluster, tls: true }),
            _ => Err(error(
                "it must begin with redis://, rediss://, redis-cluster:// or rediss-cluster://",
            )),
        }
    }
}

/// The value is never the URL: any part of a malformed one may be the password.
fn error(reason: &'static str) -> ConfigError {
    ConfigError::new("url", format_args!("not shown"), reason)
}

#[cfg(not(feature = "rustls"))]
mod tls {
    use super::{Config, ConfigError, error};

    pub(super) fn secure(_: &mut Config) -> Result<(), ConfigError> {
        // fred would accept the scheme and connect without TLS.
        Err(error("TLS needs the feature `rustls`"))
    }
}

#[cfg(feature = "rustls")]
mod tls {
    use std::sync::Arc;

    use fred::{
        rustls::{ClientConfig, RootCertStore, crypto::ring},
        rustls_native_certs::load_native_certs,
        types::config::TlsConnector,
    };

    use super::{Config, ConfigError, error};

    /// Uses ring for TLS, whatever the process's default provider: rustls panics if there is no unique one.
    pub(super) fn secure(config: &mut Config) -> Result<(), ConfigError> {
        let mut roots = RootCertStore::empty();
        // A certificate that cannot be parsed is skipped.
        roots.add_parsable_certificates(load_native_certs().certs);
        if roots.is_empty() {
            return Err(error(
                "TLS needs certificates to trust, and the system has none",
            ));
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|_| error("TLS can't be set up"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.tls = Some(TlsConnector::from(tls).into());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(url: &str) -> Shape {
        Target::parse(url).map(|target| target.shape).unwrap()
    }

    fn address(host: &str, port: u16) -> Address {
        Address {
            host: host.into(),
            port,
        }
    }

    #[test]
    fn a_server_has_a_default_port_and_may_have_credentials_and_a_database() {
        assert_eq!(
            shape("redis://store"),
            Shape::Single(address("store", 6379))
        );
        let Ok(Target { config, shape }) = Target::parse("valkey://me:p%40ss@store:1234/7") else {
            panic!("it can be read");
        };
        assert_eq!(shape, Shape::Single(address("store", 1234)));
        assert_eq!(config.username.as_deref(), Some("me"));
        assert_eq!(config.password.as_deref(), Some("p@ss"));
        assert_eq!(config.database, Some(7));
    }

    #[test]
    fn the_first_database_is_not_selected() {
        for url in ["redis://store", "redis://store/", "redis://store/0"] {
            let target = Target::parse(url).map(|target| target.config.database);
            assert_eq!(target.unwrap(), None, "{url}");
        }
    }

    #[test]
    fn a_cluster_has_as_many_nodes_as_are_named() {
        let Shape::Cluster(mut nodes) = shape("redis-cluster://a:7000?node=b:7001&node=c:7002")
        else {
            panic!("it is a cluster");
        };
        nodes.sort_by_key(|node| node.port);
        let expected = [address("a", 7000), address("b", 7001), address("c", 7002)];
        assert_eq!(nodes, expected);
    }

    #[test]
    fn an_invalid_url_is_refused_without_showing_it() {
        for url in [
            "",
            "hunter2",
            "hunter2://host",
            "user:hunter2@host:6379",
            "redis://:hunter2",
            "redis://user:hunter2@host:notaport",
            "redis://user:hunter2@",
            "redis://user:hunter2@host/notadatabase",
            "redis-cluster://user:hunter2@host?node=hunter2",
            "redis-sentinel://user:hunter2@host",
            "redis+unix:///hunter2",
        ] {
            let error = Target::parse(url)
                .err()
                .unwrap_or_else(|| panic!("{url} was taken"));
            assert_eq!(error.field(), "url");
            assert!(
                !format!("{error} {error:?}").contains("hunter2"),
                "{error:?}"
            );
        }
    }

    #[cfg(not(feature = "rustls"))]
    #[test]
    fn tls_is_refused_rather_than_left_out() {
        let error = Target::parse("rediss://host").err().unwrap();
        assert!(error.to_string().contains("`rustls`"), "{error}");
    }

    #[cfg(feature = "rustls")]
    #[test]
    fn tls_is_set_up_without_a_provider_of_the_process() {
        for (url, secured) in [
            ("rediss://host", true),
            ("rediss-cluster://host:1", true),
            ("redis://host", false),
        ] {
            // Without system certificates, as in some containers, it reports that instead.
            match Target::parse(url) {
                Ok(target) => assert_eq!(target.config.tls.is_some(), secured),
                Err(error) => assert!(error.to_string().contains("certificates"), "{error}"),
            }
        }
    }
}
