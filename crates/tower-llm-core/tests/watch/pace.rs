//! What a guard is told while a call runs.

use super::*;

/// A guard that notes how often nothing had come, and how much content had.
#[derive(Debug, Default)]
struct Pace {
    pending: Arc<Mutex<Vec<&'static str>>>,
    content: Arc<Mutex<Vec<Option<u64>>>>,
    has_head: bool,
    is_deaf: bool,
}

impl Guard for Pace {
    fn response_headers(&mut self, _: Option<&mut http::response::Parts>) {
        self.has_head = true;
    }

    fn follows_content(&self) -> bool {
        !self.is_deaf
    }

    fn content(&mut self, seen: Option<u64>) {
        self.content.lock().unwrap().push(seen);
    }

    fn pending(&mut self, cx: &mut Context<'_>) {
        let of = if self.has_head { "body" } else { "head" };
        self.pending.lock().unwrap().push(of);
        cx.waker().wake_by_ref();
    }

    fn end(&mut self, _: &Completion) {}
}

#[test]
fn a_guard_that_follows_content_gets_how_much_has_passed() {
    for is_deaf in [false, true] {
        let pace = Pace {
            is_deaf,
            ..Pace::default()
        };
        let content = Arc::clone(&pace.content);
        let frames = [ROLE, CONTENT, CONTENT, STOP, USAGE, DONE];
        let mut body = HttpBody
            .watch(None, sse(Script::data(frames)), pace)
            .into_body();
        while next_frame(&mut body).is_some() {}
        // The fourth and what follows is none: only a change is content.
        let seen: &[u64] = if is_deaf {
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
    let pace = Pace::default();
    let content = Arc::clone(&pace.content);
    let frames = Script::data(["12345", "678"]);
    let mut body = HttpBody
        .watch(None, Response::new(frames), pace)
        .into_body();
    while next_frame(&mut body).is_some() {}
    assert_eq!(*content.lock().unwrap(), [None, None]);
}

#[test]
fn a_guard_sees_each_pending_poll() {
    let pace = Pace::default();
    let pending = Arc::clone(&pace.pending);
    let mut left = 2;
    let inner = std::future::poll_fn(move |_| {
        left -= 1;
        if left > 0 {
            return Poll::Pending;
        }
        let body = Script::new([Step::Hang]);
        Poll::Ready(Ok::<_, BoxError>(sse(body)))
    });
    let mut future = Box::pin(Guarded::new(inner, HttpBody, None, Armed::new(pace)));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(future.as_mut().poll(&mut cx).is_pending());
    let Poll::Ready(Ok(response)) = future.as_mut().poll(&mut cx) else {
        panic!("it was to answer");
    };
    let mut body = response.into_body();
    assert!(poll_frame(&mut body).is_pending());
    assert!(poll_frame(&mut body).is_pending());
    assert_eq!(*pending.lock().unwrap(), ["head", "body", "body"]);
}
