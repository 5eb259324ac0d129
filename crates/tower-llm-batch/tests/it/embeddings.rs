//! Embeddings over HTTP.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use proptest::{collection::vec, prelude::*};
use serde_json::{Value, json};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_llm_batch::{BatchBody, BatchBuilder, BatchHandle, BatchLayer, Embeddings};
use tower_llm_core::{
    BoxError, Call, Caller, Completion, DescribeLayer, EmbeddingLimits, Failure, Key, Outcome,
    RequestBody,
};

type Body = UnsyncBoxBody<Bytes, BoxError>;
type Batching = Embeddings<Full<Bytes>, Body>;
type Answer = Result<Response<BatchBody<Body>>, BoxError>;

/// What a provider got.
#[derive(Clone, Debug)]
struct Got {
    headers: HeaderMap,
    call: Call,
    body: Value,
}

/// A provider that answers by a script, and remembers what it got.
#[derive(Clone)]
struct Provider {
    got: Arc<Mutex<Vec<Got>>>,
    reply: Arc<dyn Fn(&Value) -> Response<Body> + Send + Sync>,
}

impl Provider {
    fn new(reply: impl Fn(&Value) -> Response<Body> + Send + Sync + 'static) -> Self {
        Self {
            got: Arc::default(),
            reply: Arc::new(reply),
        }
    }

    /// One that answers as `OpenAI` does, and rejects empty and "bad" inputs.
    fn openai() -> Self {
        Self::new(|body| {
            let inputs = inputs(body);
            if inputs.iter().any(|input| *input == json!("bad")) {
                let error =
                    json!({"error": {"message": "bad input", "type": "invalid_request_error"}});
                return reply(400, &error);
            }
            reply(200, &embedded(&inputs))
        })
    }

    async fn call(
        self,
        request: Request<RequestBody<Full<Bytes>>>,
    ) -> Result<Response<Body>, BoxError> {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let body: Value = serde_json::from_slice(&body)?;
        let response = (self.reply)(&body);
        self.got.lock().expect("it does not fail").push(Got {
            headers: parts.headers,
            call: parts
                .extensions
                .get::<Call>()
                .expect("it is described")
                .clone(),
            body,
        });
        Ok(response)
    }

    fn got(&self) -> Vec<Got> {
        self.got.lock().expect("it does not fail").clone()
    }

    /// What was asked for, call by call.
    fn inputs(&self) -> Vec<Value> {
        let got = self.got();
        got.into_iter()
            .map(|got| got.body["input"].clone())
            .collect()
    }
}

fn inputs(body: &Value) -> Vec<Value> {
    match &body["input"] {
        Value::Array(inputs) if !inputs.first().is_some_and(Value::is_number) => inputs.clone(),
        input => vec![input.clone()],
    }
}

/// The vector of an input: no other has the same.
fn vector(input: &Value) -> Value {
    let text = input.to_string();
    let numbers = text.bytes().map(|byte| f64::from(byte) / 8.0);
    Value::from(numbers.collect::<Vec<_>>())
}

fn embedded(inputs: &[Value]) -> Value {
    let item =
        |(index, input)| json!({"object": "embedding", "index": index, "embedding": vector(input)});
    let tokens: usize = inputs.iter().map(|input| input.to_string().len()).sum();
    json!({
        "object": "list",
        "data": inputs.iter().enumerate().map(item).collect::<Vec<_>>(),
        "model": "text-embedding-3-small",
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    })
}

fn reply(status: u16, body: &Value) -> Response<Body> {
    reply_with(status, body.to_string())
}

fn reply_with(status: u16, body: String) -> Response<Body> {
    let body_bytes = body.len();
    let body = Full::new(Bytes::from(body)).map_err(|never| match never {});
    Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .header("x-request-id", "req_1")
        .header("content-length", body_bytes)
        .header("etag", "\"of the whole\"")
        .body(body.boxed_unsync())
        .expect("it does not fail")
}

fn post(path: &str, body: &Value) -> http::request::Builder {
    let _ = body;
    Request::post(path.to_owned()).header("authorization", "Bearer key")
}

