//! Every interleaving of a flight's participants and its upstream, up to a bound of preemptions.
//!
//! Without a wake-up that a participant needs, loom finds that no thread can go on. Loom's own cfg would change tokio too,
//! hence another: `RUSTFLAGS="--cfg cache_loom" cargo test -p tower-llm-cache --lib --target-dir target/loom loom`

use std::{
    future::poll_fn,
    sync::{
        Arc as StdArc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use ::loom::{future::block_on, model::Builder, sync::Mutex as LoomMutex, thread};
use http::Response;
use tower_llm_core::Outcome;

use super::*;
use crate::form::Form;

/// Frames of each answer.
const FRAMES: usize = 2;

/// What the provider has sent, and the waker of the call that waits for more.
#[derive(Default)]
struct Provider(LoomMutex<Sent>);

#[derive(Default)]
struct Sent {
    steps: usize,
    waker: Option<Waker>,
}

/// A call to the provider.
struct Upstream {
    provider: StdArc<Provider>,
    taken: usize,
    dropped: StdArc<AtomicUsize>,
}

/// Counts the whole answers.
#[derive(Clone, Default)]
struct Answers(StdArc<AtomicUsize>);

impl Provider {
    fn send(&self) {
        let mut sent = self.0.lock().unwrap();
        sent.steps += 1;
        let waker = sent.waker.take();
        drop(sent);
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Drive for Upstream {
    fn poll_step(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Step> {
        let mut sent = self.provider.0.lock().unwrap();
        if sent.steps <= self.taken {
            sent.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        drop(sent);
        self.taken += 1;
        Poll::Ready(match self.taken {
            1 => Step::Head(Box::new(Response::new(()).into_parts().0)),
            taken if taken <= 1 + FRAMES => {
                Step::Frame(Frame::data(Bytes::from(vec![b'0'; taken])))
            }
            _ => Step::End(End {
                is_certain: true,
                completion: Completion::new(Outcome::Success),
                is_event_stream: true,
            }),
        })
    }

    fn end(&self) -> Option<End> {
        None
    }

    fn give_up(self: Pin<Box<Self>>) -> End {
        End::without_answer(Outcome::Abandoned)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Relaxed);
    }
}

impl Recorder for Answers {
    fn record(&self, answer: &Recorded, _: &End) {
        assert_eq!(answer.frames.len(), FRAMES);
        self.0.fetch_add(1, Relaxed);
    }
}

/// A table, a provider and what has happened.
#[derive(Default)]
struct Scene {
    flights: Arc<Flights>,
    provider: StdArc<Provider>,
    started: AtomicUsize,
    dropped: StdArc<AtomicUsize>,
    answers: Answers,
}

impl Scene {
    fn join(&self) -> Participant {
        let key = FlightKey {
            digest: [7; 32],
            form: Form::Events,
            include_usage: false,
        };
        let start = || {
            self.started.fetch_add(1, Relaxed);
            Start {
                upstream: Box::pin(Upstream {
                    provider: StdArc::clone(&self.provider),
                    taken: 0,
                    dropped: StdArc::clone(&self.dropped),
                }),
                recorder: Box::new(self.answers.clone()),
                max_recording: 1 << 10,
                max_silence: Duration::MAX,
                max_unattended: Duration::MAX,
                finishes: false,
            }
        };
        match self.flights.join_or_start(key, || None::<()>, start) {
            Join::Leader(participant) | Join::Follower(participant) => participant,
            Join::Stored(()) => unreachable!("nothing is stored"),
        }
    }

    fn counts(&self) -> (usize, usize, usize) {
        (
            self.started.load(Relaxed),
            self.dropped.load(Relaxed),
            self.answers.0.load(Relaxed),
        )
    }
}

/// Reads the whole answer, which must be in order.
fn read(mut participant: Participant) {
    block_on(poll_fn(|cx| participant.poll_head(cx))).unwrap();
    let mut lengths = Vec::new();
    while let Some(frame) = block_on(poll_fn(|cx| participant.poll_frame(cx))) {
        lengths.push(frame.unwrap().into_data().unwrap().len());
    }
    assert_eq!(lengths, [2, 3]);
}

/// Polls once, and leaves.
fn look(mut participant: Participant) {
    let mut polled = false;
    block_on(poll_fn(|cx| {
        if !polled {
            polled = true;
            let _ = participant.poll_head(cx);
        }
        Poll::Ready(())
    }));
}

fn check(preemptions: usize, scene: impl Fn() + Send + Sync + 'static) {
    let mut model = Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(scene);
}

#[test]
fn two_readers_get_all_of_one_answer() {
    check(2, || {
        let scene = StdArc::new(Scene::default());
        let readers: Vec<_> = (0..2).map(|_| scene.join()).collect();
        let threads: Vec<_> = readers
            .into_iter()
            .map(|reader| thread::spawn(move || read(reader)))
            .collect();
        (0..FRAMES + 2).for_each(|_| scene.provider.send());
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        assert_eq!(scene.counts(), (1, 1, 1));
        assert_eq!(scene.flights.len(), 0);
    });
}

#[test]
fn a_participant_that_leaves_after_a_poll_leaves_no_other_asleep() {
    check(3, || {
        let scene = StdArc::new(Scene::default());
        let (leader, follower) = (scene.join(), scene.join());
        let leaver = thread::spawn(move || look(leader));
        let reader = thread::spawn(move || read(follower));
        (0..FRAMES + 2).for_each(|_| scene.provider.send());
        leaver.join().unwrap();
        reader.join().unwrap();
        assert_eq!(scene.counts(), (1, 1, 1));
    });
}

#[test]
fn a_caller_that_comes_while_the_last_one_leaves_gets_a_whole_answer() {
    check(3, || {
        let scene = StdArc::new(Scene::default());
        (0..FRAMES + 2).for_each(|_| scene.provider.send());
        let leader = scene.join();
        let leaver = thread::spawn(move || look(leader));
        read(scene.join());
        leaver.join().unwrap();
        let (started, dropped, answers) = scene.counts();
        assert_eq!((started, answers), (dropped, 1));
        assert!(started == 1 || started == 2);
        assert_eq!(scene.flights.len(), 0);
    });
}
