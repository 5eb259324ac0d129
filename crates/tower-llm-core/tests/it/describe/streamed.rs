//! Bodies that no layer reads: they pass frame by frame and are not held.

use super::{bodies::assert_callers_fault, *};

/// A path, a content type, and the beginning of such a body.
const UPLOADS: [(&str, &str, &[u8]); 5] = [
    (
        "/v1/files",
        "multipart/form-data; boundary=b",
        b"--b\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n",
    ),
    ("/v1/audio/transcriptions", "audio/wav", b"RIFF\0\0\0\0WAVE"),
    (
        "/v1/uploads/u/parts",
        "application/octet-stream",
        b"\0\x01\x02",
    ),
    ("/upload/v1beta/files", "", b"\xff\xfb\x90"),
    (
        "/v1/chat/completions",
        "application/x-www-form-urlencoded",
        b"model=m",
    ),
];

fn upload(path: &str, content_type: &str, body: Script) -> Request<Script> {
    let request = Request::post(path);
    let request = match content_type {
        "" => request,
        _ => request.header("content-type", content_type),
    };
    request.body(body).unwrap()
}

#[tokio::test]
async fn an_upload_passes_unchanged_and_is_described_by_its_path() {
    for (path, content_type, begin) in UPLOADS {
        for known_length in [false, true] {
            let mut script = Script::data([begin, b"more", b"{\"model\":\"m\"}"]);
            if known_length {
                script = script.with_known_length();
            }
            let length = script.size_hint().exact();
            let mut passed = pass(&DescribeLayer::new(), upload(path, content_type, script))
                .await
                .unwrap();
            let call = passed.call().unwrap().into_owned();
            assert_eq!((call.model(), call.input_tokens()), (None, 0), "{path}");
            assert_eq!(call.body_bytes(), None, "{path}");
            assert_eq!(passed.body().as_bytes(), None, "{path}");
            assert!(passed.body().try_clone().is_none(), "{path}");
            assert!(RequestBody::try_clone_request(&passed).is_none(), "{path}");
            assert_eq!(passed.body().size_hint().exact(), length, "{path}");
            for expected in [begin, b"more", b"{\"model\":\"m\"}"] {
                assert!(!passed.body().is_end_stream());
                let frame = passed.body_mut().frame().await.unwrap().unwrap();
                assert_eq!(frame.into_data().unwrap(), expected, "{path}");
            }
            assert_eq!(passed.body().is_end_stream(), known_length);
            assert!(passed.body_mut().frame().await.is_none());
        }
    }
}

/// The provider reads it.
#[tokio::test]
async fn a_compressed_request_for_an_answer_is_estimated_by_its_size() {
    for (path, tokens) in [("/v1/chat/completions", 4_000), ("/v1/files", 0)] {
        for content_type in ["", "application/octet-stream"] {
            let gzip = [&b"\x1f\x8b\x08"[..], &[7; 3_997]].concat();
            let script = Script::data([gzip]).with_known_length();
            let mut request = upload(path, content_type, script);
            let encoding = http::HeaderValue::from_static("gzip");
            request.headers_mut().insert("content-encoding", encoding);
            let passed = pass(&DescribeLayer::new(), request).await.unwrap();
            assert_eq!(passed.call().unwrap().input_tokens(), tokens, "{path}");
        }
    }
}

#[tokio::test]
async fn one_frame_of_twenty_megabytes_is_outstanding() {
    const FRAME: usize = 64 * 1024;
    let frame = Bytes::from(vec![7; FRAME]);
    let script = Script::data(std::iter::repeat_n(frame, 20 * 1024 * 1024 / FRAME));
    let polls = script.polls();
    let inner = service_fn(async |mut request: Sent<Script>| {
        let mut taken = 0;
        let mut bytes = 0;
        loop {
            // Frames read from the caller's body and not yet received here are held somewhere.
            let outstanding = polls.load(Ordering::Relaxed) - taken;
            assert!(outstanding <= 1, "{outstanding} frames after {taken}");
            let Some(frame) = request.body_mut().frame().await else {
                return Ok::<_, BoxError>(bytes);
            };
            bytes += frame?.into_data().unwrap().len();
            taken += 1;
        }
    });
    let request = upload("/v1/files", "multipart/form-data; boundary=b", script);
    let bytes = DescribeLayer::new().layer(inner).oneshot(request).await;
    assert_eq!(bytes.unwrap(), 20 * 1024 * 1024);
}

