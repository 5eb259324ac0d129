use std::{ffi::OsString, time::Duration};

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tower::ServiceExt;
use tower_llm_stack::{
    RequestBody,
    accounts::{AccountService, Client, Clients, HealthCheck, Proxies},
    config::Config,
};
use tower_llm_testkit::SimulatedProvider;

use super::chat;
use crate::support::{eventually, serve, text};

type Body = Full<bytes::Bytes>;

fn env(name: &str) -> Option<OsString> {
    match name {
        "KEY_A" => Some("key-a".into()),
        "SECRET" => Some("hidden".into()),
        _ => None,
    }
}

fn account(toml: &str, name: &str) -> AccountService<Client<Body>> {
    let config = Config::from_toml(toml).unwrap();
    config.validate().unwrap();
    let secrets = config.secrets(env).unwrap();
    let clients = Clients::without_certificates(Proxies::none()).unwrap();
    clients
        .account(name, &config.targets[name], secrets.get(name))
        .unwrap()
}

async fn send(
    service: &AccountService<Client<Body>>,
    request: Request<RequestBody>,
) -> Response<()> {
    let (parts, body) = service.clone().oneshot(request).await.unwrap().into_parts();
    body.collect().await.unwrap();
    Response::from_parts(parts, ())
}

#[tokio::test]
async fn a_target_with_a_key_sends_its_model_names() {
    let provider = SimulatedProvider::start().await.unwrap();
    let toml = format!(
        "[targets.a]
        provider = 'groq'
        dialect = 'openai'
        base_url = '{}/v1'
        api_key_env = 'KEY_A'
        models = {{ 'gpt-4' = 'llama-4' }}",
        provider.url()
    );
    let service = account(&toml, "a");
    assert_eq!(send(&service, chat("gpt-4")).await.status(), 200);
    let recorded = provider.recorded().pop().unwrap();
    assert_eq!(recorded.headers["authorization"], "Bearer key-a");
    assert_eq!(
        recorded.body,
        r#"{"model":"llama-4","messages":[]}"#.as_bytes()
    );
    assert_eq!(service.account().name(), "a");
    assert!(!format!("{service:?}").contains("key-a"));
}

#[tokio::test]
async fn a_target_with_oauth_fetches_one_token_through_its_own_proxy() {
    // It is the proxy of the authorization server and of the provider.
    let proxy = serve(|number, request| async move {
        let host = request.uri().host().unwrap().to_owned();
        let header = |name: &str| {
            request
                .headers()
                .get(name)
                .map(|value| value.to_str().unwrap())
        };
        match (number, &*host) {
            (0, "login.test") => {
                assert_eq!(header("authorization"), Some("Basic bWU6aGlkZGVu"));
                assert_eq!(request.body(), "grant_type=client_credentials&scope=llm");
                text(200, r#"{"access_token":"token-1","expires_in":3600}"#)
            }
            (_, "models.test") => {
                assert_eq!(header("authorization"), Some("Bearer token-1"));
                text(200, "{}")
            }
            other => panic!("{other:?}"),
        }
    })
    .await;
    let toml = format!(
        "[targets.a]
        provider = 'openai'
        base_url = 'http://models.test/v1'
        proxy = '{}'
        [targets.a.oauth]
        token_url = 'http://login.test/token'
        client_id = 'me'
        client_secret_env = 'SECRET'
        scope = 'llm'",
        proxy.url("")
    );
    let service = account(&toml, "a");
    for _ in 0..3 {
        assert_eq!(send(&service, chat("m")).await.status(), 200);
    }
    assert_eq!(proxy.seen.requests(), 4);
}

#[tokio::test]
async fn a_target_without_a_credential_passes_the_callers() {
    let provider = SimulatedProvider::start().await.unwrap();
    let toml = format!(
        "[targets.a]\nprovider = 'anthropic'\nbase_url = '{}'",
        provider.url()
    );
    let mut request = chat("m");
    *request.uri_mut() = "/v1/messages".parse().unwrap();
    request
        .headers_mut()
        .insert("x-api-key", "callers".parse().unwrap());
    send(&account(&toml, "a"), request).await;
    let recorded = provider.recorded().pop().unwrap();
    assert_eq!(recorded.headers["x-api-key"], "callers");
}

/// The caller's credential must not go where the account's own was meant to.
#[test]
fn a_target_whose_secret_is_missing_is_refused() {
    let clients = Clients::<Body>::without_certificates(Proxies::none()).unwrap();
    for (setting, named) in [
        ("api_key_env = 'KEY_A'", "targets.a.api_key_env"),
        ("api_key_file = 'k'", "targets.a.api_key_env"),
        (
            "oauth = { token_url = 'http://h', client_id = 'me', client_secret_env = 'SECRET' }",
            "targets.a.oauth.client_secret_env",
        ),
    ] {
        let toml = format!("[targets.a]\nprovider = 'openai'\n{setting}");
        let config = Config::from_toml(&toml).unwrap();
        let error = clients
            .account("a", &config.targets["a"], None)
            .unwrap_err();
        assert_eq!(error.setting(), named);
    }
}

#[tokio::test]
async fn a_target_is_checked_at_its_path() {
    let provider = SimulatedProvider::start().await.unwrap();
    let toml = format!(
        "[targets.a]
        provider = 'openai'
        base_url = '{}/v1'
        api_key_env = 'KEY_A'
        health = {{ path = '/models', interval = '20ms' }}",
        provider.url()
    );
    let config = Config::from_toml(&toml).unwrap();
    let health = config.targets["a"].health.as_ref().unwrap();
    let health = HealthCheck::try_from(health)
        .unwrap()
        .start(account(&toml, "a"));
    provider
        .wait_for(Duration::from_secs(10), |counts| counts.requests >= 2)
        .await
        .unwrap();
    let recorded = provider.recorded().remove(0);
    assert_eq!(
        (recorded.method.as_str(), recorded.path.as_str()),
        ("GET", "/v1/models")
    );
    assert_eq!(recorded.headers["authorization"], "Bearer key-a");
    assert!(health.is_up());
    provider.shutdown().await;
    eventually("the account is out", || !health.is_up()).await;

    let neither = Config::from_toml("[targets.a]\nhealth = {}").unwrap();
    assert!(HealthCheck::try_from(neither.targets["a"].health.as_ref().unwrap()).is_err());
}
