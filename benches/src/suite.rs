//! Measuring, and writing down what was measured.
//!
//! What is taken is the time that a thread has the processor, so that what else the machine does is not in the figures.
//! A thread that sleeps because another holds a lock has none either: with two threads, that flatters what blocks.

use std::{
    cell::LazyCell,
    env,
    fs::{self, File, OpenOptions},
    hint::black_box,
    io::Write,
    path::PathBuf,
    sync::Barrier,
    thread,
    time::Duration,
};

use cpu_time::ThreadTime;
use criterion::{
    BenchmarkId, Criterion, SamplingMode, Throughput,
    measurement::{Measurement, WallTime},
};

use crate::alloc::{Allocated, allocated_by};

/// Samples of each figure, whose median it is.
const SAMPLES: usize = 40;

/// Runs that allocations are counted over, after as many that are not.
const COUNTED: u64 = 64;

/// One suite: times its subjects with criterion and appends a row for each to `target/bench/<name>.jsonl`.
pub struct Suite {
    name: &'static str,
    criterion: Criterion,
    rows: File,
}

/// One question: what all its subjects are asked to do.
#[derive(Clone, Debug)]
pub struct Case {
    name: String,
    calls: u64,
    bytes: Option<u64>,
}

impl Case {
    /// A case whose figure is the time of one run.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            calls: 1,
            bytes: None,
        }
    }

    /// Makes the figure the time of one of `calls` that are made in a run, such as the frames of a body.
    #[must_use]
    pub fn calls(self, calls: usize) -> Self {
        let calls = calls as u64;
        Self { calls, ..self }
    }

    /// Shows how fast the `bytes` go by that are read in a run.
    #[must_use]
    pub fn bytes(self, bytes: usize) -> Self {
        let bytes = Some(bytes as u64);
        Self { bytes, ..self }
    }
}

impl Suite {
    /// The suite of the bench target `name`.
    ///
    /// # Panics
    ///
    /// If its file cannot be opened.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench"));
        fs::create_dir_all(&folder).expect("the folder of the rows can be made");
        let rows = OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.join(format!("{name}.jsonl")))
            .expect("the file of the rows can be opened");
        Self {
            name,
            criterion: Criterion::default()
                .sample_size(SAMPLES)
                .warm_up_time(Duration::from_millis(400))
                .measurement_time(Duration::from_millis(1_200))
                .configure_from_args(),
            rows,
        }
    }

    /// Measures one subject by one thread, and by two that share what `make` has in common; returns the median
    /// of the first in ns, if it was not filtered out.
    ///
    /// `make` gives each thread its own routine: a clone of one service, the same key. The figure of two threads is
    /// the time of a call as the slower one sees it.
    ///
    /// `make` is not called for what is filtered out: what is dear to set up belongs into a `LazyLock` that it forces.
    ///
    /// # Panics
    ///
    /// If the rows cannot be written, or the routine panics because an answer was wrong.
    pub fn subject<F, R>(
        &mut self,
        case: &Case,
        subject: &str,
        make: impl Fn() -> F + Sync,
    ) -> Option<f64>
    where
        F: FnMut() -> R,
    {
        let allocated = LazyCell::new(|| allocated_by_one(make()));
        let one = self.measure(case, subject, 1, &allocated, |runs| time(runs, &mut make()));
        self.measure(case, subject, 2, &allocated, |runs| time_two(runs, &make));
        one
    }

    /// Writes down a figure that is not the time of a call, such as a size or a ratio; returns it, if it was not filtered out.
    ///
    /// # Panics
    ///
    /// If the row cannot be written.
    pub fn figure(
        &mut self,
        case: &str,
        subject: &str,
        unit: &str,
        value: impl FnOnce() -> f64,
    ) -> Option<f64> {
        if !is_wanted(
            &format!("{}/{case}/{subject}", self.name),
            env::args().skip(1),
        ) {
            return None;
        }
        let value = value();
        let row = serde_json::json!({
            "suite": self.name,
            "case": case,
            "subject": subject,
            "unit": unit,
            "value": round(value),
        });
        println!("{row}\n");
        writeln!(self.rows, "{row}").expect("the row can be written");
        Some(value)
    }

    fn measure(
        &mut self,
        case: &Case,
        subject: &str,
        threads: usize,
        allocated: &LazyCell<Allocated, impl FnOnce() -> Allocated>,
        mut run: impl FnMut(u64) -> Elapsed,
    ) -> Option<f64> {
        let id = match threads {
            1 => BenchmarkId::new(subject, "1 thread"),
            _ => BenchmarkId::new(subject, format!("{threads} threads")),
        };
        let mut ns_per_run = Vec::new();
        let mut shares = Vec::new();
        let group = format!("{}/{}", self.name, case.name);
        let mut group = self.criterion.benchmark_group(group);
        // Samples of one length, so that two threads meet as often in the first as in the last.
        group.sampling_mode(SamplingMode::Flat);
        group.throughput(match case.bytes {
            Some(bytes) => Throughput::Bytes(bytes * threads as u64),
            None => Throughput::Elements(case.calls * threads as u64),
        });
        group.bench_function(id, |bencher| {
            // Outside of what is timed as the warm-up, which it would end if setting up takes long.
            LazyCell::force(allocated);
            bencher.iter_custom(|runs| {
                let Elapsed { cpu, wall } = run(runs);
                ns_per_run.push(cpu.as_secs_f64() * 1e9 / runs as f64);
                shares.push(cpu.as_secs_f64() / wall.as_secs_f64());
                cpu
            });
        });
        group.finish();
        // The warm-up comes first and is no sample; without a filter's or a test run's leave there are none at all.
        let warm_up = ns_per_run.len().checked_sub(SAMPLES)?;
        let ns = median(&mut ns_per_run[warm_up..]);
        let share = median(&mut shares[warm_up..]);
        if threads > 1 && share < 0.9 {
            let percent = share * 1e2;
            println!(
                "the threads ran {percent:.0} % of the time: they blocked, or met less often than they should"
            );
        }
        let allocated = **allocated;
        let per_call = |sum: f64| sum / case.calls as f64;
        let row = serde_json::json!({
            "suite": self.name,
            "case": case.name,
            "subject": subject,
            "threads": threads,
            "ns_per_call": round(per_call(ns)),
            "allocs_per_call": round(per_call(allocated.times as f64 / COUNTED as f64)),
            "bytes_per_call": round(per_call(allocated.bytes as f64 / COUNTED as f64)),
        });
        println!("{row}\n");
        writeln!(self.rows, "{row}").expect("the row can be written");
        Some(ns)
    }
}

