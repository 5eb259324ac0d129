//! Accounts of a configuration.

use bytes::Bytes;
use http_body::Body;
use tower_layer::Layer;
use tower_llm_core::{BoxError, ConfigError, Dialect};

use super::{
    Account, AccountLayer, AccountService, Client, ClientCredentials, Clients, Credential,
    HealthCheck, PoolBounds, Tokens,
};
use crate::{
    Secret,
    adapters::base_url::BaseUrl,
    config::{ClientAuth, HealthConfig, PoolConfig, Problem, SettingError, TargetConfig},
};

impl<B> Clients<B>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    /// Makes the account of a target, around the client for its proxy and pool. Its tokens are fetched with the same client.
    ///
    /// `secret` is the target's own of [`Config::secrets`](crate::config::Config::secrets).
    ///
    /// # Errors
    ///
    /// [`SettingError`] if a setting cannot be used. A [valid](crate::config::Config::validate) configuration with its secrets
    /// has none.
    pub fn account(
        &self,
        name: &str,
        target: &TargetConfig,
        secret: Option<&Secret>,
    ) -> Result<AccountService<Client<B>>, SettingError> {
        let at = |setting: &str| format!("targets.{name}.{setting}");
        let invalid = |setting: &str, error: BoxError| {
            let reason = error.to_string();
            SettingError::new(at(setting), Problem::Invalid { reason })
        };
        let missing = |setting: &str| SettingError::new(at(setting), Problem::Missing);
        let client = self
            .client(target.proxy.as_ref(), target.pool.into())
            .map_err(|error| invalid("proxy", error.into()))?;
        let dialect = target.dialect().ok_or_else(|| missing("dialect"))?;
        let base = target.base_url().ok_or_else(|| missing("base_url"))?;
        let base = BaseUrl::new(base).map_err(|error| invalid("base_url", error.into()))?;
        let credential = match &target.oauth {
            Some(oauth) => {
                let secret = secret.ok_or_else(|| missing("oauth.client_secret_env"))?;
                let credentials =
                    ClientCredentials::new(&oauth.token_url, &*oauth.client_id, secret.clone())
                        .map_err(|error| invalid("oauth.token_url", error.into()))?;
                let credentials = match oauth.auth {
                    ClientAuth::Basic => credentials,
                    ClientAuth::Body => credentials.in_body(),
                };
                let credentials = match &oauth.scope {
                    Some(scope) => credentials.scope(&**scope),
                    None => credentials,
                };
                Credential::tokens(Tokens::client_credentials(client.clone(), credentials))
            }
            None => key(target, dialect, secret).map_err(|error| invalid("api_key_env", error))?,
        };
        let account = Account::new(name, target.provider(), base)
            .dialect(dialect)
            .credential(credential);
        let models = target.models.iter();
        let account = models.fold(account, |account, (callers, own)| {
            account.model(&**callers, &**own)
        });
        Ok(AccountLayer::new(account).layer(client))
    }
}

fn key(
    target: &TargetConfig,
    dialect: Dialect,
    secret: Option<&Secret>,
) -> Result<Credential, BoxError> {
    match secret {
        Some(secret) => Ok(Credential::key(&target.provider(), dialect, secret)?),
        // The caller's credential must not go where the account's was meant to.
        None if target.api_key_env.is_some() || target.api_key_file.is_some() => {
            Err("the secret was not read".into())
        }
        None => Ok(Credential::caller()),
    }
}

impl From<PoolConfig> for PoolBounds {
    fn from(pool: PoolConfig) -> Self {
        Self::default()
            .max_idle_per_host(pool.max_idle_per_host)
            .idle_timeout(pool.idle_timeout)
    }
}

impl TryFrom<&HealthConfig> for HealthCheck {
    type Error = ConfigError;

    /// A check by path, or else by model. A [valid](crate::config::Config::validate) configuration has one of them.
    fn try_from(health: &HealthConfig) -> Result<Self, ConfigError> {
        let check = match (&health.path, &health.model) {
            (Some(path), _) => Self::get(path)?,
            (None, Some(model)) => Self::call(&**model),
            (None, None) => return Err(ConfigError::new("path", (), "it must be set, or `model`")),
        };
        check.interval(health.interval)
    }
}
