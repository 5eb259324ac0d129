use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use tokio::time::{Instant, advance, sleep};
use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimit, service_fn};
use tower_llm_stack::{
    BoxError, OnEndLayer, Outcome, Refusal, RefusalKind, Secret,
    accounts::{NoAccessToken, Token, Tokens},
};

use super::{Answer, Fetches, Received, Sent, chat, with_tokens};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Fails as long as it is told to; each attempt takes 100 ms.
#[derive(Clone, Default)]
struct Failing {
    fetches: Arc<AtomicUsize>,
    works: Arc<AtomicBool>,
}

impl Failing {
    fn tokens(&self) -> Tokens {
        let failing = self.clone();
        Tokens::new(move || {
            failing.fetches.fetch_add(1, Ordering::SeqCst);
            let works = failing.works.load(Ordering::SeqCst);
            async move {
                sleep(Duration::from_millis(100)).await;
                match works {
                    true => Ok(Token::new(Secret::new("token"), Some(3600 * SECOND))),
                    false => Err(BoxError::from("the metadata server is down")),
                }
            }
        })
    }

    fn count(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }
}

fn retry_after(error: &BoxError) -> Duration {
    let refusal = Refusal::find(&**error).expect("a call without a token is refused");
    assert_eq!(
        (refusal.kind(), refusal.layer()),
        (RefusalKind::Unavailable, "account")
    );
    assert!(error.is::<NoAccessToken>(), "{error}");
    refusal.retry_after().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_thousand_calls_at_once_make_one_fetch_and_so_do_a_thousand_on_an_expired_token() {
    let (fetches, received) = (Fetches::default(), Received::default());
    let service = with_tokens(fetches.tokens(), received.answering(200));
    for round in 1..=2 {
        let calls = (0..1000).map(|_| service.clone().oneshot(chat("m")));
        for answer in join_all(calls).await {
            answer.unwrap();
        }
        assert_eq!(fetches.count(), round);
        assert_eq!(received.len(), round * 1000);
        for index in (round - 1) * 1000..round * 1000 {
            let expected = format!("Bearer token-{round}");
            assert_eq!(received.header(index, "authorization"), Some(expected));
        }
        advance(3600 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_is_refreshed_five_minutes_before_it_expires_and_no_call_waits() {
    let (fetches, received) = (Fetches::default(), Received::default());
    let service = with_tokens(fetches.tokens(), received.answering(200));
    let start = Instant::now();
    service.clone().oneshot(chat("m")).await.unwrap();
    // Its life counts from when it was asked for.
    advance(start + 3300 * SECOND - MS - Instant::now()).await;
    service.clone().oneshot(chat("m")).await.unwrap();
    assert_eq!(fetches.count(), 1);

    advance(MS).await;
    for _ in 0..10 {
        let at_once = service.clone().oneshot(chat("m")).now_or_never();
        at_once.expect("the token is valid").unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(fetches.count(), 2);
    assert_eq!(
        received.header(11, "authorization").unwrap(),
        "Bearer token-1"
    );
    // No call drives it.
    sleep(101 * MS).await;
    service
        .clone()
        .oneshot(chat("m"))
        .now_or_never()
        .unwrap()
        .unwrap();
    assert_eq!(
        received.header(12, "authorization").unwrap(),
        "Bearer token-2"
    );
    assert_eq!(fetches.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_lives_for_minutes_is_refreshed_after_half_its_life() {
    let (fetches, received) = (Fetches::default(), Received::default());
    let tokens = fetches.lasting(Duration::from_secs(120));
    let service = with_tokens(tokens, received.answering(200));
    service.clone().oneshot(chat("m")).await.unwrap();
    advance(60 * SECOND - 101 * MS).await;
    service.clone().oneshot(chat("m")).await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!(fetches.count(), 1);
    advance(MS).await;
    service.clone().oneshot(chat("m")).await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!(fetches.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_token_without_a_life_serves_the_calls_that_waited_for_it() {
    let (fetches, received) = (Fetches::default(), Received::default());
    let service = with_tokens(fetches.lasting(Duration::ZERO), received.answering(200));
    let calls = (0..10).map(|_| service.clone().oneshot(chat("m")));
    join_all(calls)
        .await
        .into_iter()
        .for_each(|answer| drop(answer.unwrap()));
    assert_eq!(fetches.count(), 1);
    service.oneshot(chat("m")).await.unwrap();
    assert_eq!(fetches.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_fails_is_told_to_all_that_waited_and_tried_again_after_a_pause() {
    let (source, received) = (Failing::default(), Received::default());
    let service = with_tokens(source.tokens(), received.answering(200));
    let calls = (0..1000).map(|_| service.clone().oneshot(chat("m")));
    for answer in join_all(calls).await {
        let error = answer.unwrap_err();
        assert_eq!(
            error.to_string(),
            "no access token for account account-a: its source failed"
        );
        assert_eq!(retry_after(&error), SECOND);
    }
    assert_eq!(source.count(), 1);

    // Each pause is twice the last one, up to 30 s.
    let mut fetches = 1;
    for pause in [1, 2, 4, 8, 16, 30, 30] {
        let pause = pause * SECOND;
        advance(pause - MS).await;
        for _ in 0..100 {
            let error = service
                .clone()
                .oneshot(chat("m"))
                .now_or_never()
                .unwrap()
                .unwrap_err();
            assert_eq!(retry_after(&error), MS);
        }
        assert_eq!(source.count(), fetches, "not once per call");
        advance(MS).await;
        let calls = (0..100).map(|_| service.clone().oneshot(chat("m")));
        assert!(join_all(calls).await.iter().all(Result::is_err));
        fetches += 1;
        assert_eq!(source.count(), fetches);
    }
    assert_eq!(received.len(), 0);

    source.works.store(true, Ordering::SeqCst);
    advance(30 * SECOND).await;
    service.clone().oneshot(chat("m")).await.unwrap();
    // The next failure is the first of its kind.
    source.works.store(false, Ordering::SeqCst);
    advance(3600 * SECOND).await;
    let error = service.oneshot(chat("m")).await.unwrap_err();
    assert_eq!(retry_after(&error), SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_fails_disturbs_no_call_while_the_token_is_valid() {
    let (source, received) = (Failing::default(), Received::default());
    source.works.store(true, Ordering::SeqCst);
    let service = with_tokens(source.tokens(), received.answering(200));
    service.clone().oneshot(chat("m")).await.unwrap();
    source.works.store(false, Ordering::SeqCst);
    advance(3300 * SECOND).await;
    let end = Instant::now() + 299 * SECOND;
    while Instant::now() < end {
        service
            .clone()
            .oneshot(chat("m"))
            .now_or_never()
            .unwrap()
            .unwrap();
        sleep(100 * MS).await;
    }
    // After 1, 2, 4, 8, 16 and then each 30 s.
    assert_eq!(source.count(), 1 + 14);
    sleep(SECOND).await;
    assert!(service.oneshot(chat("m")).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn callers_that_leave_disturb_no_fetch() {
    let (fetches, received) = (Fetches::default(), Received::default());
    let service = with_tokens(fetches.tokens(), received.answering(200));
    let mut first = Box::pin(service.clone().oneshot(chat("m")));
    let mut second = Box::pin(service.clone().oneshot(chat("m")));
    assert!(futures_util::poll!(&mut first).is_pending());
    assert!(futures_util::poll!(&mut second).is_pending());
    drop(first);
    second.await.unwrap();
    assert_eq!((fetches.count(), received.len()), (1, 1));

    // All leave, and the fetch goes on.
    advance(3600 * SECOND).await;
    let mut only = Box::pin(service.clone().oneshot(chat("m")));
    assert!(futures_util::poll!(&mut only).is_pending());
    drop(only);
    sleep(101 * MS).await;
    service
        .oneshot(chat("m"))
        .now_or_never()
        .expect("there is a token")
        .unwrap();
    assert_eq!((fetches.count(), received.len()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_a_token_was_not_sent() {
    let (fetches, received) = (Fetches::default(), Received::default());
    let (ends, ended) = std::sync::mpsc::channel();
    let on_end = OnEndLayer::new(move |_, completion| {
        let _ = ends.send(completion.outcome);
    });
    let service = on_end.layer(with_tokens(fetches.tokens(), received.answering(200)));
    let mut waiting = Box::pin(service.clone().oneshot(chat("m")));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    drop(waiting);
    assert_eq!(ended.try_recv(), Ok(Outcome::Refused));

    let failing = Failing::default();
    let (ends, ended) = std::sync::mpsc::channel();
    let on_end = OnEndLayer::new(move |_, completion| {
        let _ = ends.send(completion.outcome);
    });
    let service = on_end.layer(with_tokens(failing.tokens(), received.answering(200)));
    assert!(service.oneshot(chat("m")).await.is_err());
    assert_eq!(ended.try_recv(), Ok(Outcome::Refused));
}

#[tokio::test(start_paused = true)]
async fn a_401_makes_a_token_invalid_once_a_minute() {
    let (fetches, received) = (Fetches::default(), Received::default());
    let service = with_tokens(fetches.tokens(), received.answering(401));
    // All of them were sent with the first token.
    let calls = (0..100).map(|_| service.clone().oneshot(chat("m")));
    for answer in join_all(calls).await {
        assert_eq!(answer.unwrap().status(), 401);
    }
    assert_eq!(fetches.count(), 1);
    service.clone().oneshot(chat("m")).await.unwrap();
    assert_eq!(fetches.count(), 2);
    assert_eq!(
        received.header(100, "authorization").unwrap(),
        "Bearer token-2"
    );

    // The provider refuses the new one too: fetching more does not help.
    for _ in 0..100 {
        service.clone().oneshot(chat("m")).await.unwrap();
    }
    assert_eq!(fetches.count(), 2);
    advance(60 * SECOND).await;
    service.clone().oneshot(chat("m")).await.unwrap();
    service.clone().oneshot(chat("m")).await.unwrap();
    assert_eq!(fetches.count(), 3);
}

/// A call may take minutes, and its token be replaced meanwhile.
#[tokio::test(start_paused = true)]
async fn a_401_to_an_old_token_leaves_the_new_one() {
    let fetches = Fetches::default();
    let client = service_fn(|request: Sent| async move {
        let is_slow = request.uri().query() == Some("slow");
        sleep(if is_slow { 200 * SECOND } else { MS }).await;
        let mut answer = Answer::default();
        *answer.status_mut() = http::StatusCode::UNAUTHORIZED;
        Ok::<_, BoxError>(answer)
    });
    let service = with_tokens(fetches.tokens(), client);
    let mut slow = chat("m");
    *slow.uri_mut() = "/v1/chat/completions?slow".parse().unwrap();
    let slow = tokio::spawn(service.clone().oneshot(slow));
    service.clone().oneshot(chat("m")).await.unwrap();
    let second = tokio::spawn(service.clone().oneshot(chat("m")));
    second.await.unwrap().unwrap();
    assert_eq!(fetches.count(), 2);
    assert_eq!(slow.await.unwrap().unwrap().status(), 401);
    service.clone().oneshot(chat("m")).await.unwrap();
    assert_eq!(fetches.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn other_statuses_leave_the_token() {
    let (fetches, received) = (Fetches::default(), Received::default());
    for status in [200, 400, 403, 429, 500] {
        let service = with_tokens(fetches.tokens(), received.answering(status));
        let before = fetches.count();
        service.clone().oneshot(chat("m")).await.unwrap();
        service.oneshot(chat("m")).await.unwrap();
        assert_eq!(fetches.count(), before + 1, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_hangs_or_panics_fails_its_calls_and_is_called_again() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let tokens = Tokens::new(move || {
        let number = counted.fetch_add(1, Ordering::SeqCst);
        async move {
            match number {
                0 => pending().await,
                1 => panic!("a bug in the source"),
                2 => Ok(Token::new(Secret::new("not\na header"), None)),
                _ => Ok(Token::new(Secret::new("token"), None)),
            }
        }
    });
    let received = Received::default();
    let service = with_tokens(tokens, received.answering(200));
    let start = Instant::now();
    let error = service.clone().oneshot(chat("m")).await.unwrap_err();
    assert_eq!(start.elapsed(), 10 * SECOND);
    assert!(
        error.to_string().ends_with("did not answer within 10s"),
        "{error}"
    );
    for message in [
        "its source panicked",
        "the authorization server answered without one",
    ] {
        advance(retry_after(&error) + SECOND).await;
        let error = service.clone().oneshot(chat("m")).await.unwrap_err();
        assert!(error.to_string().ends_with(message), "{error}");
    }
    advance(30 * SECOND).await;
    service.oneshot(chat("m")).await.unwrap();
    assert_eq!(received.header(0, "authorization").unwrap(), "Bearer token");
}

/// Were the readied service held by the call that waits, no other could use its permit.
#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_a_token_hold_no_permit() {
    let (fetches, received) = (Fetches::default(), Received::default());
    let limited = ConcurrencyLimit::new(received.answering(200), 1);
    let mut service = with_tokens(fetches.tokens(), limited);
    let calls: Vec<_> = (0..3)
        .map(|_| {
            assert!(matches!(service.ready().now_or_never(), Some(Ok(_))));
            service.call(chat("m"))
        })
        .collect();
    // `service` is held meanwhile.
    for answer in join_all(calls).await {
        answer.unwrap();
    }
    assert_eq!((fetches.count(), received.len()), (1, 3));
    drop(service);
}

/// The mock panics if a service is called that was not readied.
#[tokio::test(start_paused = true)]
async fn every_call_is_of_a_readied_service() {
    let fetches = Fetches::default();
    let (mock, mut handle) = tower_test::mock::pair::<Sent, Answer>();
    let service = with_tokens(fetches.tokens(), mock);
    for number in 0..2 {
        handle.allow(0);
        let mut call = Box::pin(service.clone().oneshot(chat("m")));
        assert!(futures_util::poll!(&mut call).is_pending());
        sleep(200 * MS).await;
        assert!(futures_util::poll!(&mut call).is_pending());
        assert!(matches!(
            futures_util::poll!(handle.next_request().boxed()),
            Poll::Pending
        ));
        handle.allow(1);
        let answering = async {
            let (_, response) = handle.next_request().await.unwrap();
            response.send_response(Answer::default());
        };
        let (answer, ()) = tokio::join!(call, answering);
        answer.unwrap();
        assert_eq!(fetches.count(), 1, "{number}");
    }
}

/// Callers on two threads, half of which leave at any point.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_on_two_threads_share_each_fetch() {
    let fetches = Arc::new(AtomicUsize::new(0));
    let in_flight = Arc::new(AtomicUsize::new(0));
    let (counted, flying) = (Arc::clone(&fetches), Arc::clone(&in_flight));
    let tokens = Tokens::new(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        assert_eq!(flying.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
        let flying = Arc::clone(&flying);
        async move {
            sleep(Duration::from_millis(5)).await;
            flying.fetch_sub(1, Ordering::SeqCst);
            // Expired as soon as it is there: each round needs a new one.
            Ok(Token::new(Secret::new("token"), Some(Duration::ZERO)))
        }
    });
    let received = Received::default();
    let service = with_tokens(tokens, received.answering(200));
    let mut answered = 0;
    for round in 0..20 {
        let calls: Vec<_> = (0..50)
            .map(|_| tokio::spawn(service.clone().oneshot(chat("m"))))
            .collect();
        for (index, call) in calls.iter().enumerate() {
            if (index + round) % 2 == 0 {
                call.abort();
            }
        }
        for call in calls {
            match call.await {
                Ok(answer) => {
                    answer.unwrap();
                    answered += 1;
                }
                Err(error) => assert!(error.is_cancelled(), "{error}"),
            }
        }
    }
    assert!(answered >= 500, "those that stay are answered: {answered}");
    assert!(received.len() >= answered);
    // Each of the rounds began with no valid token, and some calls may come after the round's first fetch.
    let fetches = fetches.load(Ordering::SeqCst);
    assert!((20..=1000).contains(&fetches), "{fetches}");
    assert_eq!(in_flight.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_callers_on_two_threads_make_one_fetch() {
    let (fetches, received) = (Fetches::default(), Received::default());
    let service = with_tokens(fetches.tokens(), received.answering(200));
    let calls: Vec<_> = (0..1000)
        .map(|_| tokio::spawn(service.clone().oneshot(chat("m"))))
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!((fetches.count(), received.len()), (1, 1000));
}

#[tokio::test(start_paused = true)]
async fn what_is_shown_of_tokens_holds_none() {
    let fetches = Fetches::default();
    let received = Received::default();
    let tokens = fetches.tokens();
    let service = with_tokens(tokens.clone(), received.answering(200));
    service.clone().oneshot(chat("m")).await.unwrap();
    let token = Token::new(Secret::new("token-hidden"), None);
    let sent = received.0.lock().unwrap().pop().unwrap();
    let shown = format!(
        "{tokens:?} {token:?} {:?} {:?}",
        service.account(),
        sent.headers()
    );
    assert!(!shown.contains("token-"), "{shown}");
}
