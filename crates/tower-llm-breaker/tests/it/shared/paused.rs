//! Circuits that the provider has paused in one process while another process opens them.

use tower_llm_core::{Key, KeyBy};

use super::*;
use crate::support::{FAILED, Says, Tested, ask, builder};

/// A copy this old sends no requests of its own: it syncs only when it publishes.
const DAY: Duration = Duration::from_secs(86_400);

/// A process, and a circuit that both failures and the provider's retry-after close for a time.
struct Keyed {
    tested: Tested,
    circuit: CircuitId,
    events: EventReceiver,
}

impl Keyed {
    async fn of(url: String) -> Self {
        Self::aged(url, AGE, LONG).await
    }

    async fn aged(url: String, age: Duration, open_for: Duration) -> Self {
        let redis = timeout(PATIENCE, Redis::builder(url).connect());
        let shared = SharedCircuits::new(redis.await.unwrap().unwrap(), NAME).max_age(age);
        let builder = builder()
            .key_by(KeyBy::provider())
            .failure_threshold(3)
            .open_for(open_for)
            .max_open_for(LONG)
            .shared(shared);
        let tested = Tested::new(builder);
        Self {
            events: tested.handle.subscribe(),
            circuit: CircuitId::key_only(Key::new("openai")),
            tested,
        }
    }

    /// The provider asks this process to wait for `seconds`.
    fn pause(&self, seconds: u32) {
        self.tested.tell(Says::Later(429, seconds));
        assert_eq!(self.state(), State::Throttled);
    }

    fn fail(&self) {
        self.tested.tell_times(3, FAILED);
        assert_eq!(self.state(), State::Open);
    }

    fn trip(&self, time: Duration) {
        self.tested.handle.trip(&self.circuit, time);
    }

    fn state(&self) -> State {
        self.tested.handle.state(&self.circuit)
    }

    fn remaining(&self) -> Duration {
        let stats = self.tested.handle.stats_of(&self.circuit);
        stats.and_then(|stats| stats.remaining).unwrap_or_default()
    }

    async fn until(&self, state: State) -> Duration {
        eventually(|| self.state() == state).await
    }

    /// Waits until the circuit is open for more than `time`.
    async fn until_open_for(&self, time: Duration) -> Duration {
        eventually(|| self.state() == State::Open && self.remaining() > time).await
    }

    /// The events since the last call.
    fn happened(&mut self) -> Vec<EventKind> {
        let events = std::iter::from_fn(|| self.events.try_recv().ok());
        events.map(|event| event.kind).collect()
    }
}

/// All agree on how long the circuit is open, and then fall silent: none publishes what it received.
async fn falls_silent(mut processes: Vec<Keyed>) {
    /// Each change is received once by its publisher, and once more after the others have merged it.
    const MOST: usize = 8;
    let agree = || {
        let duration = || processes.iter().map(Keyed::remaining);
        let is_open = |process: &Keyed| process.state() == State::Open;
        processes.iter().all(is_open)
            && duration().max().unwrap() - duration().min().unwrap() < MARGIN
    };
    eventually(agree).await;
    sleep(2 * AGE).await;
    for process in &mut processes {
        let happened = process.happened();
        assert!(happened.len() <= MOST, "{happened:?}");
    }
    sleep(5 * AGE).await;
    for process in &mut processes {
        assert_eq!(process.happened(), []);
    }
}

/// Every process, also a late one, has the circuit open for as long as the longest opening, then falls silent.
async fn open_in_all(url: String, mut processes: Vec<Keyed>) {
    for process in &processes {
        let took = process.until_open_for(LONG / 2).await;
        assert!(took < AGE + MARGIN, "{took:?}");
    }
    let late = Keyed::of(url).await;
    let took = late.until_open_for(LONG / 2).await;
    assert!(took < AGE + MARGIN, "{took:?}");
    processes.push(late);
    falls_silent(processes).await;
}

