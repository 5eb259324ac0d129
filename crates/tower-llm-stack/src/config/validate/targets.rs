//! Checks targets.

use http::Uri;

use tower_llm_bulkhead::BulkheadLayer;
use tower_llm_ratelimit::RateLimitLayer;
use tower_llm_timeout::TimeoutLayer;

use super::Problems;
#[cfg(feature = "accounts")]
use crate::accounts::{ClientCredentials, HealthCheck, Proxies};
use crate::{
    adapters::base_url::BaseUrl,
    config::{
        OAuthConfig, Problem, TargetConfig, parse,
        target::{HealthConfig, PROVIDERS, PoolConfig},
    },
};

impl Problems {
    pub(super) fn target(&mut self, table: &str, name: &str, target: &TargetConfig) {
        self.not_empty(table, "", Some(name));
        if ["caller", "callers"].contains(&name) {
            self.invalid(table, "", "is the name of the callers' own limits");
        }
        self.provider(table, target);
        self.credentials(table, target);
        if let Some(proxy) = &target.proxy
            && !is_proxy(proxy.expose())
        {
            self.invalid(
                table,
                "proxy",
                "is not the URL of an http, https or socks5 proxy (the value is not shown)",
            );
        }
        for (setting, limit) in [
            ("rpm", target.rpm),
            ("tpm", target.tpm),
            ("itpm", target.itpm),
            ("otpm", target.otpm),
            (
                "concurrency",
                target
                    .concurrency
                    .map(|calls| calls.try_into().unwrap_or(u64::MAX)),
            ),
        ] {
            self.not_zero(table, setting, limit);
            let most = match setting {
                "concurrency" => (u64::from(u32::MAX), "at most 4294967295"),
                _ => (1 << 53, "at most 2^53"),
            };
            self.at_most(table, setting, limit, most);
        }
        let weightless = Problem::OutOfRange {
            value: "0".to_owned(),
            allowed: "at least 1",
        };
        self.add_if(target.weight == 0, table, "weight", weightless);
        for (setting, price) in target
            .price
            .iter()
            .flat_map(|price| [("price.input", price.input), ("price.output", price.output)])
        {
            let is_allowed = price.is_finite() && price >= 0.0;
            self.number(table, setting, price, is_allowed, "a number from 0");
        }
        let timeouts = &target.timeouts;
        for (setting, timeout) in [
            ("timeouts.total", Some(timeouts.total)),
            ("timeouts.total_streamed", Some(timeouts.total_streamed)),
            ("timeouts.first_token", timeouts.first_token),
            ("timeouts.idle", timeouts.idle),
        ] {
            self.duration(table, setting, timeout);
        }
        let longest = timeouts.total.max(timeouts.total_streamed);
        for (setting, timeout) in [
            ("timeouts.first_token", timeouts.first_token),
            ("timeouts.idle", timeouts.idle),
        ] {
            let problem = Problem::OutOfRange {
                value: format!("{:?}", timeout.unwrap_or_default()),
                allowed: "at most the longer of `total` and `total_streamed`",
            };
            let is_wrong = timeout.is_some_and(|timeout| timeout > longest);
            self.add_if(is_wrong, table, setting, problem);
        }
        self.pool(table, &target.pool);
        for (from, to) in &target.models {
            self.not_empty(table, "models", Some(from));
            self.not_empty(table, &format!("models.{from}"), Some(to));
        }
        if let Some(health) = &target.health {
            self.health(table, health);
        }
        self.target_layers(table, target);
    }

    /// Builds what the target's own layers are made of.
    fn target_layers(&mut self, table: &str, target: &TargetConfig) {
        self.built(table, "timeouts", TimeoutLayer::try_from(&target.timeouts));
        let limits = RateLimitLayer::for_providers().limits(target.limits());
        self.built(table, "rpm", limits.build());
        if let Some(concurrency) = target.concurrency {
            self.built(table, "concurrency", BulkheadLayer::new(concurrency));
        }
        #[cfg(feature = "accounts")]
        {
            let proxy = target.proxy.as_ref().map(Proxies::all).transpose();
            self.built(table, "proxy", proxy);
            let health = target.health.as_ref().map(HealthCheck::try_from);
            self.built(table, "health", health.transpose());
            if let Some(oauth) = &target.oauth {
                let secret = crate::Secret::new("-");
                let client = ClientCredentials::new(&oauth.token_url, &*oauth.client_id, secret);
                self.built(table, "oauth.token_url", client);
            }
        }
    }

