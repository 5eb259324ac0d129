//! Accounts at providers: where a request is sent, with which credential, by which model name, through which proxy.
//!
//! An [`Account`] makes of a caller's request the one that its provider takes. [`AccountLayer`] goes directly around the
//! client, inside the layers that limit the account:
//!
//! ```
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_llm_stack::accounts::{Account, AccountLayer, Credential};
//! use tower_llm_stack::{BoxError, Provider, RequestBody, Secret, adapters::base_url::BaseUrl};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), BoxError> {
//! let key = Secret::new("sk-1234");
//! let account = Account::new("openai-a", Provider::OPENAI, BaseUrl::new("https://api.openai.com/v1")?)
//!     .credential(Credential::bearer(&key)?)
//!     .model("gpt-4", "gpt-4-0613");
//!
//! // In a program: a client of `Clients`, or any other HTTP client.
//! let client = service_fn(|request: Request<RequestBody>| async move {
//!     assert_eq!(request.uri(), "https://api.openai.com/v1/chat/completions");
//!     assert_eq!(request.headers()["authorization"], "Bearer sk-1234");
//!     assert_eq!(request.body().as_bytes().unwrap(), r#"{"model":"gpt-4-0613"}"#);
//!     Ok::<_, BoxError>(Response::new(Full::<bytes::Bytes>::default()))
//! });
//! let service = ServiceBuilder::new().layer(AccountLayer::new(account)).service(client);
//!
//! let request = Request::post("/v1/chat/completions")
//!     .header("authorization", "Bearer the-callers-own")
//!     .body(RequestBody::held(r#"{"model":"gpt-4"}"#))?;
//! service.oneshot(request).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Credentials
//!
//! - None of the account's own: the caller's credential passes, in the headers that the provider reads.
//! - A key, in the provider's header: [`Credential::key`].
//! - Access tokens that expire: [`Tokens`], with OAuth client credentials or any other source. A token is fetched once for
//!   all calls, and again five minutes before it expires, while calls go on with the old one.
//!
//! With a credential of its own, an account removes what would choose another account or another payer: the caller's
//! credentials, in headers and in the query, and headers such as `openai-organization`.
//!
//! # Clients and proxies
//!
//! [`Clients`] makes one pooled HTTP client for each distinct proxy and bounds of its pool; accounts that have both in common
//! share it. An account without a proxy uses that of the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`).
//!
//! # Health
//!
//! A [`HealthCheck`] makes a cheap call to an account every so often. While it fails, [`Health::availability`] tells a pool of
//! accounts to pass it over.
//!
//! # What it does not do
//!
//! Tokens are cached in the process. Several processes have a token each, which authorization servers allow.

mod account;
mod clients;
#[cfg(feature = "config")]
mod configured;
mod connector;
mod credential;
mod error;
mod future;
mod headers;
mod health;
mod layer;
mod oauth;
mod proxies;
mod service;
mod tokens;

pub use self::{
    account::Account,
    clients::{Client, ClientFuture, Clients, PoolBounds},
    connector::{ProxyConnector, ProxyStream},
    credential::Credential,
    error::{ClientsError, NoAccessToken, TokenError},
    future::ResponseFuture,
    headers::{remove_choices, remove_hop_by_hop},
    health::{Health, HealthCheck},
    layer::AccountLayer,
    oauth::ClientCredentials,
    proxies::{Proxies, ProxyError},
    service::AccountService,
    tokens::{Token, Tokens},
};
