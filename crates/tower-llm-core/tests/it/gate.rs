//! Gates, alone and composed: what is admitted, what is told to whom, and in which order.

#![allow(clippy::unwrap_used, reason = "tests fail by panics")]

use std::{
    borrow::Cow,
    future::pending,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task};
use tower::{Service, service_fn};
use tower_llm_core::{
    Admission, Availability, BoxError, Call, Completion, Described, Entry, Gate, Gated, Guard,
    Outcome, TooLarge, Unary, Wait,
};

/// What gates and their guards have done, in order.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn add(&self, text: String) {
        self.0.lock().unwrap().push(text);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Admits,
    Waits,
    Refuses,
}

/// A gate that does as it is told.
#[derive(Clone, Debug)]
struct Told {
    name: &'static str,
    does: Does,
    /// What a call that waits comes to; `None` while it waits.
    then: Arc<Mutex<Option<Does>>>,
    log: Log,
}

struct Held(&'static str, Log);

impl Guard for Held {
    fn end(&mut self, completion: &Completion) {
        self.1.add(format!("{} {:?}", self.0, completion.outcome));
    }
}

struct Queued(Told);

impl Drop for Queued {
    fn drop(&mut self) {
        self.0.log.add(format!("{} left", self.0.name));
    }
}

fn refusal() -> BoxError {
    TooLarge::new(1).into()
}

impl Told {
    fn held(&self) -> Held {
        Held(self.name, self.log.clone())
    }
}

impl Gate for Told {
    type Guard = Held;

    fn admit(&self, _: &Entry<'_>) -> Admission<Held> {
        match self.does {
            Does::Admits => Admission::Admitted(self.held()),
            Does::Waits => Admission::Waits(Box::new(Queued(self.clone()))),
            Does::Refuses => Admission::Refused(refusal()),
        }
    }

    fn would_admit(&self, _: &Entry<'_>) -> Availability {
        match self.does {
            Does::Admits => Availability::Now,
            Does::Waits => Availability::Unknown,
            Does::Refuses => Availability::After(Duration::from_secs(1)),
        }
    }
}

impl Wait<Held> for Queued {
    fn poll(&mut self, _: &Entry<'_>, _: &mut Context<'_>) -> Poll<Result<Held, BoxError>> {
        match *self.0.then.lock().unwrap() {
            None | Some(Does::Waits) => Poll::Pending,
            Some(Does::Admits) => Poll::Ready(Ok(self.0.held())),
            Some(Does::Refuses) => Poll::Ready(Err(refusal())),
        }
    }
}

/// Two gates, and what they do.
struct Scene {
    gates: (Told, Option<Told>),
    log: Log,
}

impl Scene {
    fn new(outer: Does, inner: Does) -> Self {
        let log = Log::default();
        let told = |name, does| Told {
            name,
            does,
            then: Arc::default(),
            log: log.clone(),
        };
        Self {
            gates: (told("outer", outer), Some(told("inner", inner))),
            log,
        }
    }

    fn outer_then(&self, does: Does) {
        *self.gates.0.then.lock().unwrap() = Some(does);
    }

    fn inner_then(&self, does: Does) {
        *self.gates.1.as_ref().unwrap().then.lock().unwrap() = Some(does);
    }

    /// A call of a service that answers at once, or never.
    fn call(&self, answers: bool) -> task::Spawn<BoxFuture> {
        let service = service_fn(move |_: Ask| async move {
            if !answers {
                pending::<()>().await;
            }
            Ok::<_, BoxError>(())
        });
        let mut gated = Gated::new(service, self.gates.clone(), Unary);
        assert_ready_ok!(task::spawn(()).enter(|cx, _| gated.poll_ready(cx)));
        task::spawn(Box::pin(gated.call(Ask)))
    }
}

type BoxFuture = Pin<Box<dyn Future<Output = Result<(), BoxError>>>>;

struct Ask;

impl Described for Ask {
    fn call(&self) -> Option<Cow<'_, Call>> {
        None
    }
}

use Does::{Admits, Refuses, Waits};

#[test]
fn the_inner_guard_is_told_first() {
    let scene = Scene::new(Admits, Admits);
    assert_ready_ok!(scene.call(true).poll());
    assert_eq!(scene.log.take(), ["inner Success", "outer Success"]);
}

#[test]
fn a_call_that_is_dropped_ends_both() {
    let scene = Scene::new(Admits, Admits);
    let mut call = scene.call(false);
    assert_pending!(call.poll());
    drop(call);
    assert_eq!(scene.log.take(), ["inner Abandoned", "outer Abandoned"]);
}

