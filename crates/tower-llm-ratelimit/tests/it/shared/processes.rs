//! Processes that share limits at full speed, and that die.
//!
//! Each one is this test program, started again with a job in its environment: it runs the job instead of the tests.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use crate::shared::support::{
    Dice, LEASE, Mode, PATIENCE, Prompt, RECOVERY, Setup, admits, connect, eventually,
    exactly_left, requests_left, unary,
};
use jiff::Timestamp;
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep, timeout},
};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_core::{BoxError, Unary};
use tower_llm_ratelimit::{Limit, RateLimitLayer, StoreFallback};
use tower_llm_redis::Redis;
use tower_llm_testkit::Stopwatch;

scenarios!(
    four_processes_at_full_speed_never_exceed_a_limit_and_use_it,
    tokens_of_a_dead_process_are_refunded_and_its_requests_are_not,
    tokens_of_a_dead_process_are_refunded_without_a_call_in_time,
);

const JOB: &str = "TOWER_LLM_TEST_JOB";

/// The job of a child process.
#[derive(Debug)]
struct Job {
    what: String,
    mode: Mode,
    name: String,
    url: String,
    seed: usize,
    starts_at: i64,
}

/// A process that runs a job until this is dropped.
struct Process(Child);

/// An admitted call: when it was asked for, when that was known, and its amount.
#[derive(Clone, Copy, Debug)]
struct Admission {
    asked: i64,
    known: i64,
    amount: u64,
}

const SECOND: i64 = 1_000_000;
const PROCESSES: usize = 4;
/// How long the processes run, in microseconds: three windows, of 13 twelfths of a second each.
const RUN: i64 = 3_200_000;
const REQUESTS: u64 = 500;
const TOKENS: u64 = 50_000;
const BURST: u64 = 5_000;

async fn four_processes_at_full_speed_never_exceed_a_limit_and_use_it(setup: &mut Setup) {
    let watch = Stopwatch::start();
    let began = now();
    let starts_at = began + 700_000;
    let processes: Vec<_> = (0..PROCESSES)
        .map(|seed| Job::new("race", setup, seed, starts_at).start())
        .collect();
    let (mut requests, mut tokens) = (Vec::new(), Vec::new());
    for mut process in processes {
        for line in process.lines().await {
            let (kind, admission) = Admission::read(&line);
            match kind {
                "requests" => requests.push(admission),
                "tokens" => tokens.push(admission),
                other => panic!("{other}"),
            }
        }
    }
    // The processes could not use the time in which the machine ran none of them.
    let paused = now() - began - i64::try_from(watch.elapsed().as_micros()).unwrap();
    let run = (RUN - paused).max(SECOND);
    let most = most_in_any(SECOND, &requests);
    let ratio = ratio_of(REQUESTS, 0, run, &requests);
    let over = most_over_rate(TOKENS, &tokens);
    let bucket_ratio = ratio_of(TOKENS, BURST, run, &tokens);
    println!(
        "{}: {} calls, at most {most} of {REQUESTS} in any second, {ratio:.3} of what is allowed; \
         {} calls on a bucket, at most {over:.1} of {BURST} over its rate, {bucket_ratio:.3} of what is allowed",
        setup.mode,
        requests.len(),
        tokens.len()
    );
    assert!(most <= REQUESTS, "{most} in a second");
    assert!(over <= BURST as f64, "{over} over the rate");
    // Over 0.9 on an idle machine; on a busy one the processes admit calls later.
    assert!(ratio > 0.5 && bucket_ratio > 0.5, "{ratio} {bucket_ratio}");
}

/// The maximum that was certainly admitted in any interval of `period` microseconds.
fn most_in_any(period: i64, admissions: &[Admission]) -> u64 {
    let sums = admissions.iter().map(|first| {
        let within = admissions
            .iter()
            .filter(|one| one.asked >= first.asked && one.known < first.asked + period);
        within.map(|one| one.amount).sum()
    });
    sums.max().unwrap_or(0)
}

