//! OAuth client credentials (RFC 6749, section 4.4).

use std::{sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{
    HeaderValue, Method, Request, Response, Uri,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE},
};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tower_llm_core::{BoxError, ConfigError, Oneshot, RequestBody};
use tower_service::Service;

use super::{Token, TokenError};
use crate::Secret;

/// Longest answer of an authorization server that is read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// What a form's value cannot have unescaped. A space may be `%20` too.
const FORM: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'*');

/// OAuth client credentials, and where they are exchanged for tokens. `Debug` does not show the secret.
#[derive(Clone, Debug)]
pub struct ClientCredentials {
    token_url: Uri,
    id: Box<str>,
    secret: Secret,
    scope: Option<Box<str>>,
    place: Place,
}

/// Where the id and the secret stand.
#[derive(Clone, Copy, Debug)]
enum Place {
    Header,
    Body,
}

impl ClientCredentials {
    /// Creates client credentials. The id and the secret stand in the `authorization` header, which every authorization
    /// server accepts.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if `token_url` is not an `http` or `https` URL, or has a user or password.
    pub fn new(
        token_url: &str,
        id: impl Into<Box<str>>,
        secret: Secret,
    ) -> Result<Self, ConfigError> {
        let wrong = |reason| ConfigError::new("token_url", Secret::new(""), reason);
        let url: Uri = token_url.parse().map_err(|_| wrong("it is not a URL"))?;
        if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none() {
            return Err(wrong("it is not an http or https URL"));
        }
        if url
            .authority()
            .is_some_and(|authority| authority.as_str().contains('@'))
        {
            return Err(wrong("it holds a user or password"));
        }
        Ok(Self {
            token_url: url,
            id: id.into(),
            secret,
            scope: None,
            place: Place::Header,
        })
    }

    /// Asks for this scope; for none unless set.
    #[must_use]
    pub fn scope(mut self, scope: impl Into<Box<str>>) -> Self {
        self.scope = Some(scope.into());
        self
    }

    /// Sends the id and the secret in the body, for servers that read them only there.
    #[must_use]
    pub fn in_body(mut self) -> Self {
        self.place = Place::Body;
        self
    }

    fn request<B>(&self) -> Request<RequestBody<B>> {
        let mut form = "grant_type=client_credentials".to_owned();
        let scope = self.scope.as_deref().map(|scope| ("scope", scope));
        let client = match self.place {
            Place::Header => None,
            Place::Body => Some([
                ("client_id", &*self.id),
                ("client_secret", self.secret.expose()),
            ]),
        };
        for (name, value) in scope.into_iter().chain(client.into_iter().flatten()) {
            form.extend(["&", name, "="]);
            form.extend(utf8_percent_encode(value, FORM));
        }
        let mut request = Request::new(RequestBody::held(form));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.token_url.clone();
        let headers = request.headers_mut();
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(CONTENT_TYPE, form);
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Place::Header = self.place {
            headers.insert(AUTHORIZATION, self.basic());
        }
        request
    }

    /// The id and the secret are escaped before they are joined: one may hold the colon.
    fn basic(&self) -> HeaderValue {
        let escaped = |text| utf8_percent_encode(text, FORM);
        let (id, secret) = (escaped(&*self.id), escaped(self.secret.expose()));
        let encoded = BASE64_STANDARD.encode(format!("{id}:{secret}"));
        let value = HeaderValue::try_from(format!("Basic {encoded}"));
        let mut value = value.expect("base64 is a header value");
        value.set_sensitive(true);
        value
    }
}

/// Fetches a token.
pub(super) async fn fetch<S, B, R>(
    client: S,
    credentials: Arc<ClientCredentials>,
) -> Result<Token, TokenError>
where
    S: Service<Request<RequestBody<B>>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    R: Body,
    R::Error: Into<BoxError>,
{
    let sent = Oneshot::new(client, credentials.request());
    let (head, body) = sent.await.map_err(TokenError::transport)?.into_parts();
    let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
    let body = body.map_err(TokenError::transport)?.to_bytes();
    let answer = serde_json::from_slice::<Value>(&body).unwrap_or_default();
    if !head.status.is_success() {
        return Err(TokenError::denied(head.status, answer["error"].as_str()));
    }
    let token = answer["access_token"]
        .as_str()
        .filter(|token| !token.is_empty());
    let token = token.ok_or_else(TokenError::malformed)?;
    Ok(Token::new(
        Secret::new(token),
        expires_in(&answer["expires_in"]),
    ))
}

/// Seconds; some servers write them as text.
fn expires_in(value: &Value) -> Option<Duration> {
    let seconds = value
        .as_f64()
        .or_else(|| value.as_str()?.trim().parse().ok())?;
    Duration::try_from_secs_f64(seconds.max(0.0)).ok()
}