#[tokio::test]
async fn an_upload_is_passed_on_after_its_first_bytes() {
    for (path, content_type, begin) in UPLOADS {
        let script = Script::data([&b""[..], b" \r\n", begin]).then(Step::Hang);
        let request = upload(path, content_type, script);
        let layer = DescribeLayer::new();
        let mut passing = pin!(pass(&layer, request));
        let polled = passing
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(passed) = polled else {
            panic!("{path} waits for the rest");
        };
        let frame = passed.unwrap().into_body().frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), [b" \r\n", begin].concat());
    }
}

#[tokio::test]
async fn json_is_held_and_described_whatever_its_content_type() {
    let body = r#"{"model":"m","messages":[{"content":"four"}]}"#;
    for content_type in [
        "",
        "application/x-www-form-urlencoded",
        "text/plain",
        "application/octet-stream",
        "multipart/form-data; boundary=b",
        "no content type at all",
    ] {
        for path in ["/v1/chat/completions", "/v1/batches"] {
            // A byte order mark in two frames, and white space.
            let script = Script::data([&b"\xef"[..], b"\xbb\xbf", b" \n", body.as_bytes()]);
            let passed = pass(&DescribeLayer::new(), upload(path, content_type, script))
                .await
                .unwrap();
            let call = passed.call().unwrap().into_owned();
            assert_eq!(call.model(), Some("m"), "{content_type}");
            assert_eq!(call.input_tokens(), 1, "{content_type}");
            let clone = passed.body().try_clone().expect("the body is held");
            assert_eq!(bytes(passed).await.len(), body.len() + 5);
            assert_eq!(
                clone.collect().await.unwrap().to_bytes().len(),
                body.len() + 5
            );
        }
    }
}

#[tokio::test]
async fn a_file_that_begins_like_json_is_streamed_when_it_is_over_the_limit_for_json() {
    let layer = DescribeLayer::new().max_body_bytes(20).unwrap();
    let lines = || Script::data(["{\"custom_id\":1}\n", "{\"custom_id\":2}\n", "{}"]);
    for script in [lines(), lines().with_known_length()] {
        let known_length = script.size_hint().exact().is_some();
        let polls = script.polls();
        let passed = pass(&layer, upload("/upload/v1beta/files", "", script))
            .await
            .unwrap();
        assert_eq!(passed.body().as_bytes(), None);
        // A body that announces its length need not be read that far.
        let read = polls.load(Ordering::Relaxed);
        assert_eq!(read, if known_length { 1 } else { 2 });
        assert_eq!(
            bytes(passed).await,
            "{\"custom_id\":1}\n{\"custom_id\":2}\n{}"
        );
    }
    // A GET requests stored data, whatever its path.
    for path in ["/v1/files", "/v1/chat/completions"] {
        let mut stored = upload(path, "", lines());
        *stored.method_mut() = http::Method::GET;
        let passed = pass(&layer, stored).await.unwrap();
        assert_eq!(passed.body().as_bytes(), None, "{path}");
    }
    // If layers have to read it, it is refused.
    for (path, content_type) in [
        ("/v1/chat/completions", ""),
        ("/v1/messages", "text/plain"),
        ("/v1/batches", "application/json"),
    ] {
        let error = pass(&layer, upload(path, content_type, lines())).await;
        let error = error.expect_err("the request is refused");
        assert_eq!(error.downcast_ref::<TooLarge>().unwrap().limit_bytes(), 20);
    }
}

