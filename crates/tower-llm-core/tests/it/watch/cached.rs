//! A guard around a cache.

use tower_llm_core::{Answer, Cached, Served};

use super::*;

/// A guard that records which of its methods were called.
#[derive(Clone, Default)]
struct Calls(
    Arc<Mutex<Vec<&'static str>>>,
    Arc<Mutex<Option<Completion>>>,
);

impl Calls {
    fn push(&self, call: &'static str) {
        self.0.lock().unwrap().push(call);
    }
}

impl Guard for Calls {
    fn response_headers(&mut self, head: Option<&mut http::response::Parts>) {
        assert!(head.is_some());
        self.push("headers");
    }

    fn first_token(&mut self, _: Instant) {
        self.push("first token");
    }

    fn follows_content(&self) -> bool {
        true
    }

    fn content(&mut self, _: Option<u64>) {
        self.push("content");
    }

    fn pending(&mut self, _: &mut Context<'_>) {
        self.push("pending");
    }

    fn end(&mut self, completion: &Completion) {
        self.push("end");
        *self.1.lock().unwrap() = Some(completion.clone());
    }
}

#[test]
fn a_guard_is_told_all_that_it_is_without_a_cache_and_what_cost_no_call() {
    for served in [None, Some(Served::Hit), Some(Served::Follower)] {
        let calls = Calls::default();
        let answer = Answer::new(sse(Script::data([CONTENT, DONE])), served);
        let answer = Cached(HttpBody).watch(None, answer, calls.clone());
        assert_eq!(answer.served(), served);
        let mut body = answer.into_inner().into_body();
        while next_frame(&mut body).is_some() {}
        let expected = ["headers", "first token", "content", "content", "end"];
        assert_eq!(*calls.0.lock().unwrap(), expected);
        let completion = calls.1.lock().unwrap().take().unwrap();
        assert_eq!(completion.outcome, Outcome::Success);
        assert_eq!(completion.served, served);

        let mut body = Cached(HttpBody)
            .watch(
                None,
                Answer::new(sse(Script::new([Step::Hang])), served),
                calls.clone(),
            )
            .into_inner()
            .into_body();
        calls.0.lock().unwrap().clear();
        assert!(poll_frame(&mut body).is_pending());
        assert_eq!(*calls.0.lock().unwrap(), ["pending"]);
    }
}

#[test]
fn a_response_without_a_report_of_its_use_has_none_behind_a_cache() {
    assert!(!Watch::<Answer<u64>>::reports_usage(&Cached(Unary)));
    assert!(Watch::<Answer<Response<Script>>>::reports_usage(&Cached(
        HttpBody
    )));
    let call = Call::builder(Provider::OPENAI, Operation::CHAT).build();
    assert!(Watch::<Answer<u64>>::keep(&Cached(Unary), Some(&call)).is_none());
    assert!(Watch::<Answer<Response<Script>>>::keep(&Cached(HttpBody), Some(&call)).is_some());
}
