//! The calendar day of a time zone, and when it ends.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jiff::{Timestamp, civil::Time, tz::TimeZone};
use tower_llm_core::ConfigError;

use crate::meter::{Today, nanos};

/// Reads the wall clock.
pub(crate) type WallClock = fn() -> Timestamp;

/// The days of a time zone.
///
/// The wall clock is read only once a day, so setting it in between does not move midnight.
pub(crate) struct Calendar {
    zone: TimeZone,
    wall_clock: WallClock,
    // A lock, because two threads that see a day end must not compute different ends of the next.
    today: Mutex<Today>,
}

impl Calendar {
    pub(crate) fn new(zone: &str, wall_clock: WallClock) -> Result<Self, ConfigError> {
        let found = TimeZone::get(zone);
        let zone = found.map_err(|_| {
            let reason = "there is no such time zone in the system's database";
            ConfigError::new("zone", zone, reason)
        })?;
        Ok(Self {
            zone,
            wall_clock,
            today: Mutex::default(),
        })
    }

    /// The day at `now_nanos`.
    pub(crate) fn today(&self, now_nanos: u64) -> Today {
        let mut today = self.today.lock().unwrap_or_else(PoisonError::into_inner);
        if now_nanos >= today.ends_nanos {
            let (number, left) = self.read();
            // The two clocks may disagree on when a day ends: the day continues until its date has changed. An earlier date
            // by more than a day means that the wall clock was wrong before; it begins a new day.
            let is_same = number + 1 == today.number || number == today.number;
            if !is_same {
                today.number = number.max(today.number + 1);
            }
            today.ends_nanos = now_nanos.saturating_add(nanos(left).max(1));
        }
        *today
    }

    /// The date as a number, and the time left of it.
    fn read(&self) -> (u32, Duration) {
        let now = (self.wall_clock)().to_zoned(self.zone.clone());
        let days = now
            .date()
            .to_datetime(Time::midnight())
            .to_zoned(TimeZone::UTC);
        let days = days.map_or(0, |date| date.timestamp().as_second() / 86_400);
        let number = u32::try_from(days).unwrap_or_default();
        let midnight = now
            .tomorrow()
            .and_then(|tomorrow| tomorrow.start_of_day())
            .map(|midnight| now.duration_until(&midnight));
        // Only the end of the calendar, in the year 9999, has no tomorrow.
        let left = midnight.ok().and_then(|left| Duration::try_from(left).ok());
        (number, left.unwrap_or(Duration::from_secs(86_400)))
    }
}

impl fmt::Debug for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calendar")
            .field("zone", &self.zone)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static WALL: Cell<Timestamp> = const { Cell::new(Timestamp::UNIX_EPOCH) };
    }

    const HOUR: u64 = 3_600_000_000_000;

    fn calendar(zone: &str, wall: &str) -> Calendar {
        set(wall);
        Calendar::new(zone, || WALL.get()).unwrap()
    }

    fn set(wall: &str) {
        WALL.set(wall.parse().unwrap());
    }

    #[test]
    fn a_day_ends_at_midnight_in_its_time_zone() {
        let calendar = calendar("America/Los_Angeles", "2026-11-22T06:00:00Z");
        let evening = calendar.today(5);
        assert_eq!(evening.ends_nanos, 5 + 2 * HOUR);
        assert_eq!(calendar.today(5 + 2 * HOUR - 1), evening);

        set("2026-11-22T08:00:00Z");
        let next = calendar.today(5 + 2 * HOUR);
        assert!(next.number > evening.number);
        assert_eq!(next.ends_nanos, 5 + 26 * HOUR);
    }

    #[test]
    fn days_are_as_long_as_they_are() {
        // The clocks go forward on 8 March 2026, and back on 1 November.
        let spring = calendar("America/Los_Angeles", "2026-03-08T08:00:00Z");
        assert_eq!(spring.today(0).ends_nanos, 23 * HOUR);
        let autumn = calendar("America/Los_Angeles", "2026-11-01T07:00:00Z");
        assert_eq!(autumn.today(0).ends_nanos, 25 * HOUR);
    }

    #[test]
    fn a_wall_clock_that_is_late_begins_no_second_day() {
        let calendar = calendar("UTC", "2026-12-31T23:00:00Z");
        let last = calendar.today(0);
        set("2026-12-31T23:59:59Z");
        let still = calendar.today(HOUR);
        assert_eq!(still.number, last.number);
        assert_eq!(still.ends_nanos, HOUR + 1_000_000_000);

        set("2027-01-01T00:00:00Z");
        let new = calendar.today(HOUR + 1_000_000_000);
        assert!(new.number > last.number);
        // Set back: it is still the new day.
        set("2026-12-31T12:00:00Z");
        assert_eq!(calendar.today(new.ends_nanos).number, new.number);
    }

    #[test]
    fn a_wall_clock_that_was_far_ahead_ends_no_days_to_come() {
        let calendar = calendar("UTC", "2027-12-31T12:00:00Z");
        let mut day = calendar.today(0);
        for wall in ["2026-12-31T00:00:00Z", "2027-01-01T00:00:00Z"] {
            set(wall);
            let next = calendar.today(day.ends_nanos);
            assert!(next.number > day.number);
            day = next;
        }
    }

    #[test]
    fn an_unknown_time_zone_is_refused() {
        let error = Calendar::new("Mars/Olympus", || WALL.get()).unwrap_err();
        assert_eq!((error.field(), error.value()), ("zone", "\"Mars/Olympus\""));
    }
}
