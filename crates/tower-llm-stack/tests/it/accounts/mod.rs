//! Accounts: requests, tokens, proxies, and those of a configuration.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[cfg(feature = "config")]
mod configured;
mod health;
mod oauth;
mod proxies;
mod requests;
mod tokens;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_llm_stack::{
    BoxError, Provider, RequestBody, Secret,
    accounts::{Account, AccountLayer, AccountService, Credential, Token, Tokens},
    adapters::base_url::BaseUrl,
};

type Sent = Request<RequestBody>;
type Answer = Response<Full<Bytes>>;

fn account(provider: Provider, url: &str) -> Account {
    Account::new("account-a", provider, BaseUrl::new(url).unwrap())
}

fn chat(model: &str) -> Sent {
    let body = format!(r#"{{"model":"{model}","messages":[]}}"#);
    Request::post("/v1/chat/completions")
        .body(RequestBody::held(body))
        .unwrap()
}

/// Requests as a provider gets them.
#[derive(Clone, Default)]
struct Received(Arc<Mutex<Vec<Sent>>>);

impl Received {
    /// A client that records what is sent and answers with `status`.
    fn answering(
        &self,
        status: u16,
    ) -> impl Service<Sent, Response = Answer, Error = BoxError, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static {
        let received = self.clone();
        service_fn(move |request: Sent| {
            received.0.lock().unwrap().push(request);
            async move {
                let mut answer = Answer::default();
                *answer.status_mut() = status.try_into().unwrap();
                Ok(answer)
            }
        })
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn header(&self, index: usize, name: &str) -> Option<String> {
        let received = self.0.lock().unwrap();
        let value = received[index].headers().get(name)?;
        Some(value.to_str().unwrap().to_owned())
    }
}

/// What `account` sends of `request`.
async fn sent(account: Account, request: Sent) -> Sent {
    let received = Received::default();
    let service = AccountLayer::new(account).layer(received.answering(200));
    service.oneshot(request).await.unwrap();
    received.0.lock().unwrap().pop().unwrap()
}

/// A source of tokens that counts: `token-1`, `token-2`, ..
#[derive(Clone, Default)]
struct Fetches(Arc<AtomicUsize>);

impl Fetches {
    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    /// Tokens that live for an hour; each takes 100 ms to fetch.
    fn tokens(&self) -> Tokens {
        self.lasting(Duration::from_secs(3600))
    }

    fn lasting(&self, life: Duration) -> Tokens {
        let fetches = self.clone();
        Tokens::new(move || {
            let number = fetches.0.fetch_add(1, Ordering::SeqCst) + 1;
            async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let token = Secret::new(format!("token-{number}"));
                Ok(Token::new(token, Some(life)))
            }
        })
    }
}

/// The account of `tokens`, in front of `client`.
fn with_tokens<S>(tokens: Tokens, client: S) -> AccountService<S> {
    let account =
        account(Provider::OPENAI, "https://api.test/v1").credential(Credential::tokens(tokens));
    AccountLayer::new(account).layer(client)
}
