//! Redis dies, freezes, restarts and loses its scripts while 32 tasks call through two layers, each with its client,
//! as in two processes.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::shared::support::{
    LEASE, MARGIN, Mode, Probe, Prompt, Setup, TIMEOUT, admits, eventually, timed, unary,
};
use tokio::{
    sync::{Mutex, MutexGuard},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tower_llm_core::Unary;
use tower_llm_ratelimit::{Limit, RateLimitLayer, SharedLimits, StoreFallback};
use tower_llm_redis::Redis;

scenarios!(
    processes_enforce_their_shares_while_redis_is_frozen,
    processes_enforce_their_shares_while_redis_is_down,
    fail_closed_admits_nothing_during_an_outage,
    fail_open_admits_everything_during_an_outage,
    an_outage_costs_one_timeout_instead_of_one_per_call,
    a_restart_under_load_delays_no_call,
    lost_scripts_are_sent_again_without_other_effects,
);

const TASKS: usize = 32;
const LIMIT: u64 = 200;
const PERIOD: Duration = Duration::from_secs(2);
/// So long that earlier admissions no longer count.
const OUTAGE: Duration = Duration::from_secs(4);
/// Longer than any delay of a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// One load at a time: several would measure the machine.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Two layers that share a limit under load, each with its own client.
struct Load {
    clients: [Redis; 2],
    probe: Probe,
    decided: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Vec<Decision>>,
    /// Maximum time of a decision on an idle machine.
    prompt: Duration,
    _alone: MutexGuard<'static, ()>,
}

#[derive(Clone, Copy, Debug)]
struct Decision {
    asked: Instant,
    known: Instant,
    took: Duration,
    admitted: bool,
}

impl Load {
    async fn start(setup: &Setup, store_fallback: StoreFallback) -> Self {
        let clients = [setup.hasty_redis().await, setup.hasty_redis().await];
        Self::start_on(setup, clients, store_fallback, TIMEOUT + MARGIN).await
    }

    async fn start_on(
        setup: &Setup,
        clients: [Redis; 2],
        store_fallback: StoreFallback,
        prompt: Duration,
    ) -> Self {
        let alone = ALONE.lock().await;
        let layers = clients.each_ref().map(|redis| {
            let shared = setup.shared(redis, 2).store_fallback(store_fallback);
            let limit = Limit::requests(LIMIT).per(PERIOD);
            unary(RateLimitLayer::for_callers().limit(limit), shared)
        });
        let probe = Probe::new(setup, clients.each_ref());
        let (stop, decided) = (Arc::default(), Arc::default());
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            let layer = layers[task % 2].clone();
            tasks.spawn(call_until(Arc::clone(&stop), layer, Arc::clone(&decided)));
        }
        let load = Self {
            clients,
            probe,
            decided,
            stop,
            tasks,
            prompt,
            _alone: alone,
        };
        load.decide(500).await;
        load
    }

    /// Waits until `calls` more calls have been decided, however long a busy machine needs for them.
    async fn decide(&self, calls: u64) {
        let enough = self.decided.load(Ordering::Relaxed) + calls;
        let decided = async {
            while self.decided.load(Ordering::Relaxed) < enough {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, decided).await.unwrap();
    }

    /// Stops the load; returns all decisions.
    async fn stop(self) -> Vec<Decision> {
        self.stop.store(true, Ordering::Relaxed);
        let (decisions, took) = timed(self.tasks.join_all()).await;
        assert!(took < PATIENCE, "the last calls took {took:?}");
        let decisions = decisions.concat();
        // No decision hangs; except for delays of the machine, none takes longer than its one timeout.
        let longest = decisions.iter().map(|one| one.took).max().unwrap();
        let all = decisions.len();
        let late = decisions.iter().filter(|one| one.took > self.prompt);
        let late = late.count();
        println!("{all} decisions, {late} of them late, the longest {longest:?}");
        assert!(longest < PATIENCE, "a decision took {longest:?}");
        assert!(late * 50 <= all, "{late} of {all} decisions were late");
        decisions
    }
}

async fn call_until(
    stop: Arc<AtomicBool>,
    layer: RateLimitLayer<Unary>,
    decided: Arc<AtomicU64>,
) -> Vec<Decision> {
    let mut decisions = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let (admitted, took) = timed(admits(&layer, Prompt::of(0))).await;
        decisions.push(Decision {
            asked,
            known: Instant::now(),
            took,
            admitted,
        });
        decided.fetch_add(1, Ordering::Relaxed);
        // Callers do other work in between.
        sleep(Duration::from_millis(1)).await;
    }
    decisions
}

