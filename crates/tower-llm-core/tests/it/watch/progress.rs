//! What a guard learns while a call runs.

use super::*;

/// A guard that records pending polls and the amount of content.
#[derive(Debug, Default)]
struct Progress {
    pending: Arc<Mutex<Vec<&'static str>>>,
    content: Arc<Mutex<Vec<Option<u64>>>>,
    has_headers: bool,
    ignores_content: bool,
}

impl Guard for Progress {
    fn response_headers(&mut self, _: Option<&mut http::response::Parts>) {
        self.has_headers = true;
    }

    fn follows_content(&self) -> bool {
        !self.ignores_content
    }

    fn content(&mut self, seen: Option<u64>) {
        self.content.lock().unwrap().push(seen);
    }

    fn pending(&mut self, cx: &mut Context<'_>) {
        let of = if self.has_headers { "body" } else { "headers" };
        self.pending.lock().unwrap().push(of);
        cx.waker().wake_by_ref();
    }

    fn end(&mut self, _: &Completion) {}
}

#[test]
fn a_guard_that_follows_content_gets_how_much_has_passed() {
    for ignores_content in [false, true] {
        let progress = Progress {
            ignores_content,
            ..Progress::default()
        };
        let content = Arc::clone(&progress.content);
        let frames = [ROLE, CONTENT, CONTENT, STOP, USAGE, DONE];
        let mut body = HttpBody
            .watch(None, sse(Script::data(frames)), progress)
            .into_body();
        while next_frame(&mut body).is_some() {}
        // The fourth frame and later ones have no content: only a change is content.
        let seen: &[u64] = if ignores_content {
            &[]
        } else {
            &[0, 5, 10, 10, 10, 10]
        };
        let seen: Vec<_> = seen.iter().copied().map(Some).collect();
        assert_eq!(*content.lock().unwrap(), seen);
    }
}

#[test]
fn content_that_cannot_be_recognised_is_not_reported() {
    let progress = Progress::default();
    let content = Arc::clone(&progress.content);
    let frames = Script::data(["12345", "678"]);
    let mut body = HttpBody
        .watch(None, Response::new(frames), progress)
        .into_body();
    while next_frame(&mut body).is_some() {}
    assert_eq!(*content.lock().unwrap(), [None, None]);
}

#[test]
fn a_guard_sees_each_pending_poll() {
    let progress = Progress::default();
    let pending = Arc::clone(&progress.pending);
    let mut left = 2;
    let inner = std::future::poll_fn(move |_| {
        left -= 1;
        if left > 0 {
            return Poll::Pending;
        }
        let body = Script::new([Step::Hang]);
        Poll::Ready(Ok::<_, BoxError>(sse(body)))
    });
    let mut future = Box::pin(Guarded::new(inner, HttpBody, None, Armed::new(progress)));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(future.as_mut().poll(&mut cx).is_pending());
    let Poll::Ready(Ok(response)) = future.as_mut().poll(&mut cx) else {
        panic!("the call was to answer");
    };
    let mut body = response.into_body();
    assert!(poll_frame(&mut body).is_pending());
    assert!(poll_frame(&mut body).is_pending());
    assert_eq!(*pending.lock().unwrap(), ["headers", "body", "body"]);
}
