//! What goes to the log, and how much of it.
//!
//! One provider that is down, or one caller without a key, would fill a log with thousands of equal lines. So each kind of
//! line is written at most ten times in ten seconds, and what is left out is counted and said.

use std::{
    collections::HashMap,
    env,
    fmt::{self, Write as _},
    io, mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tracing::{
    Event, Level, Subscriber,
    callsite::Identifier,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{
    Layer as _,
    filter::Targets,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Format, Writer},
        layer,
    },
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

/// Lines of one kind in one [`PERIOD`].
const BURST: u32 = 10;

const PERIOD: Duration = Duration::from_secs(10);

/// What tells kinds apart that the same code writes: fields whose values are closed sets.
const KIND_FIELDS: [&str; 4] = ["provider", "layer", "outcome", "code"];

/// Where lines that report what was left out come from: they are not counted themselves.
const TARGET: &str = "gateway::log";

/// The log of this process; shared by its clones.
#[derive(Clone, Debug, Default)]
pub struct Log {
    // A std mutex: it is held for a look-up and never across an await.
    kinds: Arc<Mutex<HashMap<Kind, Count>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    callsite: Identifier,
    /// The fields that tell kinds apart, as they are shown.
    labels: String,
}

#[derive(Debug)]
struct Count {
    message: String,
    since: Instant,
    written: u32,
    left_out: u64,
}

impl Log {
    /// Writes what happens to standard error from now on, as `RUST_LOG` says; `info` unless set.
    pub fn start() -> Self {
        let log = Self::default();
        let set = env::var("RUST_LOG").unwrap_or_default();
        let parsed = match set.trim() {
            "" => Ok(default_level()),
            set => set.parse(),
        };
        let wrong = parsed.as_ref().err().map(ToString::to_string);
        let targets = parsed.unwrap_or_else(|_| default_level());
        let lines = layer()
            .with_writer(io::stderr)
            .event_format(Limited(log.clone()))
            .with_filter(targets);
        tracing_subscriber::registry().with(lines).init();
        if let Some(error) = wrong {
            tracing::warn!(value = ?set, error, "RUST_LOG is not understood and counts as `info`");
        }
        log
    }

    /// Says what has been left out since last time.
    pub fn report(&self) {
        let mut left_out = Vec::new();
        for (kind, count) in self.lock().iter_mut() {
            if count.left_out > 0 {
                let lines = mem::take(&mut count.left_out);
                left_out.push((lines, format!("{}{}", count.message, kind.labels)));
            }
        }
        // Without the lock: each of these lines comes by here too.
        for (lines, like) in left_out {
            tracing::warn!(target: TARGET, lines, like, "lines were left out");
        }
    }

    /// Reports again and again; never ends.
    pub async fn report_regularly(&self) {
        loop {
            tokio::time::sleep(PERIOD).await;
            self.report();
        }
    }

    fn admits(&self, line: Line, callsite: Identifier, now: Instant) -> bool {
        let Line { message, labels } = line;
        let mut kinds = self.lock();
        let count = kinds
            .entry(Kind { callsite, labels })
            .or_insert_with(|| Count::new(message, now));
        count.admits(now)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Kind, Count>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn default_level() -> Targets {
    Targets::new().with_default(LevelFilter::INFO)
}

/// Formats the lines that the log admits, and nothing of the others.
///
/// A filter for each event would be the right tool, but one that rejects an event leaves its registry in a state in which
/// the next one is refused too.
struct Limited(Log);

impl<S, N> FormatEvent<S, N> for Limited
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        cx: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        // Finer levels show everything.
        let is_limited = *metadata.level() <= Level::INFO && metadata.target() != TARGET;
        if is_limited {
            let mut line = Line::default();
            event.record(&mut line);
            if !self.0.admits(line, metadata.callsite(), Instant::now()) {
                return Ok(());
            }
        }
        Format::default().format_event(cx, writer, event)
    }
}

impl Count {
    fn new(message: String, now: Instant) -> Self {
        Self {
            message,
            since: now,
            written: 0,
            left_out: 0,
        }
    }

    fn admits(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= PERIOD {
            (self.since, self.written) = (now, 0);
        }
        if self.written < BURST {
            self.written += 1;
            return true;
        }
        self.left_out += 1;
        false
    }
}

/// What is read of an event.
#[derive(Default)]
struct Line {
    message: String,
    labels: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else if KIND_FIELDS.contains(&field.name()) {
            let _ = write!(self.labels, " {}={value:?}", field.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_in_ten_seconds_and_the_others_are_counted() {
        let start = Instant::now();
        let mut count = Count::new(String::new(), start);
        let admitted = (0..100).filter(|_| count.admits(start)).count();
        assert_eq!((admitted, count.left_out), (10, 90));
        let later = |millis| start + Duration::from_millis(millis);
        assert!(!count.admits(later(9_999)));
        assert!(count.admits(later(10_000)));
        assert_eq!(count.left_out, 91);
    }

    #[test]
    fn events_are_grouped_by_their_subject() {
        let log = Log::default();
        let written = Arc::new(Mutex::new(0));
        let counter = Arc::clone(&written);
        let lines = layer()
            .with_writer(move || Lines(Arc::clone(&counter)))
            .event_format(Limited(log.clone()))
            .with_filter(default_level());
        let subscriber = tracing_subscriber::registry().with(lines);
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..50 {
                for provider in ["one", "two"] {
                    tracing::warn!(provider, number, "refused");
                }
                tracing::info!("another kind");
                tracing::debug!("not wanted");
            }
            assert_eq!(*written.lock().unwrap(), 30);
            let left_out: Vec<u64> = log.lock().values().map(|count| count.left_out).collect();
            assert_eq!(left_out, [40; 3]);
            log.report();
            assert_eq!(*written.lock().unwrap(), 33);
            // There is nothing more to say.
            log.report();
            assert_eq!(*written.lock().unwrap(), 33);
        });
    }

    /// Counts the lines that are written.
    struct Lines(Arc<Mutex<usize>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            *self.0.lock().unwrap() += bytes.iter().filter(|byte| **byte == b'\n').count();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
