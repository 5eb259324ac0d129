//! Providers, and the way to them.

use super::values::Secret;

/// Addresses and keys of the providers, under the names that the providers' own clients use.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Upstreams")]
pub struct UpstreamSettings {
    /// Base URL of OpenAI, or of a server that speaks its dialect; usually ends in `/v1` [default:
    /// `https://api.openai.com/v1`].
    #[arg(long, env = "OPENAI_BASE_URL", value_name = "URL")]
    pub openai_base_url: Option<String>,
    /// Sent to OpenAI instead of the caller's key. Prefer the variable.
    #[arg(
        long,
        env = "OPENAI_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    pub openai_api_key: Option<Secret>,

    /// Base URL of Anthropic [default: `https://api.anthropic.com`].
    #[arg(long, env = "ANTHROPIC_BASE_URL", value_name = "URL")]
    pub anthropic_base_url: Option<String>,
    /// Sent to Anthropic instead of the caller's key. Prefer the variable.
    #[arg(
        long,
        env = "ANTHROPIC_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    pub anthropic_api_key: Option<Secret>,

    /// Base URL of Gemini [default: `https://generativelanguage.googleapis.com`].
    #[arg(long, env = "GOOGLE_GEMINI_BASE_URL", value_name = "URL")]
    pub gemini_base_url: Option<String>,
    /// Sent to Gemini instead of the caller's key. Prefer the variable.
    #[arg(
        long,
        env = "GEMINI_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    pub gemini_api_key: Option<Secret>,

    /// Endpoint of Azure OpenAI; it has no default.
    #[arg(long, env = "AZURE_OPENAI_ENDPOINT", value_name = "URL")]
    pub azure_endpoint: Option<String>,
    /// Sent to Azure OpenAI instead of the caller's key. Prefer the variable.
    #[arg(
        long,
        env = "AZURE_OPENAI_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    pub azure_api_key: Option<Secret>,
}

impl UpstreamSettings {
    /// Whether nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let urls = [
            &self.openai_base_url,
            &self.anthropic_base_url,
            &self.gemini_base_url,
            &self.azure_endpoint,
        ];
        let keys = [
            &self.openai_api_key,
            &self.anthropic_api_key,
            &self.gemini_api_key,
            &self.azure_api_key,
        ];
        urls.into_iter()
            .flatten()
            .map(String::as_str)
            .chain(keys.into_iter().flatten().map(Secret::expose))
            .all(str::is_empty)
    }
}

/// Proxies on the way to the providers. The variables are read in lower case too.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Proxy")]
pub struct ProxySettings {
    /// Proxy for https upstreams, by CONNECT; its URL may contain a user and password.
    #[arg(
        long = "https-proxy",
        env = "HTTPS_PROXY",
        value_name = "URL",
        hide_env_values = true
    )]
    pub https: Option<Secret>,
    /// Proxy for http upstreams.
    #[arg(
        long = "http-proxy",
        env = "HTTP_PROXY",
        value_name = "URL",
        hide_env_values = true
    )]
    pub http: Option<Secret>,
    /// Proxy for upstreams that neither of the two above covers.
    #[arg(
        long = "all-proxy",
        env = "ALL_PROXY",
        value_name = "URL",
        hide_env_values = true
    )]
    pub all: Option<Secret>,
    /// Hosts that are reached without a proxy: domains with their subdomains, IP addresses, networks (`10.0.0.0/8`), or `*`.
    #[arg(long = "no-proxy", env = "NO_PROXY", value_name = "HOST,..")]
    pub no: Option<String>,
}
