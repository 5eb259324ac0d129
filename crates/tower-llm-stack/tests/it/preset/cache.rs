//! What is cached, and for how long.

use tower_llm_stack::Scope;

use super::*;

/// How long an answer is served from the cache, to a second; `None` if it is not cached at all.
async fn cached_for(preset: Preset, ask: fn() -> Request<Full<Bytes>>) -> Option<Duration> {
    let upstream = Upstream::always(Behavior::new());
    let cache = preset.cache(Scope::caller()).build().unwrap();
    let only = Only {
        cache: Some(cache),
        ..Only::default()
    };
    let client = only.around(preset, &upstream);
    read(call(&client, ask()).await).await.unwrap();
    let stored = Instant::now();
    let expiries = ["5 min", "30 min", "1 h", "24 h"].map(time);
    let mut last = None;
    for expiry in expiries {
        tokio::time::sleep_until(stored + expiry - SECOND).await;
        read(call(&client, ask()).await).await.unwrap();
        if upstream.calls() > 1 {
            return last;
        }
        tokio::time::sleep_until(stored + expiry + SECOND).await;
        last = Some(expiry);
    }
    read(call(&client, ask()).await).await.unwrap();
    assert_eq!(upstream.calls(), 2, "it expires");
    last
}

#[tokio::test(start_paused = true)]
async fn completions_are_cached() {
    for (preset, ttl) in switch("completions are cached for") {
        for ask in [plain, streamed] {
            assert_eq!(cached_for(preset, ask).await, ttl.map(time), "{preset:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn embeddings_are_cached() {
    let ask = || post("/v1/embeddings", r#"{"model":"m","input":"a"}"#);
    for (preset, ttl) in switch("embeddings are cached for") {
        assert_eq!(cached_for(preset, ask).await, ttl.map(time), "{preset:?}");
    }
}

/// The scope of a preset's stack: another caller, and one without a credential, make calls of their own.
#[tokio::test(start_paused = true)]
async fn a_caller_gets_only_its_own_answers() {
    let upstream = Upstream::always(Behavior::new());
    let stack = Stack::preset(Preset::Chat).build();
    let client: Client = boxed(stack.layer(upstream.service()));
    let ask = async |credential: Option<&'static str>| {
        let mut request = plain();
        request.headers_mut().remove("authorization");
        if let Some(credential) = credential {
            let value = credential.parse().unwrap();
            request.headers_mut().insert("authorization", value);
        }
        read(call(&client, request).await).await.unwrap();
        upstream.calls()
    };
    assert_eq!(ask(Some("Bearer a")).await, 1);
    assert_eq!(ask(Some("Bearer a")).await, 1);
    assert_eq!(ask(Some("Bearer b")).await, 2);
    assert_eq!(ask(None).await, 3);
    assert_eq!(ask(None).await, 4);
}
