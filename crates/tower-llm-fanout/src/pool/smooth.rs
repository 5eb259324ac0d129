//! Weighted round robin that spreads the turns of a target, as in nginx.
//!
//! With the weights 5, 1 and 1, a cycle is a a b a c a a, and not a a a a a b c.

use super::set::Set;

/// The turns of the targets of one group.
#[derive(Clone, Debug, Default)]
pub(crate) struct Smooth {
    /// By how much each target is due.
    due: Vec<i64>,
}

impl Smooth {
    /// Turns that go on from these.
    pub(crate) fn new(due: Vec<i64>) -> Self {
        Self { due }
    }

    /// By how much a target is due.
    pub(crate) fn due(&self, index: usize) -> i64 {
        self.due.get(index).copied().unwrap_or(0)
    }

    /// The next target that is not in `skip`.
    pub(crate) fn next(
        &mut self,
        weights: impl IntoIterator<Item = u32>,
        skip: &Set,
    ) -> Option<usize> {
        let mut total = 0;
        let mut best: Option<usize> = None;
        for (index, weight) in weights.into_iter().enumerate() {
            if self.due.len() == index {
                self.due.push(0);
            }
            if skip.contains(index) {
                continue;
            }
            total += i64::from(weight);
            self.due[index] += i64::from(weight);
            if best.is_none_or(|best| self.due[index] > self.due[best]) {
                best = Some(index);
            }
        }
        self.due[best?] -= total;
        best
    }

    /// The target that was next could not take its turn: all is as before.
    pub(crate) fn take_back(
        &mut self,
        index: usize,
        weights: impl IntoIterator<Item = u32>,
        skip: &Set,
    ) {
        let mut total = 0;
        for (index, weight) in weights.into_iter().enumerate() {
            if !skip.contains(index) {
                total += i64::from(weight);
                self.due[index] -= i64::from(weight);
            }
        }
        self.due[index] += total;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_the_turns_of_a_heavy_target() {
        let mut turns = Smooth::default();
        let cycle: Vec<_> = (0..14)
            .map(|_| turns.next([5, 1, 1], &Set::default()).unwrap())
            .collect();
        assert_eq!(cycle, [0, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn a_target_that_cannot_take_its_turn_has_no_part_in_the_cycle() {
        let (weights, mut turns) = ([3, 2, 1], Smooth::default());
        let mut counts = [0; 3];
        for _ in 0..30 {
            let mut skip = Set::default();
            loop {
                let index = turns.next(weights, &skip).unwrap();
                if index > 0 {
                    counts[index] += 1;
                    break;
                }
                turns.take_back(index, weights, &skip);
                skip.insert(index);
            }
        }
        assert_eq!(counts, [0, 20, 10]);
        // It does not claim later what it missed.
        let turns: Vec<_> = (0..6)
            .map(|_| turns.next(weights, &Set::default()).unwrap())
            .collect();
        assert_eq!(turns.iter().filter(|&&index| index == 0).count(), 3);
    }

    #[test]
    fn nothing_is_next_if_all_are_skipped() {
        let mut skip = Set::default();
        skip.insert(0);
        assert_eq!(Smooth::default().next([1], &skip), None);
        assert_eq!(Smooth::default().next([], &skip), None);
    }
}