/// The circuit stayed paused here, and then admitted all calls to a provider that others had found unavailable.
#[tokio::test]
async fn a_circuit_opened_elsewhere_is_probed_although_it_was_paused_here() {
    let server = RedisServer::start().await.unwrap();
    let open_for = Duration::from_secs(3);
    let one = Keyed::aged(server.url(), AGE, open_for).await;
    let other = Keyed::aged(server.url(), AGE, open_for).await;
    one.pause(1);
    other.fail();
    one.until(State::HalfOpen).await;
    one.tested.tell(FAILED);
    one.tested.refuses(ask(Says::Well));
}

/// The opening did not last longer than the pause, so it was not published.
#[tokio::test]
async fn an_opening_shorter_than_a_pause_elsewhere_lasts_everywhere_until_the_pause_ends() {
    let server = RedisServer::start().await.unwrap();
    let paused = Keyed::of(server.url()).await;
    let watching = Keyed::of(server.url()).await;
    let other = Keyed::aged(server.url(), DAY, LONG / 10).await;
    paused.pause(600);
    watching.until(State::Throttled).await;
    other.fail();
    assert!(other.remaining() < LONG / 2);
    open_in_all(server.url(), vec![paused, watching, other]).await;
}

/// A process that joined later took the opening for a pause, and admitted all calls afterwards.
#[tokio::test]
async fn a_pause_elsewhere_extends_an_opening_and_does_not_replace_it() {
    let server = RedisServer::start().await.unwrap();
    let open = Keyed::aged(server.url(), AGE, LONG / 10).await;
    let watching = Keyed::of(server.url()).await;
    let paused = Keyed::aged(server.url(), DAY, LONG).await;
    open.fail();
    watching.until(State::Open).await;
    paused.pause(600);
    open_in_all(server.url(), vec![open, watching, paused]).await;
}

/// A process with a change to publish skipped the received changes, and its own change was no news: it never received
/// the opening.
#[tokio::test]
async fn a_process_that_publishes_a_pause_receives_the_opening_of_another() {
    /// A script publishes 100 changes: the pause is seldom among the first.
    const TRIPS: usize = 2_000;
    let server = RedisServer::start().await.unwrap();
    let open = Keyed::of(server.url()).await;
    let watching = Keyed::of(server.url()).await;
    let paused = Keyed::aged(server.url(), DAY, LONG).await;
    open.fail();
    watching.until(State::Open).await;
    for number in 0..TRIPS {
        let circuit = CircuitId::key_only(Key::new(format!("p-{number}")));
        paused.tested.handle.trip(&circuit, LONG);
    }
    paused.pause(10);
    paused.until_open_for(LONG / 2).await;
}

/// A change that is in the store must not undo a later manual one.
#[tokio::test]
async fn a_closed_and_paused_circuit_is_not_opened_by_an_earlier_change() {
    let server = RedisServer::start().await.unwrap();
    let one = Keyed::of(server.url()).await;
    let other = Keyed::of(server.url()).await;
    one.fail();
    other.until(State::Open).await;
    one.tested.handle.reset(&one.circuit);
    one.pause(300);
    sleep(3 * AGE).await;
    assert_eq!(one.state(), State::Throttled);
    let late = Keyed::of(server.url()).await;
    let took = late.until(State::Throttled).await;
    assert!(took < AGE + MARGIN, "{took:?}");
}

#[tokio::test]
async fn two_paused_processes_that_both_open_agree_and_fall_silent() {
    let server = RedisServer::start().await.unwrap();
    let one = Keyed::of(server.url()).await;
    let other = Keyed::of(server.url()).await;
    // Neither has received the other's change yet.
    one.pause(100);
    other.pause(200);
    eventually(|| one.remaining() > LONG / 4).await;
    one.trip(LONG / 20);
    other.until(State::Open).await;
    one.trip(LONG);
    other.trip(2 * LONG);
    falls_silent(vec![one, other]).await;
}