fn embed(body: &Value) -> Request<Full<Bytes>> {
    let request = post("/v1/embeddings", body);
    request
        .body(Full::new(Bytes::from(body.to_string())))
        .expect("it does not fail")
}

fn text(input: impl Into<Value>) -> Request<Full<Bytes>> {
    embed(&json!({"model": "text-embedding-3-small", "input": input.into()}))
}

fn layer(batching: Batching) -> BatchBuilder<Batching> {
    BatchLayer::builder(batching).window(Duration::from_millis(10))
}

/// Sends all at the same time.
async fn send_all(
    provider: &Provider,
    layer: BatchBuilder<Batching>,
    requests: impl IntoIterator<Item = Request<Full<Bytes>>>,
) -> (Vec<Answer>, BatchHandle) {
    let layer = layer.build().expect("it does not fail");
    let handle = layer.handle();
    let provider = provider.clone();
    let model = ServiceBuilder::new()
        .layer(
            DescribeLayer::new().caller_by(|parts: &http::request::Parts| {
                let name = parts.headers.get("x-caller")?.to_str().ok()?;
                Some(Caller::named(name))
            }),
        )
        .layer(layer)
        .service(service_fn(move |request| provider.clone().call(request)));
    let calls = requests
        .into_iter()
        .map(|request| model.clone().oneshot(request));
    let answers = join_all(calls).await;
    assert_eq!((handle.stats().waiting, handle.stats().in_flight), (0, 0));
    (answers, handle)
}

async fn merge(
    provider: &Provider,
    requests: impl IntoIterator<Item = Request<Full<Bytes>>>,
) -> Vec<Answer> {
    send_all(provider, layer(Embeddings::new()), requests)
        .await
        .0
}

async fn read(answer: Answer) -> (StatusCode, HeaderMap, Value) {
    let (parts, body) = answer.expect("it does not fail").into_parts();
    let body = body
        .collect()
        .await
        .expect("the body does not fail")
        .to_bytes();
    let body = serde_json::from_slice(&body).expect("it is JSON");
    (parts.status, parts.headers, body)
}

