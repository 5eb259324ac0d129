use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use http::Request;
use tokio::time::{advance, sleep};
use tower::{Layer, service_fn};
use tower_llm_stack::{
    BoxError, Dialect, Provider, RequestBody, Secret,
    accounts::{Account, AccountLayer, Credential, Health, HealthCheck},
    core::Availability,
};

use super::{Answer, Received, Sent, account};

const SECOND: Duration = Duration::from_secs(1);

fn keyed(provider: Provider) -> Account {
    let key = Secret::new("key");
    account(provider, "https://api.test").credential(Credential::bearer(&key).unwrap())
}

/// Checks a provider that answers with a status, or never with 0, every 5 s.
fn checked(account: Account) -> (Health, Arc<AtomicU16>, Received) {
    let (status, received) = (Arc::new(AtomicU16::new(200)), Received::default());
    let (answered, recorded) = (Arc::clone(&status), received.clone());
    let client = service_fn(move |request: Sent| {
        recorded.0.lock().unwrap().push(request);
        let status = answered.load(Ordering::SeqCst);
        async move {
            if status == 0 {
                std::future::pending::<()>().await;
            }
            let mut answer = Answer::default();
            *answer.status_mut() = status.try_into().unwrap();
            Ok::<_, BoxError>(answer)
        }
    });
    let check = HealthCheck::get("/v1/models")
        .unwrap()
        .interval(5 * SECOND)
        .unwrap();
    let health = check.start(AccountLayer::new(account).layer(client));
    (health, status, received)
}

#[tokio::test(start_paused = true)]
async fn two_failed_checks_take_an_account_out_and_one_brings_it_back() {
    let (health, status, received) = checked(keyed(Provider::OPENAI));
    assert_eq!(health.availability(), Availability::Now);
    sleep(SECOND).await;
    assert_eq!(received.len(), 1);
    status.store(503, Ordering::SeqCst);
    sleep(5 * SECOND).await;
    assert_eq!((received.len(), health.is_up()), (2, true));
    sleep(5 * SECOND).await;
    assert_eq!((received.len(), health.is_up()), (3, false));
    // Until the next check.
    assert_eq!(health.availability(), Availability::After(4 * SECOND));
    sleep(5 * SECOND).await;
    assert_eq!(health.availability(), Availability::After(4 * SECOND));
    status.store(200, Ordering::SeqCst);
    sleep(5 * SECOND).await;
    assert_eq!(
        (health.is_up(), health.availability()),
        (true, Availability::Now)
    );
    assert_eq!(
        received.0.lock().unwrap()[0].uri(),
        "https://api.test/v1/models"
    );
    assert_eq!(received.header(0, "authorization").unwrap(), "Bearer key");
}

#[tokio::test(start_paused = true)]
async fn what_shows_that_the_provider_is_there_is_no_failure() {
    for (answered, own, caller) in [
        (200, true, true),
        (302, true, true),
        (400, true, true),
        (404, true, true),
        (429, true, true),
        (500, false, false),
        (529, false, false),
        // Never.
        (0, false, false),
        // The credential is the account's, or there is none.
        (401, false, true),
        (403, false, true),
    ] {
        let accounts = [
            (keyed(Provider::OPENAI), own),
            (account(Provider::OPENAI, "https://api.test"), caller),
        ];
        for (account, is_up) in accounts {
            let (health, status, _) = checked(account);
            status.store(answered, Ordering::SeqCst);
            sleep(21 * SECOND).await;
            assert_eq!(health.is_up(), is_up, "{answered}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn checks_stop_with_their_last_handle() {
    let (health, _, received) = checked(keyed(Provider::OPENAI));
    sleep(6 * SECOND).await;
    let clone = health.clone();
    drop(health);
    sleep(5 * SECOND).await;
    assert_eq!((received.len(), clone.is_up()), (3, true));
    drop(clone);
    sleep(100 * SECOND).await;
    assert_eq!(received.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_call_of_one_token_is_made_in_the_accounts_dialect() {
    for (provider, dialect, path, body) in [
        (
            Provider::OPENAI,
            Dialect::OpenAi,
            "/v1/chat/completions",
            r#"{"max_tokens":1,"messages":[{"content":"ping","role":"user"}],"model":"own"}"#,
        ),
        (
            Provider::ANTHROPIC,
            Dialect::Anthropic,
            "/v1/messages",
            r#"{"max_tokens":1,"messages":[{"content":"ping","role":"user"}],"model":"own"}"#,
        ),
        (
            Provider::GEMINI,
            Dialect::Gemini,
            "/v1beta/models/own:generateContent",
            r#"{"contents":[{"parts":[{"text":"ping"}],"role":"user"}],"generationConfig":{"maxOutputTokens":1}}"#,
        ),
    ] {
        let received = Received::default();
        let account = keyed(provider).dialect(dialect).model("callers", "own");
        let service = AccountLayer::new(account).layer(received.answering(200));
        let health = HealthCheck::call("callers").start(service);
        advance(SECOND).await;
        sleep(SECOND).await;
        assert!(health.is_up());
        let sent: Request<RequestBody> = received.0.lock().unwrap().pop().unwrap();
        assert_eq!(sent.uri().path(), path);
        let parsed = |body: &[u8]| serde_json::from_slice::<serde_json::Value>(body).unwrap();
        assert_eq!(
            parsed(sent.body().as_bytes().unwrap()),
            parsed(body.as_bytes())
        );
    }
}

#[test]
fn a_wrong_check_is_refused() {
    for path in ["models", "", "/mod els", "https://api.test/models"] {
        assert_eq!(
            HealthCheck::get(path).unwrap_err().field(),
            "path",
            "{path}"
        );
    }
    let check = HealthCheck::call("m");
    assert_eq!(
        check.clone().interval(Duration::ZERO).unwrap_err().field(),
        "interval"
    );
    assert!(check.interval(90_000 * SECOND).is_err());
}
