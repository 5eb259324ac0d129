//! Bodies pass unchanged, whatever they contain, and a body that breaks off is not sent.

use super::*;

#[tokio::test]
async fn a_request_passes_unchanged() {
    let body = r#"{"model" : "gpt-5",  "extra":[1.0, 1e2], "model":"twice"} "#;
    let request = Request::post("/v1/chat/completions?a=b")
        .header("x-request-id", "7")
        .header("authorization", "Bearer k")
        .body(Full::<Bytes>::from(body))
        .unwrap();
    let passed = pass(&DescribeLayer::new(), request).await.unwrap();
    assert_eq!(passed.method(), Method::POST);
    assert_eq!(passed.uri(), "/v1/chat/completions?a=b");
    assert_eq!(passed.headers().len(), 2);
    assert_eq!(passed.headers()["x-request-id"], "7");
    assert_eq!(passed.headers()["authorization"], "Bearer k");
    assert_eq!(passed.body().size_hint().exact(), Some(body.len() as u64));
    assert_eq!(bytes(passed).await, body);
}

#[tokio::test]
async fn a_body_of_one_frame_is_not_copied() {
    let body = Bytes::from(vec![b' '; 1_000]);
    let at = body.as_ptr();
    let request = Request::post("/").body(Full::new(body)).unwrap();
    let passed = bytes(pass(&DescribeLayer::new(), request).await.unwrap()).await;
    assert_eq!(passed.as_ptr(), at);
}

#[tokio::test]
async fn a_body_that_is_not_json_passes_byte_for_byte_described_by_what_is_known() {
    for body in [
        &b"{\"model\":\"gpt-5\",\"stream\":true,\"messages\":[{\"content\":\"fo"[..],
        b"{\"model\":\"gpt-5\",\"stream\":true,\"messages\":oops}",
        b"{\"model\":\"gpt-5\",\"stream\":true}}}}",
        b"{\"model\":\"gpt-5\",\"stream\":true,\"\xff\xfe\":1}",
    ] {
        let request = Request::post("/v1/chat/completions")
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let passed = pass(&DescribeLayer::new(), request).await.unwrap();
        let call = passed.call().unwrap();
        assert_eq!((call.model(), call.streamed()), (Some("gpt-5"), true));
        assert_eq!(bytes(passed).await, body);
    }
    for body in [&b""[..], b"null", b"[1,2]", b"\"model\"", b"7"] {
        let request = Request::post("/v1/chat/completions")
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let passed = pass(&DescribeLayer::new(), request).await.unwrap();
        assert_eq!(
            line(&passed.call().unwrap()),
            "OpenAi openai chat - whole in=0 max=- items=1"
        );
        assert_eq!(bytes(passed).await, body);
    }
}

#[tokio::test]
async fn endless_nesting_neither_panics_nor_hides_earlier_members() {
    for bracket in ["[", "{\"a\":"] {
        let body = format!(
            "{{\"model\":\"gpt-5\",\"messages\":{}",
            bracket.repeat(100_000)
        );
        assert_eq!(
            call("/v1/chat/completions", &body).await.model(),
            Some("gpt-5")
        );
    }
}

#[tokio::test]
async fn a_body_of_many_frames_is_put_together() {
    let body = r#"{"model":"gpt-5","messages":[{"content":"four"}]}"#;
    let frames = ["", &body[..1], &body[1..20], "", &body[20..], ""].map(str::to_owned);
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-checksum", "7".parse().unwrap());
    let script = Script::data(frames).then(Step::Trailers(trailers));
    let request = Request::post("/v1/chat/completions").body(script).unwrap();
    let passed = pass(&DescribeLayer::new(), request).await.unwrap();
    assert_eq!(passed.call().unwrap().model(), Some("gpt-5"));
    assert_eq!(bytes(passed).await, body);
}

proptest! {
    #[test]
    fn any_body_in_any_frames_passes_byte_for_byte(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..12),
    ) {
        let whole = frames.concat();
        let request = Request::post("/v1/messages").body(Script::data(frames)).unwrap();
        let passing = pin!(async { bytes(pass(&DescribeLayer::new(), request).await.unwrap()).await });
        let passed = passing.poll(&mut Context::from_waker(Waker::noop()));
        prop_assert_eq!(passed, Poll::Ready(Bytes::from(whole)));
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_sent_and_is_a_client_error() {
    let script = Script::data(["{\"model\":"]).then(Step::Error("reset by the caller".into()));
    let request = Request::post("/v1/messages").body(script).unwrap();
    let error = pass(&DescribeLayer::new(), request).await.unwrap_err();
    assert_callers_fault(&error, 400);
    assert_eq!(error.to_string(), "reset by the caller");
}

#[tokio::test]
async fn a_body_over_the_servers_limit_is_too_large() {
    let request = Request::post("/v1/messages")
        .body(http_body_util::Limited::new(
            Full::<Bytes>::from("{\"model\":\"m\"}"),
            3,
        ))
        .unwrap();
    let error = pass(&DescribeLayer::new(), request).await.unwrap_err();
    assert_callers_fault(&error, 413);
    assert_eq!(error.to_string(), "request body is over the server's limit");
}

/// `error` does not count against the provider, and the caller receives `status`.
#[track_caller]
pub(crate) fn assert_callers_fault(error: &BoxError, status: u16) {
    let (outcome, kind) = match status {
        413 => (Outcome::Refused, Some(RefusalKind::TooLarge)),
        _ => (Outcome::ClientError, None),
    };
    assert_eq!(Completion::of_error(&**error).outcome, outcome);
    assert_eq!(Refusal::find(&**error).map(Refusal::kind), kind);
}
