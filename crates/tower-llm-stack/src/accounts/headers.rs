//! What of a caller's request does not reach a provider.

use http::{
    HeaderMap, HeaderName, Request, Uri,
    header::{self, AUTHORIZATION},
    uri::PathAndQuery,
};
use percent_encoding::percent_decode_str;

/// Headers that belong to one connection, by RFC 9110 section 7.6.1 and long habit.
const HOP_BY_HOP: [HeaderName; 10] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// Headers in which clients of the dialects send credentials. A browser sends cookies by itself, and they are for the server
/// that it talks to, not for a provider behind it.
const CREDENTIALS: [HeaderName; 5] = [
    AUTHORIZATION,
    header::COOKIE,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-goog-api-key"),
];

/// Headers by which a request chooses an account, a tenant or a payer, or by which some servers take it for one with another
/// method. Azure takes `ocp-apim-subscription-key` as a credential.
const CHOICES: [HeaderName; 12] = [
    HeaderName::from_static("openai-organization"),
    HeaderName::from_static("openai-project"),
    HeaderName::from_static("anthropic-workspace-id"),
    HeaderName::from_static("anthropic-user-profile-id"),
    HeaderName::from_static("x-goog-user-project"),
    HeaderName::from_static("x-goog-quota-user"),
    HeaderName::from_static("ocp-apim-subscription-key"),
    HeaderName::from_static("ocp-apim-subscription-region"),
    HeaderName::from_static("x-hf-bill-to"),
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-http-method"),
    HeaderName::from_static("x-method-override"),
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

/// Removes what belongs to the connection that the message came on, and what its `connection` names.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|names| names.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Removes every credential of the caller's, and what would choose another account than that of the credential that takes
/// its place: with two credentials, some providers take the caller's.
pub fn remove_choices<B>(request: &mut Request<B>) {
    for name in CREDENTIALS.iter().chain(&CHOICES) {
        request.headers_mut().remove(name);
    }
    without_query(request, |name| {
        QUERY
            .iter()
            .any(|choice| name.eq_ignore_ascii_case(choice.as_bytes()))
    });
}

/// Removes the credentials of the caller's that this provider does not read, and which are for another one.
pub(super) fn keep_credential<B>(request: &mut Request<B>, own: &HeaderName, reads_query: bool) {
    for name in &CREDENTIALS {
        if name != own && name != AUTHORIZATION {
            request.headers_mut().remove(name);
        }
    }
    if !reads_query {
        without_query(request, |name| name == b"key");
    }
}

/// Removes the query's pairs whose decoded name, without a `$`, `removes` picks.
fn without_query<B>(request: &mut Request<B>, removes: impl Fn(&[u8]) -> bool) {
    if let Some(uri) = uri_without(request.uri(), removes) {
        *request.uri_mut() = uri;
    }
}

fn uri_without(uri: &Uri, removes: impl Fn(&[u8]) -> bool) -> Option<Uri> {
    let query = uri.query()?;
    let is_kept = |pair: &&str| {
        let name = pair.split('=').next().unwrap_or_default();
        let name: Vec<u8> = percent_decode_str(name).collect();
        !removes(name.strip_prefix(b"$").unwrap_or(&name))
    };
    let kept: Vec<&str> = query.split('&').filter(is_kept).collect();
    if kept.len() == query.split('&').count() {
        return None;
    }
    let path = match kept.is_empty() {
        true => uri.path().to_owned(),
        false => format!("{}?{}", uri.path(), kept.join("&")),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(path).ok()?);
    Uri::from_parts(parts).ok()
}