#[test]
fn what_the_outer_gate_holds_ends_as_refused_if_the_inner_one_refuses() {
    let scene = Scene::new(Admits, Refuses);
    assert_ready_err!(scene.call(true).poll());
    assert_eq!(scene.log.take(), ["outer Refused"]);
    let scene = Scene::new(Refuses, Admits);
    assert_ready_err!(scene.call(true).poll());
    assert!(scene.log.take().is_empty(), "the inner gate was not asked");
}

/// It was not sent, so the layers around it charge nothing.
#[test]
fn a_refused_call_that_is_dropped_before_its_caller_knows_was_not_sent() {
    let scene = Scene::new(Refuses, Admits);
    let call = scene.call(true);
    assert_eq!(Completion::of_drop(|| drop(call)).outcome, Outcome::Refused);
    let scene = Scene::new(Admits, Admits);
    let call = scene.call(true);
    assert_eq!(
        Completion::of_drop(|| drop(call)).outcome,
        Outcome::Abandoned
    );
}

#[test]
fn a_call_waits_at_one_gate_and_then_at_the_other() {
    let scene = Scene::new(Waits, Waits);
    let mut call = scene.call(true);
    assert_pending!(call.poll());
    scene.outer_then(Admits);
    assert_pending!(call.poll());
    assert_eq!(scene.log.take(), ["outer left"]);
    scene.inner_then(Admits);
    assert_ready_ok!(call.poll());
    assert_eq!(
        scene.log.take(),
        ["inner left", "inner Success", "outer Success"]
    );
}

#[test]
fn a_caller_that_leaves_while_its_call_waits_gives_all_back() {
    for (outer, inner) in [(Waits, Admits), (Waits, Waits), (Admits, Waits)] {
        let scene = Scene::new(outer, inner);
        if inner == Waits && outer == Waits {
            scene.outer_then(Admits);
        }
        let mut call = scene.call(true);
        assert_pending!(call.poll());
        drop(call);
        let expected: &[&str] = match (outer, inner) {
            (Waits, Admits) => &["outer left"],
            (Waits, Waits) => &["outer left", "inner left", "outer Refused"],
            _ => &["inner left", "outer Refused"],
        };
        assert_eq!(scene.log.take(), expected, "{outer:?} {inner:?}");
    }
}

#[test]
fn a_wait_that_ends_in_a_refusal_gives_back_what_the_outer_gate_holds_before_the_caller_knows() {
    let scene = Scene::new(Admits, Waits);
    let mut call = scene.call(true);
    assert_pending!(call.poll());
    scene.inner_then(Refuses);
    assert_ready_err!(call.poll());
    assert_eq!(scene.log.take(), ["outer Refused", "inner left"]);
}

#[test]
fn a_service_that_fails_to_become_ready_after_a_wait_gives_all_back() {
    let scene = Scene::new(Waits, Admits);
    let (service, mut handle) = tower_test::mock::pair::<Ask, ()>();
    handle.allow(1);
    let mut gated = Gated::new(service, scene.gates.clone(), Unary);
    assert_ready_ok!(task::spawn(()).enter(|cx, _| gated.poll_ready(cx)));
    let mut call = task::spawn(gated.call(Ask));
    assert_pending!(call.poll());
    scene.outer_then(Admits);
    handle.send_error("gone");
    assert_eq!(assert_ready_err!(call.poll()).to_string(), "gone");
    assert_eq!(
        scene.log.take(),
        ["outer left", "inner Refused", "outer Refused"]
    );
}

#[test]
fn a_gate_that_is_left_out_admits() {
    let mut scene = Scene::new(Admits, Refuses);
    scene.gates.1 = None;
    assert_ready_ok!(scene.call(true).poll());
    assert_eq!(scene.log.take(), ["outer Success"]);
}

#[tokio::test(start_paused = true)]
async fn all_gates_of_a_call_see_one_time() {
    let entry = Entry::new(&Ask, true);
    let now = entry.now();
    tokio::time::advance(std::time::Duration::from_secs(1)).await;
    assert_eq!(entry.now(), now);
}

#[test]
fn gates_are_available_when_the_last_of_them_is() {
    let second = Availability::After(Duration::from_secs(1));
    for (outer, inner, both) in [
        (Does::Admits, Does::Admits, Availability::Now),
        (Does::Admits, Does::Refuses, second),
        (Does::Refuses, Does::Admits, second),
        (Does::Refuses, Does::Waits, Availability::Unknown),
    ] {
        let Scene { gates, log } = Scene::new(outer, inner);
        let entry = Entry::new(&Ask, false);
        assert_eq!(gates.would_admit(&entry), both, "{outer:?}, {inner:?}");
        assert_eq!(log.take(), [""; 0], "nothing is taken");
        let without_inner = (gates.0, None::<Told>);
        let alone = without_inner.0.would_admit(&entry);
        assert_eq!(without_inner.would_admit(&entry), alone);
    }
}
