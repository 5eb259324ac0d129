//! A set of targets of one group.

/// A set of indices. It allocates only beyond 64 of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Set {
    first: u64,
    rest: Vec<u64>,
}

impl Set {
    pub(crate) fn insert(&mut self, index: usize) {
        let (word, bit) = (index / 64, 1 << (index % 64));
        if word == 0 {
            self.first |= bit;
            return;
        }
        if self.rest.len() < word {
            self.rest.resize(word, 0);
        }
        self.rest[word - 1] |= bit;
    }

    pub(crate) fn contains(&self, index: usize) -> bool {
        let (word, bit) = (index / 64, 1 << (index % 64));
        let bits = match word {
            0 => self.first,
            _ => self.rest.get(word - 1).copied().unwrap_or(0),
        };
        bits & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_inserted_and_nothing_else() {
        let mut set = Set::default();
        let inserted = [0, 1, 63, 64, 130, 191, 192];
        inserted.iter().for_each(|&index| set.insert(index));
        let held: Vec<_> = (0..300).filter(|&index| set.contains(index)).collect();
        assert_eq!(held, inserted);
    }
}