/// The maximum by which the amount admitted in any interval exceeds what leaks in it.
fn most_over_rate(per_second: u64, admissions: &[Admission]) -> f64 {
    let mut by_known = admissions.to_vec();
    by_known.sort_by_key(|one| one.known);
    let mut most = 0.0_f64;
    for first in admissions {
        let mut sum = 0;
        for one in by_known.iter().filter(|one| one.asked >= first.asked) {
            sum += one.amount;
            let leaks = (one.known - first.asked) as f64 * per_second as f64 / SECOND as f64;
            most = most.max(sum as f64 - leaks);
        }
    }
    most
}

/// The admitted ratio of what the rate and the burst allow in `run` microseconds.
fn ratio_of(per_second: u64, burst: u64, run: i64, admissions: &[Admission]) -> f64 {
    let sum: u64 = admissions.iter().map(|one| one.amount).sum();
    let most = burst as f64 + per_second as f64 * run as f64 / SECOND as f64;
    sum as f64 / most
}

async fn tokens_of_a_dead_process_are_refunded_and_its_requests_are_not(setup: &mut Setup) {
    if setup.mode == Mode::Leases {
        // The unspent rest of its lease is lost for a period, as documented.
        return;
    }
    let layer = mortal(setup.mode, setup.name, &setup.redis().await);
    let began = Instant::now();
    let died_at = reserve_and_die(setup).await;
    assert!(!admits(&layer, Prompt::of(500)).await);
    let back = eventually("the tokens are refunded", async || {
        admits(&layer, Prompt::of(1_000)).await
    });
    back.await;
    let took = died_at.elapsed();
    println!("{}: refunded {took:?} after the process died", setup.mode);
    assert!(began.elapsed() >= HOLD_FOR, "{:?}", began.elapsed());
    assert!(took < HOLD_FOR + LEASE + RECOVERY, "{took:?}");
    // One request was the dead process's, one the last call's.
    let requests = RateLimitLayer::for_callers().limit(Limit::requests(10).per_hour());
    let requests = unary(requests, setup.shared(&setup.redis().await, 2));
    assert_eq!(requests_left(&requests).await, 8);
}

async fn tokens_of_a_dead_process_are_refunded_without_a_call_in_time(setup: &mut Setup) {
    if setup.mode == Mode::Leases {
        return;
    }
    let layer = mortal(setup.mode, setup.name, &setup.redis().await);
    reserve_and_die(setup).await;
    sleep(HOLD_FOR + Duration::from_millis(1_500)).await;
    exactly_left(&layer, "somebody", 1_000).await;
}

const HOLD_FOR: Duration = Duration::from_millis(1_500);

fn mortal(mode: Mode, name: &str, redis: &Redis) -> RateLimitLayer<Unary> {
    let shared = mode.shared(redis, name, 2).hold_for(HOLD_FOR);
    let builder = RateLimitLayer::for_callers()
        .limit(Limit::tokens(1_000).per_hour())
        .limit(Limit::requests(10).per_hour());
    unary(builder, shared)
}

async fn reserve_and_die(setup: &Setup) -> Instant {
    let mut process = Job::new("reserve", setup, 0, now()).start();
    let line = process.line().await;
    assert_eq!(line.as_deref(), Some("reserved"));
    drop(process);
    Instant::now()
}

// === the processes ===

#[tokio::test]
async fn child_process() {
    // A no-op unless it runs in the child process.
    let Some(job) = Job::of_this_process() else {
        return;
    };
    // Only the limit is to decide here, however busy the machine is.
    let redis = connect(Redis::builder(&job.url).command_timeout(PATIENCE)).await;
    match job.what.as_str() {
        "race" => race(&job, &redis).await,
        "reserve" => {
            let layer = mortal(job.mode, &job.name, &redis);
            let service = layer.layer(service_fn(async |_: Prompt| {
                println!("{SAYS}reserved");
                std::future::pending::<Result<(), BoxError>>().await
            }));
            // The process is killed before it settles.
            let _ = timeout(PATIENCE, service.oneshot(Prompt::of(600))).await;
        }
        other => panic!("{other}"),
    }
}

