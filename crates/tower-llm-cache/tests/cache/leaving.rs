//! What becomes of a call when its callers leave: which of them pays, and what is stored.

use std::{
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use tokio::time::advance;
use tokio_test::task;
use tower_llm_cache::{Cache, Policy};
use tower_llm_core::{Armed, Call, Completion, Guard, Guarded, HttpBody, Outcome, Served, Watched};
use tower_llm_testkit::mock::{self, Upstream};
use tower_service::Service;

use crate::support::*;

/// Keeps how a call has ended for a layer around the cache.
#[derive(Clone, Debug, Default)]
struct Seen(Arc<Mutex<Option<Completion>>>);

impl Guard for Seen {
    fn end(&mut self, completion: &Completion) {
        *self.0.lock().unwrap() = Some(completion.clone());
    }
}

impl Seen {
    fn completion(&self) -> Completion {
        self.0.lock().unwrap().clone().expect("the call has ended")
    }
}

type Watching = Guarded<<Cache<Inner> as Service<Sent>>::Future, HttpBody, Seen>;
type Body = Watched<tower_llm_cache::CacheBody<Upstream>, Seen>;

/// A caller with a layer around the cache.
struct Caller {
    seen: Seen,
    calling: Option<task::Spawn<Watching>>,
    body: Option<Body>,
}

impl Caller {
    fn ask(cache: &Cache<Inner>, request: Sent) -> Self {
        let call = request.extensions().get::<Call>().cloned();
        let (seen, mut cache) = (Seen::default(), cache.clone());
        let armed = Armed::new(seen.clone());
        let future = Guarded::new(cache.call(request), HttpBody, call, armed);
        let mut caller = Self {
            seen,
            calling: Some(task::spawn(future)),
            body: None,
        };
        caller.poll_headers();
        caller
    }

    fn poll_headers(&mut self) {
        let calling = self.calling.as_mut().expect("it waits for its headers");
        if let Poll::Ready(response) = calling.poll() {
            self.body = Some(response.unwrap().into_body());
            self.calling = None;
        }
    }

    /// Reads frames; these are there.
    fn read(&mut self, expected: &[&str]) {
        if self.body.is_none() {
            self.poll_headers();
        }
        let body = self.body.as_mut().expect("the headers are there");
        for expected in expected {
            assert_eq!(next(body).unwrap().unwrap(), expected);
        }
    }

    fn read_end(&mut self) {
        assert!(next(self.body.as_mut().unwrap()).is_none());
    }

    fn leave(self) -> Completion {
        let seen = self.seen.clone();
        drop(self);
        seen.completion()
    }
}

/// Otherwise a token limit is passed by sending each call twice, and dropping the first.
#[test]
fn one_caller_pays_for_a_call_whoever_leaves_it_when() {
    for cut in 0..=WHOLE.len() {
        let layer = shared();
        let (cache, mut provider) = upstream(&layer);
        let mut callers = [(); 3].map(|()| Caller::ask(&cache, question()));
        let sender = stream(mock::arrived(&mut provider).1);
        let (read, rest) = WHOLE.split_at(cut);
        for frame in read {
            sender.send(frame);
            callers.iter_mut().for_each(|caller| caller.read(&[frame]));
        }
        let [leader, mut second, mut third] = callers;
        let left = leader.leave();
        let pays = left.served.is_none() && left.outcome != Outcome::Refused;
        assert!(!pays, "left after {cut}");
        for frame in rest {
            sender.send(frame);
            second.read(&[frame]);
            third.read(&[frame]);
        }
        drop(sender);
        second.read_end();
        third.read_end();
        let served = [second, third].map(|caller| caller.leave().served);
        let follows = Some(Served::Follower);
        assert_eq!(served, [None, follows], "left after {cut}");
    }
}

/// Neither by one that has read it to its end, nor by one that has not.
#[test]
fn a_call_that_has_ended_is_taken_over_by_no_caller() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let [leader, mut fast, mut slow] = [(); 3].map(|()| Caller::ask(&cache, question()));
    answer(&mut provider, &WHOLE);
    fast.read(&WHOLE);
    fast.read_end();
    slow.read(&[ROLE]);
    let seen = fast.leave();
    let paid = leader.leave();
    assert_eq!((paid.served, paid.outcome), (None, Outcome::Abandoned));
    assert_eq!(paid.output_seen, seen.output_seen);
    slow.read(&WHOLE[1..]);
    assert_eq!(seen.served, Some(Served::Follower));
    assert_eq!(slow.leave().served, Some(Served::Follower));
}

