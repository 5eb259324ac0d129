//! What every layer here promises: it calls what it has readied, and passes readiness and errors on.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{borrow::Cow, convert::Infallible, time::Duration};

use http::{Request, Response};
use tower::{Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};
use tower_layer::Layer;
use tower_llm_core::{Call, Deadline, Described, Dialect, Operation, Provider, Unary};
use tower_llm_timeout::TimeoutLayer;
use tower_test::{assert_request_eq, mock};

use crate::support::{
    DONE, MILLISECOND, SECOND, Upstream, Witness, assert_timed_out, poll_once, read, seconds, sse,
    streamed, undescribed,
};

/// A call of a type that is not HTTP.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Prompt(&'static str);

impl Described for Prompt {
    fn call(&self) -> Option<Cow<'_, Call>> {
        None
    }
}

fn unary() -> TimeoutLayer<Unary> {
    TimeoutLayer::builder()
        .total(seconds(10))
        .watch(Unary)
        .build()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_typed_call_is_answered_by_the_service_that_was_readied() {
    let (inner, mut handle) = mock::pair::<Prompt, &str>();
    let mut service = unary().layer(inner);

    handle.allow(0);
    assert!(poll_once(service.ready()).is_pending());
    handle.allow(1);
    let answer = service.ready().await.unwrap().call(Prompt("ping"));
    assert_request_eq!(handle, Prompt("ping")).send_response("pong");
    assert_eq!(answer.await.unwrap(), "pong");
}

#[tokio::test(start_paused = true)]
async fn an_http_call_is_answered_by_the_service_that_was_readied() {
    let (inner, mut handle) = mock::pair::<Request<()>, Response<Upstream>>();
    let mut service = TimeoutLayer::new().layer(inner);

    handle.allow(1);
    let answer = service
        .ready()
        .await
        .unwrap()
        .call(streamed(Dialect::OpenAi));
    let (_, reply) = handle.next_request().await.unwrap();
    reply.send_response(sse(Upstream::new().at(SECOND, DONE)));
    let (text, error) = read(answer.await.unwrap().map(Box::pin).body_mut()).await;
    assert_eq!((text.as_str(), error.is_none()), (DONE, true));
}

#[tokio::test(start_paused = true)]
async fn errors_of_the_inner_service_pass_as_they_are() {
    let (inner, mut handle) = mock::pair::<Prompt, &str>();
    let mut service = unary().layer(inner);
    handle.allow(2);
    let answer = service.ready().await.unwrap().call(Prompt("ping"));
    assert_request_eq!(handle, Prompt("ping")).send_error("in call");
    assert_eq!(answer.await.unwrap_err().to_string(), "in call");

    handle.send_error("in poll_ready");
    let error = service.ready().await.err().unwrap();
    assert_eq!(error.to_string(), "in poll_ready");
}

#[tokio::test(start_paused = true)]
async fn a_permit_of_the_inner_service_is_given_back_with_the_answer_or_the_deadline() {
    let mut service = ServiceBuilder::new()
        .layer(unary())
        .layer(ConcurrencyLimitLayer::new(1))
        .service(service_fn(|prompt: Prompt| async move {
            match prompt {
                Prompt("silence") => std::future::pending().await,
                Prompt(text) => Ok::<_, Infallible>(text),
            }
        }));
    for _ in 0..3 {
        let answer = service.ready().await.unwrap().call(Prompt("ping")).await;
        assert_eq!(answer.unwrap(), "ping");
        let silence = service.ready().await.unwrap().call(Prompt("silence")).await;
        assert_timed_out(&silence.unwrap_err(), Deadline::Total, seconds(10));
    }
    // The permit is freed while the future is still alive, so other calls need not wait for the caller.
    let mut late = Box::pin(service.ready().await.unwrap().call(Prompt("silence")));
    assert!((&mut late).await.is_err());
    assert!(poll_once(service.ready()).is_ready());
    drop(late);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_drops_the_inner_one() {
    let witness = Witness::default();
    let inner = |witness: Witness| {
        service_fn(move |_: Prompt| {
            let held = crate::support::DropOf("call dropped", witness.clone());
            async move {
                let _held = held;
                std::future::pending::<Result<(), Infallible>>().await
            }
        })
    };
    let mut service = unary().layer(inner(witness.clone()));
    let mut call = Box::pin(service.ready().await.unwrap().call(Prompt("ping")));
    assert!(poll_once(call.as_mut()).is_pending());
    assert!(witness.seen().is_empty());
    drop(call);
    assert_eq!(witness.seen(), ["call dropped"]);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_body_drops_the_upstream_and_is_no_time_out() {
    let witness = Witness::default();
    let upstream = Upstream::new().silent().witnessed(&witness);
    let response = crate::support::call(TimeoutLayer::new(), undescribed(), sse(upstream)).await;
    let mut response = witness.watch(response);
    let first = tokio::time::timeout(SECOND, crate::support::next(response.body_mut())).await;
    assert!(first.is_err(), "nothing comes");
    drop(response);
    assert_eq!(witness.seen(), ["upstream dropped", "guard told"]);
    let outcome = witness.completion().outcome;
    assert_eq!(outcome, tower_llm_core::Outcome::Abandoned);
}

#[tokio::test(start_paused = true)]
async fn the_total_of_a_typed_call_is_kept_to_the_millisecond() {
    let after = |wait: Duration| {
        let service = service_fn(move |_: Prompt| async move {
            tokio::time::sleep(wait).await;
            Ok::<_, Infallible>("pong")
        });
        unary().layer(service).oneshot(Prompt("ping"))
    };
    assert_eq!(after(seconds(10) - MILLISECOND).await.unwrap(), "pong");
    // Together: the answer is there, so it is taken.
    assert_eq!(after(seconds(10)).await.unwrap(), "pong");
    let error = after(seconds(10) + MILLISECOND).await.unwrap_err();
    assert_timed_out(&error, Deadline::Total, seconds(10));
}

#[tokio::test(start_paused = true)]
async fn a_typed_call_waits_for_no_first_token_unless_it_is_a_stream() {
    #[derive(Clone, Debug)]
    struct Chat(Call);
    impl Described for Chat {
        fn call(&self) -> Option<Cow<'_, Call>> {
            Some(Cow::Borrowed(&self.0))
        }
    }
    let layer = TimeoutLayer::builder()
        .first_token(SECOND)
        .watch(Unary)
        .build()
        .unwrap();
    let call = |streamed| {
        let call = Call::builder(Provider::OPENAI, Operation::CHAT)
            .streamed(streamed)
            .build();
        let slow = service_fn(|_: Chat| async {
            tokio::time::sleep(2 * SECOND).await;
            Ok::<_, Infallible>(())
        });
        layer.layer(slow).oneshot(Chat(call))
    };
    call(false).await.unwrap();
    assert_timed_out(&call(true).await.unwrap_err(), Deadline::FirstToken, SECOND);
}

/// Readers take a body frame by frame with `BodyExt::frame`, which wants it so; a timer in it kept it from that.
#[test]
fn a_body_can_be_read_and_sent_wherever_the_upstreams_can() {
    fn check<T: Unpin + Send + Sync>() {}
    check::<tower_llm_timeout::TimeoutBody<http_body_util::Full<bytes::Bytes>>>();
}
