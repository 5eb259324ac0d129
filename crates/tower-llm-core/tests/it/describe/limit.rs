//! The maximum size of a body, and how much of a larger one is read.

use super::*;

#[track_caller]
fn assert_too_large<B>(result: Result<Sent<B>, BoxError>, limit: usize) {
    let error = result.expect_err("the request is refused");
    let too_large = error.downcast_ref::<TooLarge>().expect("another error");
    assert_eq!(too_large.limit_bytes(), limit);
    assert_eq!(too_large.retry_after(), None);
    let refusal = Refusal::find(&*error).expect("no refusal");
    assert_eq!(
        (refusal.kind(), refusal.is_retryable()),
        (RefusalKind::TooLarge, false)
    );
}

#[tokio::test]
async fn a_body_of_exactly_the_limit_passes_and_one_byte_more_does_not() {
    let layer = DescribeLayer::new().max_body_bytes(100).unwrap();
    let frames = |lengths: &[usize]| {
        let frames: Vec<_> = lengths.iter().map(|&length| vec![b' '; length]).collect();
        post("/").body(Script::data(frames)).unwrap()
    };
    for at_limit in [&[100][..], &[40, 60], &[100, 0], &[0, 99, 1]] {
        let passed = pass(&layer, frames(at_limit)).await.unwrap();
        assert_eq!(bytes(passed).await.len(), 100, "{at_limit:?}");
    }
    for over in [&[101][..], &[40, 61], &[100, 1], &[0, 99, 1, 1]] {
        assert_too_large(pass(&layer, frames(over)).await, 100);
    }
}

#[tokio::test]
async fn the_limit_is_ten_megabytes_unless_set() {
    let request = |length| {
        post("/")
            .body(Full::new(Bytes::from(vec![b' '; length])))
            .unwrap()
    };
    let passed = pass(&DescribeLayer::new(), request(MAX_BODY_BYTES))
        .await
        .unwrap();
    assert_eq!(bytes(passed).await.len(), 10_485_760);
    assert_too_large(
        pass(&DescribeLayer::new(), request(MAX_BODY_BYTES + 1)).await,
        MAX_BODY_BYTES,
    );
}

#[tokio::test]
async fn a_body_with_an_announced_length_over_the_limit_is_refused_unread() {
    let layer = DescribeLayer::new().max_body_bytes(10).unwrap();
    for announced in ["11", "99999999999"] {
        let script = Script::data(["short"]);
        let polls = script.polls();
        let request = post("/")
            .header("content-length", announced)
            .body(script)
            .unwrap();
        assert_too_large(pass(&layer, request).await, 10);
        assert_eq!(polls.load(Ordering::Relaxed), 0, "{announced}");
    }
    let script = Script::data(["more than ten"]).with_known_length();
    let polls = script.polls();
    assert_too_large(pass(&layer, post("/").body(script).unwrap()).await, 10);
    assert_eq!(polls.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_body_is_read_no_further_than_over_the_limit() {
    let layer = DescribeLayer::new().max_body_bytes(10).unwrap();
    let script = Script::data(["12345678", "90ab", "never read", "nor this"]);
    let polls = script.polls();
    let request = post("/")
        .header("content-length", "nonsense")
        .body(script)
        .unwrap();
    assert_too_large(pass(&layer, request).await, 10);
    assert_eq!(polls.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_body_with_a_wrong_length_is_limited_anyway() {
    let layer = DescribeLayer::new().max_body_bytes(10).unwrap();
    let request = post("/")
        .header("content-length", "3")
        .body(Script::data(["eleven bytes"]))
        .unwrap();
    assert_too_large(pass(&layer, request).await, 10);
}

#[test]
fn a_limit_of_zero_is_rejected() {
    let error = DescribeLayer::new().max_body_bytes(0).unwrap_err();
    assert_eq!((error.field(), error.value()), ("max_body_bytes", "0"));
}