/// The name of the crate `name` as a peer: with the version it is built in.
///
/// # Panics
///
/// If there is not just one version of it in the lock file.
#[must_use]
pub fn peer(name: &str) -> String {
    const LOCK: &str = include_str!("../../Cargo.lock");
    let start = format!("name = \"{name}\"\nversion = \"");
    let mut versions = LOCK.split(&start).skip(1);
    let version = versions.next().and_then(|rest| rest.split('"').next());
    assert_eq!(versions.next(), None, "several versions of {name}");
    format!("{name} {}", version.expect("a crate in the lock file"))
}

/// Whether a figure is to be taken, by the arguments that criterion reads for its own: `cargo bench` says `--bench`, and a
/// filter is a part of the name.
fn is_wanted(name: &str, args: impl Iterator<Item = String>) -> bool {
    let (options, filters): (Vec<_>, Vec<_>) = args.partition(|arg| arg.starts_with('-'));
    let is_run = options.iter().any(|option| option == "--bench");
    is_run && filters.last().is_none_or(|filter| name.contains(filter))
}

/// How long the runs of a sample took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Elapsed {
    cpu: Duration,
    wall: Duration,
}

fn time<R>(runs: u64, routine: &mut impl FnMut() -> R) -> Elapsed {
    let wall = WallTime.start();
    let cpu = ThreadTime::now();
    for _ in 0..runs {
        black_box(routine());
    }
    Elapsed {
        cpu: cpu.elapsed(),
        wall: WallTime.end(wall),
    }
}

fn time_two<F, R>(runs: u64, make: &(impl Fn() -> F + Sync)) -> Elapsed
where
    F: FnMut() -> R,
{
    let barrier = Barrier::new(2);
    let run = || {
        let mut routine = make();
        black_box(routine());
        barrier.wait();
        time(runs, &mut routine)
    };
    thread::scope(|scope| {
        let other = scope.spawn(run);
        let mine = run();
        mine.max(other.join().expect("the routine does not panic"))
    })
}

fn allocated_by_one<R>(mut routine: impl FnMut() -> R) -> Allocated {
    let mut runs = || {
        for _ in 0..COUNTED {
            black_box(routine());
        }
    };
    runs();
    allocated_by(runs)
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    let middle = samples.len() / 2;
    match samples.len() % 2 {
        0 => f64::midpoint(samples[middle - 1], samples[middle]),
        _ => samples[middle],
    }
}

/// Three digits after the point: less than that is noise, and none of it is a picosecond's.
fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.5);
    }

    #[test]
    fn figures_are_taken_by_bench_alone_and_by_a_part_of_their_name() {
        let is_wanted =
            |args: &[&str]| is_wanted("cache/memory/lru", args.iter().map(ToString::to_string));
        assert!(is_wanted(&["--bench"]));
        assert!(is_wanted(&["memory", "--bench"]));
        assert!(!is_wanted(&["hit", "--bench"]));
        assert!(!is_wanted(&["--test"]));
    }

    #[test]
    fn a_peer_is_named_with_its_version() {
        let name = peer("tower-service");
        assert!(name.starts_with("tower-service 0.3."), "{name}");
    }

    #[test]
    fn two_threads_both_do_all_runs() {
        let runs = std::sync::atomic::AtomicU64::new(0);
        let make = || || runs.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        time_two(10, &make);
        assert_eq!(runs.into_inner(), 22);
    }
}
