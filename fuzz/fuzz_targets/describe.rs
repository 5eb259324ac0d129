//! Describing a request never panics, whatever its path and body, and hands the body on as it is.
//!
//! The first byte chooses the path.

#![no_main]

use std::{
    convert::Infallible,
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use libfuzzer_sys::fuzz_target;
use tower::{Layer, ServiceExt, service_fn};
use tower_llm_core::{DescribeLayer, Described, RequestBody};

const PATHS: [&str; 8] = [
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/completions",
    "/openai/deployments/d/chat/completions",
    "/v1/messages",
    "/v1beta/models/m:generateContent",
    "/v1beta/models/m:batchEmbedContents",
];

fuzz_target!(|data: &[u8]| {
    let [path, body @ ..] = data else { return };
    let sent = Bytes::copy_from_slice(body);
    let expected = sent.clone();
    let service = DescribeLayer::new().layer(service_fn(move |request: Request<RequestBody>| {
        let expected = expected.clone();
        async move {
            let call = request.call().expect("described").clone();
            // A token is four bytes or more, or a number of a list, which is at least two.
            assert!(call.input_tokens() <= expected.len() as u64);
            let body = request
                .into_body()
                .collect()
                .await
                .expect("it is in memory");
            assert_eq!(body.to_bytes(), expected);
            Ok::<_, Infallible>(())
        }
    }));
    let request = Request::post(PATHS[usize::from(*path) % PATHS.len()])
        .body(Full::new(sent))
        .expect("the path is valid");
    let mut answer = pin!(service.oneshot(request));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(answer.as_mut().poll(&mut cx), Poll::Ready(Ok(()))));
});