#[tokio::test]
async fn white_space_alone_is_held_no_further_than_the_limit() {
    let layer = DescribeLayer::new().max_body_bytes(20).unwrap();
    let spaces = || Script::data(vec![vec![b' '; 15]; 3]);
    let passed = pass(&layer, upload("/v1/files", "", spaces())).await;
    assert_eq!(bytes(passed.unwrap()).await.len(), 45);
    let error = pass(&layer, upload("/v1/messages", "", spaces())).await;
    assert!(error.unwrap_err().is::<TooLarge>());
}

#[tokio::test]
async fn an_upload_has_its_own_limit() {
    let layer = DescribeLayer::new()
        .max_body_bytes(10)
        .unwrap()
        .max_streamed_bytes(100)
        .unwrap();
    let frames = |last: usize| Script::data([vec![1; 60], vec![1; last]]);
    let (path, content_type, _) = UPLOADS[2];

    let passed = pass(&layer, upload(path, content_type, frames(40))).await;
    assert_eq!(bytes(passed.unwrap()).await.len(), 100);

    // With an announced length, it is refused before it is sent.
    let announced = frames(41).with_known_length();
    let error = pass(&layer, upload(path, content_type, announced)).await;
    let error = error.expect_err("the request is refused");
    assert_eq!(error.downcast_ref::<TooLarge>().unwrap().limit_bytes(), 100);

    // Otherwise it is cut.
    let passed = pass(&layer, upload(path, content_type, frames(41))).await;
    let mut body = passed.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    let error = body.frame().await.unwrap().unwrap_err();
    assert_callers_fault(&error, 413);
}

#[test]
fn a_limit_of_zero_for_uploads_is_rejected() {
    let error = DescribeLayer::new().max_streamed_bytes(0).unwrap_err();
    assert_eq!((error.field(), error.value()), ("max_streamed_bytes", "0"));
}

#[tokio::test]
async fn an_upload_that_breaks_off_is_a_client_error() {
    let (path, content_type, begin) = UPLOADS[0];
    let script = Script::data([begin]).then(Step::Error("reset by the caller".into()));
    let passed = pass(&DescribeLayer::new(), upload(path, content_type, script)).await;
    let mut body = passed.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    let error = body.frame().await.unwrap().unwrap_err();
    assert_callers_fault(&error, 400);
}

#[tokio::test]
async fn trailers_of_an_upload_pass() {
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-checksum", "7".parse().unwrap());
    let (path, content_type, begin) = UPLOADS[1];
    let script = Script::data([begin]).then(Step::Trailers(trailers.clone()));
    let passed = pass(&DescribeLayer::new(), upload(path, content_type, script)).await;
    let collected = passed.unwrap().into_body().collect().await.unwrap();
    assert_eq!(collected.trailers(), Some(&trailers));
}

#[tokio::test]
async fn a_clone_of_a_request_is_complete_even_after_it_was_sent() {
    let request = post("/v1/messages?a=b")
        .version(http::Version::HTTP_2)
        .body(Full::<Bytes>::from(r#"{"model":"m"}"#))
        .unwrap();
    let mut passed = pass(&DescribeLayer::new(), request).await.unwrap();
    passed.body_mut().frame().await.unwrap().unwrap();
    assert!(passed.body().is_end_stream());
    assert_eq!(passed.body().size_hint().exact(), Some(0));

    let clone = RequestBody::try_clone_request(&passed).unwrap();

    assert_eq!(
        (clone.method(), clone.uri(), clone.version()),
        (passed.method(), passed.uri(), http::Version::HTTP_2)
    );
    assert_eq!(clone.headers(), passed.headers());
    assert_eq!(clone.call().unwrap().model(), Some("m"));
    assert_eq!(bytes(clone).await, r#"{"model":"m"}"#);
}

#[test]
fn a_body_has_the_auto_traits_of_the_callers_body() {
    fn assert_client_body<B: Body + Send + Sync + Unpin + 'static>() {}
    assert_client_body::<RequestBody>();
    assert_client_body::<RequestBody<http_body_util::combinators::BoxBody<Bytes, BoxError>>>();
    // A prompt does not appear in a log.
    let body = RequestBody::<Full<Bytes>>::held("secret");
    assert_eq!(format!("{body:?}"), "Held(6)");
}
