//! Errors of the client that are not connection failures: its own timeout, and a request body that breaks off.

use http_body::Frame;
use http_body_util::StreamBody;
use tower_llm_stack::{ClassifiedError, Failure, Outcome, breaker::CircuitId};

use super::*;
use crate::contract::layers::Attempts;

const EVENTS: usize = 4;

fn own_timeout() -> BoxError {
    ClassifiedError::new(Outcome::Failed(Failure::Timeout), "timed out").into()
}

fn towers_timeout() -> BoxError {
    tower::timeout::error::Elapsed::new().into()
}

fn broken_request() -> BoxError {
    ClassifiedError::new(Outcome::ClientError, "upload broke off").into()
}

fn broken_connection() -> BoxError {
    "connection reset".into()
}

type Error = fn() -> BoxError;

/// The client fails before it has a response.
async fn before_the_response(error: Error) -> Stand {
    let layers = Layers::new([]);
    let client = Attempts::new(service_fn(move |_| future::ready(Err(error()))));
    layers
        .stack_over(client)
        .oneshot(request())
        .await
        .unwrap_err();
    layers.stand()
}

/// The client fails in the middle of the response.
async fn within_the_body(error: Error) -> Stand {
    let layers = Layers::new([]);
    let client = Attempts::new(service_fn(move |_| {
        let frames = wire::body("/v1/chat/completions", REQUEST.as_bytes(), &answer());
        let frames = frames.into_iter().take(EVENTS);
        let frames = frames.map(|frame| Ok(Frame::data(frame)));
        let frames = frames.chain([Err(error())]).collect::<Vec<_>>();
        let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
        let response = Response::builder().header("content-type", "text/event-stream");
        future::ready(Ok(response.body(body).unwrap()))
    }));
    let response = layers.stack_over(client).oneshot(request()).await.unwrap();
    let stand = layers.stand();
    assert_eq!(stand.places_held(), 1);
    response.into_body().collect().await.unwrap_err();
    stand
}

fn seen() -> Taken {
    taken(1, ESTIMATED_INPUT + output_seen(EVENTS))
}

/// Failures that the circuits of the model and of the connection to its provider have counted.
fn failures(stand: &Stand) -> (u64, u64) {
    let of = |id| {
        stand
            .breaker
            .stats_of(&id)
            .map_or(0, |stats| stats.failures)
    };
    (of(model()), of(CircuitId::provider("openai")))
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_the_client_is_charged_as_a_timeout() {
    for error in [own_timeout as Error, towers_timeout] {
        let stand = before_the_response(error).await;
        assert_eq!((stand.of_caller(), stand.of_provider()), (INPUT, INPUT));
        let stand = within_the_body(error).await;
        assert_eq!((stand.of_caller(), stand.of_provider()), (seen(), seen()));
    }
}

/// The timeout counted against the connection, and opened the provider's circuit for every model.
#[tokio::test(start_paused = true)]
async fn a_timeout_of_the_client_is_a_failure_of_the_model() {
    for error in [own_timeout as Error, towers_timeout] {
        assert_eq!(failures(&before_the_response(error).await), (1, 0));
        assert_eq!(failures(&within_the_body(error).await), (1, 0));
    }
    // A broken connection counts against the connection.
    assert_eq!(
        failures(&before_the_response(broken_connection).await),
        (0, 1)
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_body_that_breaks_off_uses_no_tokens_unless_the_model_was_at_work() {
    let stand = before_the_response(broken_request).await;
    let left = (stand.of_caller(), stand.of_provider());
    assert_eq!(left, (A_REQUEST, A_REQUEST));
    let stand = within_the_body(broken_request).await;
    assert_eq!((stand.of_caller(), stand.of_provider()), (seen(), seen()));
}

/// It counted against the connection: one client could open the provider's circuit for all callers.
#[tokio::test(start_paused = true)]
async fn a_request_body_that_breaks_off_is_a_client_error() {
    assert_eq!(failures(&before_the_response(broken_request).await), (0, 0));
    assert_eq!(failures(&within_the_body(broken_request).await), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_permit_is_free_after_each_error() {
    for error in [own_timeout as Error, broken_request, broken_connection] {
        assert_eq!(before_the_response(error).await.places_held(), 0);
        assert_eq!(within_the_body(error).await.places_held(), 0);
    }
}

/// tower's own `load_shed`, inside the stack, counted as a connection failure too.
#[tokio::test(start_paused = true)]
async fn a_call_refused_by_towers_load_shed_counts_as_unsent() {
    let stand = before_the_response(|| tower::load_shed::error::Overloaded::new().into()).await;
    assert_eq!((stand.of_caller(), stand.of_provider()), (NOTHING, NOTHING));
    assert_eq!(failures(&stand), (0, 0));
}
