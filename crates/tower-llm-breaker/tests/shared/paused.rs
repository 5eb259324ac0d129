//! What one process is told to wait for, and another opens.

use tower_llm_core::{Key, KeyBy};

use super::{
    support::{FAILED, Says, Tested, ask, builder},
    *,
};

/// A copy of that age asks for nothing by itself: only with what it tells.
const DAY: Duration = Duration::from_secs(86_400);

/// A circuit that both failures and the provider's clock close for a time, and a process that has it.
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

    /// Is told to wait for so many seconds.
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

    /// Waits until it is open for more than `time`.
    async fn until_open_for(&self, time: Duration) -> Duration {
        eventually(|| self.state() == State::Open && self.remaining() > time).await
    }

    /// What has happened since it was asked last.
    fn happened(&mut self) -> Vec<EventKind> {
        let events = std::iter::from_fn(|| self.events.try_recv().ok());
        events.map(|event| event.kind).collect()
    }
}

/// All come to agree for how long it is open, and then nothing happens any more: none tells others what it has of them.
async fn falls_silent(mut processes: Vec<Keyed>) {
    /// What was told is heard again, and of each what others have made of it.
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

/// All have it open for longer than one of them opened it, one that joins later too, and say no more.
async fn come_to_have_it_open(url: String, mut processes: Vec<Keyed>) {
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

/// It stayed paused, and then let all through to what others had found dead.
#[tokio::test]
async fn what_another_has_opened_is_probed_where_it_was_paused_too() {
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

/// It did not last longer than the pause, so it was not published.
#[tokio::test]
async fn what_is_opened_for_less_than_others_are_paused_is_open_everywhere_until_the_pause_is_over()
{
    let server = RedisServer::start().await.unwrap();
    let paused = Keyed::of(server.url()).await;
    let watching = Keyed::of(server.url()).await;
    let other = Keyed::aged(server.url(), DAY, LONG / 10).await;
    paused.pause(600);
    watching.until(State::Throttled).await;
    other.fail();
    assert!(other.remaining() < LONG / 2);
    come_to_have_it_open(server.url(), vec![paused, watching, other]).await;
}

/// A process that joined later took it for a pause, and let all through after that.
#[tokio::test]
async fn what_is_open_is_so_for_longer_where_others_are_paused_and_becomes_no_pause() {
    let server = RedisServer::start().await.unwrap();
    let open = Keyed::aged(server.url(), AGE, LONG / 10).await;
    let watching = Keyed::of(server.url()).await;
    let paused = Keyed::aged(server.url(), DAY, LONG).await;
    open.fail();
    watching.until(State::Open).await;
    paused.pause(600);
    come_to_have_it_open(server.url(), vec![open, watching, paused]).await;
}

/// What came while it had something to tell itself was passed over, and what it told was no news: it never learned.
#[tokio::test]
async fn a_process_that_publishes_a_pause_receives_the_opening_of_another() {
    /// A script tells of a hundred: that of the pause is seldom the first.
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

/// What is there already must not undo what a hand has done since.
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
async fn two_that_are_paused_and_both_open_it_agree_and_say_no_more() {
    let server = RedisServer::start().await.unwrap();
    let one = Keyed::of(server.url()).await;
    let other = Keyed::of(server.url()).await;
    // Neither knows of the other yet.
    one.pause(100);
    other.pause(200);
    eventually(|| one.remaining() > LONG / 4).await;
    one.trip(LONG / 20);
    other.until(State::Open).await;
    one.trip(LONG);
    other.trip(2 * LONG);
    falls_silent(vec![one, other]).await;
}
