//! Content codings: the cache asks for none, since it reads what it stores.

use std::{num::NonZeroU32, task::Poll, time::Duration};

use http::{Response, header::ACCEPT_ENCODING};
use tokio::{task::yield_now, time::advance};
use tower_llm_cache::{CacheLayer, FlightFailed, Policy, RefreshAhead, Scope};
use tower_llm_testkit::mock::{self, Upstream};
use tower_test::mock::SendResponse;

use crate::support::*;

const EMBEDDINGS: &str = "/v1/embeddings";
const INPUTS: &str = r#"{"model":"m","input":["a","b"]}"#;

fn accepting(path: &str, coding: Option<&str>, body: &str) -> Sent {
    let request = coding.into_iter().fold(post(path), |request, coding| {
        request.header(ACCEPT_ENCODING, coding)
    });
    described(request, body)
}

fn question_accepting(coding: &str) -> Sent {
    accepting(CHAT, Some(coding), QUESTION)
}

/// Answers with a coding that was not asked for.
fn compressed(send: SendResponse<Response<Upstream>>) -> mock::Sender {
    let (sender, body) = Upstream::new();
    let mut response = mock::stream(body);
    let headers = response.headers_mut();
    headers.insert("content-encoding", "br".parse().unwrap());
    send.send_response(response);
    sender
}

#[test]
fn what_is_cached_is_asked_for_without_a_coding() {
    for (path, body) in [(CHAT, QUESTION), (EMBEDDINGS, INPUTS)] {
        for accepted in [Some("gzip, br"), Some("*"), None] {
            let layer = shared();
            let (cache, mut provider) = upstream(&layer);
            let _calling = start(&cache, accepting(path, accepted, body));
            let (sent, _) = mock::arrived(&mut provider);
            let sent: Vec<_> = sent.headers().get_all(ACCEPT_ENCODING).iter().collect();
            assert_eq!(sent, ["identity"], "{path} {accepted:?}");
        }
    }
}

/// The call is made for the cache, by a caller's request.
#[tokio::test(start_paused = true)]
async fn what_is_renewed_is_asked_for_without_a_coding() {
    let ttl = Duration::from_secs(60);
    let policy = Policy::completions().ttl(ttl);
    let builder = || CacheLayer::builder(Scope::shared());
    let ahead = RefreshAhead::per_minute(NonZeroU32::MIN);
    let before = builder().completions(policy).refresh_ahead(ahead);
    let after = builder().completions(policy.stale_while_revalidate(ttl));
    for (builder, asked_at) in [(before, 57), (after, 61)] {
        let layer = builder.build().unwrap();
        let (cache, mut provider) = upstream(&layer);
        ask(&cache, &mut provider, question_accepting("gzip"), &WHOLE);
        advance(Duration::from_secs(asked_at)).await;
        for _ in 0..3 {
            let hit = found(&cache, question_accepting("gzip")).expect("it is served meanwhile");
            assert_eq!(frames(hit), WHOLE);
        }
        yield_now().await;
        let (sent, _) = mock::arrived(&mut provider);
        assert_eq!(sent.headers()[ACCEPT_ENCODING], "identity", "{asked_at} s");
    }
}

#[test]
fn what_passes_the_cache_is_sent_as_the_caller_wrote_it() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let request = post(CHAT).header("cache-control", "no-store");
    let request = request.header(ACCEPT_ENCODING, "gzip, br");
    let _calling = start(&cache, described(request, QUESTION));
    let (sent, _) = mock::arrived(&mut provider);
    assert_eq!(sent.headers()[ACCEPT_ENCODING], "gzip, br");
}

/// SDKs accept compression, all of them in their own way.
#[test]
fn callers_that_accept_different_codings_share_answers() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let mut leader = start(&cache, question_accepting("gzip, deflate"));
    let mut follower = start(&cache, question_accepting("br"));
    answer(&mut provider, &WHOLE);
    assert_eq!(frames(answered(&mut leader)), WHOLE);
    assert_eq!(frames(answered(&mut follower)), WHOLE);
    for accepted in ["gzip", "zstd", "identity"] {
        assert!(found(&cache, question_accepting(accepted)).is_some());
    }
    assert_eq!(layer.handle().stats().collapsed, 1);
}

#[test]
fn a_follower_gets_no_coding_that_it_did_not_ask_for() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let mut leader = start(&cache, question_accepting("br"));
    let mut follower = start(&cache, question());
    let mut reads_it = start(&cache, question_accepting("gzip, br"));
    let (_, send) = mock::arrived(&mut provider);
    let sender = compressed(send);
    sender.send("\u{1}\u{2}");
    drop(sender);
    let leader = answered(&mut leader);
    assert_eq!(leader.headers()["content-encoding"], "br");
    assert_eq!(frames(leader), ["\u{1}\u{2}"]);
    let Poll::Ready(Err(error)) = follower.poll() else {
        panic!("it cannot read the answer");
    };
    assert!(error.source().unwrap().is::<FlightFailed>(), "{error}");
    let reads_it = answered(&mut reads_it);
    assert_eq!(reads_it.headers()["content-encoding"], "br");
    assert_eq!(frames(reads_it), ["\u{1}\u{2}"]);
    assert_eq!(layer.handle().stats().stored, 0);
}

#[test]
fn no_caller_joins_an_answer_with_a_coding() {
    for (path, body) in [(CHAT, QUESTION), (EMBEDDINGS, INPUTS)] {
        let layer = shared();
        let (cache, mut provider) = upstream(&layer);
        let mut leader = start(&cache, accepting(path, Some("br"), body));
        let (_, send) = mock::arrived(&mut provider);
        let sender = compressed(send);
        let leader = answered(&mut leader);
        let later = start(&cache, accepting(path, Some("br"), body));
        mock::arrived(&mut provider);
        drop(later);
        sender.send("\u{1}\u{2}");
        drop(sender);
        assert_eq!(frames(leader), ["\u{1}\u{2}"], "{path}");
        assert!(found(&cache, accepting(path, None, body)).is_none());
    }
}

/// A caller that asks for no coding gets its own answer all the same, as it would without a cache.
#[test]
fn a_caller_gets_the_answer_to_its_own_call_whatever_its_coding() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let mut calling = start(&cache, question());
    let (_, send) = mock::arrived(&mut provider);
    let sender = compressed(send);
    sender.send("\u{1}\u{2}");
    drop(sender);
    assert_eq!(frames(answered(&mut calling)), ["\u{1}\u{2}"]);
}
