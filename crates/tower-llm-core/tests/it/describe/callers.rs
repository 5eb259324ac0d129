//! The caller of a request, by its credential or as named by the service.

use super::*;

async fn caller_of(layer: &DescribeLayer, uri: &str, headers: &[(&str, &str)]) -> Option<Caller> {
    let mut request = Request::post(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    pass(layer, request)
        .await
        .unwrap()
        .call()
        .unwrap()
        .caller()
        .cloned()
}

#[tokio::test]
async fn the_same_credential_is_the_same_caller_and_another_is_not() {
    let layer = DescribeLayer::new();
    let with = async |name, value| {
        caller_of(&layer, "/v1/messages", &[(name, value)])
            .await
            .unwrap()
    };
    for name in ["authorization", "x-api-key", "api-key", "x-goog-api-key"] {
        let one = with(name, "sk-one").await;
        assert_eq!(with(name, "sk-one").await, one, "{name}");
        assert_ne!(with(name, "sk-two").await, one, "{name}");
        assert_eq!(one.as_str().len(), 32);
        assert!(
            one.as_str().bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{one}"
        );
    }
    let by_query = caller_of(
        &layer,
        "/v1beta/models/m:generateContent?alt=sse&key=sk-one",
        &[],
    )
    .await;
    assert_eq!(by_query, Some(with("x-goog-api-key", "sk-one").await));
    assert_eq!(caller_of(&layer, "/v1/messages?monkey=1", &[]).await, None);
}

#[tokio::test]
async fn clones_of_a_layer_agree_on_callers_and_other_layers_do_not() {
    let layer = DescribeLayer::new();
    let caller = async |layer: &DescribeLayer| {
        caller_of(layer, "/", &[("x-api-key", "sk-one")])
            .await
            .unwrap()
    };
    let one = caller(&layer).await;
    assert_eq!(caller(&layer.clone()).await, one);
    assert_eq!(caller(&layer.clone().max_body_bytes(5).unwrap()).await, one);
    assert_ne!(caller(&DescribeLayer::new()).await, one);
}

#[tokio::test]
async fn layers_with_the_same_secret_agree_on_callers() {
    let caller = async |secret: u8| {
        let layer = DescribeLayer::new().caller_secret([secret; 16]);
        caller_of(&layer, "/", &[("x-api-key", "sk-one")])
            .await
            .unwrap()
    };
    assert_eq!(caller(1).await, caller(1).await);
    assert_ne!(caller(1).await, caller(2).await);
}

#[tokio::test]
async fn a_credential_appears_only_in_its_header() {
    const CREDENTIAL: &str = "sk-very-secret";
    let layer = DescribeLayer::new().caller_secret(*b"0123456789abcdef");
    let request = Request::post("/v1/messages")
        .header("x-api-key", CREDENTIAL)
        .body(Full::<Bytes>::from(r#"{"model":"claude"}"#))
        .unwrap();
    let mut service = layer.layer(service_fn(echo));
    let future = service.call(request);
    let mut texts = vec![format!("{layer:?} {service:?} {future:?}")];
    let passed = future.await.unwrap();
    let call = passed.call().unwrap();
    texts.push(format!("{call:?}"));
    texts.push(format!("{:?}", passed.extensions()));
    texts.push(format!("{} {:?}", call.caller().unwrap(), call.caller()));
    for text in texts {
        assert!(!text.contains(CREDENTIAL), "{text}");
        assert!(!text.contains("very"), "{text}");
        assert!(
            !text.contains("0123456789abcdef") && !text.contains("[48, 49"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn the_service_may_name_callers_itself() {
    let layer = DescribeLayer::new().caller_by(|parts| {
        let tenant = parts.headers.get("x-tenant")?.to_str().ok()?;
        Some(Caller::named(tenant))
    });
    let headers = [("x-tenant", "acme"), ("x-api-key", "sk-one")];
    assert_eq!(
        caller_of(&layer, "/", &headers).await,
        Some(Caller::named("acme"))
    );
    assert_eq!(caller_of(&layer, "/", &headers[1..]).await, None);
}

#[tokio::test]
async fn a_credential_of_another_provider_does_not_change_the_caller() {
    let layer = DescribeLayer::new();
    for (path, own) in [
        ("/v1/messages", "x-api-key"),
        ("/v1beta/models/m:generateContent", "x-goog-api-key"),
        ("/openai/deployments/d/chat/completions", "api-key"),
        ("/v1/chat/completions", "authorization"),
    ] {
        let mut callers = Vec::new();
        for other in ["", "one", "two"] {
            let mut request = Request::post(path).body(Full::new(Bytes::new())).unwrap();
            for name in ["authorization", "x-api-key", "api-key", "x-goog-api-key"] {
                if !other.is_empty() {
                    request.headers_mut().insert(name, other.parse().unwrap());
                }
            }
            request.headers_mut().insert(own, "mine".parse().unwrap());
            let passed = pass(&layer, request).await.unwrap();
            callers.push(passed.call().unwrap().caller().unwrap().clone());
        }
        assert!(callers.iter().all(|caller| *caller == callers[0]), "{path}");
    }
}
