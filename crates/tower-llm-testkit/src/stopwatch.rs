//! Elapsed time that a test on a busy machine can judge.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the machine's own clock is what is measured"
)]

use std::{
    sync::{Arc, LazyLock, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// The heartbeat's period. A measurement is off by at most this.
const BEAT: Duration = Duration::from_millis(5);

/// Measures real time, without the time in which the machine ran nothing of this process.
///
/// A shared machine can stop a process for a second and more. A thread of the process beats every 5 ms; the time by which
/// a beat is late is not counted, because nothing could run in it.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch {
    began: Instant,
    lost: Duration,
}

impl Stopwatch {
    pub fn start() -> Self {
        let began = Instant::now();
        Self {
            began,
            lost: HEART.lost(began),
        }
    }

    pub fn elapsed(&self) -> Duration {
        let now = Instant::now();
        let lost = HEART.lost(now).saturating_sub(self.lost);
        (now - self.began).saturating_sub(lost)
    }
}

#[derive(Debug)]
struct Heart(Mutex<Pulse>);

#[derive(Debug)]
struct Pulse {
    last: Instant,
    /// The time by which all beats together were late.
    lost: Duration,
}

impl Pulse {
    fn late(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last + BEAT)
    }
}

impl Heart {
    fn beat(&self) {
        let mut pulse = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let late = pulse.late(now);
        pulse.lost += late;
        pulse.last = now;
    }

    /// The time lost so far, including that of a beat which is overdue.
    fn lost(&self, now: Instant) -> Duration {
        let pulse = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pulse.lost + pulse.late(now)
    }
}

static HEART: LazyLock<Arc<Heart>> = LazyLock::new(|| {
    let heart = Arc::new(Heart(Mutex::new(Pulse {
        last: Instant::now(),
        lost: Duration::ZERO,
    })));
    let beating = Arc::clone(&heart);
    thread::spawn(move || {
        loop {
            thread::sleep(BEAT);
            beating.beat();
        }
    });
    heart
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_beat_is_late_by_is_not_counted() {
        let now = Instant::now();
        let heart = Heart(Mutex::new(Pulse {
            last: now,
            lost: Duration::from_secs(1),
        }));
        assert_eq!(heart.lost(now + BEAT), Duration::from_secs(1));
        let stood_still = now + BEAT + Duration::from_secs(2);
        assert_eq!(heart.lost(stood_still), Duration::from_secs(3));
        // The answer is the same just before a late beat and just after it.
        heart.0.lock().unwrap().last -= Duration::from_secs(2);
        heart.beat();
        let after = heart.lost(Instant::now());
        assert!(after >= Duration::from_secs(3) - BEAT, "{after:?}");
    }

    #[test]
    fn time_that_passes_is_counted() {
        let (watch, began) = (Stopwatch::start(), Instant::now());
        while watch.elapsed() < Duration::from_millis(50) {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(began.elapsed() + BEAT >= Duration::from_millis(50));
    }
}
