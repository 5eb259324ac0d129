//! Timeouts of one attempt.

use super::*;

/// How long a call lasts that this provider answers, until `reason` ends it.
async fn ends(
    preset: Preset,
    request: Request<Full<Bytes>>,
    answer: impl Into<Behavior>,
    reason: &str,
) -> Duration {
    let only = Only {
        timeout: Some(preset.timeout().build().unwrap()),
        ..Only::default()
    };
    let client = only.around(preset, &Upstream::always(answer));
    let (elapsed, read) = timed(async { read(call(&client, request).await).await }).await;
    // Inside a stream, the error is its last event.
    let end = match read {
        Ok(body) => String::from_utf8_lossy(&body[body.len().saturating_sub(200)..]).into_owned(),
        Err(error) => error.to_string(),
    };
    assert!(end.contains(reason), "{preset:?}: {end}");
    elapsed
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_if_its_first_token_is_late() {
    for (preset, after) in times("first token of a stream") {
        let ended = ends(preset, streamed(), Fault::NoAnswer, "no first token").await;
        assert_eq!(ended, after, "{preset:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_shows_signs_of_life_has_more_time() {
    for (preset, after) in times("the same, while the stream shows signs of life") {
        let alive = Behavior::new().first_token(600 * SECOND).keep_alive(SECOND);
        // The deadline of the stream may be the same.
        let ended = ends(preset, streamed(), alive, "within").await;
        assert_eq!(ended, after, "{preset:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_ends_if_its_next_frame_is_late() {
    for (preset, after) in times("next frame of a response") {
        let ended = ends(preset, streamed(), Fault::StallAfter(3), "nothing more").await;
        assert_eq!(ended, after, "{preset:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_not_streamed_ends_in_total() {
    for (preset, after) in times("total of a call that is not streamed") {
        let ended = ends(preset, plain(), Fault::NoAnswer, "not finished").await;
        assert_eq!(ended, after, "{preset:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_makes_progress_ends_in_total() {
    for (preset, after) in times("total of a stream") {
        let slow = Behavior::new().gap(SECOND).output_tokens(10_000);
        let ended = ends(preset, streamed(), slow, "not finished").await;
        assert_eq!(ended, after, "{preset:?}");
    }
}
