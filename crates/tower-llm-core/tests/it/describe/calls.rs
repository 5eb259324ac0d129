//! The description of a call: by its path, its headers and its body, and as set by the service.

use super::*;

#[tokio::test]
async fn every_dialect_is_described() {
    // Texts of four bytes are one token each.
    for (path, body, expected) in [
        (
            "/v1/chat/completions",
            r#"{"model":"gpt-5","messages":[{"role":"user","content":"four"}],"max_completion_tokens":9,"stream":true}"#,
            "OpenAi openai chat gpt-5 streamed in=1 max=9 items=1",
        ),
        (
            "/v1/chat/completions",
            r#"{"model":"gpt-5","stream":false,"messages":[{"role":"system","content":"four"},{"role":"user","content":[{"type":"text","text":"four"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}],"max_tokens":7}"#,
            "OpenAi openai chat gpt-5 whole in=2 max=7 items=1",
        ),
        (
            "/v1/responses",
            r#"{"model":"gpt-5","instructions":"four","input":[{"role":"user","content":[{"type":"input_text","text":"four"}]},{"role":"user","content":"four"}],"max_output_tokens":5,"stream":true}"#,
            "OpenAiResponses openai chat gpt-5 streamed in=3 max=5 items=1",
        ),
        (
            "/v1/responses",
            r#"{"model":"gpt-5","input":"four"}"#,
            "OpenAiResponses openai chat gpt-5 whole in=1 max=- items=1",
        ),
        (
            "/v1/embeddings",
            r#"{"model":"text-embedding-3-small","input":["four","four","four"]}"#,
            "OpenAi openai embeddings text-embedding-3-small whole in=3 max=- items=3",
        ),
        (
            "/v1/embeddings",
            r#"{"model":"e","input":"four"}"#,
            "OpenAi openai embeddings e whole in=1 max=- items=1",
        ),
        (
            "/v1/embeddings",
            r#"{"model":"e","input":[1,2,3,4,5]}"#,
            "OpenAi openai embeddings e whole in=5 max=- items=1",
        ),
        (
            "/v1/embeddings",
            r#"{"model":"e","input":[[1,2,3],[4,5]]}"#,
            "OpenAi openai embeddings e whole in=5 max=- items=2",
        ),
        (
            "/v1/embeddings",
            r#"{"model":"e","input":[]}"#,
            "OpenAi openai embeddings e whole in=0 max=- items=1",
        ),
        (
            "/v1/completions",
            r#"{"model":"gpt-3.5-turbo-instruct","prompt":["four","four"],"max_tokens":16}"#,
            "OpenAi openai text_completion gpt-3.5-turbo-instruct whole in=2 max=32 items=2",
        ),
        (
            "/openai/deployments/east-4o/chat/completions?api-version=2025-04-01",
            r#"{"model":"ignored","messages":[{"content":"four"}],"stream":true}"#,
            "OpenAi azure.ai.openai chat east-4o streamed in=1 max=- items=1",
        ),
        (
            "/openai/deployments/embed/embeddings?api-version=2025-04-01",
            r#"{"input":["four","four"]}"#,
            "OpenAi azure.ai.openai embeddings embed whole in=2 max=- items=2",
        ),
        (
            "/v1/messages",
            r#"{"model":"claude-sonnet-5","system":[{"type":"text","text":"four"}],"messages":[{"role":"user","content":"four"}],"max_tokens":1024,"stream":true}"#,
            "Anthropic anthropic chat claude-sonnet-5 streamed in=2 max=1024 items=1",
        ),
        (
            "/v1/messages/count_tokens",
            r#"{"model":"claude-sonnet-5","messages":[{"role":"user","content":"four"}]}"#,
            "Anthropic anthropic count_tokens claude-sonnet-5 whole in=1 max=- items=1",
        ),
        (
            "/v1beta/models/gemini-3-flash:generateContent",
            r#"{"contents":[{"role":"user","parts":[{"text":"four"}]}],"systemInstruction":{"parts":[{"text":"four"}]},"generationConfig":{"maxOutputTokens":64}}"#,
            "Gemini gcp.gemini generate_content gemini-3-flash whole in=2 max=64 items=1",
        ),
        (
            "/v1beta/models/gemini-3-flash:streamGenerateContent?alt=sse",
            r#"{"contents":[{"parts":[{"text":"four"}]}]}"#,
            "Gemini gcp.gemini generate_content gemini-3-flash streamed in=1 max=- items=1",
        ),
        // The model as the provider reads it, so that no spelling has a limit of its own.
        (
            "/v1beta/models/gemini%2D3%2dflash:generateContent",
            r#"{"contents":[{"parts":[{"text":"four"}]}],"generation_config":{"max_output_tokens":8,"candidate_count":2,"response_schema":{"type":"eightbyt"}}}"#,
            "Gemini gcp.gemini generate_content gemini-3-flash whole in=4 max=16 items=1",
        ),
        (
            "/v1beta/models/gemini-embedding-001:embedContent",
            r#"{"model":"models/gemini-embedding-001","content":{"parts":[{"text":"four"}]}}"#,
            "Gemini gcp.gemini embeddings gemini-embedding-001 whole in=1 max=- items=1",
        ),
        (
            "/v1beta/models/gemini-embedding-001:batchEmbedContents",
            r#"{"requests":[{"model":"m","content":{"parts":[{"text":"four"}]}},{"content":{"parts":[{"text":"four"}]}}]}"#,
            "Gemini gcp.gemini embeddings gemini-embedding-001 whole in=2 max=- items=2",
        ),
        (
            "/v1beta/models/gemini-3-flash:countTokens",
            r#"{"contents":[{"parts":[{"text":"four"}]}]}"#,
            "Gemini gcp.gemini count_tokens gemini-3-flash whole in=1 max=- items=1",
        ),
        (
            "/v1/audio/speech",
            r#"{"model":"tts-1","input":"four"}"#,
            "- _OTHER _OTHER tts-1 whole in=1 max=- items=1",
        ),
        (
            "/proxy/https://api.openai.com/v1/chat/completions",
            r#"{"model":"gpt-5"}"#,
            "OpenAi openai chat gpt-5 whole in=0 max=- items=1",
        ),
    ] {
        let call = call(path, body).await;
        assert_eq!(line(&call), expected, "{path} {body}");
        assert_eq!(call.body_bytes(), Some(body.len() as u64), "{path}");
    }
}

