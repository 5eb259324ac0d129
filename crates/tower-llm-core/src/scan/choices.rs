//! Whether every choice of a stream has finished.

/// Maximum number of distinct choices; further ones count as the last.
const MOST: u64 = 64;

/// The choices, or Gemini's candidates, that have arrived.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Choices {
    seen: u64,
    finished: u64,
    /// The choice that is being read: its members come in any order.
    index: u64,
    has_finished: bool,
}

impl Choices {
    pub(super) fn index(&mut self, index: u64) {
        self.index = index.min(MOST - 1);
    }

    pub(super) fn finish(&mut self) {
        self.has_finished = true;
    }

    /// The choice that was being read has ended.
    pub(super) fn close(&mut self) {
        let bit = 1 << self.index;
        self.seen |= bit;
        if self.has_finished {
            self.finished |= bit;
        }
        self.abandon();
    }

    /// The event ended inside a choice: nothing is known of it.
    pub(super) fn abandon(&mut self) {
        self.index = 0;
        self.has_finished = false;
    }

    pub(super) fn are_any(&self) -> bool {
        self.seen != 0
    }

    /// How many have a finish reason.
    pub(super) fn finished(&self) -> u32 {
        self.finished.count_ones()
    }

    /// Whether one of them has no finish reason yet. The one that is being read may have told its own already.
    pub(super) fn lack_a_reason(&self) -> bool {
        let read = u64::from(self.has_finished) << self.index;
        self.seen & !(self.finished | read) != 0
    }

    /// Whether there are any, and each has a finish reason.
    pub(super) fn have_finished(&self) -> bool {
        self.seen != 0 && self.seen & !self.finished == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(choices: &[(u64, bool)]) -> bool {
        let mut all = Choices::default();
        for &(index, has_finished) in choices {
            if has_finished {
                all.finish();
            }
            all.index(index);
            all.close();
        }
        all.have_finished()
    }

    #[test]
    fn all_choices_that_came_must_finish() {
        assert!(!read(&[]));
        assert!(!read(&[(0, false)]));
        assert!(read(&[(0, false), (0, true)]));
        assert!(!read(&[(0, false), (1, false), (0, true)]));
        assert!(read(&[(0, false), (1, true), (0, true)]));
        // What comes after a choice's end does not reopen it.
        assert!(read(&[(0, true), (0, false)]));
    }

    #[test]
    fn a_reason_counts_before_its_choice_has_been_read() {
        let mut all = Choices::default();
        all.close();
        assert!(all.lack_a_reason());
        all.finish();
        assert!(!all.lack_a_reason());
        // Of several, each must have one.
        all.index(1);
        assert!(all.lack_a_reason());
    }

    #[test]
    fn a_choice_far_beyond_is_still_one() {
        assert!(!read(&[(0, true), (u64::MAX, false)]));
        assert!(read(&[(0, true), (u64::MAX, true)]));
    }
}