async fn race(job: &Job, redis: &Redis) {
    let shared = || {
        let shared = job
            .mode
            .shared(redis, &job.name, PROCESSES.try_into().unwrap());
        shared.store_fallback(StoreFallback::FailClosed)
    };
    let second = Duration::from_secs(1);
    let requests = RateLimitLayer::for_callers().limit(Limit::requests(REQUESTS).per(second));
    let requests = unary(requests, shared());
    let tokens = RateLimitLayer::for_callers();
    let tokens = tokens.limit(Limit::tokens(TOKENS).per(second).bucket(BURST));
    let tokens = unary(tokens, shared());
    let wait = u64::try_from(job.starts_at - now()).unwrap_or(0);
    sleep(Duration::from_micros(wait)).await;
    let ends_at = job.starts_at + RUN;
    let mut tasks = JoinSet::new();
    for task in 0..3 {
        tasks.spawn(run("requests", requests.clone(), ends_at, Dice::new(task)));
        let dice = Dice::new(100 * job.seed + task);
        tasks.spawn(run("tokens", tokens.clone(), ends_at, dice));
    }
    for line in tasks.join_all().await.concat() {
        println!("{SAYS}{line}");
    }
}

async fn run(
    kind: &'static str,
    layer: RateLimitLayer<Unary>,
    ends_at: i64,
    mut dice: Dice,
) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let amount = match kind {
            "requests" => 1,
            _ => 1 + dice.below(200),
        };
        let prompt = Prompt::of(amount);
        let asked = now();
        if asked >= ends_at {
            return lines;
        }
        if admits(&layer, prompt).await {
            lines.push(format!("{kind} {asked} {} {amount}", now()));
        } else {
            // Yield to the other tasks of this process: a refusal may take no time at all.
            tokio::task::yield_now().await;
        }
    }
}

/// Prefix of a line for the test: the child's test harness writes to the same line.
const SAYS: &str = "\u{1}";

/// Microseconds of the wall clock, which the processes and the server have in common.
fn now() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "the clock that processes share")]
    let now = Timestamp::now();
    now.as_microsecond()
}

impl Job {
    fn new(what: &str, setup: &Setup, seed: usize, starts_at: i64) -> Self {
        Self {
            what: what.to_owned(),
            mode: setup.mode,
            name: setup.name.to_owned(),
            url: setup.url(),
            seed,
            starts_at,
        }
    }

    fn start(&self) -> Process {
        let Self {
            what,
            mode,
            name,
            url,
            seed,
            starts_at,
        } = self;
        let job = format!("{what} {mode} {name} {url} {seed} {starts_at}");
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["shared::processes::child_process", "--exact", "--nocapture"])
            .env(JOB, job)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        Process(child.unwrap())
    }

    fn of_this_process() -> Option<Self> {
        let job = std::env::var(JOB).ok()?;
        let mut words = job.split(' ');
        let mut next = || words.next().unwrap();
        let (what, mode, name, url) = (next(), next(), next(), next());
        Some(Self {
            what: what.to_owned(),
            mode: Mode::ALL
                .into_iter()
                .find(|one| one.to_string() == mode)
                .unwrap(),
            name: name.to_owned(),
            url: url.to_owned(),
            seed: next().parse().unwrap(),
            starts_at: next().parse().unwrap(),
        })
    }
}

impl Process {
    fn output(&mut self) -> BufReader<ChildStdout> {
        BufReader::new(self.0.stdout.take().unwrap())
    }

    /// The first line of output.
    async fn line(&mut self) -> Option<String> {
        let output = self.output();
        let line = spawn_blocking(move || said(output).next());
        timeout(PATIENCE, line).await.unwrap().unwrap()
    }

    /// All lines until the process ends.
    async fn lines(&mut self) -> Vec<String> {
        let output = self.output();
        let lines = spawn_blocking(move || said(output).collect());
        timeout(PATIENCE, lines).await.unwrap().unwrap()
    }
}

fn said(output: BufReader<ChildStdout>) -> impl Iterator<Item = String> {
    let lines = output.lines().map(Result::unwrap);
    lines.filter_map(|line| Some(line.split_once(SAYS)?.1.to_owned()))
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Admission {
    fn read(line: &str) -> (&str, Self) {
        let words: Vec<_> = line.split(' ').collect();
        let [kind, asked, known, amount] = words[..] else {
            panic!("{line}");
        };
        let admission = Self {
            asked: asked.parse().unwrap(),
            known: known.parse().unwrap(),
            amount: amount.parse().unwrap(),
        };
        (kind, admission)
    }
}
