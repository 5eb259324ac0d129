//! The providers that the gateway knows.

use http::{HeaderName, header::AUTHORIZATION};
use tower_llm_stack::Provider;

use crate::problem::Problem;

/// A provider as its clients know it: the settings' names, the official address, the credential's form.
pub(crate) struct Known {
    pub(crate) name: &'static str,
    /// The provider's name in the metrics.
    pub(crate) label: &'static str,
    pub(crate) provider: Provider,
    pub(crate) url: Setting,
    pub(crate) key: Setting,
    pub(crate) official: Option<&'static str>,
    pub(crate) header: HeaderName,
    pub(crate) scheme: &'static str,
    pub(crate) no_credential: Problem,
}

/// The two names of a setting.
pub(crate) struct Setting {
    pub(crate) flag: &'static str,
    pub(crate) variable: &'static str,
}

macro_rules! no_credential {
    ($variable:literal, $header:literal) => {
        Problem::no_credential(concat!(
            "This gateway has no credential for this provider: its operator must set ",
            $variable,
            ", to any value if the server needs none. A request may also bring its caller's own in `",
            $header,
            "`, with the gateway key in another header."
        ))
    };
}

pub(crate) const OPENAI: Known = Known {
    name: "openai",
    label: "openai",
    provider: Provider::OPENAI,
    url: Setting {
        flag: "--openai-base-url",
        variable: "OPENAI_BASE_URL",
    },
    key: Setting {
        flag: "--openai-api-key",
        variable: "OPENAI_API_KEY",
    },
    official: Some("https://api.openai.com/v1"),
    header: AUTHORIZATION,
    scheme: "Bearer ",
    no_credential: no_credential!("OPENAI_API_KEY", "authorization"),
};

pub(crate) const ANTHROPIC: Known = Known {
    name: "anthropic",
    label: "anthropic",
    provider: Provider::ANTHROPIC,
    url: Setting {
        flag: "--anthropic-base-url",
        variable: "ANTHROPIC_BASE_URL",
    },
    key: Setting {
        flag: "--anthropic-api-key",
        variable: "ANTHROPIC_API_KEY",
    },
    official: Some("https://api.anthropic.com"),
    header: HeaderName::from_static("x-api-key"),
    scheme: "",
    no_credential: no_credential!("ANTHROPIC_API_KEY", "x-api-key"),
};

pub(crate) const GEMINI: Known = Known {
    name: "gemini",
    label: "gcp.gemini",
    provider: Provider::GEMINI,
    url: Setting {
        flag: "--gemini-base-url",
        variable: "GOOGLE_GEMINI_BASE_URL",
    },
    key: Setting {
        flag: "--gemini-api-key",
        variable: "GEMINI_API_KEY",
    },
    official: Some("https://generativelanguage.googleapis.com"),
    header: HeaderName::from_static("x-goog-api-key"),
    scheme: "",
    no_credential: no_credential!("GEMINI_API_KEY", "x-goog-api-key"),
};

pub(crate) const AZURE: Known = Known {
    name: "azure",
    label: "azure.ai.openai",
    provider: Provider::AZURE_OPENAI,
    url: Setting {
        flag: "--azure-endpoint",
        variable: "AZURE_OPENAI_ENDPOINT",
    },
    key: Setting {
        flag: "--azure-api-key",
        variable: "AZURE_OPENAI_API_KEY",
    },
    official: None,
    header: HeaderName::from_static("api-key"),
    scheme: "",
    no_credential: no_credential!("AZURE_OPENAI_API_KEY", "api-key"),
};
