//! What has been counted, as it is read.
//!
//! The hot path adds to parts of rows. A reading moves what these hold into totals since the start, and into the steps of a
//! window that slides over the last minute. So it costs the calls nothing but a moment's lock on each part.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    rows::Row,
    snapshot::{RowSnapshot, Stats, Summary},
    tally::{Recent, Tally, Total},
};

/// How far the window reaches back.
pub(crate) const WINDOW: Duration = Duration::from_secs(60);
/// Readings within this time are one step of the window.
const STEP: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Books {
    built_at: Instant,
    folded_at: Instant,
    /// By the numbers of the rows.
    books: Vec<Book>,
    /// Never empty; the last one is still added to.
    steps: VecDeque<Step>,
    /// Swapped for a part's while that is read.
    spare: Box<Tally>,
}

/// A row since the start.
#[derive(Debug)]
struct Book {
    /// Calls that have begun.
    begun: u64,
    total: Total,
}

#[derive(Debug)]
struct Step {
    from: Instant,
    to: Instant,
    rows: BTreeMap<usize, Recent>,
}

/// The state of all rows.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) uptime: Duration,
    pub(crate) total: Summary,
    pub(crate) rows: Vec<RowSnapshot>,
}

impl Books {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            built_at: now,
            folded_at: now,
            books: Vec::new(),
            steps: VecDeque::from([Step::new(now)]),
            spare: Box::new(Tally::new()),
        }
    }

    /// Moves what the rows have counted into the totals and the window.
    pub(crate) fn fold(&mut self, rows: &[Arc<Row>], now: Instant) {
        let now = now.max(self.folded_at);
        self.steps
            .retain(|step| now.duration_since(step.to) < WINDOW);
        let is_over = |step: &Step| now.duration_since(step.from) > STEP;
        if self.steps.back().is_none_or(is_over) {
            self.steps.push_back(Step::new(self.folded_at));
        }
        let step = self.steps.back_mut().expect("it was pushed just now");
        step.to = now;
        self.folded_at = now;
        self.books.resize_with(rows.len(), Book::new);
        for (number, (row, book)) in rows.iter().zip(&mut self.books).enumerate() {
            let mut begun = 0;
            let mut recent = step.rows.remove(&number).unwrap_or_default();
            for stripe in row.stripes() {
                let mut tally = stripe.tally();
                mem::swap(&mut *tally, &mut self.spare);
                // While none can end, or a call that has come and gone since would count as in flight.
                begun += stripe.begun();
                drop(tally);
                self.spare.drain(&mut book.total, &mut recent);
            }
            book.begun = begun;
            if !recent.is_empty() {
                step.rows.insert(number, recent);
            }
        }
    }

    /// Hands out each row with its calls in flight, as of the last [`fold`](Self::fold) of the same rows.
    pub(crate) fn each<'a>(
        &'a self,
        rows: &'a [Arc<Row>],
    ) -> impl Iterator<Item = (usize, &'a Row, u64, &'a Total)> {
        let rows = rows.iter().zip(&self.books).enumerate();
        rows.filter_map(|(number, (row, Book { begun, total }))| {
            let in_flight = begun - total.counters.calls();
            let is_used = *begun > 0 || total.counters.attempts() > 0;
            is_used.then_some((number, &**row, in_flight, total))
        })
    }

    /// The state as of the last [`fold`](Self::fold), of the same rows.
    pub(crate) fn read(&self, rows: &[Arc<Row>]) -> Reading {
        let uptime = self.folded_at.duration_since(self.built_at);
        let from = self.steps.front().map_or(self.folded_at, |step| step.from);
        let window = self.folded_at.duration_since(from).max(WINDOW.min(uptime));
        let mut all = (0, Total::new(), Recent::default());
        let mut read = Vec::new();
        for (number, row, in_flight, total) in self.each(rows) {
            let mut recent = Recent::default();
            for of_step in self.steps.iter().filter_map(|step| step.rows.get(&number)) {
                recent.merge(of_step);
            }
            all.0 += in_flight;
            all.1.merge(total);
            all.2.merge(&recent);
            let summary = summary(in_flight, total, uptime, &recent, window);
            read.push(RowSnapshot::new(&row.labels, summary));
        }
        let (in_flight, total, recent) = &all;
        Reading {
            uptime,
            total: summary(*in_flight, total, uptime, recent, window),
            rows: read,
        }
    }
}

impl Book {
    fn new() -> Self {
        Self {
            begun: 0,
            total: Total::new(),
        }
    }
}

impl Step {
    fn new(from: Instant) -> Self {
        Self {
            from,
            to: from,
            rows: BTreeMap::new(),
        }
    }
}

fn summary(
    in_flight: u64,
    total: &Total,
    uptime: Duration,
    recent: &Recent,
    window: Duration,
) -> Summary {
    Summary {
        in_flight,
        since_start: Stats::of_total(total, uptime),
        recent: Stats::of_recent(recent, window),
    }
}
