use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, MissedTickBehavior};

use crate::{
    AlertEvent, Alerts, PriceTable, Recorder, Sink, Snapshot,
    books::{Books, Reading},
    record::Queue,
    rows::Rows,
};

/// Reads what a [`MonitorLayer`](crate::MonitorLayer) has counted; cheap to clone.
#[derive(Clone, Debug)]
pub struct MonitorHandle {
    shared: Arc<Shared>,
}

/// What all clones share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) rows: Rows,
    books: Mutex<Books>,
    gauges: Mutex<BTreeMap<&'static str, f64>>,
    alerts: Mutex<Alerts>,
    pub(crate) records: Option<Arc<Queue>>,
}

impl MonitorHandle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Returns what was counted until now.
    ///
    /// The window of the last minute has steps of five seconds. It needs a reading now and then: if the last one is longer than a
    /// minute ago, the window is as long as that.
    ///
    /// It takes some 50 microseconds for each row, and holds up calls for less than one.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.shared.snapshot(Instant::now())
    }

    /// Sets a number of the service's own, such as its memory, for the snapshot and for [`Measure::Gauge`](crate::Measure::Gauge).
    pub fn set_gauge(&self, name: &'static str, value: f64) {
        lock(&self.shared.gauges).insert(name, value);
    }

    /// Judges what was counted by the thresholds of [`MonitorBuilder::alerts`](crate::MonitorBuilder::alerts); returns the alerts
    /// that were raised or resolved since the last time. With the feature `tracing`, they are logged.
    ///
    /// Call it from one place, every few seconds; [`watch_alerts`](Self::watch_alerts) does.
    #[must_use]
    pub fn check(&self) -> Vec<AlertEvent> {
        let now = Instant::now();
        let snapshot = self.shared.snapshot(now);
        let events = lock(&self.shared.alerts).on(&snapshot, now);
        #[cfg(feature = "tracing")]
        events.iter().for_each(crate::span::alert);
        events
    }

    /// [Checks](Self::check) at this interval, for ever, and hands each event to `on_event`: to send it to a webhook, or a pager.
    ///
    /// Drop the future to stop it.
    pub async fn watch_alerts(&self, every: Duration, mut on_event: impl FnMut(&AlertEvent)) {
        let mut interval = tokio::time::interval(every.max(Duration::from_millis(1)));
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.check().iter().for_each(&mut on_event);
        }
    }

    /// Sets the metrics of the `metrics` facade to what was counted until now: call it before they are scraped.
    ///
    /// They go to the recorder that is installed, or to that of `metrics::with_local_recorder`. The crate's documentation lists them.
    #[cfg(feature = "metrics")]
    #[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
    pub fn publish(&self) {
        self.shared.publish(Instant::now());
    }

    /// Creates what writes the [records](crate::Record) to `sink`: run it in a task of its own. `now` is the clock for their dates,
    /// [`SystemTime::now`].
    ///
    /// `None` if the layer was built without [`records`](crate::MonitorBuilder::records).
    pub fn recorder<S: Sink>(&self, sink: S, now: fn() -> SystemTime) -> Option<Recorder<S>> {
        let queue = Arc::clone(self.shared.records.as_ref()?);
        Some(Recorder::new(queue, sink, now))
    }

    /// Returns the prices.
    #[must_use]
    pub fn prices(&self) -> &PriceTable {
        self.shared.rows.prices()
    }
}

impl Shared {
    pub(crate) fn new(rows: Rows, alerts: Alerts, records: Option<Queue>, now: Instant) -> Self {
        Self {
            rows,
            books: Mutex::new(Books::new(now)),
            gauges: Mutex::default(),
            alerts: Mutex::new(alerts),
            records: records.map(Arc::new),
        }
    }

    fn snapshot(&self, now: Instant) -> Snapshot {
        let mut books = lock(&self.books);
        let rows = self.rows.made();
        books.fold(&rows, now);
        let Reading {
            uptime,
            total,
            rows,
        } = books.read(&rows);
        Snapshot {
            uptime,
            total,
            rows,
            prices_as_of: self.rows.prices().as_of().to_owned(),
            gauges: lock(&self.gauges).clone(),
            records: self.records.as_ref().map(|queue| queue.stats()),
            alerts: lock(&self.alerts).raised(now),
        }
    }

    #[cfg(feature = "metrics")]
    fn publish(&self, now: Instant) {
        let mut books = lock(&self.books);
        let rows = self.rows.made();
        books.fold(&rows, now);
        for (_, row, in_flight, total) in books.each(&rows) {
            crate::export::row(&row.labels, in_flight, total);
        }
        drop(books);
        let records = self.records.as_ref().map(|queue| queue.stats());
        crate::export::others(&lock(&self.alerts).by_name(), records);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is whole before anything could panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