/// How many calls asked and decided within an interval were admitted, and how many there were.
fn admitted(decisions: &[Decision], from: Instant, until: Instant) -> (u64, u64) {
    let within = decisions
        .iter()
        .filter(|one| one.asked >= from && one.known < until);
    within.fold((0, 0), |(admitted, all), one| {
        (admitted + u64::from(one.admitted), all + 1)
    })
}

// === an outage under load ===

async fn processes_enforce_their_shares_while_redis_is_frozen(setup: &mut Setup) {
    let mut load = Load::start(setup, StoreFallback::LocalShare).await;
    setup.freeze();
    let outage_start = Instant::now();
    sleep_until(outage_start + OUTAGE).await;
    load.decide(1_000).await;
    let until = Instant::now();
    setup.thaw().await;
    let recovery = load.probe.recovered().await;
    println!("{}: frozen, in use again after {recovery:?}", setup.mode);
    let decisions = load.stop().await;
    check_shares(setup.mode, &decisions, outage_start, until);
}

async fn processes_enforce_their_shares_while_redis_is_down(setup: &mut Setup) {
    let mut load = Load::start(setup, StoreFallback::LocalShare).await;
    setup.kill();
    let outage_start = Instant::now();
    sleep_until(outage_start + OUTAGE).await;
    load.decide(1_000).await;
    let until = Instant::now();
    setup.restart().await;
    let recovery = load.probe.recovered().await;
    println!("{}: killed, in use again after {recovery:?}", setup.mode);
    let decisions = load.stop().await;
    check_shares(setup.mode, &decisions, outage_start, until);
}

fn check_shares(mode: Mode, decisions: &[Decision], outage_start: Instant, until: Instant) {
    let steps = (0..).map(|step| outage_start + PERIOD / 10 * step);
    for from in steps.take_while(|from| *from + PERIOD <= until) {
        let (admitted, all) = admitted(decisions, from, from + PERIOD);
        println!("{mode}: {admitted} of {all} admitted in {PERIOD:?} of the outage");
        assert!(admitted <= LIMIT, "{admitted} admitted");
    }
    // Earlier admissions of each process count too, for a period and the slice in which it began.
    let (admitted, _) = admitted(decisions, outage_start, until);
    assert!(admitted >= LIMIT / 2, "{admitted} admitted");
}

async fn fail_closed_admits_nothing_during_an_outage(setup: &mut Setup) {
    let mut load = Load::start(setup, StoreFallback::FailClosed).await;
    setup.freeze();
    // Leases granted before the outage may be spent until they end.
    let outage_start = Instant::now() + lease(setup.mode);
    sleep_until(outage_start).await;
    load.decide(1_000).await;
    // A call sent just before the recovery may be answered.
    let until = Instant::now();
    sleep(2 * TIMEOUT).await;
    setup.thaw().await;
    load.probe.recovered().await;
    let decisions = load.stop().await;
    let (admitted, all) = admitted(&decisions, outage_start, until);
    assert_eq!(admitted, 0, "of {all}");
}

async fn fail_open_admits_everything_during_an_outage(setup: &mut Setup) {
    let mut load = Load::start(setup, StoreFallback::FailOpen).await;
    setup.kill();
    let clients = load.clients.clone();
    eventually("the outage is noticed", async || {
        clients.iter().all(|redis| !redis.is_up())
    })
    .await;
    let outage_start = Instant::now();
    load.decide(3 * LIMIT).await;
    let until = Instant::now();
    setup.restart().await;
    load.probe.recovered().await;
    let decisions = load.stop().await;
    let (admitted, all) = admitted(&decisions, outage_start, until);
    assert_eq!(admitted, all);
    assert!(all > 2 * LIMIT, "{all}");
}