#[test]
fn a_follower_that_has_taken_a_call_over_has_cost_something() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let [leader, second, third] = [(); 3].map(|()| Caller::ask(&cache, question()));
    mock::arrived(&mut provider);
    // Before anything has come.
    assert_eq!(third.leave().outcome, Outcome::Refused);
    assert_eq!(leader.leave().outcome, Outcome::Refused);
    assert_eq!(second.leave().outcome, Outcome::Abandoned);
}

/// Otherwise a token limit is passed by sending each call twice, reading the second, and dropping the first.
#[test]
fn the_caller_that_pays_and_reads_little_is_charged_what_others_have_read() {
    for cut in 0..=WHOLE.len() {
        let layer = shared();
        let (cache, mut provider) = upstream(&layer);
        let [mut leader, mut fast] = [(); 2].map(|()| Caller::ask(&cache, question()));
        let sender = stream(mock::arrived(&mut provider).1);
        leader.poll_headers();
        WHOLE[..cut].iter().for_each(|frame| sender.send(frame));
        fast.read(&WHOLE[..cut]);
        if cut == WHOLE.len() {
            drop(sender);
            fast.read_end();
        }
        let seen = fast.leave();
        assert_eq!(seen.served, Some(Served::Follower));
        assert_eq!(seen.output_seen > 0, cut >= 2, "{cut}");
        let paid = leader.leave();
        assert_eq!((paid.served, paid.outcome), (None, Outcome::Abandoned));
        assert_eq!(paid.output_seen, seen.output_seen, "{cut}");
    }
}

/// The body of the other caller has not ended yet, so it can pay itself.
#[test]
fn a_call_is_taken_over_by_a_caller_that_has_read_its_last_frame_and_not_its_end() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let [mut leader, mut fast] = [(); 2].map(|()| Caller::ask(&cache, question()));
    answer(&mut provider, &WHOLE);
    leader.poll_headers();
    fast.read(&WHOLE);
    assert_eq!(leader.leave().output_seen, 0);
    fast.read_end();
    assert_eq!(fast.leave().served, None);
}

#[tokio::test]
async fn a_follower_that_has_taken_over_a_call_that_is_finished_has_cost_something() {
    let layer = caching(Policy::completions().finish_abandoned());
    let (cache, mut provider) = upstream(&layer);
    let [leader, second, third] = [(); 3].map(|()| Caller::ask(&cache, question()));
    mock::arrived(&mut provider);
    assert_eq!(third.leave().outcome, Outcome::Refused);
    assert_eq!(leader.leave().outcome, Outcome::Refused);
    assert_eq!(second.leave().outcome, Outcome::Abandoned);
    assert_eq!(layer.handle().stats().in_flight, 1);
}

