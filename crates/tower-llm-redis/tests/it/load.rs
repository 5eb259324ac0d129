//! Sixty-four tasks at once while the server dies, freezes, restarts and forgets its scripts.
//!
//! Each adds one to the same key, over and over. The value at the end proves that no script ran twice: it is at least the
//! number of successful calls, and at most that plus the calls of unknown outcome.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::support::{
    MARGIN, PATIENCE, RECOVERY, TIMEOUT, connect, connect_patiently, count, timed, until_served,
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tower_llm_redis::Redis;
use tower_llm_testkit::redis::RedisServer;

const TASKS: usize = 64;

#[derive(Debug, Default)]
struct Tally {
    succeeded: u64,
    unknown: u64,
    refused: u64,
    longest: Duration,
}

struct Load {
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Tally>,
}

impl Load {
    /// Starts a load and waits until a hundred calls have succeeded, however busy the machine is.
    async fn start(redis: &Redis, server: &RedisServer) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for _ in 0..TASKS {
            let (redis, stop) = (redis.clone(), Arc::clone(&stop));
            tasks.spawn(async move {
                let mut tally = Tally::default();
                while !stop.load(Ordering::Relaxed) {
                    tally.call(&redis).await;
                }
                tally
            });
        }
        let at_work = async {
            while counted(server).await < 100 + TASKS as u64 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, at_work).await.unwrap();
        Self { stop, tasks }
    }

    async fn stop(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let all = self.tasks.join_all().await;
        all.into_iter().fold(Tally::default(), |sum, one| Tally {
            succeeded: sum.succeeded + one.succeeded,
            unknown: sum.unknown + one.unknown,
            refused: sum.refused + one.refused,
            longest: sum.longest.max(one.longest),
        })
    }
}

impl Tally {
    async fn call(&mut self, redis: &Redis) {
        let (result, took) = timed(count(redis, "n")).await;
        self.longest = self.longest.max(took);
        match result {
            Ok(_) => self.succeeded += 1,
            Err(error) if error.may_have_run() => self.unknown += 1,
            Err(error) => {
                assert!(!error.is_script(), "{error:?}");
                self.refused += 1;
                // Yields to the other tasks, as a caller with other work does.
                sleep(Duration::from_millis(1)).await;
            }
        }
    }

    /// `outages` is how many timeouts each task may have paid, each of them `timeout` long.
    fn check(&self, counted: u64, outages: u64, timeout: Duration) {
        println!("{self:?}, counted {counted}");
        assert!(self.longest < timeout + MARGIN, "{self:?}");
        assert!(self.unknown <= TASKS as u64 * outages, "{self:?}");
        let range = self.succeeded..=self.succeeded + self.unknown;
        assert!(range.contains(&counted), "{counted} of {self:?}");
    }
}

async fn counted(server: &RedisServer) -> u64 {
    let counted = server.command(&["GET", "n"]).await.unwrap();
    counted.parse().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_and_thawed_nothing_is_counted_twice() {
    let server = RedisServer::start().await.unwrap();
    // Longer than the pauses of the machine, so that these do not count.
    let hasty = Duration::from_secs(1);
    let redis = Redis::builder(server.url()).command_timeout(hasty);
    let redis = redis.connect().await.unwrap();
    let load = Load::start(&redis, &server).await;
    for _ in 0..3 {
        sleep(Duration::from_millis(200)).await;
        server.freeze().unwrap();
        // Longer than any call may take: none waits for the server to continue.
        sleep(hasty + MARGIN + Duration::from_millis(100)).await;
        server.thaw().unwrap();
        let took = until_served(&redis, "other").await;
        assert!(took < RECOVERY, "{took:?}");
    }
    let tally = load.stop().await;
    assert!(tally.refused > 0);
    let outages = redis.health().outages;
    assert!((3..10).contains(&outages), "{outages}");
    tally.check(counted(&server).await, outages, hasty);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_and_restarted_nothing_is_counted_twice() {
    let mut server = RedisServer::start().await.unwrap();
    let redis = connect(server.url()).await;
    for _ in 0..3 {
        let load = Load::start(&redis, &server).await;
        sleep(Duration::from_millis(200)).await;
        // The count dies with the server. So it first stops serving writes, and the count can still be read.
        let pause = server.command(&["CLIENT", "PAUSE", "10000", "WRITE"]);
        pause.await.unwrap();
        sleep(Duration::from_millis(50)).await;
        let before = counted(&server).await;
        server.kill().unwrap();
        sleep(Duration::from_millis(200)).await;
        let tally = load.stop().await;
        tally.check(before, redis.health().outages, TIMEOUT);
        server.restart().await.unwrap();
        let took = until_served(&redis, "other").await;
        assert!(took < RECOVERY, "{took:?}");
        // No command that waited for the old server was sent to the new one.
        assert_eq!(counted(&server).await, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_its_scripts_forgotten_every_call_succeeds_once() {
    let server = RedisServer::start().await.unwrap();
    let redis = connect_patiently(server.url()).await;
    let load = Load::start(&redis, &server).await;
    for _ in 0..50 {
        sleep(Duration::from_millis(10)).await;
        server.flush_scripts().await.unwrap();
    }
    let tally = load.stop().await;
    tally.check(counted(&server).await, 0, PATIENCE);
    assert_eq!((tally.unknown, tally.refused), (0, 0));
}