    fn provider(&mut self, table: &str, target: &TargetConfig) {
        if target.provider.is_empty() {
            return self.add(table, "provider", Problem::Missing);
        }
        if target.dialect().is_none() {
            // A provider of another name is allowed, so a misspelt one is recognized only by its lack of a dialect.
            match parse::nearest(&target.provider, PROVIDERS) {
                Some(nearest) => {
                    let value = target.provider.clone();
                    let nearest = Some(nearest);
                    self.add(table, "provider", Problem::UnknownName { value, nearest });
                }
                None => self.add(table, "dialect", Problem::Missing),
            }
        }
        match target.base_url() {
            None => self.add(table, "base_url", Problem::Missing),
            Some(url) => {
                if let Err(error) = BaseUrl::new(url) {
                    self.invalid(table, "base_url", error);
                }
            }
        }
    }

    fn credentials(&mut self, table: &str, target: &TargetConfig) {
        let (env, file) = (&target.api_key_env, &target.api_key_file);
        if env.is_some() && file.is_some() {
            let with = "api_key_env";
            self.add(table, "api_key_file", Problem::Conflict { with });
        }
        self.not_empty(table, "api_key_env", env.as_deref());
        let Some(oauth) = &target.oauth else { return };
        if env.is_some() || file.is_some() {
            let with = if env.is_some() {
                "api_key_env"
            } else {
                "api_key_file"
            };
            self.add(table, "oauth", Problem::Conflict { with });
        }
        self.oauth(&format!("{table}.oauth"), oauth);
    }

    fn oauth(&mut self, table: &str, oauth: &OAuthConfig) {
        let missing = |value: &str| value.trim().is_empty();
        self.add_if(
            missing(&oauth.client_id),
            table,
            "client_id",
            Problem::Missing,
        );
        if missing(&oauth.token_url) {
            self.add(table, "token_url", Problem::Missing);
        } else if let Err(error) = token_url(&oauth.token_url) {
            self.invalid(table, "token_url", error);
        }
        match (&oauth.client_secret_env, &oauth.client_secret_file) {
            (None, None) => self.add(table, "client_secret_env", Problem::Missing),
            (Some(_), Some(_)) => {
                let with = "client_secret_env";
                self.add(table, "client_secret_file", Problem::Conflict { with });
            }
            (env, _) => self.not_empty(table, "client_secret_env", env.as_deref()),
        }
        self.not_empty(table, "scope", oauth.scope.as_deref());
    }

    fn pool(&mut self, table: &str, pool: &PoolConfig) {
        let idle = u64::try_from(pool.max_idle_per_host).unwrap_or(u64::MAX);
        self.not_zero(table, "pool.max_idle_per_host", Some(idle));
        self.duration(table, "pool.idle_timeout", Some(pool.idle_timeout));
    }

    fn health(&mut self, table: &str, health: &HealthConfig) {
        self.duration(table, "health.interval", Some(health.interval));
        match (&health.path, &health.model) {
            (None, None) => self.add(table, "health.path", Problem::Missing),
            (Some(_), Some(_)) => {
                let with = "health.path";
                self.add(table, "health.model", Problem::Conflict { with });
            }
            (Some(path), None) if !path.starts_with('/') => {
                self.invalid(table, "health.path", "must start with a slash");
            }
            (_, model) => self.not_empty(table, "health.model", model.as_deref()),
        }
    }
}

/// Whether `url` is an address of a proxy.
fn is_proxy(url: &str) -> bool {
    let scheme_and_host = url.parse::<Uri>().ok().and_then(|url| {
        let host = url.host().filter(|host| !host.is_empty())?;
        Some((url.scheme_str()?.to_owned(), host.to_owned()))
    });
    scheme_and_host.is_some_and(|(scheme, _)| {
        matches!(scheme.as_str(), "http" | "https" | "socks5" | "socks5h")
    })
}

fn token_url(url: &str) -> Result<(), String> {
    let base = url.split('?').next().unwrap_or_default();
    BaseUrl::new(base).map(drop).map_err(|error| {
        let what = error.to_string();
        what.replacen("base url", "token url", 1)
    })
}