fn lease(mode: Mode) -> Duration {
    match mode {
        Mode::Script => Duration::ZERO,
        Mode::Leases => LEASE,
    }
}

async fn a_restart_under_load_delays_no_call(setup: &mut Setup) {
    let mut load = Load::start(setup, StoreFallback::LocalShare).await;
    setup.restart().await;
    let back_at = Instant::now();
    let recovery = load.probe.recovered().await;
    println!("{}: restarted, in use again after {recovery:?}", setup.mode);
    sleep(PERIOD).await;
    load.decide(1_000).await;
    let until = Instant::now();
    let decisions = load.stop().await;
    // From a lease or from the store: either way the limit can be used.
    let (admitted, _) = admitted(&decisions, back_at, until);
    let least = match setup.mode {
        Mode::Script => LIMIT / 2,
        // The upper bound is not checked: the lost leases left a limit that looks unused for a period.
        Mode::Leases => 1,
    };
    assert!(admitted >= least, "{admitted}");
}

async fn lost_scripts_are_sent_again_without_other_effects(setup: &mut Setup) {
    // However busy the machine is, only the scripts may be missing.
    let clients = [setup.redis().await, setup.redis().await];
    let load = Load::start_on(setup, clients, StoreFallback::FailOpen, PATIENCE).await;
    let until = Instant::now() + PERIOD;
    while Instant::now() < until {
        setup.flush_scripts().await;
        sleep(Duration::from_millis(20)).await;
    }
    let clients = load.clients.clone();
    let decisions = load.stop().await;
    for redis in &clients {
        let health = redis.health();
        assert_eq!((health.failures, health.outages), (0, 0), "{health:?}");
    }
    // So the store enforced the limit: in the interval before, and in this one.
    let (admitted, _) = admitted(&decisions, until - PERIOD, until);
    assert!(admitted <= LIMIT, "{admitted} admitted");
}

// === an outage, with one call after the other ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_spends_leases_again_when_the_store_has_recovered() {
    let mut setup = Setup::server(Mode::Leases, "again").await;
    let redis = setup.redis().await;
    // The maximum length of leases of a daily limit.
    let lease = Duration::from_secs(3_600);
    let shared = SharedLimits::new(redis.clone(), "again", 2).lease_for(lease);
    let limit = RateLimitLayer::for_callers().limit(Limit::tokens(1_000_000).per_day());
    let layer = unary(limit, shared.store_fallback(StoreFallback::FailClosed));
    setup.kill();
    eventually("the outage is noticed", async || !redis.is_up()).await;
    assert!(!admits(&layer, Prompt::of(1)).await);
    setup.restart().await;
    eventually("the store is back", async || {
        admits(&layer, Prompt::of(1)).await
    })
    .await;
    let before = setup.scripts_run().await;
    for _ in 0..200 {
        assert!(admits(&layer, Prompt::of(1)).await);
    }
    let asked = setup.scripts_run().await - before;
    assert!(asked < 10, "200 calls asked the store {asked} times");
}

async fn an_outage_costs_one_timeout_instead_of_one_per_call(setup: &mut Setup) {
    let redis = setup.hasty_redis().await;
    let limit = RateLimitLayer::for_callers().limit(Limit::requests(100_000).per_hour());
    let layer = unary(limit, setup.shared(&redis, 2));
    assert!(admits(&layer, Prompt::of(0)).await);
    setup.freeze();
    let (all, took) = timed(async {
        let mut all = true;
        for _ in 0..1_000 {
            all &= admits(&layer, Prompt::of(0)).await;
        }
        all
    })
    .await;
    println!("{}: a thousand calls in {took:?}", setup.mode);
    assert!(all, "the process's share of the limit is large enough");
    assert!(took < Duration::from_secs(1), "{took:?} for a thousand");
    // A lease granted before the outage admits them all.
    let outages = redis.health().outages;
    assert!(outages == 1 || setup.mode == Mode::Leases, "{outages}");
    setup.thaw().await;
}
