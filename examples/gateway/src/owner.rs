//! What a caller must not choose where the owner's credential is sent.

use http::{HeaderMap, HeaderName, Uri};

use crate::access::{decoded, without_query};

/// Headers by which a request chooses an account, a tenant or who is billed, at the providers whose dialects the gateway
/// speaks and at servers that speak them too. Azure takes `ocp-apim-subscription-key` for a credential.
const ACCOUNT: [HeaderName; 9] = [
    HeaderName::from_static("openai-organization"),
    HeaderName::from_static("openai-project"),
    HeaderName::from_static("anthropic-workspace-id"),
    HeaderName::from_static("anthropic-user-profile-id"),
    HeaderName::from_static("x-goog-user-project"),
    HeaderName::from_static("x-goog-quota-user"),
    HeaderName::from_static("ocp-apim-subscription-key"),
    HeaderName::from_static("ocp-apim-subscription-region"),
    HeaderName::from_static("x-hf-bill-to"),
];

/// The same, and credentials, in a query. Google's may have a `$` before them.
const QUERY: [&str; 6] = [
    "key",
    "access_token",
    "oauth_token",
    "userProject",
    "quotaUser",
    "subscription-key",
];

/// Headers by which some servers take a request for one with another method.
const METHOD_OVERRIDES: [HeaderName; 3] = [
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
];

/// Removes what would choose an account other than that of the owner's credential, or a method other than the one that was
/// checked.
pub(crate) fn remove_choices(headers: &mut HeaderMap) {
    for name in ACCOUNT.iter().chain(&METHOD_OVERRIDES) {
        headers.remove(name);
    }
}

/// The address without the choices in its query; `None` if there are none.
pub(crate) fn without_choices(uri: &Uri) -> Option<Uri> {
    without_query(uri, |name, _| {
        let name = decoded(name);
        let name = name.strip_prefix(b"$").unwrap_or(&name);
        QUERY
            .iter()
            .any(|choice| name.eq_ignore_ascii_case(choice.as_bytes()))
    })
}
