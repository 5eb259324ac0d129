//! The wait that an error's text names: "Please try again in 6m0s."
//!
//! Some providers write the time nowhere else. The text is read while it passes; only the few bytes after the words that
//! announce a time are stored.

use std::time::Duration;

use super::response_headers::MAX_RETRY_AFTER;

/// The words before a time, in lower case.
const ANNOUNCEMENTS: [&[u8]; 4] = [b"try again in ", b"retry in ", b"retry after ", b"wait "];

/// The longest of them.
const LONGEST: usize = 13;

/// Longest text that names a time: `1 hour 16 minutes 0.667 seconds`.
const LONGEST_TIME: usize = 40;

/// Maximum number of bytes read of one text: an error page may be long.
const MAX_READ: usize = 4096;

#[derive(Clone, Copy, Debug)]
pub(super) struct RetryHint {
    /// The last bytes that passed, until a time is announced.
    recent: [u8; LONGEST],
    time: [u8; LONGEST_TIME],
    len: usize,
    was_announced: bool,
    read: usize,
}

impl Default for RetryHint {
    fn default() -> Self {
        Self {
            recent: [0; LONGEST],
            time: [0; LONGEST_TIME],
            len: 0,
            was_announced: false,
            read: 0,
        }
    }
}

impl RetryHint {
    /// Reads the next piece of the text.
    pub(super) fn feed(&mut self, piece: &[u8]) {
        let left = MAX_READ - self.read;
        for &byte in &piece[..piece.len().min(left)] {
            self.read += 1;
            self.byte(byte.to_ascii_lowercase());
        }
    }

    fn byte(&mut self, byte: u8) {
        if self.was_announced {
            if let Some(slot) = self.time.get_mut(self.len) {
                *slot = byte;
                self.len += 1;
            }
            // "wait for the next release": the announcement was none, and another may follow.
            if self.len == 1 && !byte.is_ascii_digit() {
                self.was_announced = false;
                self.len = 0;
            }
            return;
        }
        self.recent.rotate_left(1);
        self.recent[LONGEST - 1] = byte;
        self.was_announced = ANNOUNCEMENTS
            .iter()
            .any(|words| self.recent.ends_with(words));
    }

    /// Returns the wait, if a time was named.
    pub(super) fn wait(&self) -> Option<Duration> {
        parse(std::str::from_utf8(&self.time[..self.len]).ok()?)
    }
}

/// The sum of the times that `text` begins with: `6m0s`, `1.2s`, `26 seconds`, `1h16m0.667s`.
fn parse(mut text: &str) -> Option<Duration> {
    let mut sum = None;
    loop {
        text = text.trim_start();
        let digits = text
            .find(|char: char| !char.is_ascii_digit() && char != '.')
            .unwrap_or(text.len());
        let Ok(number) = text[..digits].parse::<f64>() else {
            return sum;
        };
        text = text[digits..].trim_start();
        let letters = text
            .find(|char: char| !char.is_ascii_alphabetic())
            .unwrap_or(text.len());
        let unit = match &text[..letters] {
            "ms" | "millisecond" | "milliseconds" => 0.001,
            "s" | "sec" | "secs" | "second" | "seconds" => 1.0,
            "m" | "min" | "mins" | "minute" | "minutes" => 60.0,
            "h" | "hr" | "hrs" | "hour" | "hours" => 3_600.0,
            "d" | "day" | "days" => 86_400.0,
            _ => return sum,
        };
        text = &text[letters..];
        let time = Duration::try_from_secs_f64(number * unit).ok()?;
        sum = Some(
            sum.unwrap_or(Duration::ZERO)
                .saturating_add(time)
                .min(MAX_RETRY_AFTER),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(text: &str) -> Option<Duration> {
        let mut whole = RetryHint::default();
        whole.feed(text.as_bytes());
        let mut by_bytes = RetryHint::default();
        for byte in text.as_bytes().chunks(1) {
            by_bytes.feed(byte);
        }
        assert_eq!(whole.wait(), by_bytes.wait(), "{text}");
        whole.wait()
    }

    #[test]
    fn a_time_is_read_in_every_spelling() {
        for (text, millis) in [
            (
                "Rate limit reached. Please try again in 6m0s. Visit the page.",
                360_000,
            ),
            ("Please try again in 1.2s.", 1_200),
            ("Please try again in 20ms.", 20),
            ("try again in 1h16m0.667s", 4_560_667),
            ("Please retry after 26 seconds.", 26_000),
            ("Please retry in 36.5s.", 36_500),
            ("TRY AGAIN IN 2 MINUTES", 120_000),
            (
                "Please wait 1 hour 5 minutes before the next call",
                3_900_000,
            ),
            ("do not wait for it, but try again in 3s", 3_000),
        ] {
            assert_eq!(wait(text), Some(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn a_text_without_a_time_names_none() {
        for text in [
            "",
            "try again later",
            "try again in a moment",
            "try again in 5",
            "try again in 5 apples",
            "retry after",
            "6m0s",
        ] {
            assert_eq!(wait(text), None, "{text}");
        }
    }

    #[test]
    fn no_more_than_a_month_is_believed_and_no_more_than_a_page_is_read() {
        assert_eq!(wait("try again in 99999999999 days"), Some(MAX_RETRY_AFTER));
        let far = format!("{}try again in 3s", " ".repeat(MAX_READ));
        assert_eq!(wait(&far), None);
    }
}