/// The vectors of an answer, which must be in order.
async fn vectors(answer: Answer) -> Vec<Value> {
    let (status, _, body) = read(answer).await;
    assert_eq!(status, 200, "{body}");
    let data = body["data"].as_array().expect("a list").clone();
    for (index, item) in data.iter().enumerate() {
        assert_eq!(item["index"], index);
    }
    data.into_iter()
        .map(|item| item["embedding"].clone())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn each_caller_gets_its_own_vectors_and_its_part_of_the_usage() {
    let provider = Provider::openai();
    let requests = [text("alpha"), text(["be", "ta"]), text(["gamma"])];
    let answers = merge(&provider, requests).await;
    let got = provider.got();
    assert_eq!(got.len(), 1);
    assert_eq!(
        got[0].body,
        json!({"model": "text-embedding-3-small", "input": ["alpha", "be", "ta", "gamma"]})
    );
    assert_eq!((got[0].call.items(), got[0].call.input_tokens()), (4, 5));
    assert_eq!(got[0].headers["accept-encoding"], "identity");
    let mut tokens = Vec::new();
    for (answer, own) in answers
        .into_iter()
        .zip([&["alpha"][..], &["be", "ta"], &["gamma"]])
    {
        let (status, headers, body) = read(answer).await;
        assert_eq!(
            (status, &headers["content-type"]),
            (StatusCode::OK, &"application/json".parse().unwrap())
        );
        assert_eq!(headers["x-request-id"], "req_1");
        assert!(!headers.contains_key("content-length") && !headers.contains_key("etag"));
        let data = own.iter().enumerate().map(|(index, input)| {
            json!({"object": "embedding", "index": index, "embedding": vector(&json!(input))})
        });
        assert_eq!(body["data"], Value::from(data.collect::<Vec<_>>()));
        assert_eq!(
            (&body["object"], &body["model"]),
            (&json!("list"), &json!("text-embedding-3-small"))
        );
        assert_eq!(
            body["usage"]["prompt_tokens"],
            body["usage"]["total_tokens"]
        );
        tokens.push(body["usage"]["total_tokens"].as_u64().unwrap());
    }
    // Of 22, by the estimates of 2, 1 and 2.
    assert_eq!(tokens, [10, 4, 8]);
}

#[tokio::test(start_paused = true)]
async fn a_lone_request_passes_as_it_is() {
    let provider = Provider::openai();
    let request = Request::post("/v1/embeddings").header("accept-encoding", "gzip");
    let written = "{ \"input\":\"x\",  \"model\" : \"m\"}";
    let request = request.body(Full::new(Bytes::from(written))).unwrap();
    let answers = merge(&provider, [request]).await;
    let answer = answers.into_iter().next().unwrap().unwrap();
    assert_eq!(format!("{:?}", answer.body()), "Passed");
    let got = provider.got();
    assert_eq!(got[0].headers["accept-encoding"], "gzip");
    assert_eq!(got[0].body["input"], "x");
}

#[tokio::test(start_paused = true)]
async fn vectors_stay_as_the_provider_wrote_them() {
    let provider = Provider::new(|body| {
        let items = inputs(body).len();
        let data: Vec<_> = (0..items)
            .map(|index| {
                format!(r#"{{"embedding": [ 1.50E-3,-0.0, {index}.10 ], "index":{index}}}"#)
            })
            .collect();
        reply_with(
            200,
            format!(r#"{{"data":[{}],"id":"e-1"}}"#, data.join(" , ")),
        )
    });
    let answers = merge(&provider, [text("a"), text("b")]).await;
    let body = answers.into_iter().nth(1).unwrap().unwrap().into_body();
    let body = body.collect().await.unwrap().to_bytes();
    assert_eq!(
        body,
        r#"{"data":[{"index":0,"embedding":[ 1.50E-3,-0.0, 1.10 ]}],"id":"e-1"}"#
    );
}

#[tokio::test(start_paused = true)]
async fn items_in_any_order_or_without_a_number_find_their_callers() {
    let shuffled = Provider::new(|body| {
        let mut reply_body = embedded(&inputs(body));
        reply_body["data"].as_array_mut().unwrap().reverse();
        reply(200, &reply_body)
    });
    let unnumbered = Provider::new(|body| {
        let mut reply_body = embedded(&inputs(body));
        for item in reply_body["data"].as_array_mut().unwrap() {
            item.as_object_mut().unwrap().remove("index");
        }
        reply(200, &reply_body)
    });
    for provider in [shuffled, unnumbered] {
        let answers = merge(&provider, [text("a"), text(["b", "c"])]).await;
        assert_eq!(provider.got().len(), 1);
        let [one, two] = answers.try_into().unwrap();
        assert_eq!(vectors(one).await, [vector(&json!("a"))]);
        assert_eq!(
            vectors(two).await,
            [vector(&json!("b")), vector(&json!("c"))]
        );
    }
}

#[tokio::test(start_paused = true)]
async fn base64_is_passed_on() {
    let provider = Provider::new(|body| {
        let items = inputs(body).len();
        let item = |index| json!({"index": index, "embedding": format!("AAAA{index}===")});
        reply(
            200,
            &json!({"data": (0..items).map(item).collect::<Vec<_>>()}),
        )
    });
    let request =
        |input| embed(&json!({"model": "m", "input": input, "encoding_format": "base64"}));
    // Another format is another batch.
    let answers = merge(&provider, [request("a"), request("b"), text("c")]).await;
    assert_eq!(provider.inputs(), [json!(["a", "b"]), json!("c")]);
    let second = answers.into_iter().nth(1).unwrap();
    assert_eq!(vectors(second).await, [json!("AAAA1===")]);
}

#[tokio::test(start_paused = true)]
async fn lists_of_tokens_are_merged_among_themselves() {
    let provider = Provider::openai();
    let tokens = [json!([1, 2, 3]), json!([[4], [5, 6]])].map(text);
    let answers = merge(
        &provider,
        tokens.into_iter().chain([text("words"), text(["1"])]),
    )
    .await;
    assert_eq!(
        provider.inputs(),
        [json!([[1, 2, 3], [4], [5, 6]]), json!(["words", "1"])]
    );
    let mut answers = answers.into_iter();
    assert_eq!(
        vectors(answers.next().unwrap()).await,
        [vector(&json!([1, 2, 3]))]
    );
    let own = [vector(&json!([4])), vector(&json!([5, 6]))];
    assert_eq!(vectors(answers.next().unwrap()).await, own);
}

#[tokio::test(start_paused = true)]
async fn a_response_with_a_wrong_number_of_vectors_is_asked_for_in_smaller_batches() {
    let wrong: [fn(&mut Value); 5] = [
        |body| drop(body["data"].as_array_mut().unwrap().pop()),
        |body| {
            let item = body["data"][0].clone();
            body["data"].as_array_mut().unwrap().push(item);
        },
        |body| body["data"][1]["index"] = json!(0),
        |body| body["data"][0]["index"] = json!(9),
        |body| body["data"][0]["embedding"] = json!([]),
    ];
    for spoil in wrong {
        let provider = Provider::new(move |body| {
            let inputs = inputs(body);
            let mut body = embedded(&inputs);
            if inputs.len() > 1 {
                spoil(&mut body);
            }
            reply(200, &body)
        });
        let (answers, handle) = send_all(
            &provider,
            layer(Embeddings::new()),
            ["a", "b", "c"].map(text),
        )
        .await;
        assert_eq!(
            provider.inputs(),
            [
                json!(["a", "b", "c"]),
                json!(["a", "b"]),
                json!("a"),
                json!("b"),
                json!("c")
            ]
        );
        assert_eq!(handle.stats().split_calls, 4);
        for (answer, own) in answers.into_iter().zip(["a", "b", "c"]) {
            assert_eq!(vectors(answer).await, [vector(&json!(own))]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_more_calls_an_unreadable_response_is_a_typed_failure() {
    let provider = Provider::new(|_| reply_with(200, "[]".to_owned()));
    let layer = layer(Embeddings::new()).max_split_calls(0);
    let (answers, _) = send_all(&provider, layer, ["a", "b"].map(text)).await;
    for answer in answers {
        let error = answer.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the merged response cannot be taken apart"
        );
        let outcome = Completion::of_error(&*error).outcome;
        assert_eq!(outcome, Outcome::Failed(Failure::InBand));
    }
}

#[tokio::test(start_paused = true)]
async fn a_compressed_response_is_asked_for_again_one_by_one() {
    let provider = Provider::new(|body| {
        let mut response = reply(200, &embedded(&inputs(body)));
        let gzip = header::HeaderValue::from_static("gzip");
        response
            .headers_mut()
            .insert(header::CONTENT_ENCODING, gzip);
        response
    });
    let answers = merge(&provider, ["a", "b"].map(text)).await;
    assert_eq!(
        provider.inputs(),
        [json!(["a", "b"]), json!("a"), json!("b")]
    );
    assert_eq!(
        answers[0].as_ref().unwrap().headers()["content-encoding"],
        "gzip"
    );
}

#[tokio::test(start_paused = true)]
async fn a_bad_input_fails_alone_with_its_own_error() {
    let provider = Provider::openai();
    let requests = (0..16).map(|id| match id {
        11 => text("bad"),
        id => text(format!("good {id}")),
    });
    let answers = merge(&provider, requests).await;
    // The batch, and two halves for each halving of 16.
    assert_eq!(provider.got().len(), 1 + 8);
    for (id, answer) in answers.into_iter().enumerate() {
        if id == 11 {
            let (status, _, body) = read(answer).await;
            assert_eq!(
                (status.as_u16(), &body["error"]["message"]),
                (400, &json!("bad input"))
            );
        } else {
            let own = vector(&json!(format!("good {id}")));
            assert_eq!(vectors(answer).await, [own]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_the_provider_goes_to_all_with_its_headers() {
    let error = json!({"error": {"message": "no", "type": "error"}});
    for status in [401, 404, 429, 500, 503] {
        let error = error.clone();
        let provider = Provider::new(move |_| {
            let mut response = reply(status, &error);
            let headers = response.headers_mut();
            headers.insert("retry-after", "7".parse().unwrap());
            headers.insert("x-should-retry", "false".parse().unwrap());
            headers.insert("x-ratelimit-remaining-requests", "0".parse().unwrap());
            headers.insert("content-length", "49".parse().unwrap());
            response
        });
        let answers = merge(&provider, ["a", "b", "c"].map(text)).await;
        assert_eq!(provider.got().len(), 1, "{status}");
        for answer in answers {
            let (got, headers, body) = read(answer).await;
            assert_eq!(
                (got.as_u16(), &body["error"]["message"]),
                (status, &json!("no"))
            );
            assert_eq!(headers["retry-after"], "7");
            assert_eq!(headers["x-should-retry"], "false");
            assert_eq!(headers["x-ratelimit-remaining-requests"], "0");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_inside_of_a_200_is_judged_by_what_it_is() {
    let overloaded = json!({"error": {"message": "busy", "type": "overloaded_error"}});
    let provider = Provider::new(move |_| reply(200, &overloaded));
    let answers = merge(&provider, ["a", "b", "c"].map(text)).await;
    assert_eq!(provider.got().len(), 1);
    for answer in answers {
        let (_, _, body) = read(answer).await;
        assert_eq!(body["error"]["message"], "busy");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_fails_all() {
    let provider = Provider::new(|_| {
        let frames = [
            Ok(http_body::Frame::data(Bytes::from("{\"data\":["))),
            Err("reset".into()),
        ];
        let body = StreamBody::new(futures_util::stream::iter(frames));
        Response::new(body.boxed_unsync())
    });
    let answers = merge(&provider, ["a", "b"].map(text)).await;
    assert_eq!(provider.got().len(), 1);
    for answer in answers {
        let error = answer.unwrap_err();
        assert_eq!(error.to_string(), "reset");
        assert!(matches!(
            Completion::of_error(&*error).outcome,
            Outcome::Failed(_)
        ));
    }
}

/// A request with a header.
fn with(name: &'static str, value: &'static str) -> Request<Full<Bytes>> {
    let mut request = text("x");
    request
        .headers_mut()
        .insert(name, value.parse().expect("it does not fail"));
    request
}

#[tokio::test(start_paused = true)]
async fn requests_that_differ_in_more_than_their_input_are_not_merged() {
    let option = |name: &str, value: Value| {
        embed(&json!({"model": "text-embedding-3-small", "input": "x", name: value}))
    };
    let mut elsewhere = text("x");
    *elsewhere.uri_mut() = "/v2/embeddings".parse().unwrap();
    let provider = Provider::openai();
    let requests = [
        text("x"),
        embed(&json!({"model": "text-embedding-3-large", "input": "x"})),
        option("dimensions", json!(256)),
        option("dimensions", json!(512)),
        option("user", json!("u-1")),
        with("authorization", "Bearer another"),
        with("openai-organization", "org-2"),
        with("x-forwarded-user", "someone"),
        elsewhere,
    ];
    let answers = merge(&provider, requests).await;
    assert_eq!(answers.len(), 9);
    assert_eq!(provider.inputs(), vec![json!("x"); 9]);
}

#[tokio::test(start_paused = true)]
async fn what_is_about_one_request_is_not_compared() {
    let provider = Provider::openai();
    let requests = [
        with("traceparent", "00-1"),
        with("x-request-id", "2"),
        with("x-stainless-retry-count", "1"),
        with("user-agent", "another"),
        with("accept-encoding", "br"),
        with("x-forwarded-for", "10.0.0.7"),
        // In another order, and spaced otherwise.
        {
            let body = "{\"input\" : [\"x\"], \"model\": \"text-embedding-3-small\"}";
            let request = post("/v1/embeddings", &Value::Null).header("content-length", "54");
            request.body(Full::new(Bytes::from(body))).unwrap()
        },
    ];
    let answers = merge(&provider, requests).await;
    assert_eq!(
        provider.inputs(),
        [json!(["x", "x", "x", "x", "x", "x", "x"])]
    );
    assert!(answers.iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_merged_is_sent_alone_and_at_once() {
    let bodies = [
        json!({"model": "m", "input": ["x"], "late_chunking": true}),
        json!({"model": "m", "input": []}),
        json!({"model": "m", "input": [""]}),
        json!({"model": "m", "input": ["x", 1]}),
        json!({"model": "m", "input": [["x"]]}),
        json!({"model": "m", "input": [[1], []]}),
        json!({"model": "m", "input": {"text": "x"}}),
        json!({"model": "m"}),
    ];
    let mut requests: Vec<_> = bodies.iter().map(embed).collect();
    requests.push(with("idempotency-key", "1"));
    let twice = "{\"model\":\"m\",\"input\":\"x\",\"input\":\"y\"}";
    let twice = Full::new(Bytes::from(twice));
    requests.push(post("/v1/embeddings", &Value::Null).body(twice).unwrap());
    let count = requests.len();
    let provider = Provider::new(|_| reply(200, &json!({})));
    let (_, handle) = send_all(&provider, layer(Embeddings::new()), requests).await;
    assert_eq!(handle.stats().alone, count as u64);
    assert_eq!(provider.got().len(), count);
}

#[tokio::test(start_paused = true)]
async fn other_requests_pass_through_as_they_stream() {
    let provider = Provider::new(|_| {
        let frames = ["data: 1\n\n", "data: 2\n\n"]
            .map(|frame| Ok(http_body::Frame::data(Bytes::from(frame))));
        let body = StreamBody::new(futures_util::stream::iter(frames));
        Response::new(body.boxed_unsync())
    });
    let chat = || {
        let body = json!({"model": "gpt-5.4", "messages": [], "stream": true}).to_string();
        let request = Request::post("/v1/chat/completions");
        request.body(Full::new(Bytes::from(body))).unwrap()
    };
    let answers = merge(&provider, [chat(), chat()]).await;
    assert_eq!(provider.got().len(), 2);
    for answer in answers {
        let mut body = answer.unwrap().into_body();
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "data: 1\n\n");
    }
}

#[tokio::test(start_paused = true)]
async fn equal_inputs_are_sent_once_if_that_is_wanted() {
    let provider = Provider::openai();
    let batching = Embeddings::new().dedupe();
    let requests = [text("same"), text(["other", "same"]), text("same")];
    let (answers, _) = send_all(&provider, layer(batching), requests).await;
    assert_eq!(provider.inputs(), [json!(["same", "other"])]);
    let [one, two, three] = answers.try_into().unwrap();
    let (same, other) = (vector(&json!("same")), vector(&json!("other")));
    assert_eq!(vectors(one).await, std::slice::from_ref(&same));
    assert_eq!(vectors(two).await, [other, same.clone()]);
    assert_eq!(vectors(three).await, [same]);
}

#[tokio::test(start_paused = true)]
async fn callers_can_be_kept_apart() {
    let provider = Provider::openai();
    let batching = Embeddings::new().group_by(|request| {
        let caller = request.call().and_then(|call| call.caller().cloned());
        Key::new(caller.map_or(String::new(), |caller| caller.as_str().to_owned()))
    });
    let requests = [("a", 1), ("b", 2), ("a", 3)].map(|(caller, id)| {
        let mut request = text(format!("{id}"));
        request
            .headers_mut()
            .insert("x-caller", caller.parse().unwrap());
        request
    });
    send_all(&provider, layer(batching), requests).await;
    let mut inputs = provider.inputs();
    inputs.sort_by_key(Value::to_string);
    assert_eq!(inputs, [json!("2"), json!(["1", "3"])]);
    // A batch of one caller is that caller's.
    let callers = provider
        .got()
        .iter()
        .map(|got| got.call.caller().cloned())
        .collect::<Vec<_>>();
    assert!(callers.contains(&Some(Caller::named("a"))));
}

#[tokio::test(start_paused = true)]
async fn batches_stay_within_the_limits_of_each_provider() {
    let all = [
        EmbeddingLimits::OPENAI,
        EmbeddingLimits::COHERE,
        EmbeddingLimits::VOYAGE,
        EmbeddingLimits::GEMINI,
        EmbeddingLimits::VERTEX,
        EmbeddingLimits::MISTRAL,
        EmbeddingLimits::TEI,
    ];
    for limits in all {
        let provider = Provider::new(|body| {
            let data =
                (0..inputs(body).len()).map(|index| json!({"index": index, "embedding": [0.5]}));
            reply(200, &json!({"data": data.collect::<Vec<_>>()}))
        });
        let layer = layer(Embeddings::new().limits(limits)).max_waiting(10_000);
        // 1,024 tokens each.
        let word = "x".repeat(4 * 1_024);
        let (answers, _) = send_all(&provider, layer, (0..400).map(|_| text(word.as_str()))).await;
        assert!(answers.iter().all(Result::is_ok));
        let got = provider.got();
        let most = limits.items.min(limits.tokens.unwrap_or(u64::MAX) / 1_024);
        for got in &got {
            assert!(got.call.items() <= limits.items);
            assert!(
                limits
                    .tokens
                    .is_none_or(|tokens| got.call.input_tokens() <= tokens)
            );
        }
        assert_eq!(got.len() as u64, 400_u64.div_ceil(most), "{limits:?}");
        assert_eq!(got.iter().map(|got| got.call.items()).sum::<u64>(), 400);
    }
}

#[tokio::test(start_paused = true)]
async fn an_input_over_the_limit_per_item_is_sent_alone() {
    let provider = Provider::openai();
    let long = "x".repeat(4 * 8_192 + 1);
    let requests = [text("a"), text(long.as_str()), text("b")];
    let (_, handle) = send_all(&provider, layer(Embeddings::new()), requests).await;
    assert_eq!((handle.stats().alone, handle.stats().calls), (1, 2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn each_input_is_embedded_once_and_the_usage_adds_up(
        requests in vec(vec("[a-z\u{e9}\"\\\\ ]{1,12}", 1..6), 1..30),
        max_items in 1_u64..12,
        max_tokens in 1_u64..24,
        dedupes: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let provider = Provider::openai();
            let limits = EmbeddingLimits::new(max_items).tokens(max_tokens);
            let batching = Embeddings::new().limits(limits);
            let batching = if dedupes { batching.dedupe() } else { batching };
            let calls = requests.iter().map(|inputs| text(inputs.clone()));
            let (answers, _) = send_all(&provider, layer(batching), calls).await;
            let mut used = 0;
            for (answer, own) in answers.into_iter().zip(&requests) {
                let (_, _, body) = read(answer).await;
                let data = body["data"].as_array().unwrap();
                let got: Vec<_> = data.iter().map(|item| item["embedding"].clone()).collect();
                let expected: Vec<_> = own.iter().map(|input| vector(&json!(input))).collect();
                assert_eq!(got, expected);
                used += body["usage"]["total_tokens"].as_u64().unwrap();
            }
            let mut sent: BTreeMap<String, usize> = BTreeMap::new();
            let mut billed = 0;
            for got in provider.got() {
                let inputs = inputs(&got.body);
                billed += inputs.iter().map(|input| input.to_string().len() as u64).sum::<u64>();
                for input in inputs {
                    *sent.entry(input.to_string()).or_default() += 1;
                }
            }
            assert_eq!(used, billed);
            if !dedupes {
                let mut asked: BTreeMap<String, usize> = BTreeMap::new();
                requests.iter().flatten().for_each(|input| *asked.entry(json!(input).to_string()).or_default() += 1);
                assert_eq!(sent, asked);
            }
        });
    }
}
