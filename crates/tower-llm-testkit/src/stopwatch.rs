//! Time as a test on a busy machine may judge it.

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

/// How often the heart beats. A test is off by no more than this.
const BEAT: Duration = Duration::from_millis(5);

/// Measures how long something takes on the real clock, less the time in which the machine ran nothing of this process.
///
/// Machines that tests share with others stand still for a second and more. A thread of the process beats every 5 ms; what a
/// beat is late by was no time in which anything could have been done.
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
    /// By how much all beats were late.
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

    /// What is lost until now, with that of a beat which has yet to come.
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
        // Who asks before it beats hears the same as who asks after it.
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