#[test]
fn a_batch_that_waits_for_a_call_pays_for_it_when_its_caller_has_left() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let batch = || described(post("/v1/embeddings"), r#"{"model":"m","input":["a","b"]}"#);
    let one = || described(post("/v1/embeddings"), r#"{"model":"m","input":["a"]}"#);
    let [leader, mut second] = [batch(), one()].map(|request| Caller::ask(&cache, request));
    let (_, send) = mock::arrived(&mut provider);
    leader.leave();
    let (sender, body) = Upstream::new();
    send.send_response(http::Response::new(body));
    sender.send(
        r#"{"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":[2]}],"usage":{"prompt_tokens":7,"total_tokens":7}}"#,
    );
    drop(sender);
    second.poll_headers();
    while next(second.body.as_mut().unwrap()).is_some() {}
    let completion = second.leave();
    assert_eq!(completion.served, None);
    assert_eq!(completion.usage.unwrap().input, 7);
}

/// Else a caller that leaves at once is charged for a call that was never made.
#[test]
fn a_known_answer_that_is_never_asked_for_has_cost_nothing() {
    let layer = shared();
    let (mut cache, mut provider) = upstream(&layer);
    ask(&cache, &mut provider, question(), &WHOLE);
    let not_cached = described(
        post(CHAT).header("cache-control", "only-if-cached"),
        &QUESTION.replace("Why", "How"),
    );
    for request in [question(), not_cached] {
        let seen = Seen::default();
        let armed = Armed::new(seen.clone());
        drop(Guarded::new(cache.call(request), HttpBody, None, armed));
        assert_eq!(seen.completion().outcome, Outcome::Refused);
    }
}

// === Calls that bring nothing ===

#[tokio::test(start_paused = true)]
async fn callers_join_no_call_that_has_brought_nothing_for_long() {
    let silence = Duration::from_secs(30);
    let layer = caching(Policy::completions().max_silence(silence));
    let (cache, mut provider) = upstream(&layer);
    let mut first = Caller::ask(&cache, question());
    let hung = stream(mock::arrived(&mut provider).1);
    let almost = silence - Duration::from_millis(1);
    advance(almost).await;
    let _early = Caller::ask(&cache, question());
    mock::nothing_arrived(&mut provider);

    // After a frame, the time begins again.
    hung.send(ROLE);
    first.read(&[ROLE]);
    assert!(is_waiting(first.body.as_mut().unwrap()));
    advance(almost).await;
    let _late = Caller::ask(&cache, question());
    mock::nothing_arrived(&mut provider);
    advance(Duration::from_millis(1)).await;
    let mut afresh = Caller::ask(&cache, question());
    answer(&mut provider, &WHOLE);
    afresh.read(&WHOLE);

    // The first call is not in the way of the answer, nor that in its.
    hung.send(TOKEN);
    first.read(&[TOKEN]);
    drop(first);
    assert!(found(&cache, question()).is_some());
}

/// Its upstream may have ended long ago: nothing has asked it.
#[tokio::test(start_paused = true)]
async fn callers_join_a_call_whose_answer_is_there_and_not_read() {
    let silence = Duration::from_secs(30);
    let layer = caching(Policy::completions().max_silence(silence));
    let (cache, mut provider) = upstream(&layer);
    for asks_once in [false, true] {
        let question = || {
            described(
                post(CHAT),
                &QUESTION.replace("Why", &format!("{asks_once}")),
            )
        };
        let mut slow = Caller::ask(&cache, question());
        let sender = stream(mock::arrived(&mut provider).1);
        slow.poll_headers();
        if asks_once {
            assert!(is_waiting(slow.body.as_mut().unwrap()));
        }
        WHOLE.iter().for_each(|frame| sender.send(frame));
        drop(sender);
        advance(2 * silence).await;
        let mut other = Caller::ask(&cache, question());
        mock::nothing_arrived(&mut provider);
        other.read(&WHOLE);
    }
}

#[tokio::test(start_paused = true)]
async fn callers_join_no_call_that_brings_comments_alone() {
    let silence = Duration::from_secs(30);
    let layer = caching(Policy::completions().max_silence(silence));
    let (cache, mut provider) = upstream(&layer);
    let mut first = Caller::ask(&cache, question());
    let sender = stream(mock::arrived(&mut provider).1);
    first.poll_headers();
    for comment in [": working\n\n", "\r\n", ":"] {
        assert!(is_waiting(first.body.as_mut().unwrap()));
        advance(silence / 3).await;
        sender.send(comment);
        first.read(&[comment]);
    }
    assert!(is_waiting(first.body.as_mut().unwrap()));
    let _afresh = Caller::ask(&cache, question());
    mock::arrived(&mut provider);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_brings_nothing_is_given_up() {
    let ttl = Duration::from_secs(60);
    let policy = Policy::completions()
        .ttl(ttl)
        .stale_while_revalidate(2 * ttl)
        .max_silence(ttl);
    let layer = caching(policy);
    let (cache, mut provider) = upstream(&layer);
    ask(&cache, &mut provider, question(), &WHOLE);
    advance(ttl).await;
    assert!(found(&cache, question()).is_some());
    tokio::task::yield_now().await;
    let hung = mock::arrived(&mut provider);
    assert_eq!(layer.handle().stats().in_flight, 1);
    tokio::time::sleep(ttl + Duration::from_millis(1)).await;
    assert_eq!(layer.handle().stats().in_flight, 0);
    drop(hung);
    // The next caller still gets the old answer, and another call is made.
    assert!(found(&cache, question()).is_some());
    tokio::task::yield_now().await;
    mock::arrived(&mut provider);
}

// === Calls that all have left ===

#[tokio::test(start_paused = true)]
async fn a_call_that_all_have_left_is_finished_and_stored_if_the_policy_says_so() {
    let layer = caching(Policy::completions().finish_abandoned());
    let (cache, mut provider) = upstream(&layer);
    for cut in 0..WHOLE.len() {
        let question = || described(post(CHAT), &QUESTION.replace("Why", &format!("{cut}")));
        let mut callers = [(); 2].map(|()| Caller::ask(&cache, question()));
        let sender = stream(mock::arrived(&mut provider).1);
        for frame in &WHOLE[..cut] {
            sender.send(frame);
            callers.iter_mut().for_each(|caller| caller.read(&[frame]));
        }
        drop(callers);
        tokio::task::yield_now().await;
        // A caller that comes meanwhile follows.
        let mut later = Caller::ask(&cache, question());
        WHOLE[cut..].iter().for_each(|frame| sender.send(frame));
        drop(sender);
        later.read(&WHOLE);
        assert_eq!(later.leave().served, Some(Served::Follower));
        assert_eq!(frames(found(&cache, question()).unwrap()), WHOLE);
        mock::nothing_arrived(&mut provider);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_all_have_left_is_dropped_when_it_brings_nothing_or_too_much() {
    let silence = Duration::from_secs(30);
    let policy = Policy::completions()
        .finish_abandoned()
        .max_silence(silence)
        .max_answer_bytes(2 * TOKEN.len());
    let layer = caching(policy);
    let (cache, mut provider) = upstream(&layer);
    let in_flight = || layer.handle().stats().in_flight;
    for (tokens, brings) in [(0, None), (0, Some(": working\n\n")), (3, None)] {
        let caller = Caller::ask(&cache, question());
        let (sender, body) = Upstream::new();
        let dropped = Arc::new(Mutex::new(false));
        let note = Arc::clone(&dropped);
        let body = body.on_drop(move || *note.lock().unwrap() = true);
        let (_, send) = mock::arrived(&mut provider);
        send.send_response(mock::stream(body));
        drop(caller);
        (0..tokens).for_each(|_| sender.send(TOKEN));
        tokio::task::yield_now().await;
        if tokens == 0 {
            assert_eq!(in_flight(), 1);
            for _ in 0..4 {
                brings.into_iter().for_each(|frame| sender.send(frame));
                tokio::time::sleep(silence / 3).await;
            }
        }
        assert_eq!(in_flight(), 0);
        assert!(*dropped.lock().unwrap(), "{tokens}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_all_have_left_is_dropped_when_it_takes_too_long() {
    let minute = Duration::from_secs(60);
    let policy = Policy::completions()
        .finish_abandoned()
        .max_unattended(10 * minute)
        .max_silence(60 * minute);
    let layer = caching(policy);
    let (cache, mut provider) = upstream(&layer);
    let caller = Caller::ask(&cache, question());
    let sender = stream(mock::arrived(&mut provider).1);
    tokio::time::sleep(20 * minute).await;
    caller.leave();
    for _ in 0..9 {
        sender.send(TOKEN);
        tokio::time::sleep(minute).await;
        assert_eq!(layer.handle().stats().in_flight, 1);
    }
    // A caller that comes meanwhile gets the rest.
    let mut later = Caller::ask(&cache, question());
    later.read(&[TOKEN; 9]);
    tokio::time::sleep(2 * minute).await;
    sender.send(FINISH);
    later.read(&[FINISH]);
    assert_eq!(layer.handle().stats().in_flight, 1);
    drop(later);
    tokio::time::sleep(9 * minute).await;
    assert_eq!(layer.handle().stats().in_flight, 1);
    tokio::time::sleep(2 * minute).await;
    assert_eq!(layer.handle().stats().in_flight, 0);
}

#[test]
fn outside_of_a_runtime_a_call_that_all_have_left_is_dropped() {
    let layer = caching(Policy::completions().finish_abandoned());
    let (cache, mut provider) = upstream(&layer);
    let caller = Caller::ask(&cache, question());
    mock::arrived(&mut provider);
    caller.leave();
    assert_eq!(layer.handle().stats().in_flight, 0);
}

/// A candidate that was never begun is missing from what the client has read, and no marker ends the stream.
#[test]
fn an_answer_with_half_its_candidates_is_not_stored() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let path = "/v1beta/models/gemini-3-pro:streamGenerateContent?alt=sse";
    let body = r#"{"contents":[],"generationConfig":{"candidateCount":2}}"#;
    let asks = || described(post(path), body);
    let first = "data: {\"candidates\":[{\"index\":0,\"content\":{\"parts\":[{\"text\":\"Hi\"}]},\"finishReason\":\"STOP\"}]}\n\n";
    let mut caller = Caller::ask(&cache, asks());
    stream(mock::arrived(&mut provider).1).send(first);
    caller.read(&[first]);
    caller.leave();
    assert!(found(&cache, asks()).is_none());
}

/// A frame without bytes takes memory, too.
#[test]
fn empty_frames_count_in_the_size_of_an_answer() {
    let layer = caching(Policy::completions().max_answer_bytes(16 * 500));
    let (cache, mut provider) = upstream(&layer);
    let mut caller = Caller::ask(&cache, question());
    let sender = stream(mock::arrived(&mut provider).1);
    (0..=500).for_each(|_| sender.send(""));
    caller.read(&[""; 501]);
    // It is too large to be joined.
    let _other = Caller::ask(&cache, question());
    mock::arrived(&mut provider);
}