#[tokio::test]
async fn a_request_without_a_body_is_described_by_its_headers() {
    for (header, dialect, provider) in [
        (
            "anthropic-version",
            Some(Dialect::Anthropic),
            Provider::ANTHROPIC,
        ),
        ("x-goog-api-key", Some(Dialect::Gemini), Provider::GEMINI),
        ("accept", None, Provider::OTHER),
    ] {
        let request = Request::get("/v1/models")
            .header(header, "x")
            .body(Empty::<Bytes>::new())
            .unwrap();
        let passed = pass(&DescribeLayer::new(), request).await.unwrap();
        let call = passed.call().unwrap();
        assert_eq!(call.dialect(), dialect, "{header}");
        assert_eq!(*call.provider(), provider, "{header}");
        assert_eq!(*call.operation(), Operation::RETRIEVE, "{header}");
        assert_eq!(
            (call.model(), call.input_tokens(), call.items()),
            (None, 0, 1)
        );
    }
}

#[tokio::test]
async fn a_get_of_a_post_path_is_not_a_call_to_a_model() {
    let request = Request::get("/v1/responses")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let passed = pass(&DescribeLayer::new(), request).await.unwrap();
    assert_eq!(*passed.call().unwrap().operation(), Operation::RETRIEVE);
}

#[tokio::test]
async fn the_service_sets_provider_and_account() {
    let layer = DescribeLayer::new()
        .provider(Provider::new("groq"))
        .account("team-a");
    let request = Request::post("/v1/chat/completions")
        .body(Full::<Bytes>::from(r#"{"model":"m"}"#))
        .unwrap();
    let passed = pass(&layer, request).await.unwrap();
    let call = passed.call().unwrap();
    assert_eq!(call.provider().as_str(), "groq");
    assert_eq!(call.account(), Some("team-a"));
    assert_eq!(call.dialect(), Some(Dialect::OpenAi));
}

#[tokio::test]
async fn an_account_by_credential_is_the_same_for_differently_named_callers() {
    let layer = DescribeLayer::new()
        .caller_by(|parts| Some(tower_llm_core::Caller::named(parts.uri.query()?)))
        .account_by_credential();
    let mut accounts = Vec::new();
    for (caller, credential) in [("ann", "one"), ("bob", "one"), ("ann", "two")] {
        let request = Request::post(format!("/v1/messages?{caller}"))
            .header("x-api-key", credential)
            .body(Empty::<Bytes>::new())
            .unwrap();
        let passed = pass(&layer, request).await.unwrap();
        let call = passed.call().unwrap();
        assert_eq!(call.caller().unwrap().as_str(), caller);
        accounts.push(call.account().unwrap().to_owned());
    }
    assert_eq!(accounts[0], accounts[1]);
    assert_ne!(accounts[0], accounts[2]);
    assert!(!accounts.concat().contains("one") && !accounts.concat().contains("two"));

    let request = Request::post("/v1/messages?ann")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let passed = pass(&layer, request).await.unwrap();
    assert_eq!(passed.call().unwrap().account(), None);
}

#[tokio::test(start_paused = true)]
async fn a_call_is_received_with_its_request_headers() {
    let begun = Instant::now();
    let request = Request::post("/v1/messages")
        .body(Slow::new(Duration::from_secs(5)))
        .unwrap();
    let passed = pass(&DescribeLayer::new(), request).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
    assert_eq!(passed.call().unwrap().received_at(), begun);
}

#[tokio::test]
async fn what_the_provider_keeps_is_known() {
    for (body, stored) in [
        (r#"{"store":true}"#, true),
        (r#"{"input":"hi","background":true,"store":false}"#, true),
        (r#"{"conversation":"conv_1"}"#, true),
        (r#"{"conversation":{"id":"conv_1"}}"#, true),
        (
            r#"{"store":false,"background":false,"conversation":null}"#,
            false,
        ),
        (r#"{"metadata":{"store":true}}"#, false),
        ("{}", false),
    ] {
        let call = call("/v1/responses", body).await;
        assert_eq!(call.stored(), stored, "{body}");
    }
}
